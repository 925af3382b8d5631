"""NNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ports._block import Block

OF: dict[str, Any] = {"param_dtype": jnp.float64}


def block(
    row: str, make: Callable[..., nnx.Module], *args: Any, exact: bool = True, **options: Any
) -> Block:
    def made() -> Any:
        return make(*args, **{**OF, **options}, rngs=nnx.Rngs(0))

    def run(tree: Any, x: jax.Array) -> Any:
        module: Any = made()
        nnx.update(module, tree)
        module.eval()
        return module(x)

    return Block(row, made, run, exact=exact)


def _unrolled(cell: Any) -> Callable[..., nnx.Module]:
    return lambda *args, rngs, **options: nnx.RNN(cell(*args, rngs=rngs, **options), rngs=rngs)


def _attention(*args: Any, **options: Any) -> nnx.Module:
    return nnx.MultiHeadAttention(*args, decode=False, **options)


BLOCKS = [
    block("linear", nnx.Linear, 5, 5),
    block("linear without bias", nnx.Linear, 5, 5, use_bias=False),
    block("conv 1d", nnx.Conv, 4, 4, (3,)),
    block("conv 2d", nnx.Conv, 4, 4, (3, 3), 2, padding="VALID"),
    block("conv 2d in groups", nnx.Conv, 4, 4, (3, 3), 2, padding="VALID", feature_group_count=2),
    block("conv 2d dilated", nnx.Conv, 4, 4, (3, 3), padding="VALID", kernel_dilation=2),
    block("conv 3d", nnx.Conv, 3, 3, (3, 3, 3)),
    block("depthwise", nnx.Conv, 4, 8, (3, 3), padding="VALID", feature_group_count=4),
    block("transposed 1d", nnx.ConvTranspose, 4, 4, (3,), (2,), padding="VALID"),
    block(
        "transposed 2d",
        nnx.ConvTranspose,
        4,
        4,
        (3, 3),
        (2, 2),
        padding="SAME",
        transpose_kernel=True,
    ),
    block("embedding", nnx.Embed, 7, 5, dtype=jnp.float64),
    # Its statistics are in float32, and in older versions all of it.
    block(
        "batch norm",
        nnx.BatchNorm,
        6,
        momentum=0.9,
        epsilon=1e-5,
        param_dtype=jnp.float32,
        exact=False,
    ),
    block("layer norm", nnx.LayerNorm, 5, epsilon=1e-5),
    block("group norm", nnx.GroupNorm, 6, 3, epsilon=1e-5),
    block("rms norm", nnx.RMSNorm, 5, epsilon=1e-5),
    block("lstm", _unrolled(nnx.OptimizedLSTMCell), 4, 4),
    block("gru", _unrolled(nnx.GRUCell), 4, 4),
    block("attention", _attention, 2, 8, exact=False),
]
