"""`BatchSharding`: how inputs, variables and outputs of a compiled function lie on a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seqbridge._interface import Inputs, Keywords
from seqbridge._sharding.placement import as_auto, axes_of, batch_sharding, put
from seqbridge._state import Buffer, Stateful, Tracer, Variable


class BatchSharding:
    """The layout of a compiled function's inputs, variables and outputs on a mesh.

    Args:
        mesh: The mesh.
        batch_axis: The axis, or axes, over which the batch is split.
        batched: Arguments, by name or position, whose arrays are split along their first dimension
            whatever it is.
        replicated: Those whose arrays are not, even if they are as long as the batch.
        uneven: What happens to a batch that the devices can't divide: `"auto"`, it is computed all
            the same; or `"error"`.

    Raises:
        ValueError: The mesh has no such axis.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch_axis: str | tuple[str, ...],
        batched: Iterable[str | int],
        replicated: Iterable[str | int],
        uneven: str,
    ):
        self.mesh = as_auto(mesh)
        self._rows, self._parts = batch_sharding(self.mesh, batch_axis)
        self.axes = tuple(axes_of(self._rows.spec))
        self._batched = frozenset(batched)
        self._replicated = frozenset(replicated)
        self._uneven = uneven
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self.many = self.mesh.size > 1

    def inputs(
        self, args: Inputs, keywords: Keywords
    ) -> tuple[tuple[Any, ...], dict[str, Any], int]:
        """Return the arguments with their arrays in place, and the size of the batch.

        The size is that of the first array.

        Raises:
            ValueError: The batch isn't even, and is to be; an array lies on another mesh.
        """
        batch = next((x.shape[0] for x in _arrays((*args, *keywords.values())) if x.ndim), 0)
        if batch % self._parts and self._uneven == "error":
            raise ValueError(f"a batch of {batch} can't be split evenly over {self._parts} devices")
        placed = tuple(self._place_argument(arg, i, batch) for i, arg in enumerate(args))
        named = {}
        for name, value in keywords.items():
            named[name] = self._place_argument(value, name, batch)
        return placed, named, batch

    def _place_argument(self, value: Any, name: str | int, batch: int) -> Any:
        # As nearly every argument is, and `jax.tree` takes its time.
        if _is_stateful(value) or _is_array(value):
            return self._place(value, name, batch)
        return jax.tree.map(lambda x: self._place(x, name, batch), value, is_leaf=_is_stateful)

    def _place(self, value: Any, name: str | int, batch: int) -> Any:
        if not _is_array(value) or isinstance(value, Tracer):
            return value
        sharding = getattr(value, "sharding", None)
        if (
            isinstance(sharding, NamedSharding)
            and sharding.mesh.size > 1
            and sharding.device_set != self._whole.device_set
        ):
            raise ValueError(
                f"input {name!r} lies on another mesh, {sharding.mesh}, than mesh=, {self.mesh}"
            )
        return put(value, self._rows if self._is_split(value, name, batch) else self._whole)

    def _is_split(self, value: Any, name: str | int, batch: int) -> bool:
        """Whether an input is split along its first dimension."""
        if not value.ndim or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return False
        if name in self._replicated or value.shape[0] % self._parts:
            return False
        return value.shape[0] == batch or name in self._batched

    def place_variables(self, variables: Iterable[Variable], buffers: Iterable[Buffer]) -> None:
        """Put variables that don't lie on the mesh there.

        The state of an optimizer is put beside its parameter.

        Args:
            variables: The variables of a program.
            buffers: Their buffers.

        Raises:
            ValueError: One that isn't an optimizer's lies on another mesh.
        """
        moving: list[Variable] = []
        for buffer in buffers:
            sharding = buffer.array.sharding
            if sharding is self._whole:
                continue
            if isinstance(sharding, NamedSharding):
                if sharding.mesh == self.mesh:
                    continue
                if sharding.mesh.size > 1 and not _is_of_optimizer(buffer):
                    raise ValueError(
                        f"{buffer.name} lies on another mesh, {sharding.mesh}: model.shard(mesh) "
                        "moves it"
                    )
            buffer.dissolve()
            moving += buffer.variables()
        if not moving:
            return
        by_name = {variable.name: variable for variable in variables}
        moving.sort(key=_belongs_to_optimizer)  # parameters first
        for variable in moving:
            variable.stored = put(variable.stored, self._sharding_beside(variable, by_name))

    def _sharding_beside(
        self, variable: Variable, by_name: Mapping[str, Variable]
    ) -> NamedSharding:
        """Return the sharding of the parameter that a state of an optimizer is of, or no split."""
        for part in variable.path:
            other = by_name.get(part)
            if other is None:
                continue
            if other is not variable and other.stored.shape == variable.stored.shape:
                return other.stored.sharding
            break
        return self._whole

    def used(self, variable: Variable, value: Any) -> Any:
        """Return a parameter as it is used: whole along the axes of the batch.

        These are for the batch then.
        """
        spec = self._spec(variable.buffer_slot.buffer)
        if variable.kind != "params" or set(axes_of(spec)).isdisjoint(self.axes):
            return value
        kept = []
        for part in spec:
            axes = tuple(axis for axis in axes_of([part]) if axis not in self.axes)
            kept.append(axes or None)
        return jax.lax.with_sharding_constraint(
            value, NamedSharding(self.mesh, PartitionSpec(*kept))
        )

    def stored(self, buffer: Buffer, value: Any) -> Any:
        """Return a new value as it is kept: laid out as the old one."""
        sharding = NamedSharding(self.mesh, self._spec(buffer))
        return jax.lax.with_sharding_constraint(value, sharding)

    def split(self, tree: Any, batch: int, *, outputs: bool = False) -> Any:
        """Return inputs or outputs of a program, split where they are as long as the batch."""
        even = batch % self._parts == 0

        def constrain(x: Any) -> Any:
            if not isinstance(x, jax.Array):
                return x
            if outputs and not even:  # or the compiler might choose what JAX has no name for
                return jax.lax.with_sharding_constraint(x, self._whole)
            is_batch = x.ndim and x.shape[0] == batch
            return jax.lax.with_sharding_constraint(x, self._rows) if is_batch else x

        return jax.tree.map(constrain, tree)

    def _spec(self, buffer: Buffer) -> PartitionSpec:
        sharding = buffer.array.sharding
        return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def _belongs_to_optimizer(variable: Variable) -> bool:
    return variable.collection == "optimizer"


def _is_of_optimizer(buffer: Buffer) -> bool:
    return all(_belongs_to_optimizer(variable) for variable in buffer.variables())


def _is_stateful(value: Any) -> bool:
    return isinstance(value, Stateful)


def _arrays(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if _is_array(value):
            yield value
        elif not _is_stateful(value):
            yield from filter(_is_array, jax.tree.leaves(value, is_leaf=_is_stateful))


def _is_array(value: Any) -> bool:
    # A `np.bool_` is static.
    return isinstance(value, jax.Array | np.ndarray | np.generic) and not isinstance(
        value, np.bool_
    )
