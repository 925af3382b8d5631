"""The files that Equinox writes: arrays one after the other, without names."""

from __future__ import annotations

import io
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from seqbridge import WeightsError, read


def read_arrays(path: str, **_: Any) -> list[np.ndarray]:
    """All arrays of a file that `eqx.tree_serialise_leaves` has written, in its order.

    Raises:
        WeightsError: An array claims more than there is, or something else is behind the last one.
    """
    with open(path, "rb") as opened:
        data = opened.read()
    file = io.BytesIO(data)
    _skip_notes(file)
    arrays = []
    while file.tell() < len(data):
        version = np.lib.format.read_magic(file)
        head = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = head(file)
        count, start = math.prod(shape), file.tell()
        size = count * dtype.itemsize
        if (
            dtype.hasobject
            or not dtype.itemsize
            or min(shape, default=0) < 0
            or size > len(data) - start
        ):
            raise WeightsError(
                f"{path}: array {len(arrays)} is to be {shape} of {dtype}, which isn't there"
            )
        array = np.frombuffer(data, dtype, count, start) if size else np.zeros(0, dtype)
        arrays.append(array.reshape(shape, order="F" if fortran else "C"))
        file.seek(start + size)
    return arrays


def read_like(path: str, like: Any) -> Any:
    """The module, or the module and its state, that was written to a file.

    Args:
        path: The file.
        like: A pair of a module and a state, or a module alone.

    Raises:
        WeightsError: The arrays are others than those of the module, fewer or more.
    """
    arrays = read(path, format="eqx")
    if isinstance(like, tuple) and len(arrays) == len(_stored(like[0])) != len(_stored(like)):
        return read_like(path, like[0]), like[1]  # the module was stored without its state
    leaves = _stored(like)
    if len(arrays) != len(leaves):
        raise WeightsError(f"{path} has {len(arrays)} arrays, and this layer {len(leaves)}")
    wrong = [
        f"array {i} is {array.dtype}{list(array.shape)}, and {jax.tree_util.keystr(place)} "
        f"{_dtype(leaf)}{list(shape)}"
        for i, (array, (place, leaf)) in enumerate(zip(arrays, leaves, strict=True))
        if array.shape != (shape := np.shape(leaf))
        or (eqx.is_array(leaf) and array.dtype != leaf.dtype)
    ]
    if wrong:
        raise WeightsError(f"{path} doesn't fit, and names aren't in it: " + "; ".join(wrong[:12]))
    with open(path, "rb") as file:
        _skip_notes(file)
        return eqx.tree_deserialise_leaves(file, like)


def _skip_notes(file: Any) -> None:
    """Skips the line of JSON that may stand before the arrays, as Equinox' own example of how to save has it."""
    start = file.read(1)
    file.seek(0)
    if start == b"{":
        file.readline()


def _stored(tree: Any) -> list[tuple[Any, Any]]:
    """What Equinox stores of a tree: arrays, and numbers, too."""
    return [
        (place, leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if eqx.is_array_like(leaf)
    ]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if eqx.is_array(leaf) else jnp.result_type(leaf)
