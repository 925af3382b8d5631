"""Archives of NumPy arrays, of which nothing is trusted; limits on what is unpacked at all."""

from __future__ import annotations

import math
import os
import zipfile
from collections import Counter
from typing import Any

import numpy as np

from seqbridge._files.safetensors import WeightsError

_TO_SAFETENSORS = 'store it as safetensors there, "model.safetensors", and give that file'

# A file may hold this many times its own size: weights are next to random, but a model may be new
# and all zeros.
_FLOOR, _EXPANSION = 64 * 2**20, 100

# The record at the end of a zip archive: its size, and where it counts the members.
_END_RECORD = 22
_END_COUNT = slice(10, 12)


def check_size(path: str, size: int, total: int) -> None:
    """Raise a `WeightsError` if `size` bytes would be too many, `total`, in memory."""
    if total > _FLOOR + _EXPANSION * size:
        raise WeightsError(
            f"{path} is a bomb: {size} bytes that would be {total} when they are unpacked"
        )


def read_npz(path: str, **_: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name.

    Raises:
        WeightsError: The file is damaged, or holds something else.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_names(path, [member.orig_filename for member in members])
        counted = _counted_members(path, archive)
        if counted != min(len(members), 0xFFFF):
            raise WeightsError(
                f"{path} is damaged: it has {len(members)} arrays, and should have {counted}"
            )
        check_size(path, os.path.getsize(path), sum(member.file_size for member in members))
        return {
            member.filename.removesuffix(".npy"): _read_member(archive, member)
            for member in members
        }


def _counted_members(path: str, archive: zipfile.ZipFile) -> int:
    """Return how many members the archive says it has, which `zipfile` doesn't check."""
    with open(path, "rb") as file:
        file.seek(-_END_RECORD - len(archive.comment), os.SEEK_END)
        return int.from_bytes(file.read()[_END_COUNT], "little")


def _check_names(path: str, names: list[str]) -> None:
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        raise WeightsError(f"{path} is the pickle of another library: {_TO_SAFETENSORS}")
    if "model.weights.h5" in names:
        raise WeightsError(
            f"{path} is a whole model of another library: give a file of its save_weights(...)"
        )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise WeightsError(
            f"{path} is damaged: there are two arrays of one name, {', '.join(twice[:3])}"
        )
    for name in names:
        if "\0" in name:
            raise WeightsError(f"{path} is damaged: a name has a NUL in it: {name!r:.80}")
        if not name.endswith(".npy"):
            raise WeightsError(
                f"{path} is a zip archive, and no npz file: there is {name!r:.80} in it"
            )


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return one array. Its checksum is verified, since the member is read to its end."""
    name = member.filename
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise WeightsError(
                f"{name} is in version {version} of its format, which arrays of numbers don't need"
            )
        if dtype.hasobject:
            raise WeightsError(f"{name} holds Python objects, in a pickle: store arrays of numbers")
        stored = member.file_size - file.tell()
        expected = math.prod(shape) * dtype.itemsize
        if not dtype.itemsize or stored != expected or min(shape, default=0) < 0:
            raise WeightsError(
                f"{name} is damaged: it is no {dtype} array of shape {shape}, with its {stored} "
                "bytes"
            )
        data = file.read()
    flat = np.frombuffer(data, dtype) if stored else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
