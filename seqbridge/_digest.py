"""Checksums of arrays, computed where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def digests(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """A checksum of each array, which is the same wherever its parts lie."""
    sums = {
        part: {name: _digest(array) for name, array in arrays.items()}
        for part, arrays in state.items()
    }
    return jax.tree.map(int, sums)


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
    """The sum of all words, each times an odd number of its own: one bit changes it, and so does a swap."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize == 8:
        width = min(8 * array.dtype.itemsize, 32)
        array = jax.lax.bitcast_convert_type(
            array, jnp.dtype(f"uint{width}")
        )  # of 64 bits: two words
    words = array.astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return (words * (index * jnp.uint32(2) + jnp.uint32(1))).sum(dtype=jnp.uint32)
