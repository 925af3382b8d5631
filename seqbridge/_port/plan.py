"""`Plan`: what is carried where; and how the two sides compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import WeightsError
from seqbridge._interface import Column, table, to_html
from seqbridge._layers import LayerList, inner_jaxprs
from seqbridge._passes import specs
from seqbridge._port.convert import Problem, Row
from seqbridge._state import Stateful, Variable, cast, commit, locked, owned, refuse_in_trace

_COLUMNS = (
    Column("source", 20),
    Column("target", 20),
    Column("weight"),
    Column("shape", 12),
    Column("transformation", 16),
)


class Plan:
    """What `port` would do, or has done. Printed, it is a table, and below it whatever stands against it.

    Attributes:
        rows: What is carried where, and what is done to it on the way.
        problems: What would make the results differ, or can't be done.
        accepted: Differences that somebody has accepted.
        notes: What is worth a look.
        difference: The largest difference between the outputs of the two sides; None: nobody has
            looked.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        problems: Sequence[str],
        accepted: Sequence[str],
        notes: Sequence[str],
        new: dict[Variable, Any],
        target: Stateful,
    ):
        self.rows: tuple[Row, ...] = tuple(rows)
        self.problems: tuple[str, ...] = tuple(problems)
        self.accepted: tuple[str, ...] = tuple(accepted)
        self.notes: tuple[str, ...] = tuple(notes)
        self.difference: float | None = None
        self._new = new
        self._target = target

    def apply(self) -> None:
        """Writes all weights at once.

        Raises:
            WeightsError: There are problems; then nothing is written. The message is the whole
                plan.
            RuntimeError: The target was edited since, and has other variables now.
        """
        refuse_in_trace("porting weights")
        if self.problems:
            raise WeightsError(f"port: nothing was carried, since the results would differ\n{self}")
        with locked(lambda: [self._target]):
            if not self._new.keys() <= set(self._target.own_variables()):
                raise RuntimeError(
                    "port: the target was edited since this plan was made, and has other variables "
                    "now"
                )
            commit(
                {box: cast(box.name, owned(array), box.value) for box, array in self._new.items()}
            )

    def __str__(self) -> str:
        return "\n".join([*([table(_COLUMNS, self.rows)] if self.rows else []), *self._below()])

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
    """Whether the two compute activations that differ, as far as they can be run on the shapes they were built for."""
    found = []
    for model in (source, target):
        inputs = getattr(model, "_inputs", None)
        if inputs is None:
            return None
        args, call = inputs
        keywords = {**call.keywords, "training": False}
        try:
            found.append(_nonlinear(model, specs(args), keywords))
        except Exception:  # what can't be run like this isn't compared
            return None
    ours, theirs = found
    if ours == theirs:
        return None
    texts = ["source", ours - theirs], ["target", theirs - ours]
    said = " and ".join(
        f"the {side} alone computes {', '.join(sorted(some))}" for side, some in texts if some
    )
    return Problem(
        "activation",
        f"the two have other activations: {said} (an exact gelu has erf, the approximate tanh)",
    )


def difference(source: Any, target: Any, check: Any, expected: Any) -> float:
    """The largest difference of the outputs."""
    args = check if type(check) is tuple else (check,)
    if expected is None and source is None:
        raise TypeError(
            "port: check= runs both sides, and a file can't be run: give expected=, what it makes "
            "of check"
        )
    out = source(*args, training=False) if source is not None and expected is None else expected
    ours, theirs = (jax.tree.leaves(out) for out in (out, target(*args, training=False)))
    if [jnp.shape(a) for a in ours] != [jnp.shape(a) for a in theirs]:
        raise WeightsError(
            f"port: the outputs can't be compared: they have shapes {[jnp.shape(a) for a in ours]} "
            f"and "
            f"{[jnp.shape(a) for a in theirs]}. The weights have been carried"
        )
    return max(
        (
            float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0))
            for a, b in zip(ours, theirs, strict=True)
        ),
        default=0.0,
    )


def _nonlinear(model: Any, args: Any, keywords: Mapping[str, Any]) -> frozenset[str]:
    """Which of the operations that activations are made of a model computes.

    They tell apart approximations that the names of functions don't: an exact `gelu` has `erf`,
    another one `tanh`.
    """
    found: set[str] = set()

    def look(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            found.add(
                "erf"
                if equation.primitive.name in ("erf", "erfc", "erf_inv")
                else equation.primitive.name
            )
            for body in inner_jaxprs(equation):
                look(body)

    def run(variables: Any, args: Any) -> Any:
        return model.apply(variables, *args, rng=jax.random.key(0), **keywords)[0]

    look(jax.make_jaxpr(run)(model.variables, args).jaxpr)
    return frozenset(found & {"erf", "tanh", "logistic"})
