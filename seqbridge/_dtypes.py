"""Dtypes: which may become which."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_CATEGORIES = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def category(dtype: Any) -> int:
    """Bools, ints, floats, complex numbers: each can be made one of a later kind without loss."""
    return next(i for i, kind in enumerate(_CATEGORIES) if jnp.issubdtype(dtype, kind))


def in_range(value: Any, dtype: Any) -> bool:
    """Whether whole numbers that lie on the host, and of which JAX would drop the upper bits, fit into a dtype."""
    if isinstance(value, jax.Array) or not jnp.issubdtype(dtype, jnp.integer):
        return True
    numbers, info = np.asarray(value), jnp.iinfo(dtype)
    return info.min <= numbers.min(initial=0) and numbers.max(initial=0) <= info.max


def owned(value: Any) -> jax.Array:
    """`value` as an array of JAX's, which nobody else can write to."""
    # JAX may alias a NumPy array; and where it copies one, it may do so later.
    return jnp.asarray(value.copy()) if type(value) is np.ndarray else jnp.array(value)


def strong(value: Any) -> jax.Array:
    """`value` as an array whose dtype doesn't give way to others."""
    array = value if isinstance(value, jax.Array) else owned(value)
    weak = getattr(array, "weak_type", False)  # keys have none
    return jax.lax.convert_element_type(array, array.dtype) if weak else array


def value_text(value: Any) -> str:
    """A value as messages show it: an array by its dtype and shape."""
    dtype = getattr(value, "dtype", None)
    return (
        f"{dtype}{list(value.shape)}"
        if dtype is not None
        else f"{type(value).__name__} {value!r:.60}"
    )
