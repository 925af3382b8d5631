"""`BatchSharding`: how the inputs, the variables and the outputs of a compiled function lie on a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seqbridge._sharding.placement import as_auto, axes_of, batch_sharding, put
from seqbridge._state import Cell, Stateful, Tracer, Variable, cell_of, living


class BatchSharding:
    """How the inputs and outputs of a compiled function are spread over a mesh.

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
        self._batched, self._replicated, self._uneven = (
            frozenset(batched),
            frozenset(replicated),
            uneven,
        )
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self.many = self.mesh.size > 1

    def inputs(
        self, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], int]:
        """The arguments with their arrays in place, and the size of the batch, which is the first array's.

        Raises:
            ValueError: The batch isn't even, and is to be.
        """
        batch = next((x.shape[0] for x in _arrays((*args, *keywords.values())) if x.ndim), 0)
        if batch % self._parts and self._uneven == "error":
            raise ValueError(f"a batch of {batch} can't be split evenly over {self._parts} devices")

        def place(value: Any, name: str | int) -> Any:
            if _is_stateful(value) or _is_array(
                value
            ):  # as nearly everything is, and `jax.tree` takes its time
                return self._place(value, name, batch)
            return jax.tree.map(lambda x: self._place(x, name, batch), value, is_leaf=_is_stateful)

        placed = tuple(place(arg, i) for i, arg in enumerate(args))
        return placed, {name: place(value, name) for name, value in keywords.items()}, batch

    def _place(self, value: Any, name: str | int, batch: int) -> Any:
        if not _is_array(value) or isinstance(value, Tracer):
            return value
        lies = getattr(value, "sharding", None)
        if (
            isinstance(lies, NamedSharding)
            and lies.mesh.size > 1
            and lies.device_set != self._whole.device_set
        ):
            raise ValueError(
                f"input {name!r} lies on another mesh, {lies.mesh}, than mesh=, {self.mesh}"
            )
        split = (
            value.ndim
            and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            and name not in self._replicated
        )
        split = split and (value.shape[0] == batch or name in self._batched)
        return put(
            value, self._rows if split and value.shape[0] % self._parts == 0 else self._whole
        )

    def variables(self, boxes: Iterable[Variable], cells: Iterable[Cell]) -> None:
        """Puts variables that don't lie on the mesh there: the state of an optimizer beside its parameter.

        Raises:
            ValueError: One that isn't an optimizer's lies on another mesh.
        """
        moving: list[Variable] = []
        for cell in cells:
            sharding = cell._array.sharding
            if sharding is self._whole or (
                isinstance(sharding, NamedSharding) and sharding.mesh == self.mesh
            ):
                continue
            if (
                isinstance(sharding, NamedSharding)
                and sharding.mesh.size > 1
                and not _of_an_optimizer(cell)
            ):
                raise ValueError(
                    f"{cell.name} lies on another mesh, {sharding.mesh}: model.shard(mesh) moves it"
                )
            if not isinstance(cell, Variable):
                cell.dissolve()
            moving += living(cell)
        if moving:
            named = {box.name: box for box in boxes}
            for box in sorted(moving, key=_of_an_optimizer):  # after the parameters
                beside = next((named[part] for part in box.path if part in named), None)
                lies: Any = self._whole
                if (
                    beside is not None
                    and beside is not box
                    and beside.stored.shape == box.stored.shape
                ):
                    lies = beside.stored.sharding
                box.stored = put(box.stored, lies)

    def used(self, box: Variable, value: Any) -> Any:
        """A parameter where it is used: whole along the axes of the batch, which are for the batch then."""
        spec = self._spec(cell_of(box))
        if box.kind != "params" or not set(axes_of(spec)) & set(self.axes):
            return value
        kept = [
            tuple(axis for axis in axes_of([part]) if axis not in self.axes) or None
            for part in spec
        ]
        return jax.lax.with_sharding_constraint(
            value, NamedSharding(self.mesh, PartitionSpec(*kept))
        )

    def stored(self, cell: Cell, value: Any) -> Any:
        """A new value as it is kept: laid out as the old one."""
        return jax.lax.with_sharding_constraint(value, NamedSharding(self.mesh, self._spec(cell)))

    def split(self, tree: Any, batch: int, *, outputs: bool = False) -> Any:
        """Inputs or outputs of a program, split where they are as long as the batch."""
        even = batch % self._parts == 0

        def constrain(x: Any) -> Any:
            if not isinstance(x, jax.Array):
                return x
            if outputs and not even:  # or the compiler might choose what JAX has no name for
                return jax.lax.with_sharding_constraint(x, self._whole)
            rows = x.ndim and x.shape[0] == batch
            return jax.lax.with_sharding_constraint(x, self._rows) if rows else x

        return jax.tree.map(constrain, tree)

    def _spec(self, cell: Cell) -> PartitionSpec:
        sharding = cell._array.sharding
        return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def _of_an_optimizer(cell: Cell) -> bool:
    return all(box.collection == "optimizer" for box in living(cell))


def _is_stateful(value: Any) -> bool:
    return isinstance(value, Stateful)


def _arrays(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if _is_array(value):
            yield value
        elif not _is_stateful(value):
            yield from filter(_is_array, jax.tree.leaves(value, is_leaf=_is_stateful))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic) and not isinstance(
        value, np.bool_
    )  # that is static
