"""How many floating-point operations a traced program takes, by XLA's own analysis."""

from __future__ import annotations

from typing import Any

import jax

from seqbridge._live import inner

_known: dict[str, float] = {}  # of programs that were counted lately, by their text
_MOST = 1_000


def flops(closed: Any) -> float | None:
    """The number of operations of a closed jaxpr; nothing is compiled, or run.

    None: the backend has no analysis, or there is a loop whose length depends on data.
    """
    try:
        return _counted(closed) + _left_out(closed.jaxpr)
    except (LookupError, NotImplementedError, TypeError, jax.errors.JaxRuntimeError):
        return None


def _left_out(jaxpr: Any) -> float:
    """What the analysis doesn't see: it counts the body of a loop once."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            raise LookupError("how often a loop runs")
        for body in inner(equation):
            more = _left_out(body)
            if equation.primitive.name == "scan":
                n, unroll = equation.params["length"], int(equation.params["unroll"])
                seen = min(n, unroll + n % unroll)  # of the steps, these stand in the program
                more = n * more + (n - seen) * _counted(equation.params["jaxpr"])
            total += more
    return total


def _counted(closed: Any) -> float:
    text = str(closed.jaxpr)
    if text not in _known:
        from jax.extend.core import jaxpr_as_fun  # late, as in `_trace`

        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
        found: Any = jax.jit(jaxpr_as_fun(closed)).lower(*shapes).cost_analysis()
        if len(_known) >= _MOST:
            _known.clear()
        _known[text] = max(0.0, float(found.get("flops", 0.0)))
    return _known[text]
