"""The files that Equinox writes: arrays one after the other, without names."""

from __future__ import annotations

import io
import math
from typing import Any, BinaryIO, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from seqbridge import WeightsError, read

Native: TypeAlias = eqx.Module | tuple[eqx.Module, eqx.nn.State]


def read_arrays(path: str, **_: object) -> list[np.ndarray]:
    """Return all arrays of a file that `eqx.tree_serialise_leaves` has written, in its order.

    Raises:
        WeightsError: An array claims more than there is, or something else is behind the last one.
    """
    with open(path, "rb") as opened:
        data = opened.read()
    file = io.BytesIO(data)
    _skip_notes(file)
    arrays = []
    while file.tell() < len(data):
        shape, order, dtype = _read_header(file)
        count = math.prod(shape)
        size = count * dtype.itemsize
        start = file.tell()
        impossible = dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0
        if impossible or size > len(data) - start:
            raise WeightsError(
                f"{path}: array {len(arrays)} is to be {shape} of {dtype}, which isn't there"
            )
        array = np.frombuffer(data, dtype, count, start) if size else np.zeros(0, dtype)
        arrays.append(array.reshape(shape, order=order))
        file.seek(start + size)
    return arrays


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype]:
    """Return the shape, the order and the dtype of the array that comes next."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, "F" if fortran else "C", dtype


def read_like(path: str, like: Native) -> Native:
    """Return the module, or the module and its state, that was written to a file.

    Args:
        path: The file.
        like: A pair of a module and a state, or a module alone.

    Raises:
        WeightsError: The arrays are others than those of the module, fewer or more.
    """
    arrays = read(path, format="eqx")
    leaves = _stored_leaves(like)
    if isinstance(like, tuple) and len(arrays) != len(leaves):
        module, state = like
        if len(arrays) == len(_stored_leaves(module)):  # it was stored without its state
            return read_like(path, module), state  # pyright: ignore[reportReturnType]
    if len(arrays) != len(leaves):
        raise WeightsError(f"{path} has {len(arrays)} arrays, and this layer {len(leaves)}")
    wrong = []
    for i, (array, (place, leaf)) in enumerate(zip(arrays, leaves, strict=True)):
        shape = np.shape(leaf)
        # A number of Python's is stored in whatever dtype it happened to have.
        if array.shape != shape or (eqx.is_array(leaf) and array.dtype != leaf.dtype):
            dtype = leaf.dtype if eqx.is_array(leaf) else jnp.result_type(leaf)
            name = jax.tree_util.keystr(place)
            wrong.append(
                f"array {i} is {array.dtype}{list(array.shape)}, and {name} {dtype}{list(shape)}"
            )
    if wrong:
        raise WeightsError(f"{path} doesn't fit, and names aren't in it: " + "; ".join(wrong[:12]))
    with open(path, "rb") as file:
        _skip_notes(file)
        return eqx.tree_deserialise_leaves(file, like)


def _skip_notes(file: BinaryIO) -> None:
    """Skip a line of JSON before the arrays, as in Equinox' own example of how to save."""
    start = file.read(1)
    file.seek(0)
    if start == b"{":
        file.readline()


def _stored_leaves(tree: Native) -> list[tuple[tuple[Any, ...], Any]]:
    """Return what Equinox stores of a tree, with paths: arrays, and numbers, too."""
    leaves = []
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if eqx.is_array_like(leaf):
            leaves.append((place, leaf))
    return leaves
