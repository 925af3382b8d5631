"""Traced programs: what their results depend on, what they hold, what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from seqbridge._state import Tracer

# The floating-point operations of programs that were counted lately, by their text.
_known: dict[str, float] = {}
_MOST = 1_000

FROZEN = "frozen_model"
"""The name of a compiled function whose arrays are constants on purpose."""


def eliminate_dead_code(
    equations: Iterable[Any], results: Iterable[Any]
) -> tuple[list[Any], set[int]]:
    """Return the equations that `results` need, and the ids of the variables that these read.

    What an equation does beside, such as printing, is no need.

    Args:
        equations: Those of a jaxpr, in order.
        results: Variables of the jaxpr.
    """
    read = set(map(id, results))
    kept = []
    for equation in reversed(list(equations)):
        if any(id(v) in read for v in equation.outvars):
            kept.append(equation)
            read.update(map(id, equation.invars))
    return kept[::-1], read


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
    if equation.primitive.name in _CALLS:
        return forwarded_inputs(bodies[0])
    return nothing


def _forwarded_by_scan(equation: Any, of_body: list[int | None]) -> list[int | None]:
    """Return what a scan hands on: a carry that no step changes, and what each step returns."""
    constants, carried = _sizes_of_scan(equation.params)
    found: list[int | None] = []
    for i, place in enumerate(of_body):
        same_carry = i < carried and place == constants + i
        same_slices = i >= carried and place is not None and place >= constants + carried
        found.append(place if same_carry or same_slices else None)
    return found


def inputs_that_matter(jaxpr: Any, wanted: Sequence[bool]) -> list[bool]:
    """Tell which inputs of a jaxpr can change what it computes or does.

    An equation that does something, such as printing, is wanted for its own sake. An equation with
    a body is looked into; of a primitive that isn't known, all inputs matter.

    Args:
        jaxpr: The program.
        wanted: For each output, whether it is wanted.
    """
    read = set(map(id, itertools.compress(jaxpr.outvars, wanted)))
    for equation in reversed(jaxpr.eqns):
        outputs = [id(v) in read for v in equation.outvars]
        if any(outputs) or equation.effects:
            rule = _RULES.get(equation.primitive.name, _all_inputs)
            matters = rule(equation, outputs)
            read.update(map(id, itertools.compress(equation.invars, matters)))
    return [id(v) in read for v in jaxpr.invars]


def _all_inputs(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    return [True] * len(equation.invars)


def _inputs_of_call(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    [body] = inner_jaxprs(equation)
    return inputs_that_matter(body, wanted)


def _inputs_of_custom_derivative(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    """As of a call; the gradient may depend on inputs that the result doesn't depend on."""
    matters = _inputs_of_call(equation, wanted)
    if all(matters):
        return matters
    try:
        return _either(matters, _inputs_of_gradient(equation, wanted))
    except Exception:  # the rule is a person's code: what it reads can't be told
        return _all_inputs(equation, wanted)


def _inputs_of_gradient(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    """Tell which inputs of an equation can change the gradient of its wanted outputs."""
    from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun  # late, as in `_trace`

    inputs = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, Literal)))
    outputs = []
    for v in itertools.compress(equation.outvars, wanted):
        if jnp.issubdtype(v.aval.dtype, jnp.inexact):
            outputs.append(v)
    [body] = inner_jaxprs(equation)
    names = body.debug_info._replace(arg_names=None, result_paths=None)
    alone = body.replace(
        constvars=[], invars=inputs, outvars=outputs, eqns=[equation], debug_info=names
    )
    run = jaxpr_as_fun(ClosedJaxpr(alone, ()))

    def gradient(values: list[Any]) -> Any:
        found, pull_back = jax.vjp(run, *values)
        slopes = pull_back([jnp.ones_like(out) for out in found])
        return [slope for slope in slopes if slope.dtype != jax.dtypes.float0]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in inputs]
    program = jax.make_jaxpr(gradient)(shapes).jaxpr
    matters = inputs_that_matter(program, [True] * len(program.outvars))
    decisive = set(itertools.compress(inputs, matters))
    return [not isinstance(v, Literal) and v in decisive for v in equation.invars]


def _inputs_of_cond(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    matters = [False] * (len(equation.invars) - 1)
    for branch in equation.params["branches"]:
        matters = _either(matters, inputs_that_matter(branch.jaxpr, wanted))
    return [True, *matters]


def _inputs_of_scan(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    [body] = inner_jaxprs(equation)
    constants, carried = _sizes_of_scan(equation.params)
    carry, stacked = list(wanted[:carried]), list(wanted[carried:])
    while True:
        matters = inputs_that_matter(body, carry + stacked)
        more = _either(carry, matters[constants : constants + carried])
        if more == carry:
            return matters[:constants] + carry + matters[constants + carried :]
        carry = more


def _sizes_of_scan(parameters: Any) -> tuple[int, int]:
    """The number of constants, and of values that are carried."""
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    constants, carry, _ = parameters["ft_in"].unpack()  # JAX 0.12
    return len(constants), len(carry)


def _inputs_of_while(equation: Any, wanted: Sequence[bool]) -> list[bool]:
    """As of a scan, where the condition decides every result."""
    condition = inputs_that_matter(equation.params["cond_jaxpr"].jaxpr, [True])
    body = equation.params["body_jaxpr"].jaxpr
    of_condition, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    carry = _either(wanted, condition[of_condition:])
    while True:
        matters = inputs_that_matter(body, carry)
        more = _either(carry, matters[of_body:])
        if more == carry:
            return condition[:of_condition] + matters[:of_body] + carry
        carry = more


def _either(some: Sequence[bool], others: Sequence[bool]) -> list[bool]:
    return [a or b for a, b in zip(some, others, strict=True)]


# Equations that run a body once, on their inputs.
_CALLS = frozenset(
    {
        "call",
        "checkpoint",
        "closed_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "eval_jaxpr",
        "jit",
        "pjit",
        "remat2",
    }
)

# What JAX itself uses to remove dead code looks into no loop with a condition in older versions,
# and into no function with a derivative of its own.
_RULES: dict[str, Callable[[Any, Sequence[bool]], list[bool]]] = {
    "call": _inputs_of_call,
    "closed_call": _inputs_of_call,
    "eval_jaxpr": _inputs_of_call,
    "jit": _inputs_of_call,
    "pjit": _inputs_of_call,
    "checkpoint": _inputs_of_call,
    "remat2": _inputs_of_call,
    "shard_map": _inputs_of_call,
    "custom_jvp_call": _inputs_of_custom_derivative,
    "custom_vjp_call": _inputs_of_custom_derivative,
    "cond": _inputs_of_cond,
    "scan": _inputs_of_scan,
    "while": _inputs_of_while,
}


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
