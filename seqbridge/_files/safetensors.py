"""Files of named arrays: the safetensors format, with a checksum, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# What the format calls the dtypes that it knows. Arrays of others are stored as bytes, and the
# metadata say what of.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip
_WRITTEN = frozenset(_DTYPES.values()) - {
    "complex64",
    "float8_e8m0fnu",
}  # which older versions don't know
_OURS = "seqbridge"
SUFFIXES = {  # of files of weights, and their formats
    ".safetensors": "safetensors", ".npz": "npz", ".npy": "eqx", ".eqx": "eqx", ".msgpack": "msgpack",
    ".h5": "h5", ".hdf5": "h5", ".pkl": "pickle", ".pickle": "pickle",
}  # fmt: skip


class WeightsError(ValueError):
    """What is wrong with a file of weights, or between weights and the model that they are for."""

    __module__ = "seqbridge"  # where whoever reads a traceback finds it


def file_path(path: Any) -> str:
    """A path as text, with `~` spelt out."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a path is a str or a Path, not {type(path).__name__}")
    where = os.path.expanduser(os.fspath(path))
    if not isinstance(where, str) or not where or "\0" in where:
        raise TypeError(f"{path!r} is no path")
    return where


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A path beside `path` to write to: what is written takes the place of `path`, or, if anything raises, vanishes."""
    target = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{path} can't be written: there is no folder {folder}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if os.path.exists(path) and not os.path.isfile(
        path
    ):  # a device or a pipe, whose place the file would take
        raise OSError(f"{path} can't be written: it is neither a file nor a folder")
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb"):  # has the mode that new files get here
            pass
        mode = os.stat(target if os.path.exists(target) else temporary).st_mode
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the name itself must reach the disk, too
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_safetensors(
    path: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Writes arrays and what is to be known of them.

    Args:
        path: The file. What was there stays until the new one is whole.
        arrays: By name.
        about: What `read_safetensors` returns again; anything that JSON has.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    stored, notes = {}, {}
    for name, given in arrays.items():
        # In order, in the machine's own bytes: the format has no strides, and its writer doesn't
        # look at them.
        array = np.asarray(given, order="C")
        note: dict[str, Any] = {"crc32": zlib.crc32(_bytes(array))}
        if array.dtype.name not in _WRITTEN:
            note |= {"dtype": array.dtype.name, "shape": array.shape}
        stored[name] = _bytes(array) if "dtype" in note else array
        notes[name] = note
    text = json.dumps({"about": about, "arrays": notes}, sort_keys=True)
    metadata = {
        _OURS: text,
        "crc32": str(_sum(text, {n: (a.dtype.name, a.shape) for n, a in stored.items()})),
    }
    with replacing(path) as temporary:
        try:
            save_file(stored, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} can't be written: {error}") from error


def _bytes(array: np.ndarray) -> Any:
    return array.reshape(-1).view(np.uint8)


def _sum(text: str, arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """A checksum of all that stands before the arrays themselves."""
    return zlib.crc32(
        repr(
            (text, sorted((n, dtype, tuple(shape)) for n, (dtype, shape) in arrays.items()))
        ).encode()
    )


def read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by name, and what `write_safetensors` was told of them.

    What a model has saved is held against its checksums. Files of others have none; what they say
    of themselves comes back under `"metadata"`.

    Raises:
        WeightsError: The file is damaged, or no safetensors file at all.
        OSError: It can't be read.
    """
    from safetensors import SafetensorError, deserialize

    if (
        os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    ):  # a pipe might take forever
        raise WeightsError(f"{path} is neither a file nor a folder")
    with open(path, "rb") as file:
        data = file.read()
    try:
        views = dict(deserialize(data))
        header = json.loads(
            data[8 : 8 + int.from_bytes(data[:8], "little")], object_pairs_hook=_once
        )
        arrays = {  # in the order of the file
            name: np.frombuffer(views[name]["data"], np.dtype(_DTYPES[about["dtype"]])).reshape(
                about["shape"]
            )
            for name, about in header.items()
            if name != "__metadata__"
        }
    except (
        SafetensorError,
        ValueError,
        KeyError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
        kind = seen_in(path, data[:4096])
        looks = f" (it looks like {kind})" if kind not in (None, "safetensors") else ""
        raise WeightsError(
            f"{path} is damaged, or no safetensors file{looks}: {error}. What other libraries have "
            f"written, "
            "model[i].load_native(path) reads"
        ) from error
    metadata = header.get("__metadata__", {})
    if _OURS not in metadata:
        return arrays, {"metadata": metadata}
    damaged = f"{path} is damaged: its %s has another checksum than it was saved with"
    if metadata.get("crc32") != str(
        _sum(metadata[_OURS], {n: (a.dtype.name, a.shape) for n, a in arrays.items()})
    ):
        raise WeightsError(damaged % "header")
    try:
        said = json.loads(metadata[_OURS])
        for name, note in said["arrays"].items():
            if "dtype" in note:
                arrays[name] = arrays[name].view(np.dtype(note["dtype"])).reshape(note["shape"])
            if zlib.crc32(_bytes(arrays[name])) != note["crc32"]:
                raise WeightsError(damaged % f"array {name}")
        return arrays, dict(said["about"])
    except (
        AttributeError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:  # nor is it as `write_safetensors` makes it
        raise WeightsError(f"{path} says of itself what can't be: {error}") from error


def seen_in(path: str, head: bytes) -> str | None:
    """The format of a file by its first bytes; None: it can't be told from these.

    Raises:
        WeightsError: It holds no weights, and what it is instead.
    """
    if not head:
        raise WeightsError(f"{path} is empty: it was not written, or not downloaded, to the end")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= 100_000_000:
        return "safetensors"
    for magic, kind in ((b"\x89HDF\r\n\x1a\n", "h5"), (b"\x93NUMPY", "eqx"), (b"PK", "npz")):
        if head.startswith(magic):
            return kind
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "pickle"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    no_weights = f"{path} holds no weights: it is "
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(no_weights + "a pointer of git-lfs to them. Get them by: git lfs pull")
    if text.startswith(b"<"):
        raise WeightsError(
            no_weights
            + "a page of a web site. Download the file itself, by its raw or resolve address"
        )
    if head.startswith(b"{") and b"\n\x93NUMPY" in head:
        return "eqx"  # after a line of notes
    if text.startswith((b"{", b"[")):
        raise WeightsError(
            no_weights + "JSON, the configuration of a model, say. Give the file beside it"
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")):
        raise WeightsError(f"{path} is compressed: unpack it first")
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no name may stand twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return found
