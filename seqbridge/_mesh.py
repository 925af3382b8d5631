"""Where arrays live: a mesh of devices, rules for variables, the batch axis of inputs. Placement changes no value."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqbridge._collection import nearest
from seqbridge._stateful import Stateful
from seqbridge._trace import Tracer
from seqbridge._variable import Variable

Rules: TypeAlias = "Mapping[str, PartitionSpec] | Sequence[tuple[str, PartitionSpec]]"


def as_auto(mesh: Mesh) -> Mesh:
    """The mesh with axes along which the compiler decides, as code that knows of no mesh needs them."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f'mesh= takes a jax.sharding.Mesh, jax.make_mesh((8,), ("data",)), not {type(mesh).__name__}')
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


class Placement:
    """A mesh, and ordered rules that say how variables are laid out on it.

    Args:
        mesh: The mesh.
        rules: From a regular expression over names to a `PartitionSpec`. The first that is found in a name holds;
            without any, the variable is laid out as its own library says, or else replicated.
        logical: From the names that libraries give to dimensions to axes of the mesh. What is no axis and isn't named
            here is replicated.

    Raises:
        TypeError: A rule is no pair of a regular expression and a `PartitionSpec`.
        ValueError: A rule names an axis that the mesh hasn't got.
    """

    def __init__(self, mesh: Mesh, rules: Rules = (), logical: Mapping[str, Any] | None = None):
        self.mesh = as_auto(mesh)
        self.logical = dict(logical or {})
        for name, axes in self.logical.items():
            for axis in axes_of([axes]):
                if axis not in self.mesh.axis_names:
                    raise ValueError(f"logical={{{name!r}: {axes!r}}}: the mesh has {', '.join(self.mesh.axis_names)}")
        self.rules: list[tuple[str, PartitionSpec]] = []
        for rule in rules.items() if isinstance(rules, Mapping) else rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], PartitionSpec)):
                raise TypeError(f"a rule is a regular expression and a PartitionSpec, got {rule!r:.80}")
            pattern, spec = rule
            re.compile(pattern)
            for axis in axes_of(spec):
                if axis not in self.mesh.axis_names:
                    raise ValueError(
                        f"the rule {pattern!r}: {spec} names the axis {axis!r}, and the mesh has "
                        f"{', '.join(map(repr, self.mesh.axis_names))}"
                    )
            self.rules.append((pattern, spec))

    def shardings(self, table: Mapping[str, Variable], *, new: bool = False) -> dict[Variable, NamedSharding]:
        """How the variables of a model are laid out, by its rules.

        Args:
            table: The variables by name; one with several names has the rule of any.
            new: Whether these came to a model that is placed already, so that a rule needn't match any of them.

        Raises:
            ValueError: A rule matches no variable, doesn't fit one, or two rules hold for two names of one.
        """
        found: dict[Variable, tuple[str, PartitionSpec]] = {}
        unused = dict.fromkeys(pattern for pattern, _ in self.rules)
        for name, variable in table.items():
            rule = next((rule for rule in self.rules if re.search(rule[0], name)), None)
            for pattern in [p for p in unused if re.search(p, name)]:
                del unused[pattern]
            if rule is None and variable.axes:
                rule = "its own axes", self._own(variable.axes)
            if rule is None:
                continue
            if variable in found and found[variable][1] != rule[1]:
                raise ValueError(f"{name} is shared, and two rules hold for it: {found[variable]} and {rule}")
            self._check(rule, name, variable)
            found[variable] = rule
        if unused and not new:
            pattern = next(iter(unused))
            raise ValueError(f"the rule {pattern!r} matches no variable{nearest(pattern, table)}; see model.vars()")
        specs = {v: found[v][1] if v in found else PartitionSpec() for v in table.values()}
        return {variable: NamedSharding(self.mesh, spec) for variable, spec in specs.items()}

    def _own(self, axes: tuple[Any, ...]) -> PartitionSpec:
        """What a library says, in terms of the mesh."""

        def known(name: Any) -> tuple[str, ...]:
            found = self.logical.get(name, name)
            return tuple(axis for axis in axes_of([found]) if axis in self.mesh.axis_names)

        parts = (tuple(axis for name in axes_of([part]) for axis in known(name)) for part in axes)
        return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))

    def _check(self, rule: tuple[str, PartitionSpec], name: str, variable: Variable) -> None:
        pattern, spec = rule
        shape = variable.value.shape
        says = f"the rule {pattern!r}: {spec}"
        if len(spec) > len(shape):
            raise ValueError(f"{says} has {len(spec)} dimensions, and {name} has shape {shape}")
        for dimension, part in enumerate(spec):
            n = int(np.prod([self.mesh.shape[axis] for axis in axes_of([part])]))
            if shape[dimension] % n:
                raise ValueError(
                    f"{says} splits dimension {dimension} of {name} into {n}, which doesn't divide its shape {shape}"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Placement:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _nowhere, ()  # another process has other devices


def _nowhere() -> None:
    return None


def axes_of(spec: Iterable[Any]) -> Iterator[str]:
    """The mesh axes that a `PartitionSpec` names."""
    for part in spec:
        yield from part if isinstance(part, tuple) else () if part is None else (part,)


def put(value: Any, sharding: NamedSharding) -> Any:
    """`value` laid out as `sharding` says. What isn't spread over several processes yet is the same in each."""
    if getattr(value, "sharding", None) == sharding:
        return value
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(value), sharding), impl=jax.random.key_impl(value))
    host = np.asarray(value)  # `device_put` would compare it among the processes, which takes long
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def of_all_processes(array: np.ndarray) -> np.ndarray:
    """What each process gives, (processes, ...)."""
    if jax.process_count() == 1:
        return array[None]
    from jax.experimental import multihost_utils  # late, since nobody needs it in one process

    return np.asarray(multihost_utils.process_allgather(array))


