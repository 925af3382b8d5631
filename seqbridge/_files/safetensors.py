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

# The format's own names of dtypes, and NumPy's. Arrays of other dtypes are stored as bytes, and the
# metadata say of which dtype they are.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}
# Older versions of the format don't know these two.
_WRITTEN = frozenset(_DTYPES.values()) - {"complex64", "float8_e8m0fnu"}
_OURS = "seqbridge"  # our entry in the metadata of a file

# Suffixes of files of weights, and their formats.
SUFFIXES = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".npy": "eqx",
    ".eqx": "eqx",
    ".msgpack": "msgpack",
    ".h5": "h5",
    ".hdf5": "h5",
    ".pkl": "pickle",
    ".pickle": "pickle",
}


class WeightsError(ValueError):
    """Error in a file of weights, or mismatch between weights and the model that they are for."""

    __module__ = "seqbridge"  # the public path, which tracebacks show


def file_path(path: Any) -> str:
    """Return a path as text, with `~` expanded."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a path is a str or a Path, not {type(path).__name__}")
    where = os.path.expanduser(os.fspath(path))
    if not isinstance(where, str) or not where or "\0" in where:
        raise TypeError(f"{path!r} is no path")
    return where


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a path beside `path` to write to.

    What is written there takes the place of `path` at the end, or vanishes if anything raises.
    """
    target = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{path} can't be written: there is no folder {folder}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe, whose place the file would take.
        raise OSError(f"{path} can't be written: it is neither a file nor a folder")
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb"):  # gets the mode that new files get here
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
    """Write arrays, and a description of them.

    Args:
        path: The file. Its old content stays until the new one is whole.
        arrays: The arrays by name.
        about: The description, which `read_safetensors` returns again; anything that JSON has.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    stored: dict[str, np.ndarray] = {}
    notes: dict[str, dict[str, Any]] = {}
    for name, given in arrays.items():
        # Contiguous, in the machine's own byte order: the format has no strides, and its writer
        # doesn't look at them.
        array = np.asarray(given, order="C")
        numbers = _raw_bytes(array)
        note: dict[str, Any] = {"crc32": zlib.crc32(numbers)}
        if array.dtype.name in _WRITTEN:
            stored[name] = array
        else:
            stored[name] = numbers
            note |= {"dtype": array.dtype.name, "shape": array.shape}
        notes[name] = note
    text = json.dumps({"about": about, "arrays": notes}, sort_keys=True)
    metadata = {_OURS: text, "crc32": str(_header_checksum(text, stored))}
    with replacing(path) as temporary:
        try:
            save_file(stored, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} can't be written: {error}") from error


def _raw_bytes(array: np.ndarray) -> Any:
    return array.reshape(-1).view(np.uint8)


def _header_checksum(text: str, arrays: Mapping[str, np.ndarray]) -> int:
    """Return a checksum of all that stands before the arrays themselves."""
    described = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    return zlib.crc32(repr((text, sorted(described))).encode())


def read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file by name, and the description that `write_safetensors` got.

    What a model has saved is verified by its checksums. Files of others have none; their own
    metadata come back under `"metadata"`.

    Raises:
        WeightsError: The file is damaged, or no safetensors file at all.
        OSError: It can't be read.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        # To open a pipe might take forever.
        raise WeightsError(f"{path} is neither a file nor a folder")
    with open(path, "rb") as file:
        data = file.read()
    arrays, metadata = _parsed(path, data)
    if _OURS not in metadata:
        return arrays, {"metadata": metadata}
    return _verified(path, arrays, metadata)


def _parsed(path: str, data: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """Return the arrays in the order of the file, and its metadata."""
    from safetensors import SafetensorError, deserialize

    try:
        views = dict(deserialize(data))
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
        arrays: dict[str, np.ndarray] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                flat = np.frombuffer(views[name]["data"], np.dtype(_DTYPES[entry["dtype"]]))
                arrays[name] = flat.reshape(entry["shape"])
    except (
        SafetensorError,
        ValueError,
        KeyError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
        kind = seen_in(path, data[:4096])
        looks = "" if kind in (None, "safetensors") else f" (it looks like {kind})"
        raise WeightsError(
            f"{path} is damaged, or no safetensors file{looks}: {error}. What other libraries have "
            "written, model[i].load_native(path) reads"
        ) from error
    return arrays, header.get("__metadata__", {})


def _verified(
    path: str, arrays: dict[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file of ours in their own dtypes, and its description."""
    text = metadata[_OURS]
    if metadata.get("crc32") != str(_header_checksum(text, arrays)):
        raise WeightsError(_damaged(path, "header"))
    try:
        said = json.loads(text)
        for name, note in said["arrays"].items():
            if "dtype" in note:
                arrays[name] = arrays[name].view(np.dtype(note["dtype"])).reshape(note["shape"])
            if zlib.crc32(_raw_bytes(arrays[name])) != note["crc32"]:
                raise WeightsError(_damaged(path, f"array {name}"))
        return arrays, dict(said["about"])
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        # The checksum is right, and still this is nothing that `write_safetensors` has written.
        raise WeightsError(f"{path} says of itself what can't be: {error}") from error


def _damaged(path: str, what: str) -> str:
    return f"{path} is damaged: its {what} has another checksum than it was saved with"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, in which no name may stand twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def seen_in(path: str, head: bytes) -> str | None:
    """Return the format of a file by its first bytes, or None if these don't tell.

    Raises:
        WeightsError: The file holds no weights; the message says what it is instead.
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
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} holds no weights: it is a pointer of git-lfs to them. Get them by: "
            "git lfs pull"
        )
    if text.startswith(b"<"):
        raise WeightsError(
            f"{path} holds no weights: it is a page of a web site. Download the file itself, by "
            "its raw or resolve address"
        )
    if head.startswith(b"{") and b"\n\x93NUMPY" in head:
        return "eqx"  # with a line of notes before the arrays
    if text.startswith((b"{", b"[")):
        raise WeightsError(
            f"{path} holds no weights: it is JSON, the configuration of a model, say. Give the "
            "file beside it"
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")):
        raise WeightsError(f"{path} is compressed: unpack it first")
    return None
