"""Traced programs: what their results depend on, what they hold, what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.core

from seqbridge._state import Tracer

# The floating-point operations of programs that were counted lately, by their text.
_known: dict[str, float] = {}
_MOST = 1_000

FROZEN = "frozen_model"
"""The name of a compiled function whose arrays are constants on purpose."""


def eliminate_dead_code(
    equations: Iterable[Any], results: Iterable[Any], *, effects: bool
) -> tuple[list[Any], set[int]]:
    """Return the equations that `results` need, and the ids of the variables that these read.

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


# Equations that run a body once, on their inputs.
_CALLS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat2",
    }
)


def forwarded_inputs(jaxpr: Any) -> list[int | None]:
    """Return for each output the position of the input that it is, unchanged; None: of none."""
    positions: dict[int, int] = {}
    for i, variable in enumerate(jaxpr.invars):
        positions[id(variable)] = i
    for equation in jaxpr.eqns:
        for output, place in zip(equation.outvars, _forwarded_by(equation), strict=True):
            if place is not None:
                source = id(equation.invars[place])
                if source in positions:
                    positions[id(output)] = positions[source]
    return [positions.get(id(variable)) for variable in jaxpr.outvars]


def _forwarded_by(equation: Any) -> list[int | None]:
    """Return for each output of an equation the position of its input that it is."""
    nothing: list[int | None] = [None] * len(equation.outvars)
    bodies = list(inner_jaxprs(equation))
    if len(bodies) != 1:
        return nothing
    if equation.primitive.name == "scan":
        return _forwarded_by_scan(equation, forwarded_inputs(bodies[0]))
    is_call = equation.primitive.name in _CALLS
    if is_call and len(bodies[0].invars) == len(equation.invars):
        return forwarded_inputs(bodies[0])
    return nothing


def _forwarded_by_scan(equation: Any, of_body: list[int | None]) -> list[int | None]:
    """Return what a scan hands on: a carry that no step changes, and what each step returns."""
    constants = equation.params["num_consts"]
    carried = equation.params["num_carry"]
    found: list[int | None] = []
    for i, place in enumerate(of_body):
        same_carry = i < carried and place == constants + i
        same_slices = i >= carried and place is not None and place >= constants + carried
        found.append(place if same_carry or same_slices else None)
    return found


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation: the body of a loop, a function that is called."""
    for program in _programs(equation):
        yield getattr(program, "jaxpr", program)


def _programs(equation: Any) -> list[Any]:
    """The jaxprs inside an equation, closed ones with their constants."""
    parameters = list(equation.params.values())
    leaves = jax.tree.leaves(parameters, is_leaf=_is_program)
    return [leaf for leaf in leaves if _is_program(leaf)]


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def captured_arrays(closed: Any) -> list[jax.Array]:
    """The arrays that a traced program holds as constants, also in what it calls.

    Tracers aren't among them, nor NumPy arrays, nor those of a frozen model.
    """
    found: dict[int, jax.Array] = {}
    frozen: set[int] = set()
    waiting, seen = [(closed, False)], dict[int, Any]()
    while waiting:
        program, is_frozen = waiting.pop()
        if id(program) in seen:
            continue
        seen[id(program)] = program
        for constant in getattr(program, "consts", ()):
            if isinstance(constant, jax.Array) and not isinstance(constant, Tracer):
                found[id(constant)] = constant
                if is_frozen:  # also where a transform, such as a gradient, takes it out of there
                    frozen.add(id(constant))
        for equation in program.eqns:
            inside = is_frozen or equation.params.get("name") == FROZEN
            waiting.extend((inner, inside) for inner in _programs(equation))
    return [array for key, array in found.items() if key not in frozen]


def flops(closed: Any) -> float | None:
    """The number of operations of a closed jaxpr; nothing is compiled, or run.

    None: the backend has no analysis, or there is a loop whose length depends on data.
    """
    try:
        return _counted(closed) + _left_out(closed.jaxpr)
    except (LookupError, NotImplementedError, TypeError, jax.errors.JaxRuntimeError):
        return None


def _left_out(jaxpr: Any) -> float:
    """Count what the analysis doesn't see: it takes the body of a loop once."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            raise LookupError("how often a loop runs")
        for body in inner_jaxprs(equation):
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
