"""The files that Flax writes."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization

from seqbridge import WeightsError

# What the extension types of Flax' files are.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"


def read_msgpack(path: str, **_: Any) -> Any:
    """The tree that `flax.serialization.to_bytes` or `msgpack_serialize` has written.

    Raises:
        WeightsError: There are other things in it than arrays and numbers, or an array isn't what
            it says.
    """
    with open(path, "rb") as file:
        data = file.read()
    # Flax takes -1 for a length, structured types, two values of one name, and extensions that it
    # doesn't know.
    msgpack.unpackb(data, ext_hook=_check, object_pairs_hook=_once, raw=False, strict_map_key=False)
    return serialization.msgpack_restore(data)


def _check(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return 0j
    if code not in (_ARRAY, _SCALAR):
        raise WeightsError(f"there is something of type {code} in it, which Flax doesn't write")
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    if b"V" in name[:2] or b"," in name or b"O" in name[:2]:
        raise WeightsError(f"an array is of {name!r:.80}, which is no type of numbers")
    dtype = jnp.dtype(jnp.bfloat16 if name == b"bfloat16" else name.decode("ascii"))
    _check_shape(shape, len(buffer), dtype.itemsize)
    return np.empty(0)


def _check_shape(shape: Any, size: int, itemsize: int) -> None:
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * itemsize != size:
        raise WeightsError(
            f"an array says that its shape is {tuple(shape)!r:.80}, and has {size} bytes"
        )


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WeightsError("a name stands twice in it")
    if _CHUNKED in found and any(type(n) is not int or n < 0 for n in found["shape"].values()):
        raise WeightsError(f"an array in parts has the shape {found['shape']!r:.80}")
    return found
