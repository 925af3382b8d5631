"""Dtypes: which may become which."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._state.frames import Tracer
from seqbridge._state.operators import Operators

_CATEGORIES = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def category(dtype: Any) -> int:
    """Return the place of a dtype among bools, ints, floats and complex numbers.

    Each can be made one of a later kind without loss.
    """
    return next(i for i, kind in enumerate(_CATEGORIES) if jnp.issubdtype(dtype, kind))


def in_range(value: Any, dtype: Any) -> bool:
    """Whether whole numbers that lie on the host fit into a dtype.

    JAX would drop their upper bits.
    """
    if isinstance(value, jax.Array) or not jnp.issubdtype(dtype, jnp.integer):
        return True
    numbers, info = np.asarray(value), jnp.iinfo(dtype)
    return info.min <= numbers.min(initial=0) and numbers.max(initial=0) <= info.max


def owned(value: Any) -> jax.Array:
    """Return `value` as an array of JAX's, which nobody else can write to."""
    # JAX may alias a NumPy array; and where it copies one, it may do so later.
    return jnp.asarray(value.copy()) if type(value) is np.ndarray else jnp.array(value)


def strong(value: Any) -> jax.Array:
    """Return `value` as an array whose dtype doesn't give way to others."""
    array = value if isinstance(value, jax.Array) else owned(value)
    weak = getattr(array, "weak_type", False)  # keys have none
    return jax.lax.convert_element_type(array, array.dtype) if weak else array


def value_text(value: Any) -> str:
    """Return a value as messages show it: an array by its dtype and shape."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return f"{type(value).__name__} {value!r:.60}"
    return f"{dtype}{list(value.shape)}"


def cast(name: str, value: Any, like: Any) -> Any:
    """Return `value` as an array with the shape, the dtype and the layout of `like`.

    Args:
        name: The name of the variable that is assigned, for errors.
        value: The new value.
        like: The old value.

    Raises:
        ValueError: Another shape, or an array that was donated.
        TypeError: No array, or a dtype of another kind (a float for an int variable, say).
    """
    if isinstance(value, Operators):
        value = value.value
    if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.is_deleted():
        raise ValueError(
            f"{name} can't be assigned an array that is deleted: it was donated to a program"
        )
    if _is_key(like):
        _check_key(name, value, like)
        array = value
    elif isinstance(value, jax.Array) and value.dtype == like.dtype and not value.weak_type:
        array = value
    else:
        array = _converted(name, value, like)
    if array.shape != like.shape:
        raise ValueError(f"{name} has shape {like.shape}: can't assign shape {array.shape}")
    return _laid_out(array, like)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _check_key(name: str, value: Any, like: Any) -> None:
    if not (isinstance(value, jax.Array) and value.dtype == like.dtype):
        raise TypeError(
            f"{name} holds a PRNG key, {like.dtype}: can't assign {value_text(value)}; "
            "jax.random.key makes one"
        )


def _converted(name: str, value: Any, like: Any) -> jax.Array:
    """Return `value` with the dtype of `like`, if nothing is lost by that."""
    if value is None:
        raise TypeError(f"{name} takes an array: can't assign None")
    try:
        array = owned(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{name} takes an array: can't assign {value_text(value)} ({error})"
        ) from error
    if _is_key(array) or category(array.dtype) > category(like.dtype):
        raise TypeError(
            f"{name} is {like.dtype}: can't assign {array.dtype} without loss; cast it yourself"
        )
    if not isinstance(array, Tracer) and not in_range(value, like.dtype):
        raise TypeError(f"{name} is {like.dtype}: can't assign numbers that are too large for it")
    if array.dtype != like.dtype or array.weak_type:
        array = jax.lax.convert_element_type(array, like.dtype)
    return array


def _laid_out(array: Any, like: Any) -> Any:
    """Return `array` where `like` lies: on its mesh, or on a device that was chosen."""
    if not isinstance(like, jax.Array) or isinstance(like, Tracer) or isinstance(array, Tracer):
        return array
    on_mesh = isinstance(like.sharding, jax.sharding.NamedSharding)
    # Unless the new array comes with a choice of its own.
    on_chosen_device = like.committed and not array.committed
    if (on_mesh or on_chosen_device) and array.sharding != like.sharding:
        return jax.device_put(array, like.sharding)
    return array
