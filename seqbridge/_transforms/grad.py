"""`value_and_grad` and `grad` of functions that use stateful objects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import jax

from seqbridge._state import Frame, Stateful, Variable, commit, locked
from seqbridge._transforms.partition import (
    holders_of,
    is_differentiable,
    partition,
    usable_variables,
    values_of,
)
from seqbridge._variables import Filter, VarCollection, selector

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")

Gradients: TypeAlias = dict[str, jax.Array]


@overload
def value_and_grad(
    function: Callable[P, R],
    *,
    wrt: Filter | None = None,
    has_aux: Literal[False] = False,
    vars: Any = None,
) -> Callable[P, tuple[R, Gradients]]: ...
@overload
def value_and_grad(
    function: Callable[P, tuple[R, A]],
    *,
    wrt: Filter | None = None,
    has_aux: Literal[True],
    vars: Any = None,
) -> Callable[P, tuple[tuple[R, A], Gradients]]: ...
@overload
def value_and_grad(
    function: Callable[P, tuple[Any, Any]],
    *,
    wrt: Filter | None = None,
    has_aux: bool,
    vars: Any = None,
) -> Callable[P, tuple[Any, Gradients]]: ...
def value_and_grad(
    function: Callable[..., Any],
    *,
    wrt: Filter | None = None,
    has_aux: bool = False,
    vars: Any = None,
) -> Callable[..., Any]:
    """Return a function that returns the value of `function` and its gradients.

    Args:
        function: Returns a scalar; with `has_aux`, a pair of a scalar and anything.
        wrt: Which variables the gradients are taken of: a kind, a regular expression over names, a
            function of a `Variable`, a collection, a layer or a model. By default all trainable
            ones of the arguments and of `vars`.
        has_aux: Whether `function` returns a pair.
        vars: Holders of variables that `function` closes over: `model.vars()`, a model, or a list
            of them.

    Returns:
        A function with the signature of `function` that returns `(value, gradients)`, where the
            gradients are a dict from variable name to an array of that variable's shape.

    Raises:
        ValueError: There is nothing to differentiate, or two models use one name.
        TypeError: The value is no scalar.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> value_and_grad(lambda w: (w * w).sum())(w)
        (Array(5., dtype=float32), {'w': Array([2., 4.], dtype=float32)})
    """
    closed = holders_of(function, vars)
    if not callable(function):
        raise TypeError(
            "gradients are of a function of models, or of a model, not of "
            f"{type(function).__name__}"
        )

    @functools.wraps(function)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        holders = closed + partition(args, keywords)[2]
        if isinstance(wrt, VarCollection):
            holders.append(wrt)

        def pure(values: dict[str, Any]) -> Any:
            inside = {chosen[name]: value for name, value in values.items()}
            with Frame({**values_of(variables), **inside}, transform="sb.value_and_grad") as frame:
                out = function(*args, **keywords)
            if has_aux and not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(
                    "has_aux=True wants a pair of a scalar and anything, and got "
                    f"{type(out).__name__}"
                )
            value, aux = out if has_aux else (out, None)
            # Values alone, as JAX couldn't sort a dict of variables.
            changes = frame.changes()
            changed[:] = changes
            return value, (aux, list(changes.values()))

        with locked(lambda: holders):
            chosen = _differentiable(holders, wrt)
            variables = usable_variables(holders)
            changed: list[Variable] = []
            now = {name: variable.value for name, variable in chosen.items()}
            (value, (aux, new)), grads = jax.value_and_grad(pure, has_aux=True)(now)
            commit(dict(zip(changed, new, strict=True)))
        return ((value, aux) if has_aux else value), grads

    return wrapped


@overload
def grad(
    function: Callable[P, Any],
    *,
    wrt: Filter | None = None,
    has_aux: Literal[False] = False,
    vars: Any = None,
) -> Callable[P, Gradients]: ...
@overload
def grad(
    function: Callable[P, tuple[Any, A]],
    *,
    wrt: Filter | None = None,
    has_aux: Literal[True],
    vars: Any = None,
) -> Callable[P, tuple[Gradients, A]]: ...
@overload
def grad(
    function: Callable[P, tuple[Any, Any]],
    *,
    wrt: Filter | None = None,
    has_aux: bool,
    vars: Any = None,
) -> Callable[P, Any]: ...
def grad(
    function: Callable[..., Any],
    *,
    wrt: Filter | None = None,
    has_aux: bool = False,
    vars: Any = None,
) -> Callable[..., Any]:
    """Return a function that returns the gradients of `function`, or `(gradients, aux)`.

    It is `value_and_grad` without the value.

    Args:
        function: See `value_and_grad`.
        wrt: See `value_and_grad`.
        has_aux: See `value_and_grad`.
        vars: See `value_and_grad`.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> grad(lambda w: (w * w).sum())(w)
        {'w': Array([2., 4.], dtype=float32)}
    """
    both = value_and_grad(function, wrt=wrt, has_aux=has_aux, vars=vars)

    @functools.wraps(function)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        value, grads = both(*args, **keywords)
        return (grads, value[1]) if has_aux else grads

    return wrapped


def _differentiable(holders: list[Stateful], wrt: Filter | None) -> dict[str, Variable]:
    """Return the variables to differentiate, each once, by its first name."""
    if isinstance(wrt, VarCollection):
        holders = [wrt]
    choose = selector(wrt) if wrt is not None else dict[str, Variable]
    found: dict[str, Variable] = {}
    met: set[Variable] = set()
    for holder in holders:
        for name, variable in choose(holder.variables_by_name()).items():
            if variable in met or not is_differentiable(variable):
                continue
            if name in found:
                raise ValueError(
                    f"two models have a variable {name!r}: say which with wrt=model.vars()"
                )
            found[name] = variable
            met.add(variable)
    if not found:
        why = "(is the model built, by model.build(...)?)"
        if wrt is not None:
            why = "that wrt= lets through"
        raise ValueError(
            "there is nothing to differentiate: arguments and vars= hold no trainable variable "
            f"{why}"
        )
    return found
