"""Export of a layer to a stax pair."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from seqbridge import PureLayer, Variables

Shape: TypeAlias = tuple[int, ...]


def export(layer: PureLayer) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A model, a layer or an entry of any library as a stax pair, `(init_fun, apply_fun)`.

    `init_fun(rng, input_shape)` returns the shape of the output and the parameters, nested dicts by
    readable names. A size may be -1. `apply_fun(params, inputs, rng=key, training=True)` returns
    the output; other keywords are those of the layers. Several inputs are one tuple, as in stax.
    What was built hands over its values: `init_fun` returns them, whatever the key.

    stax knows no state. Here it stands beside the parameters, `(params, state)`, without gradients
    and all in floats, so that stax' optimizers leave it as it is; a call in training uses the
    statistics of its batch, and loses what it learns of them. `apply_fun.with_state(params, inputs,
    ...)` returns `(outputs, params)` with the new state: call it once over the training data before
    the evaluation.

    Args:
        layer: The `PureLayer` of what goes out.

    Returns:
        A pair of functions.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, seqbridge as sb
        >>> init_fun, apply_fun = sb.to_stax([jnp.tanh, nn.Dense(3)])
        >>> shape, params = init_fun(jax.random.key(0), (-1, 4))  # (batch, features)
        >>> shape, params["Dense_1"]["kernel"].shape
        ((-1, 3), (4, 3))
    """
    init = layer.init
    assert init is not None
    has_mode = layer.signature is not None and "training" in layer.signature.parameters

    def init_fun(rng: jax.Array, input_shape: Any, **keywords: Any) -> tuple[Any, Any]:
        params = _join_state(init(rng, *_input_specs(layer, input_shape, 1), **keywords))
        if has_mode:
            keywords["training"] = False

        def output_specs(size: int) -> Any:
            """Return the outputs as shapes, with a size for what may be any."""
            args = _input_specs(layer, input_shape, size)
            inputs = args[0] if len(args) == 1 else args

            def call(params: Any, inputs: Any) -> Any:
                return apply_fun(params, inputs, jax.random.key(0), **keywords)

            return jax.eval_shape(call, params, inputs)

        def output_shape(spec: jax.ShapeDtypeStruct, other: jax.ShapeDtypeStruct) -> Shape:
            return _open_shape(spec.shape, other.shape) if has_open_size else spec.shape

        has_open_size = any(size == -1 for size in jax.tree.leaves(input_shape))
        return jax.tree.map(output_shape, output_specs(1), output_specs(2)), params

    def with_state(
        params: Any, inputs: Any, rng: jax.Array | None = None, **keywords: Any
    ) -> tuple[Any, Any]:
        args = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        params, state = params if type(params) is tuple else (params, {})
        if state:
            specs = init(None, *args, **keywords)["state"]
            state = jax.tree.map(_restore_state, state, specs)
        variables: Variables = {"params": params, "state": state}
        key = _raise_no_key if rng is None else rng
        out, new = layer.apply(variables, key, *args, **keywords)
        return out, _join_state({**variables, **new})

    def apply_fun(params: Any, inputs: Any, rng: jax.Array | None = None, **keywords: Any) -> Any:
        out, _ = with_state(params, inputs, rng, **keywords)
        return out

    parameters = []
    for parameter in inspect.signature(apply_fun).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            parameters.append(parameter)
    for parameter in layer.signature.parameters.values() if layer.signature is not None else ():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            parameters.append(parameter)
    apply_fun.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    apply_fun.with_state = with_state  # pyright: ignore[reportFunctionMemberAccess]
    init_fun.__qualname__ = layer.label
    return init_fun, apply_fun


def _raise_no_key() -> jax.Array:
    raise TypeError("a layer draws random numbers: give a key, apply_fun(params, x, rng=key)")


def _input_specs(layer: PureLayer, input_shape: Any, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return inputs of a shape, or of a tuple of shapes, with a size for what may be any."""
    is_several = any(isinstance(part, list | tuple) for part in input_shape)
    shapes = input_shape if is_several else (input_shape,)
    dtypes = [spec.dtype for spec in jax.tree.leaves(layer.inputs)]
    if len(dtypes) != len(shapes):
        dtypes = [jnp.float32] * len(shapes)
    specs = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        sizes = tuple(size if n in (-1, None) else n for n in shape)
        specs.append(jax.ShapeDtypeStruct(sizes, dtype))
    return tuple(specs)


def _join_state(variables: Variables) -> Any:
    """Return the parameters, or a pair of them and the state, in floats, if there is any."""
    state = jax.tree.map(_as_float, variables["state"])
    return (variables["params"], state) if state else variables["params"]


def _as_float(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return array.astype(jnp.float32)


def _restore_state(array: jax.Array, spec: jax.ShapeDtypeStruct) -> jax.Array:
    """Return an array of state in its own dtype and without gradients."""
    return jax.lax.stop_gradient(array).astype(spec.dtype)


def _open_shape(one: Shape, two: Shape) -> Shape:
    """Return a shape with -1 for the sizes in which two differ."""
    return tuple(n if n == m else -1 for n, m in zip(one, two, strict=True))