def check_agreement(said: Mapping[str, Any]) -> None:
    """Raises in every process if they don't all say the same."""
    digests = [hashlib.sha256(repr(value).encode()).digest()[:8] for value in said.values()]
    given = of_all_processes(np.frombuffer(b"".join(digests), "uint32").reshape(len(said), 2))
    if differing := [name for name, same in zip(said, (given == given[:1]).all((0, 2)), strict=True) if not same]:
        shown = "; ".join(f"{name} here: {said[name]!r:.200}" for name in differing)
        raise RuntimeError(f"the processes disagree on the {', '.join(differing)} of this call. {shown}")


def feed(batch: Any, mesh: Mesh | None = None, *, batch_axis: str | tuple[str, ...] = "data") -> Any:
    """The global batch, of which each process gives its own rows.

    What a process gives to `sb.jit(mesh=...)` is the same in all processes; this is how they give different rows.

    Args:
        batch: A tree of arrays, of this process' rows: an equal number in each process. Where the batch isn't split
            over processes, each gives all rows.
        mesh: The mesh; by default all devices in one axis, `"data"`.
        batch_axis: The axis of the mesh, or axes, over which the batch is split.

    Returns:
        The tree with global arrays, (rows of all processes, ...).

    Raises:
        ValueError: The processes give different numbers of rows, or their number can't be split evenly.

    Examples:
        >>> import jax, numpy as np
        >>> feed({"x": np.ones((16, 3))}, jax.make_mesh((8,), ("data",)))["x"].shape
        (16, 3)
    """
    mesh = as_auto(jax.make_mesh((len(jax.devices()),), ("data",)) if mesh is None else mesh)
    axes = (batch_axis,) if isinstance(batch_axis, str) else tuple(batch_axis)
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    parts = int(np.prod([mesh.shape[axis] for axis in axes]))
    places = sharding.addressable_devices_indices_map((parts,)).values()
    mine = len({(index[0].start, index[0].stop) for index in places if index})
    rows = [np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)]
    given = of_all_processes(np.array(rows))
    if (given != given[:1]).any():
        raise ValueError(f"the processes give different numbers of rows: {given.tolist()}")
    if bad := [n for n in rows if n % mine]:
        raise ValueError(f"this process gives {bad[0]} rows, which can't be split evenly over its {mine} devices")

    def spread(leaf: Any) -> Any:
        local = np.asarray(leaf)
        shape = (local.shape[0] * parts // mine, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(spread, batch)


class Spread:
    """How the inputs and outputs of a compiled function are spread over a mesh.

    Args:
        mesh: The mesh.
        batch_axis: The axis, or axes, over which the batch is split.
        batched: Keywords whose arrays are split along their first dimension whatever it is.
        replicated: Keywords whose arrays are not, even if they are as long as the batch.
        uneven: What happens to a batch that the devices can't divide: `"auto"`, it is computed all the same; or
            `"error"`.

    Raises:
        ValueError: The mesh has no such axis, or there is no such way to treat an uneven batch.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch_axis: str | tuple[str, ...],
        batched: Iterable[str],
        replicated: Iterable[str],
        uneven: str,
    ):
        self.mesh = as_auto(mesh)
        self.axes = (batch_axis,) if isinstance(batch_axis, str) else tuple(batch_axis)
        for axis in self.axes:
            if axis not in self.mesh.axis_names:
                raise ValueError(f"batch_axis={axis!r}: the mesh has {', '.join(map(repr, self.mesh.axis_names))}")
        if uneven not in ("auto", "error"):
            raise ValueError(f"uneven= is 'auto' or 'error', not {uneven!r}")
        self._batched, self._replicated, self._uneven = frozenset(batched), frozenset(replicated), uneven
        self._parts = int(np.prod([self.mesh.shape[axis] for axis in self.axes]))
        self._rows = NamedSharding(self.mesh, PartitionSpec(self.axes))
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self.many = self.mesh.size > 1

    def inputs(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], int]:
        """The arguments with their arrays in place, and the size of the batch, which is the first array's.

        Raises:
            ValueError: The batch isn't even, and is to be.
        """
        batch = next((x.shape[0] for x in _arrays((*args, *keywords.values())) if x.ndim), 0)
        if batch % self._parts and self._uneven == "error":
            raise ValueError(f"a batch of {batch} can't be split evenly over {self._parts} devices")

        def place(value: Any, name: str | None) -> Any:
            if _is_stateful(value) or _is_array(value):  # as nearly everything is, and `jax.tree` takes its time
                return self._place(value, name, batch)
            return jax.tree.map(lambda x: self._place(x, name, batch), value, is_leaf=_is_stateful)

        placed = tuple(place(arg, None) for arg in args)
        return placed, {name: place(value, name) for name, value in keywords.items()}, batch

    def _place(self, value: Any, name: str | None, batch: int) -> Any:
        if not _is_array(value) or isinstance(value, Tracer):
            return value
        split = value.ndim and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and name not in self._replicated
        split = split and (value.shape[0] == batch or name in self._batched)
        return put(value, self._rows if split and value.shape[0] % self._parts == 0 else self._whole)

    def variables(self, boxes: Iterable[Variable]) -> None:
        """Puts variables that lie on a device of their own onto the mesh.

        Raises:
            ValueError: One lies on another mesh.
        """
        for box in boxes:
            sharding = box._value.sharding
            if sharding is self._whole:
                continue
            if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
                if sharding.mesh is not self.mesh and sharding.device_set != self._whole.device_set:
                    raise ValueError(f"{box.name} lies on another mesh, {sharding.mesh}: model.shard(mesh) moves it")
            elif self.many or not isinstance(sharding, NamedSharding):
                box._value = put(box._value, self._whole)

    def used(self, box: Variable, value: Any) -> Any:
        """A parameter where it is used: whole along the axes of the batch, which are for the batch then."""
        spec = self._spec(box)
        if box.kind != "params" or not set(axes_of(spec)) & set(self.axes):
            return value
        kept = [tuple(axis for axis in axes_of([part]) if axis not in self.axes) or None for part in spec]
        return jax.lax.with_sharding_constraint(value, NamedSharding(self.mesh, PartitionSpec(*kept)))

    def stored(self, box: Variable, value: Any) -> Any:
        """A variable's new value as it is kept: laid out as the old one."""
        return jax.lax.with_sharding_constraint(value, NamedSharding(self.mesh, self._spec(box)))

    def split(self, tree: Any, batch: int) -> Any:
        """Inputs or outputs of a program, split where they are as long as the batch."""

        def constrain(x: Any) -> Any:
            rows = isinstance(x, jax.Array) and x.ndim and x.shape[0] == batch
            return jax.lax.with_sharding_constraint(x, self._rows) if rows else x

        return jax.tree.map(constrain, tree)

    def _spec(self, box: Variable) -> PartitionSpec:
        sharding = box._value.sharding
        return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def _is_stateful(value: Any) -> bool:
    return isinstance(value, Stateful)


def _arrays(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if _is_array(value):
            yield value
        elif not _is_stateful(value):
            yield from filter(_is_array, jax.tree.leaves(value, is_leaf=_is_stateful))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)
