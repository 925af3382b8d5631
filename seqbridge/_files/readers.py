"""Weight files of other libraries: the format of a file, and its arrays as plain trees."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files.npz import check_size, read_npz
from seqbridge._files.safetensors import (
    SUFFIXES,
    WeightsError,
    file_path,
    read_safetensors,
    seen_in,
)
from seqbridge._interface import PureLayer, nearest

GROUP = "seqbridge.files"
_MOST_NODES = 200_000


def read(
    path: str | os.PathLike[str], /, *, format: str | None = None, allow_pickle: bool = False
) -> Any:
    """Return the arrays of a weight file of any library, as NumPy has them.

    The content of a file tells its format. Nothing in a file is trusted: sizes are checked before
    anything is allocated, and no code runs, not even with `allow_pickle`, which takes arrays and
    containers out of a pickle and nothing else.

    Args:
        path: The file, or the folder of an Orbax checkpoint, or a folder of several, of which the
            latest is read.
        format: `"safetensors"`, `"npz"`, `"msgpack"`, `"eqx"` (`.npy` after `.npy`), `"h5"`,
            `"pickle"`, `"orbax"`.
        allow_pickle: Whether a pickle may be read.

    Returns:
        Nested dicts, lists and tuples as they are in the file; from safetensors and npz, a flat
        dict by name.

    Raises:
        WeightsError: The file is damaged, or holds no weights; the message says what it is and what
            to do.
        OSError: The file isn't there, or may not be read.
        ImportError: The library that reads the format isn't installed.

    Examples:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/weights.npz", kernel=np.ones((2, 3)), bias=np.zeros(3))
        ...     {name: array.shape for name, array in read(f"{folder}/weights.npz").items()}
        {'kernel': (2, 3), 'bias': (3,)}
    """
    where = file_path(path)
    with _as_weights_errors(where):
        read_format = _reader(format_of(where, format))
        return _TreeCopy().of(read_format(where, allow_pickle=allow_pickle))


def native_tree(pure: PureLayer, source: Any, native: Any, **options: Any) -> Any:
    """Return a native tree: `source` itself, or what the file at that path holds.

    Args:
        pure: The `PureLayer` of the layer.
        source: A native tree, or a path.
        native: The layer's native tree as it is now.
        **options: Those of `read`.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    if pure.read is None:
        return read(source, **options)
    where = file_path(source)
    with _as_weights_errors(where):
        format_of(where)
        return pure.read(where, native)


def format_of(path: str, wanted: str | None = None) -> str:
    """Return the format of a file.

    Raises:
        WeightsError: No known format, or not the wanted one.
        ValueError: There is no format of the wanted name.
    """
    known = {*_READERS, *_installed_readers()}
    if wanted is not None and wanted not in known:
        raise ValueError(
            f"there is no format {wanted!r}{nearest(wanted, known)}; there are "
            f"{', '.join(sorted(known))}"
        )
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        found: str | None = "orbax"
    elif stat.S_ISREG(mode):
        found = _format_in(path)
    else:  # to open a pipe might take forever
        raise WeightsError(f"{path} is neither a file nor a folder")
    if found is None:
        found = wanted or SUFFIXES.get(os.path.splitext(path)[1].lower())
    if found is None:
        raise WeightsError(
            f"{path} is of no known format: name it, format=..., if it is "
            f"{', '.join(sorted(known))}"
        )
    if wanted not in (None, found):
        raise WeightsError(f"{path} is in the format {found}, not {wanted}")
    return found


def _format_in(path: str) -> str | None:
    """Return the format that the content of a file tells, or None."""
    with open(path, "rb") as file:
        head = file.read(4096)
    found = seen_in(path, head)
    if found is not None:
        return found
    # Other formats may begin with the byte of a msgpack map, so that a known suffix decides first.
    packed_map = 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)
    if packed_map and len(head) > 1 and not path.lower().endswith(tuple(SUFFIXES)):
        return "msgpack"
    return None


@functools.cache
def _installed_readers() -> dict[str, EntryPoint]:
    """Return the readers of adapters by format.

    They are looked up once: that takes longer than to read a file of a few megabytes.
    """
    return {point.name: point for point in entry_points(group=GROUP)}


def _reader(kind: str) -> Callable[..., Any]:
    if kind in _READERS:
        return _READERS[kind]
    point = _installed_readers().get(kind)
    if point is None:
        raise WeightsError(f"nothing that is installed reads {kind}: install seqbridge again")
    try:
        return point.load()
    except ImportError as error:
        extra = point.value.partition(":")[0].removeprefix("seqbridge_")
        error.add_note(
            f"{kind} files are read by a library that isn't there: "
            f'pip install "seqbridge[{extra}]"'
        )
        raise


