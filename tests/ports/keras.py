"""Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from ports._block import ROWS, Block

OF: dict[str, Any] = {"dtype": "float64"}
layers = keras.layers


def block(row: str, make: Callable[[], Any], *, exact: bool = True) -> Block:
    def run(tree: Any, x: jax.Array) -> Any:
        layer = make()
        if isinstance(layer, SelfAttention):
            layer(jnp.zeros(ROWS[row]))
        else:
            layer.build(ROWS[row])
        layer.set_weights(tree)
        return jnp.asarray(layer(x, training=False))

    return Block(row, make, run, exact=exact)


class SelfAttention(keras.layers.Layer):
    """One input for all three."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(2, 4, **OF)

    def call(self, x: Any) -> Any:
        return self.attention(x, x)


BLOCKS = [
    block("linear", lambda: layers.Dense(5, **OF)),
    block("linear without bias", lambda: layers.Dense(5, use_bias=False, **OF)),
    block("conv 1d", lambda: layers.Conv1D(4, 3, padding="same", **OF)),
    block("conv 2d", lambda: layers.Conv2D(4, 3, 2, **OF)),
    block("conv 2d in groups", lambda: layers.Conv2D(4, 3, 2, groups=2, **OF)),
    block("conv 2d dilated", lambda: layers.Conv2D(4, 3, dilation_rate=2, **OF)),
    block("conv 3d", lambda: layers.Conv3D(3, 3, padding="same", **OF)),
    block("depthwise", lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, **OF)),
    block("transposed 1d", lambda: layers.Conv1DTranspose(4, 3, 2, **OF)),
    block("transposed 2d", lambda: layers.Conv2DTranspose(4, 3, 2, padding="same", **OF)),
    block("embedding", lambda: layers.Embedding(7, 5, **OF)),
    block(
        "batch norm",
        lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **OF),
        exact=False,
    ),
    block("layer norm", lambda: layers.LayerNormalization(epsilon=1e-5, **OF), exact=False),
    block("group norm", lambda: layers.GroupNormalization(3, epsilon=1e-5, **OF), exact=False),
    block("rms norm", lambda: layers.RMSNormalization(epsilon=1e-5, **OF), exact=False),
    block("lstm", lambda: layers.LSTM(4, return_sequences=True, **OF), exact=False),
    block("gru", lambda: layers.GRU(4, return_sequences=True, **OF), exact=False),
    block("attention", lambda: SelfAttention(**OF), exact=False),
]
