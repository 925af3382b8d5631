"""Equinox, whose layers take one example, with its channels first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ports._block import ROWS, Block

KEY = jax.random.key(0)


class Unrolled(eqx.Module):
    """A cell over a sequence."""

    cell: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = jnp.zeros(self.cell.hidden_size, x.dtype)
        start = (zeros, zeros) if isinstance(self.cell, eqx.nn.LSTMCell) else zeros

        def step(state: Any, x: jax.Array) -> Any:
            state = self.cell(x, state)
            return state, state[0] if isinstance(state, tuple) else state

        return jax.lax.scan(step, start, x)[1]


class SelfAttention(eqx.Module):
    """One input for all three."""

    attention: eqx.nn.MultiheadAttention

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attention(x, x, x, inference=True)


class Embedded(eqx.Module):
    """A sequence of indices."""

    embedding: eqx.nn.Embedding

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.vmap(self.embedding)(x)


def equinox(row: str, make: Callable[[], Any], *, images: bool = False) -> Block:
    shape = ROWS[row]
    if images:
        shape = (shape[0], shape[-1], *shape[1:-1])

    def run(tree: Any, x: jax.Array) -> Any:
        x = jnp.moveaxis(x, -1, 1) if images else x
        if isinstance(tree, tuple):
            module, state = tree
            module = eqx.nn.inference_mode(module)
            y = jax.vmap(lambda x: module(x, state)[0], axis_name="batch")(x)
        else:
            y = jax.vmap(tree)(x)
        return jnp.moveaxis(y, 1, -1) if images else y

    return Block(row, make, run, build=shape)


def _conv(cls: Any, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(*args, dtype=jnp.float64, key=KEY, **options)


def _norm(cls: Any, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(*args, dtype=jnp.float64, **options)


nn = eqx.nn
BLOCKS = [
    equinox("linear", _conv(nn.Linear, 5, 5)),
    equinox("linear without bias", _conv(nn.Linear, 5, 5, use_bias=False)),
    equinox("conv 1d", _conv(nn.Conv1d, 4, 4, 3, padding=1), images=True),
    equinox("conv 2d", _conv(nn.Conv2d, 4, 4, 3, 2), images=True),
    equinox("conv 2d in groups", _conv(nn.Conv2d, 4, 4, 3, 2, groups=2), images=True),
    equinox("conv 2d dilated", _conv(nn.Conv2d, 4, 4, 3, dilation=2), images=True),
    equinox("conv 3d", _conv(nn.Conv3d, 3, 3, 3, padding="SAME"), images=True),
    equinox("depthwise", _conv(nn.Conv2d, 4, 8, 3, groups=4), images=True),
    equinox("transposed 1d", _conv(nn.ConvTranspose1d, 4, 4, 3, 2), images=True),
    equinox("transposed 2d", _conv(nn.ConvTranspose2d, 4, 4, 3, 2, padding="SAME"), images=True),
    equinox("embedding", lambda: Embedded(nn.Embedding(7, 5, dtype=jnp.float64, key=KEY))),
    equinox(
        "batch norm",
        _norm(nn.BatchNorm, 6, axis_name="batch", momentum=0.9, mode="batch"),
        images=True,
    ),
    equinox("layer norm", _norm(nn.LayerNorm, 5)),
    equinox("group norm", _norm(nn.GroupNorm, 3, 6), images=True),
    equinox("rms norm", _norm(nn.RMSNorm, 5, use_bias=False)),
    equinox("lstm", lambda: Unrolled(nn.LSTMCell(4, 4, dtype=jnp.float64, key=KEY))),
    equinox("gru", lambda: Unrolled(nn.GRUCell(4, 4, dtype=jnp.float64, key=KEY))),
    equinox(
        "attention",
        lambda: SelfAttention(
            nn.MultiheadAttention(
                2,
                8,
                use_query_bias=True,
                use_key_bias=True,
                use_value_bias=True,
                use_output_bias=True,
                dtype=jnp.float64,
                key=KEY,
            )
        ),
    ),
]
