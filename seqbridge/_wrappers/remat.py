"""`remat`: rematerialisation of functions, models and layers that use variables."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias, TypedDict, TypeVar, Unpack, overload

import jax

from seqbridge._interface import Keywords, PureLayer, Variables
from seqbridge._layers import Layer, LayerList
from seqbridge._state import Stateful
from seqbridge._transforms import Jitted, combine, holders_of, partition, pure_call
from seqbridge._wrappers.wrap import as_layer, key_within, wrap

P = ParamSpec("P")
R = TypeVar("R")

# What `remat` makes a `Layer` of, as far as a type checker can tell. Of anything else that can be
# called it makes a function.
_NoFunction: TypeAlias = (
    functools.partial[Any] | type[Any] | PureLayer | tuple[Any, ...] | list[Any] | Mapping[str, Any]
)


class _RematOptions(TypedDict, total=False):
    prevent_cse: bool | Sequence[bool]
    policy: Callable[..., bool] | None


@overload
def remat(
    function: _NoFunction, *, vars: Any = None, **options: Unpack[_RematOptions]
) -> Layer: ...
@overload
def remat(
    function: Callable[P, R], *, vars: Any = None, **options: Unpack[_RematOptions]
) -> Callable[P, R]: ...
def remat(function: Any, *, vars: Any = None, **options: Any) -> Any:
    """Apply `jax.checkpoint` to a function, a model or an entry that uses variables.

    Inner values are computed again for the gradients, which saves memory.

    Args:
        function: A function, or a model or a layer that is built; or something to put into a model:
            an entry that is no plain function, a `Layer` that stands in no model, or a `Sequential`
            that isn't built.
        vars: The variables that `function` closes over, or what holds them.
        **options: `prevent_cse` and `policy`, as `jax.checkpoint` has them.

    Returns:
        A function that does what `function` does, on its variables; or a `Layer` to put into a
        model, or to `Repeat`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from seqbridge import Variable, grad
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> loss = remat(lambda w: jnp.sin(w.value).sum())
        >>> bool(jnp.allclose(grad(loss)(w)["w"], jnp.cos(w.value)))
        True
    """
    if not _is_ready_to_call(function):
        return _remat_layer(function, options)
    call: Callable[..., Any] = function
    closed = holders_of(call, vars)
    checkpoint = functools.partial(jax.checkpoint, **options)

    def wrapped(*args: Any, **keywords: Any) -> Any:
        return pure_call(checkpoint, call, closed, args, keywords, name="sb.remat")

    return functools.wraps(call, updated=())(wrapped)


# Callables that are called as they are; `holders_of` finds the variables that they hold.
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    type(jax.jit(len)),
    Jitted,
    Stateful,
)


def _is_ready_to_call(function: Any) -> bool:
    """Whether it is a function, or a model, or a layer of a model, that has its variables."""
    if isinstance(function, Layer):
        return function.built and any(True for _ in function.parent_models)
    if isinstance(function, LayerList):
        return function.built
    return isinstance(function, _FUNCTIONS)


def _remat_layer(entry: Any, options: Keywords) -> Layer:
    layer = as_layer(entry)
    jax.checkpoint(lambda: None, **options)  # raises at once if an option is wrong
    made = Layer(
        _remat_pure(layer, options),
        name=layer.name,
        trainable=layer.entry_options.trainable,
        freeze_state=layer.entry_options.freeze_state,
    )
    made.copy_number = layer.copy_number
    if layer.built:
        made.native_layout = layer.native_layout
        made.share_variables(layer.own_variables())
    return made


def _remat_pure(layer: Layer, options: Keywords) -> PureLayer:
    pure = wrap(layer)

    def apply(
        variables: Variables, key: Any, /, *inputs: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        signature, arrays, _ = partition(inputs, keywords)

        def run(variables: Variables, key: Any, arrays: list[Any]) -> tuple[Any, Variables]:
            args, given = combine(signature, arrays, ())
            return pure.apply(variables, key, *args, **given)

        key = key_within(layer, key, variables, inputs, keywords)
        return jax.checkpoint(run, **options)(variables, key, arrays)

    return dataclasses.replace(
        pure,
        apply=apply,
        owner=layer.owner,
        text=f"remat of {pure.text or pure.label}",
        reduce=(_remat_pure, (layer, dict(options))),
    )
