"""The way out: a layer as a stax pair."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqbridge import PureLayer, Variables


def export(layer: PureLayer) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A model, a layer or an entry of any library as a stax pair, `(init_fun, apply_fun)`.

    `init_fun(rng, input_shape)` returns the shape of the output and the parameters, nested dicts by
    readable names. A size may be -1. `apply_fun(params, inputs, rng=key, training=True)` returns
    the output; other keywords are those of the layers. Several inputs are one tuple, as in stax.
    What was built hands over its values: `init_fun` returns them, whatever the key.

    stax knows no state. Here it stands beside the parameters, `(params, state)`, without gradients
    and all in floats, so that stax' optimizers leave it as it is; a call in training uses the
    statistics of its batch, and loses what it learns of them. `apply_fun.with_state(params, inputs,
    ...)` returns `(outputs, params)` with the new state: call it once over the training data before the evaluation.

    Args:
        layer: The neutral form of what goes out.

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
    flags = layer.signature is not None and "training" in layer.signature.parameters

    def init_fun(rng: Any, input_shape: Any, **keywords: Any) -> tuple[Any, Any]:
        params = _params(init(rng, *specs(input_shape, 1), **keywords))
        given = {**keywords, **({"training": False} if flags else {})}

        def outputs(size: int) -> Any:
            args = _packed(specs(input_shape, size))
            return jax.eval_shape(
                lambda p, x: apply_fun(p, x, jax.random.key(0), **given), params, args
            )

        one, two = outputs(1), outputs(2)
        open_ = any(size == -1 for size in jax.tree.leaves(input_shape))
        return jax.tree.map(
            lambda a, b: _shape(a.shape, b.shape if open_ else a.shape), one, two
        ), params

    def specs(input_shape: Any, size: int) -> tuple[Any, ...]:
        """Inputs of a shape, or of a tuple of shapes, with a size for what may be any."""
        several = any(isinstance(part, list | tuple) for part in input_shape)
        shapes = input_shape if several else (input_shape,)
        known = [spec.dtype for spec in jax.tree.leaves(layer.inputs)]
        dtypes = known if len(known) == len(shapes) else [jnp.float32] * len(shapes)
        sizes = [tuple(size if n in (-1, None) else n for n in shape) for shape in shapes]
        return tuple(map(jax.ShapeDtypeStruct, sizes, dtypes))

    def with_state(params: Any, inputs: Any, rng: Any = None, **keywords: Any) -> tuple[Any, Any]:
        args = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        params, state = params if type(params) is tuple else (params, {})
        if state:
            like = init(None, *args, **keywords)["state"]
            state = jax.tree.map(lambda s, a: jax.lax.stop_gradient(s).astype(a.dtype), state, like)
        before: Variables = {"params": params, "state": state}
        out, new = layer.apply(before, missing if rng is None else rng, *args, **keywords)
        return out, _params({**before, **new})

    def missing() -> Any:
        raise TypeError("a layer draws random numbers: give a key, apply_fun(params, x, rng=key)")

    def apply_fun(params: Any, inputs: Any, rng: Any = None, **keywords: Any) -> Any:
        return with_state(params, inputs, rng, **keywords)[0]

    own = [
        p for p in inspect.signature(apply_fun).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    given = layer.signature.parameters.values() if layer.signature else ()
    keywords = [p for p in given if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    apply_fun.__signature__ = inspect.Signature([*own, *keywords])  # pyright: ignore[reportFunctionMemberAccess]
    apply_fun.with_state = with_state  # pyright: ignore[reportFunctionMemberAccess]
    init_fun.__qualname__ = layer.label
    return init_fun, apply_fun


def _params(variables: Variables) -> Any:
    state = jax.tree.map(_float, variables["state"])
    return (variables["params"], state) if state else variables["params"]


def _float(array: Any) -> Any:
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(jnp.float32)


def _packed(args: tuple[Any, ...]) -> Any:
    return args[0] if len(args) == 1 else args


def _shape(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a if a == b else -1 for a, b in zip(one, two, strict=True))
