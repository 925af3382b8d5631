"""`value_and_grad` and `grad` of functions that use stateful objects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import jax
import jax.numpy as jnp

from seqbridge._state import Frame, Stateful, Variable, commit, locked
from seqbridge._transforms.partition import boxes_of, holders_of, partition, values_of
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
    """A function that returns the value of `function` and its gradients.

    Args:
        function: Returns a scalar; with `has_aux`, a pair of a scalar and anything.
        wrt: Which variables the gradients are taken of: a kind, a regular expression over names, a
            function of a `Variable`, a collection, a layer or a model. By default all trainable
            ones of the arguments and of `vars`.
        has_aux: Whether `function` returns a pair.
        vars: What `function` closes over: `model.vars()`, a model, or a list of them.

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
            f"gradients are of a function of models, or of a model, not of "
            f"{type(function).__name__}"
        )

    @functools.wraps(function)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        holders = (
            closed
            + partition(args, keywords)[2]
            + ([wrt] if isinstance(wrt, VarCollection) else [])
        )

        def pure(values: dict[str, Any]) -> Any:
            inside = {chosen[name]: value for name, value in values.items()}
            with Frame({**values_of(boxes), **inside}) as frame:
                out = function(*args, **keywords)
            if has_aux and not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(
                    f"has_aux=True wants a pair of a scalar and anything, and got "
                    f"{type(out).__name__}"
                )
            value, aux = out if has_aux else (out, None)
            return value, (aux, frame.changes())

        with locked(lambda: holders):
            chosen, boxes = _differentiable(holders, wrt), boxes_of(holders)
            now = {name: box.value for name, box in chosen.items()}
            (value, (aux, changes)), grads = _of_changes(jax.value_and_grad, pure, now)
            commit(changes)
        return ((value, aux) if has_aux else value), grads

    return wrapped


def _of_changes(transform: Callable[..., Any], pure: Callable[..., Any], values: Any) -> Any:
    """`transform(pure)(values)`, where `pure` returns changes by variable, which JAX couldn't sort."""
    keys: list[Variable] = []

    def sortable(values: Any) -> Any:
        value, (aux, changes) = pure(values)
        keys[:] = changes
        return value, (aux, list(changes.values()))

    (value, (aux, arrays)), grads = transform(sortable, has_aux=True)(values)
    return (value, (aux, dict(zip(keys, arrays, strict=True)))), grads


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
    """`value_and_grad` without the value: a function that returns `gradients`, or `(gradients, aux)`.

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
    """The variables to differentiate, each once, by its first name."""
    if isinstance(wrt, VarCollection):
        holders = [wrt]
    choose = selector(wrt) if wrt is not None else dict[str, Variable]
    found: dict[str, Variable] = {}
    names: dict[Variable, str] = {}
    for holder in holders:
        for name, box in choose(holder.variables_by_name()).items():
            if box in names or not (box.trainable and jnp.issubdtype(box.dtype, jnp.inexact)):
                continue
            if name in found:
                raise ValueError(
                    f"two models have a variable {name!r}: say which with wrt=model.vars()"
                )
            found[name], names[box] = box, name
    if not found:
        why = (
            "that wrt= lets through"
            if wrt is not None
            else "(is the model built, by model.build(...)?)"
        )
        raise ValueError(
            f"there is nothing to differentiate: arguments and vars= hold no trainable variable "
            f"{why}"
        )
    return found
