"""PRNG keys: of a call, of its layers, and the stream that a model takes them from."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._state.frames import tracing

_STREAM = 2**31 - 1  # the position that a model's stream is folded with; no list is that long


class Keys:
    """A PRNG key that is made when the first layer asks for it.

    So a call that draws nothing makes none.

    Args:
        make: Makes the key.
        initial: The keys for initial values, in a call that may build layers.
        path: The positions that the key was folded with.
    """

    def __init__(
        self, make: Callable[[], jax.Array], initial: Keys | None = None, path: tuple[int, ...] = ()
    ):
        self._make = make
        self.initial = initial
        self.path = path

    @functools.cached_property
    def key(self) -> jax.Array:
        """The key."""
        return self._make()

    def child(self, position: int) -> Keys:
        """Return the keys of the layer at a position of a list."""
        inner = None if self.initial is None else self.initial.child(position)
        return Keys(lambda: fold_in(self.key, position), inner, (*self.path, position))


def _pair(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    following, now = jax.random.split(key)
    return following, now


_fold_in = jax.jit(jax.random.fold_in)
_split = jax.jit(_pair)


def fold_in(key: jax.Array, data: int) -> jax.Array:
    """Return `jax.random.fold_in`, quickly."""
    # Compiled where it runs at once; inlined in a trace, as a person would write it.
    return jax.random.fold_in(key, data) if tracing() else _fold_in(key, data)


def split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the next key of a stream, and one to draw with."""
    return _pair(key) if tracing() else _split(key)


def as_key(key: Any) -> jax.Array:
    """Return a typed PRNG key from a seed, a raw key or a typed one.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return jax.random.key(key)
    array: Any = key
    dtype = getattr(array, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and array.shape == ():
        return array
    if dtype == "uint32" and array.ndim == 1:
        with contextlib.suppress(TypeError):  # of a length that no key has
            return jax.random.wrap_key_data(array)
    got = f"{key!r:.60}"
    if dtype is not None:
        got = f"{dtype}[{','.join([str(size) for size in array.shape])}]"
    raise TypeError(f"a key is an int, jax.random.key(0) or jax.random.PRNGKey(0), not {got}")


def same_key(a: Any, b: Any) -> bool:
    """Whether two seeds or keys mean one key."""
    return np.array_equal(jax.random.key_data(as_key(a)), jax.random.key_data(as_key(b)))


def stream(seed: Any) -> jax.Array:
    """Return the first value of the stream of a model that starts from `seed`."""
    return fold_in(as_key(seed), _STREAM)
