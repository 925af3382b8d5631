"""What the results of a traced program depend on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax


class Draws(NamedTuple):
    """What a call of a layer does with its PRNG key."""

    asked: bool  # whether it can't do without
    used: bool  # whether its results depend on it


def needed(
    equations: Iterable[Any], results: Iterable[Any], *, effects: bool
) -> tuple[list[Any], set[int]]:
    """The equations that are needed for `results`, and the ids of the variables that these read.

    Args:
        equations: Those of a jaxpr, in order.
        results: Variables of the jaxpr.
        effects: Whether an equation that does something, such as printing, is needed for its own
            sake.
    """
    read = set(map(id, results))
    kept = []
    for equation in reversed(list(equations)):
        if (effects and equation.effects) or any(id(v) in read for v in equation.outvars):
            kept.append(equation)
            read.update(map(id, equation.invars))
    return kept[::-1], read


def inner(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation: the body of a loop, a function that is called."""
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
    ):
        if hasattr(found := getattr(value, "jaxpr", value), "eqns"):
            yield found
