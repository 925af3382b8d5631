"""JAX' loops and choices for functions that use, and may change, variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from seqbridge._interface import shape_text
from seqbridge._state import Frame, Stateful, Variable, commit, locked
from seqbridge._transforms.partition import (
    combine,
    holders_of,
    partition,
    usable_variables,
    values_of,
)

C = TypeVar("C")
R = TypeVar("R")
Y = TypeVar("Y")


class _LoopOptions(TypedDict, total=False):
    reverse: bool
    unroll: int | bool


class _Carry:
    """The variables that functions change, as values that a loop or a choice hands on.

    Args:
        holders: What holds the variables.
        name: The name of the transform in errors.
    """

    def __init__(self, holders: Iterable[Stateful], name: str):
        self._variables = usable_variables(holders)
        self._name = name
        self._changed: dict[Variable, None] = {}
        self.variables: tuple[Variable, ...] = ()

    def pure(self, function: Callable[..., Any]) -> Callable[..., tuple[list[Any], Any]]:
        """Return a function of the values first, which returns the new ones first."""

        def run(values: Sequence[Any], *args: Any) -> tuple[list[Any], Any]:
            carried = dict(zip(self.variables, values, strict=True))
            with Frame(values_of(self._variables) | carried, transform=self._name) as frame:
                out = function(*args)
            self._changed.update(dict.fromkeys(frame.changes()))
            return [frame.values[variable] for variable in self.variables], out

        return run

    def find(self, run: Callable[..., tuple[list[Any], Any]], *args: Any) -> None:
        """Trace a function that `pure` has returned, to find what it changes."""
        jax.eval_shape(run, self.values(), *args)

    def begin(self) -> list[jax.Array]:
        """Return the values of what was found, from which the loop starts."""
        self.variables = tuple(self._changed)
        return self.values()

    def values(self) -> list[jax.Array]:
        return [variable.value for variable in self.variables]

    def commit(self, values: Sequence[Any]) -> None:
        commit(dict(zip(self.variables, values, strict=True)))


def cond(
    pred: ArrayLike,
    true_fun: Callable[..., R],
    false_fun: Callable[..., R],
    *operands: Any,
    vars: Any = None,
) -> R:
    """Run `jax.lax.cond` of functions that use, and may change, variables.

    Args:
        pred: A boolean scalar.
        true_fun: Runs if `pred` is true.
        false_fun: Runs otherwise; returns arrays of the same shapes and dtypes.
        *operands: The arguments of both: arrays, models, optimizers.
        vars: Holders of variables that the functions close over: `model.vars()`, a model, or a list
            of them. What `sb.jit` around knows of needn't be named.

    Returns:
        What the function that runs returns.

    Examples:
        >>> import jax.numpy as jnp
        >>> count = Variable(jnp.zeros(()), kind="state", name="count")
        >>> def add(count):
        ...     count.assign(count + 1)
        >>> cond(True, add, lambda count: None, count)
        >>> float(count.value)
        1.0
    """
    index = jnp.asarray(pred)
    if index.shape != () or index.dtype != bool:
        raise TypeError(f"sb.cond decides by one boolean, not by {shape_text(index)}")
    return _choose(index.astype(int), [false_fun, true_fun], operands, vars, "sb.cond")


def switch(
    index: ArrayLike, branches: Sequence[Callable[..., R]], *operands: Any, vars: Any = None
) -> R:
    """Run `jax.lax.switch` of functions that use, and may change, variables.

    Args:
        index: An integer scalar, which of the branches runs; one that is out of range stands for
            the nearest.
        branches: The functions; all return arrays of the same shapes and dtypes.
        *operands: The arguments of each: arrays, models, optimizers.
        vars: See `cond`.

    Returns:
        What the branch that runs returns.

    Examples:
        >>> import jax.numpy as jnp
        >>> total = Variable(jnp.array(1.0), kind="state", name="total")
        >>> def times(n):
        ...     return lambda: total.assign(total * n)
        >>> switch(1, [times(2.0), times(3.0)], vars=total)
        >>> float(total.value)
        3.0
    """
    return _choose(jnp.asarray(index), list(branches), operands, vars, "sb.switch")


def _choose(
    index: jax.Array,
    branches: list[Callable[..., R]],
    operands: tuple[Any, ...],
    vars: Any,
    name: str,
) -> R:
    signature, arrays, given = partition(operands, {})
    holders = holders_of(None, vars) + given
    with locked(lambda: holders):
        carry = _Carry(holders, name)

        def taking_arrays(branch: Callable[..., R]) -> Callable[..., tuple[list[Any], R]]:
            return carry.pure(lambda arrays: branch(*combine(signature, arrays, given)[0]))

        pure = [taking_arrays(branch) for branch in branches]
        for branch in pure:
            carry.find(branch, arrays)
        values, out = jax.lax.switch(index, pure, carry.begin(), arrays)
        carry.commit(values)
    return out


def while_loop(
    cond_fun: Callable[[C], Any], body_fun: Callable[[C], C], init_val: C, *, vars: Any = None
) -> C:
    """Run `jax.lax.while_loop` of functions that use, and may change, variables.

    Args:
        cond_fun: From the carry to a boolean scalar: whether to go on. It changes no variable.
        body_fun: From the carry to the next.
        init_val: The first carry: arrays.
        vars: See `cond`.

    Returns:
        The last carry.

    Raises:
        RuntimeError: `cond_fun` changes a variable.

    Examples:
        >>> import jax.numpy as jnp
        >>> total = Variable(jnp.array(1.0), kind="state", name="total")
        >>> def double(n):
        ...     total.assign(total * 2)
        ...     return n + 1
        >>> int(while_loop(lambda n: total.value < 10, double, 0, vars=total))
        4
    """
    holders = _holders_of_loop("sb.while_loop", vars, init_val)
    with locked(lambda: holders):
        carry = _Carry(holders, "sb.while_loop")
        step, decide = carry.pure(body_fun), carry.pure(cond_fun)
        carry.find(decide, init_val)
        changed = carry.begin()
        if changed:
            names = ", ".join(variable.name for variable in carry.variables)
            raise RuntimeError(
                f"the condition of sb.while_loop changes {names}, and a condition is to change "
                "nothing: call the model in the body, and carry what the condition needs"
            )
        carry.find(step, init_val)
        start = carry.begin()
        values, last = jax.lax.while_loop(
            lambda state: decide(*state)[1], lambda state: step(*state), (start, init_val)
        )
        carry.commit(values)
    return last


def fori_loop(
    lower: ArrayLike,
    upper: ArrayLike,
    body_fun: Callable[[Any, C], C],
    init_val: C,
    *,
    vars: Any = None,
) -> C:
    """Run `jax.lax.fori_loop` of a function that uses, and may change, variables.

    Args:
        lower: The first number.
        upper: The number after the last.
        body_fun: From a number and the carry to the next carry.
        init_val: The first carry: arrays.
        vars: See `cond`.

    Returns:
        The last carry.

    Examples:
        >>> import jax.numpy as jnp
        >>> total = Variable(jnp.array(1.0), kind="state", name="total")
        >>> def times(i, carry):
        ...     total.assign(total * i)
        ...     return carry
        >>> fori_loop(1, 5, times, None, vars=total)
        >>> float(total.value)
        24.0
    """
    holders = _holders_of_loop("sb.fori_loop", vars, init_val)
    with locked(lambda: holders):
        carry = _Carry(holders, "sb.fori_loop")
        step = carry.pure(body_fun)
        carry.find(step, jnp.asarray(lower), init_val)
        start = carry.begin()
        values, last = jax.lax.fori_loop(
            lower, upper, lambda i, state: step(state[0], i, state[1]), (start, init_val)
        )
        carry.commit(values)
    return last


@overload
def scan(
    function: Callable[[jax.Array, Any], tuple[jax.Array, Y]],
    init: ArrayLike,
    xs: Any = None,
    length: int | None = None,
    *,
    vars: Any = None,
    **options: Unpack[_LoopOptions],
) -> tuple[jax.Array, Y]: ...
@overload
def scan(
    function: Callable[[C, Any], tuple[C, Y]],
    init: C,
    xs: Any = None,
    length: int | None = None,
    *,
    vars: Any = None,
    **options: Unpack[_LoopOptions],
) -> tuple[C, Y]: ...
def scan(
    function: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    vars: Any = None,
    **options: Unpack[_LoopOptions],
) -> tuple[Any, Any]:
    """Run `jax.lax.scan` of a function that uses, and may change, variables.

    Args:
        function: From `(carry, x)` to `(carry, y)`.
        init: The first carry: arrays.
        xs: Arrays that are scanned over their leading axis.
        length: The number of steps, if `xs` doesn't say.
        vars: See `cond`.
        **options: `reverse` and `unroll`, as `jax.lax.scan` has them.

    Returns:
        The last carry, and the `y`s stacked on a new leading axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> total = Variable(jnp.zeros(()), kind="state", name="total")
        >>> def step(carry, x):
        ...     total.assign(total + x)
        ...     return carry, total.value
        >>> scan(step, None, jnp.arange(3.0), vars=total)[1]
        Array([0., 1., 3.], dtype=float32)
    """
    holders = _holders_of_loop("sb.scan", vars, (init, xs))

    with locked(lambda: holders):
        carry = _Carry(holders, "sb.scan")
        run = carry.pure(function)

        def step(state: tuple[list[Any], Any], x: Any) -> tuple[tuple[list[Any], Any], Any]:
            values, (own, y) = run(*state, x)
            return (values, own), y

        first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
        carry.find(run, init, first)
        (values, last), ys = jax.lax.scan(step, (carry.begin(), init), xs, length, **options)
        carry.commit(values)
    return last, ys


def _holders_of_loop(name: str, vars: Any, carried: Any) -> list[Stateful]:
    _, _, given = partition((carried,), {})
    if given:
        raise TypeError(
            f"{name} carries arrays: name the {type(given[0]).__name__} in vars=, and close over it"
        )
    return holders_of(None, vars)