@contextlib.contextmanager
def _as_weights_errors(path: str) -> Iterator[None]:
    """Turn whatever libraries raise at damaged files into a `WeightsError`."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError):
        raise
    except WeightsError as error:
        if path in str(error):
            raise
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:
        # Anything from struct.error to RecursionError, and few of them say what was read.
        said = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path} is damaged, or not what it seems: {said[:500]}") from error


class _TreeCopy:
    """Checked copy of a tree, whose arrays nobody else holds.

    An array that stands at several places of the tree is copied once.
    """

    def __init__(self):
        self._copies: dict[int, np.ndarray] = {}
        self._nodes = -1  # the tree itself isn't one of its arrays

    def of(self, node: Any, place: tuple[Any, ...] = ()) -> Any:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise WeightsError(f"there are more than {_MOST_NODES} arrays in it")
        if isinstance(node, Mapping):
            for name in node:
                _check_name(name)
            copied: dict[str | int, Any] = {}
            for name, value in node.items():
                if value is not None:
                    copied[name] = self.of(value, (*place, name))
            return copied
        if isinstance(node, list | tuple):
            values = [self.of(value, (*place, i)) for i, value in enumerate(node)]
            return values if isinstance(node, list) else tuple(values)
        if id(node) not in self._copies:
            name = ".".join(str(part) for part in place) or "the file"
            self._copies[id(node)] = _copied_array(node, name)
        return self._copies[id(node)]


def _check_name(name: Any) -> None:
    if not isinstance(name, str | int):
        raise WeightsError(f"a name is no string: {name!r:.80}")
    if "\0" in str(name):
        raise WeightsError(f"a name has a NUL in it: {name!r:.80}")


def _copied_array(value: Any, name: str) -> np.ndarray:
    """Return a copy in the machine's own byte order.

    Raises:
        WeightsError: The value is no array of numbers.
    """
    if not isinstance(value, np.ndarray | np.generic | bool | int | float | complex | jax.Array):
        raise WeightsError(f"{name} is no array, but of type {type(value).__name__}: {value!r:.60}")
    array = np.asarray(value)
    dtype = array.dtype
    if dtype == np.dtype("V2"):  # how NumPy shows bfloat16, which it doesn't know
        array = array.view(jnp.bfloat16)
    elif dtype.hasobject or dtype.type is np.void or dtype.kind in "SMm":
        # Text ("U") is allowed: some files keep names beside the arrays.
        raise WeightsError(f"{name} holds no numbers, but {dtype}")
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def _read_safetensors(path: str, **_: Any) -> dict[str, np.ndarray]:
    arrays, _ = read_safetensors(path)
    return arrays


def _read_orbax(path: str, **_: Any) -> Any:
    import orbax.checkpoint as ocp  # late: it takes longer to import than all of this package

    folder: Any = _checkpoint_in(path)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        metadata = handler.metadata(folder)
        tree = getattr(metadata, "tree", metadata)
        check_size(path, _size_on_disk(folder), _size_in_memory(tree))
        # As NumPy's arrays, whatever devices they were on.
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))


def _size_on_disk(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _size_in_memory(metadata: Any) -> int:
    """Return how many bytes it takes to read a checkpoint with this metadata."""
    total = 0
    for leaf in jax.tree.leaves(metadata):
        if getattr(leaf, "shape", None) is None:
            continue
        # An array is read in chunks, and one chunk may be larger than all of the array.
        chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
        numbers = max(math.prod(leaf.shape), math.prod(chunk))
        total += numbers * np.dtype(leaf.dtype).itemsize
    return total


def _checkpoint_in(path: str) -> pathlib.Path:
    """Return the folder of the arrays of a checkpoint.

    This is the given folder, or one in it, or one in the folder of the latest step.
    """
    here = pathlib.Path(os.path.abspath(path))
    steps = [entry for entry in here.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    folder = max(steps, key=lambda entry: int(entry.name), default=here)
    if (folder / "_METADATA").is_file():
        return folder
    found = {inner.parent.name: inner.parent for inner in folder.glob("*/_METADATA")}
    for name in ("default", "state"):
        if name in found:
            return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise WeightsError(
            f"{path} holds several trees: give the folder of one, {' or '.join(sorted(found))}"
        )
    raise WeightsError(
        f"{path} is a folder, and no checkpoint: give the file in it, or the folder that Orbax "
        "wrote"
    )


_READERS: dict[str, Callable[..., Any]] = {
    "safetensors": _read_safetensors,
    "npz": read_npz,
    "orbax": _read_orbax,
}
