"""Placement of arrays: a mesh of devices, and rules for variables. Placement changes no value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqbridge._interface import nearest
from seqbridge._state import Variable


def as_auto(mesh: Mesh) -> Mesh:
    """Return the mesh with axes along which the compiler decides.

    Code that knows of no mesh needs such ones.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f'mesh= takes a jax.sharding.Mesh, jax.make_mesh((8,), ("data",)), not '
            f"{type(mesh).__name__}"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


class Placement:
    """A mesh, and ordered rules that say how variables are laid out on it.

    Args:
        mesh: The mesh.
        rules: From a regular expression over names to a `PartitionSpec`. The first that is found in
            a name holds; without any, the variable is laid out as its own library says, or else
            replicated.
        logical: From the names that libraries give to dimensions to axes of the mesh. What is no
            axis and isn't named here is replicated.

    Raises:
        TypeError: A rule is no pair of a regular expression and a `PartitionSpec`.
        ValueError: A rule names an axis that the mesh hasn't got.
    """

    def __init__(
        self,
        mesh: Mesh,
        rules: Mapping[str, PartitionSpec] | Sequence[tuple[str, PartitionSpec]] = (),
        logical: Mapping[str, Any] | None = None,
    ):
        self.mesh: Mesh = as_auto(mesh)
        self.logical: dict[str, Any] = dict(logical or {})
        for name, axes in self.logical.items():
            for axis in axes_of([axes]):
                if axis not in self.mesh.axis_names:
                    raise ValueError(
                        f"logical={{{name!r}: {axes!r}}}: the mesh has "
                        f"{', '.join(self.mesh.axis_names)}"
                    )
        self.rules: list[tuple[str, PartitionSpec]] = []
        for rule in rules.items() if isinstance(rules, Mapping) else rules:
            self.rules.append(self._checked_rule(rule))

    def _checked_rule(self, rule: Any) -> tuple[str, PartitionSpec]:
        is_pair = isinstance(rule, tuple) and len(rule) == 2
        if not is_pair or not isinstance(rule[1], PartitionSpec):
            raise TypeError(f"a rule is a regular expression and a PartitionSpec, got {rule!r:.80}")
        pattern, spec = rule
        re.compile(pattern)
        for axis in axes_of(spec):
            if axis not in self.mesh.axis_names:
                raise ValueError(
                    f"the rule {pattern!r}: {spec} names the axis {axis!r}, and the mesh has "
                    f"{_quoted(self.mesh.axis_names)}"
                )
        return pattern, spec

    def shardings(
        self, table: Mapping[str, Variable], *, new: bool = False
    ) -> dict[Variable, NamedSharding]:
        """Return how the variables of a model are laid out, by its rules.

        Args:
            table: The variables by name; one with several names has the rule of any.
            new: Whether these came to a model that is placed already, so that a rule needn't match
                any of them.

        Raises:
            ValueError: A rule matches no variable, doesn't fit one, or two rules hold for two names
                of one.
        """
        found: dict[Variable, tuple[str, PartitionSpec]] = {}
        unused = dict.fromkeys(pattern for pattern, _ in self.rules)
        for name, variable in table.items():
            matching = [rule for rule in self.rules if re.search(rule[0], name)]
            for pattern, _ in matching:
                unused.pop(pattern, None)
            if matching:
                rule = matching[0]
            elif variable.axes:
                rule = "its own axes", self._own_spec(variable.axes)
            else:
                continue
            if variable in found and found[variable][1] != rule[1]:
                raise ValueError(
                    f"{name} is shared, and two rules hold for it: {found[variable]} and {rule}"
                )
            self._check(rule, name, variable)
            found[variable] = rule
        if unused and not new:
            pattern = next(iter(unused))
            raise ValueError(
                f"the rule {pattern!r} matches no variable{nearest(pattern, table)}; see "
                "model.vars()"
            )
        shardings = {}
        for variable in table.values():
            _, spec = found.get(variable, ("", PartitionSpec()))
            shardings[variable] = NamedSharding(self.mesh, spec)
        return shardings

    def _own_spec(self, axes: tuple[Any, ...]) -> PartitionSpec:
        """Return the axes that a library names, in terms of the mesh."""
        parts: list[Any] = []
        for part in axes:
            known: list[str] = []
            for name in axes_of([part]):
                for axis in axes_of([self.logical.get(name, name)]):
                    if axis in self.mesh.axis_names:
                        known.append(axis)
            if not known:
                parts.append(None)
            else:
                parts.append(known[0] if len(known) == 1 else tuple(known))
        return PartitionSpec(*parts)

    def _check(self, rule: tuple[str, PartitionSpec], name: str, variable: Variable) -> None:
        pattern, spec = rule
        shape = variable.value.shape
        says = f"the rule {pattern!r}: {spec}"
        if len(spec) > len(shape):
            raise ValueError(f"{says} has {len(spec)} dimensions, and {name} has shape {shape}")
        for dimension, part in enumerate(spec):
            n = math.prod(self.mesh.shape[axis] for axis in axes_of([part]))
            if shape[dimension] % n:
                raise ValueError(
                    f"{says} splits dimension {dimension} of {name} into {n}, which doesn't divide "
                    f"its shape {shape}"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Placement:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _nowhere, ()  # another process has other devices


def _nowhere() -> None:
    return None


def axes_of(spec: Iterable[Any]) -> Iterator[str]:
    """Yield the mesh axes that a `PartitionSpec` names."""
    for part in spec:
        if isinstance(part, tuple):
            yield from part
        elif part is not None:
            yield part


def batch_sharding(mesh: Mesh, batch_axis: str | tuple[str, ...]) -> tuple[NamedSharding, int]:
    """Return the sharding of a batch on a mesh, and the number of its parts.

    Raises:
        ValueError: The mesh has no such axis.
    """
    axes = (batch_axis,) if isinstance(batch_axis, str) else tuple(batch_axis)
    for axis in axes:
        if axis not in mesh.axis_names:
            raise ValueError(f"batch_axis={axis!r}: the mesh has {_quoted(mesh.axis_names)}")
    parts = math.prod(mesh.shape[axis] for axis in axes)
    return NamedSharding(mesh, PartitionSpec(axes)), parts


def _quoted(names: Iterable[str]) -> str:
    return ", ".join([repr(name) for name in names])


def put(value: Any, sharding: NamedSharding) -> Any:
    """Return `value` laid out as `sharding` says.

    A value that isn't spread over several processes yet is the same in each.
    """
    if getattr(value, "sharding", None) == sharding:
        return value
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        numbers = put(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(value))
    host = np.asarray(value)  # `device_put` would compare it among the processes, which takes long
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
