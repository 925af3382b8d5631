"""Haiku."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from ports._block import Block


def haiku(row: str, make: Callable[[], Callable[..., Any]], **keywords: Any) -> Block:
    """A block from what makes a module, or a function of modules."""

    def function(x: jax.Array, **given: Any) -> Any:
        return make()(x, **given)

    if keywords:  # a mode, which the signature must show
        pair = hk.transform_with_state(lambda x, is_training: make()(x, is_training))
    else:
        pair = hk.transform_with_state(lambda x: function(x))

    def run(tree: Any, x: jax.Array) -> Any:
        # An embedding is in float32 whatever is asked for.
        tree = jax.tree.map(lambda a: a.astype(jnp.float64), tree)
        return pair.apply(*tree, None, x, **keywords)[0]

    return Block(row, lambda: pair, run)


def _unroll(core: Any) -> Callable[[jax.Array], Any]:
    def unroll(x: jax.Array) -> Any:
        module = core(4)
        return hk.dynamic_unroll(module, x, module.initial_state(x.shape[0]), time_major=False)[0]

    return unroll


def _attention(x: jax.Array) -> jax.Array:
    return hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())(x, x, x)


BLOCKS = [
    haiku("linear", partial(hk.Linear, 5)),
    haiku("linear without bias", partial(hk.Linear, 5, with_bias=False)),
    haiku("conv 1d", partial(hk.Conv1D, 4, 3)),
    haiku("conv 2d", partial(hk.Conv2D, 4, 3, 2, padding="VALID")),
    haiku("conv 2d in groups", partial(hk.Conv2D, 4, 3, 2, padding="VALID", feature_group_count=2)),
    haiku("conv 2d dilated", partial(hk.Conv2D, 4, 3, rate=2, padding="VALID")),
    haiku("conv 3d", partial(hk.Conv3D, 3, 3)),
    haiku("depthwise", partial(hk.DepthwiseConv2D, 2, 3, padding="VALID")),
    haiku("transposed 1d", partial(hk.Conv1DTranspose, 4, 3, 2, padding="VALID")),
    haiku("transposed 2d", partial(hk.Conv2DTranspose, 4, 3, 2)),
    haiku("embedding", partial(hk.Embed, 7, 5)),
    haiku("batch norm", partial(hk.BatchNorm, True, True, 0.9), is_training=False),
    haiku("layer norm", partial(hk.LayerNorm, -1, True, True)),
    haiku("group norm", partial(hk.GroupNorm, 3)),
    haiku("rms norm", partial(hk.RMSNorm, -1)),
    haiku("lstm", lambda: _unroll(hk.LSTM)),
    haiku("gru", lambda: _unroll(hk.GRU)),
    haiku("attention", lambda: _attention),
]
