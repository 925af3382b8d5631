"""`Plan`: which weights go where; and comparisons of the two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import WeightsError
from seqbridge._interface import Column, Inputs, Keywords, table, to_html
from seqbridge._layers import LayerList, inner_jaxprs
from seqbridge._passes import specs
from seqbridge._port.convert import PlannedWeight, Problem
from seqbridge._state import Stateful, Variable, cast, commit, locked, owned, refuse_in_trace

_COLUMNS = (
    Column("source", 20),
    Column("target", 20),
    Column("weight"),
    Column("shape", 12),
    Column("transformation", 16),
)


class Plan:
    """Plan of what `port` would do, or has done: a table when it is printed, and its problems.

    Attributes:
        rows: The weights: where they come from and go to, and what is done on the way.
        problems: What would make the results differ, or can't be done.
        accepted: Differences that the user has accepted.
        notes: What should be checked.
        difference: The largest difference between the outputs of the two sides; None: they weren't
            compared.
    """

    def __init__(
        self,
        rows: Sequence[PlannedWeight],
        problems: Sequence[str],
        accepted: Sequence[str],
        notes: Sequence[str],
        new: Mapping[Variable, np.ndarray],
        target: Stateful,
    ):
        self.rows: tuple[PlannedWeight, ...] = tuple(rows)
        self.problems: tuple[str, ...] = tuple(problems)
        self.accepted: tuple[str, ...] = tuple(accepted)
        self.notes: tuple[str, ...] = tuple(notes)
        self.difference: float | None = None
        self._new = new
        self._target = target

    def apply(self) -> None:
        """Write all weights at once.

        Raises:
            WeightsError: There are problems, and nothing is written. The message is the whole plan.
            RuntimeError: The target was edited since, and has other variables now.
        """
        refuse_in_trace("porting weights")
        if self.problems:
            raise WeightsError(f"port: nothing was written, since the results would differ\n{self}")
        with locked(lambda: [self._target]):
            if not self._new.keys() <= set(self._target.own_variables()):
                raise RuntimeError(
                    "port: the target was edited since this plan was made, and has other variables "
                    "now"
                )
            changes: dict[Variable, jax.Array] = {}
            for variable, array in self._new.items():
                changes[variable] = cast(variable.name, owned(array), variable.value)
            commit(changes)

    def __str__(self) -> str:
        lines = self._below()
        if self.rows:
            lines.insert(0, table(_COLUMNS, self.rows))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return to_html(_COLUMNS, self.rows, self._below())

    def _below(self) -> list[str]:
        lines = [f"problem: {text}" for text in self.problems]
        lines += [f"accepted: {text}" for text in self.accepted]
        lines += [f"note: {text}" for text in self.notes]
        if self.difference is not None:
            lines.append(f"largest difference of the outputs: {self.difference:.3g}")
        return lines

    __repr__ = __str__


def activations(source: LayerList, target: LayerList) -> Problem | None:
    """Return the activations in which two models differ.

    They are compared as far as both models can be run on the shapes that they were built for.
    """
    theirs, ours = _activations_of(source), _activations_of(target)
    if theirs is None or ours is None or theirs == ours:
        return None
    texts: list[str] = []
    for side, alone in (("source", theirs - ours), ("target", ours - theirs)):
        if alone:
            texts.append(f"the {side} alone computes {', '.join(sorted(alone))}")
    text = (
        f"the two have other activations: {' and '.join(texts)} "
        "(an exact gelu has erf, the approximate tanh)"
    )
    return Problem("activation", text)


def _activations_of(model: LayerList) -> frozenset[str] | None:
    inputs = model.known_inputs
    if inputs is None:
        return None
    args, call = inputs
    keywords = {**call.keywords, "training": False}
    try:
        return _nonlinear(model, specs(args), keywords)
    except Exception:  # a model that can't be run like this isn't compared
        return None


def _nonlinear(model: Any, args: Any, keywords: Keywords) -> frozenset[str]:
    """Return which of the operations that activations are made of a model computes.

    They tell apart approximations that the names of functions don't: an exact `gelu` has `erf`,
    another one `tanh`.
    """

    def run(variables: Any, args: Any) -> Any:
        return model.apply(variables, *args, rng=jax.random.key(0), **keywords)[0]

    names = _primitives(jax.make_jaxpr(run)(model.variables, args).jaxpr)
    found = names & {"tanh", "logistic"}
    if names & {"erf", "erfc", "erf_inv"}:
        found.add("erf")
    return frozenset(found)


def _primitives(jaxpr: Any) -> set[str]:
    """Return the names of all primitives in a jaxpr and in those inside it."""
    names: set[str] = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in inner_jaxprs(equation):
            names |= _primitives(inner)
    return names


def difference(source: LayerList | None, target: Any, check: Any, expected: Any) -> float:
    """Return the largest difference of the outputs.

    Args:
        source: The model of the source, if there is one.
        target: The model or layer that got the weights.
        check: The input, or a tuple of inputs.
        expected: The outputs of the source; None: it is run.
    """
    args = check if type(check) is tuple else (check,)
    if expected is None:
        if source is None:
            raise TypeError(
                "port: check= runs both sides, and a file can't be run: give expected=, what it "
                "makes of check"
            )
        expected = _run(source, args)
    theirs, ours = jax.tree.leaves(expected), jax.tree.leaves(_run(target, args))
    their_shapes = [jnp.shape(array) for array in theirs]
    our_shapes = [jnp.shape(array) for array in ours]
    if their_shapes != our_shapes:
        raise WeightsError(
            f"port: the outputs can't be compared: they have shapes {their_shapes} and "
            f"{our_shapes}. The weights have been written"
        )
    differences: list[float] = []
    for a, b in zip(theirs, ours, strict=True):
        apart = np.abs(np.asarray(a) - np.asarray(b))
        differences.append(float(apart.max(initial=0)))
    return max(differences, default=0.0)


def _run(model: Any, args: Inputs) -> Any:
    return model(*args, training=False)
