"""The files that Flax writes."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization

from seqbridge import WeightsError

# The extension types of Flax' files.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"


def read_msgpack(path: str, **_: object) -> Any:
    """Return the tree that `flax.serialization.to_bytes` or `msgpack_serialize` has written.

    Raises:
        WeightsError: There are other things in it than arrays and numbers, or an array isn't what
            it says.
    """
    with open(path, "rb") as file:
        data = file.read()
    # Flax takes -1 for a length, structured types, two values of one name, and extensions that it
    # doesn't know.
    msgpack.unpackb(
        data,
        ext_hook=_check_extension,
        object_pairs_hook=_check_pairs,
        raw=False,
        strict_map_key=False,
    )
    return serialization.msgpack_restore(data)


def _check_extension(code: int, data: bytes) -> complex | np.ndarray:
    """Raise if an array isn't what it says. What is returned stands in for it."""
    if code == _COMPLEX:
        return 0j
    if code not in (_ARRAY, _SCALAR):
        raise WeightsError(f"there is something of type {code} in it, which Flax doesn't write")
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    if b"V" in name[:2] or b"," in name or b"O" in name[:2]:
        raise WeightsError(f"an array is of {name!r:.80}, which is no type of numbers")
    dtype = jnp.dtype(jnp.bfloat16 if name == b"bfloat16" else name.decode("ascii"))
    is_shape = all(_is_size(n) for n in shape)
    if not is_shape or math.prod(shape) * dtype.itemsize != len(buffer):
        raise WeightsError(
            f"an array says that its shape is {tuple(shape)!r:.80}, and has {len(buffer)} bytes"
        )
    return np.empty(0)


def _check_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict of pairs, and raise if a name stands twice, or if it is no array in parts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WeightsError("a name stands twice in it")
    if _CHUNKED in found and not all(_is_size(n) for n in found["shape"].values()):
        raise WeightsError(f"an array in parts has the shape {found['shape']!r:.80}")
    return found


def _is_size(n: object) -> bool:
    return type(n) is int and n >= 0
