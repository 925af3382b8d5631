"""`remat`: rematerialisation of whatever uses variables."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias, TypedDict, TypeVar, Unpack, overload

import jax

from seqbridge._interface import PureLayer
from seqbridge._layers import Layer, Structure
from seqbridge._state import Stateful
from seqbridge._transforms import Jitted, combine, holders_of, partition, pure_call
from seqbridge._wrappers.wrap import as_layer, key_within, wrap

P = ParamSpec("P")
R = TypeVar("R")

# Of what `remat` takes, that which is an entry to a type checker, too. Others can be called, before
# and after.
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
    """`jax.checkpoint` of whatever uses variables: inner values are computed again for the gradients, to save memory.

    Args:
        function: A function, or a model or a layer that is built; or what is to stand in a model:
            an entry that is no plain function, or a `Layer` or `Sequential` that isn't built.
        vars: What `function` closes over.
        **options: `prevent_cse` and `policy`, as `jax.checkpoint` has them.

    Returns:
        A function that does what `function` does, on its variables; or a `Layer` to put into a
        model, or to `Repeat`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from seqbridge import Variable, grad
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> bool(jnp.allclose(grad(remat(lambda w: jnp.sin(w.value).sum()))(w)["w"], jnp.cos(w.value)))
        True
    """
    built = (
        function.built
        if isinstance(function, Layer | Structure)
        else isinstance(function, _FUNCTIONS)
    )
    if not built:
        return _remat_layer(function, options)
    call: Any = function
    closed = holders_of(call, vars)

    def wrapped(*args: Any, **keywords: Any) -> Any:
        checkpoint = functools.partial(jax.checkpoint, **options)
        return pure_call(checkpoint, call, closed, args, keywords, name="sb.remat")

    return functools.wraps(call, updated=())(wrapped)


# Of these, one that holds no variables is a function to JAX, and one that does is for `_hidden` to
# find.
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    type(jax.jit(len)),
    Jitted,
    Stateful,
)


def _remat_layer(entry: Any, options: Mapping[str, Any]) -> Layer:
    layer = as_layer(entry)
    jax.checkpoint(lambda: None, **options)  # says at once what is wrong with them
    return Layer(_remat_pure(layer, options), name=layer.name, trainable=layer.entry_options[2])


def _remat_pure(layer: Layer, options: Mapping[str, Any]) -> PureLayer:
    pure = wrap(layer)

    def apply(variables: Any, key: Any, /, *inputs: Any, **keywords: Any) -> Any:
        signature, arrays, _ = partition(inputs, keywords)

        def run(variables: Any, key: Any, arrays: list[Any]) -> Any:
            inside, given = combine(signature, arrays, ())
            return pure.apply(variables, key, *inside, **given)

        key = key_within(layer, key, variables, inputs, keywords)
        return jax.checkpoint(run, **options)(variables, key, arrays)

    text = f"remat of {pure.text or pure.label}"
    return dataclasses.replace(
        pure, apply=apply, text=text, reduce=(_remat_pure, (layer, dict(options)))
    )
