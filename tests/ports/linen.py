"""linen."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ports._block import Block

OF: dict[str, Any] = {"param_dtype": jnp.float64}


def linen(row: str, module: nn.Module, **keywords: Any) -> Block:
    def run(tree: Any, x: jax.Array) -> Any:
        # Statistics are in float32 whatever is asked for.
        tree = jax.tree.map(lambda a: a.astype(jnp.float64), tree)
        return module.apply(tree, x, **keywords)

    return Block(row, lambda: module, run)


class _Attention(nn.Module):
    """One input for all three."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.MultiHeadDotProductAttention(2, qkv_features=8, **OF)(x)


BLOCKS = [
    linen("linear", nn.Dense(5, **OF)),
    linen("linear without bias", nn.Dense(5, use_bias=False, **OF)),
    linen("conv 1d", nn.Conv(4, 3, **OF)),
    linen("conv 2d", nn.Conv(4, (3, 3), 2, "VALID", **OF)),
    linen("conv 2d in groups", nn.Conv(4, (3, 3), 2, "VALID", feature_group_count=2, **OF)),
    linen("conv 2d dilated", nn.Conv(4, (3, 3), padding="VALID", kernel_dilation=2, **OF)),
    linen("conv 3d", nn.Conv(3, (3, 3, 3), **OF)),
    linen("depthwise", nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4, **OF)),
    linen("transposed 1d", nn.ConvTranspose(4, (3,), (2,), "VALID", **OF)),
    linen("transposed 2d", nn.ConvTranspose(4, (3, 3), (2, 2), "SAME", **OF)),
    linen("embedding", nn.Embed(7, 5, **OF)),
    linen("batch norm", nn.BatchNorm(momentum=0.9, epsilon=1e-5, **OF), use_running_average=True),
    linen("layer norm", nn.LayerNorm(epsilon=1e-5, **OF)),
    linen("group norm", nn.GroupNorm(3, epsilon=1e-5, **OF)),
    linen("rms norm", nn.RMSNorm(epsilon=1e-5, **OF)),
    linen("lstm", nn.RNN(nn.OptimizedLSTMCell(4, **OF))),
    linen("gru", nn.RNN(nn.GRUCell(4, **OF))),
    linen("attention", _Attention()),
]
