"""Weight files of other libraries: which format a file has, and the arrays in it, as plain trees."""

from __future__ import annotations

import contextlib
import functools
import itertools
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
    """The arrays of a weight file of any library, as NumPy has them.

    The format is seen from the content. Nothing in a file is trusted: sizes are checked before
    anything is allocated, and no code runs, not even with `allow_pickle`, which takes arrays and
    containers out of a pickle and nothing else.

    Args:
        path: The file, or the folder of an Orbax checkpoint, or of many, of which the latest is
            taken.
        format: `"safetensors"`, `"npz"`, `"msgpack"`, `"eqx"` (`.npy` after `.npy`), `"h5"`,
            `"pickle"`, `"orbax"`.
        allow_pickle: Whether a pickle may be looked into.

    Returns:
        Nested dicts, lists and tuples as they are in the file; from safetensors and npz, a flat
        dict by name.

    Raises:
        WeightsError: The file is damaged, or holds no weights; the message says what it is and what
            to do.
        OSError: It isn't there, or may not be read.
        ImportError: What reads the format isn't installed.

    Examples:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/weights.npz", kernel=np.ones((2, 3)), bias=np.zeros(3))
        ...     {name: array.shape for name, array in read(f"{folder}/weights.npz").items()}
        {'kernel': (2, 3), 'bias': (3,)}
    """
    where = file_path(path)
    with _telling(where):
        kind = format_of(where, format)
        return _plain(_reader(kind)(where, allow_pickle=allow_pickle))


def native_tree(pure: PureLayer, source: Any, native: Any, **options: Any) -> Any:
    """What `Layer.load_native` was given, or, if that is a path, the native tree in the file.

    Args:
        pure: The layer's entry.
        source: A native tree or a path.
        native: The native tree as it is now.
        **options: Those of `read`.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    if pure.read is None:
        return read(source, **options)
    where = file_path(source)
    with _telling(where):
        format_of(where)
        return pure.read(where, native)


def format_of(path: str, wanted: str | None = None) -> str:
    """What format a file has.

    Raises:
        WeightsError: None that anybody knows, or not the one that is wanted.
    """
    known = {*_READERS, *_points()}
    if wanted is not None and wanted not in known:
        raise ValueError(
            f"there is no format {wanted!r}{nearest(wanted, known)}; there are "
            f"{', '.join(sorted(known))}"
        )
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        found: str | None = "orbax"
    elif not stat.S_ISREG(mode):  # to open a pipe might take forever
        raise WeightsError(f"{path} is neither a file nor a folder")
    else:
        with open(path, "rb") as file:
            head = file.read(4096)
        found = seen_in(path, head)
        packed_map = 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)
        if (
            not found
            and packed_map
            and len(head) > 1
            and not path.lower().endswith(tuple(SUFFIXES))
        ):
            found = "msgpack"
    found = found or wanted or SUFFIXES.get(os.path.splitext(path)[1].lower())
    if found is None:
        raise WeightsError(
            f"{path} is of no known format: name it, format=..., if it is "
            f"{', '.join(sorted(known))}"
        )
    if wanted not in (None, found):
        raise WeightsError(f"{path} is in the format {found}, not {wanted}")
    return found


@functools.cache
def _points() -> dict[str, EntryPoint]:
    """What reads which format; looked up once, as it takes longer than to read a file of a few megabytes."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _reader(kind: str) -> Callable[..., Any]:
    if kind in _READERS:
        return _READERS[kind]
    point = _points().get(kind)
    if point is None:
        raise WeightsError(f"nothing that is installed reads {kind}: install seqbridge again")
    try:
        return point.load()
    except ImportError as error:
        extra = point.value.partition(":")[0].removeprefix("seqbridge_")
        error.add_note(
            f"{kind} files are read by a library that isn't there: pip install "
            f'"seqbridge[{extra}]"'
        )
        raise


@contextlib.contextmanager
def _telling(path: str) -> Iterator[None]:
    """Makes one kind of error of all that libraries raise at damaged files."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError):
        raise
    except WeightsError as error:
        if path in str(error):
            raise
        raise WeightsError(f"{path}: {error}") from error
    except (
        Exception
    ) as error:  # a zoo, from struct.error to RecursionError, of which few say what was read
        said = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{path} is damaged, or not what it seems: {said[:500]}") from error


def _plain(tree: Any) -> Any:
    """The tree, checked, with arrays that nobody else has; one that stands at several places is copied once."""
    copies: dict[int, np.ndarray] = {}
    met = itertools.count()

    def walk(node: Any, place: tuple[Any, ...]) -> Any:
        if next(met) > _MOST_NODES:
            raise WeightsError(f"there are more than {_MOST_NODES} arrays in it")
        if isinstance(node, Mapping):
            for name in node:
                if not isinstance(name, str | int):
                    raise WeightsError(f"a name is no string: {name!r:.80}")
                if "\0" in str(name):
                    raise WeightsError(f"a name has a NUL in it: {name!r:.80}")
            return {
                name: walk(value, (*place, name))
                for name, value in node.items()
                if value is not None
            }
        if isinstance(node, list | tuple):
            made = [walk(value, (*place, i)) for i, value in enumerate(node)]
            return made if isinstance(node, list) else tuple(made)
        if id(node) not in copies:
            copies[id(node)] = _leaf(node, ".".join(map(str, place)) or "the file")
        return copies[id(node)]

    return walk(tree, ())


def _leaf(value: Any, name: str) -> np.ndarray:
    """A copy in the machine's own byte order.

    Raises:
        WeightsError: It is no array of numbers.
    """
    if not isinstance(value, np.ndarray | np.generic | bool | int | float | complex | jax.Array):
        raise WeightsError(f"{name} is no array, but of type {type(value).__name__}: {value!r:.60}")
    array = np.asarray(value)
    kind = array.dtype
    if kind == np.dtype("V2"):  # what NumPy makes of bfloat16, which it doesn't know
        array = array.view(jnp.bfloat16)
    elif (
        kind.hasobject or kind.type is np.void or kind.kind in "SMm"
    ):  # text may be: some keep names beside arrays
        raise WeightsError(f"{name} holds no numbers, but {kind}")
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def _read_safetensors(path: str, **_: Any) -> dict[str, np.ndarray]:
    return read_safetensors(path)[0]


def _read_orbax(path: str, **_: Any) -> Any:
    import orbax.checkpoint as ocp  # late: it takes longer to import than all of this package

    folder: Any = _checkpoint_in(path)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        about = handler.metadata(folder)
        tree = getattr(about, "tree", about)
        total = 0
        for leaf in jax.tree.leaves(tree):
            if getattr(leaf, "shape", None) is not None:
                chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
                # An array is read in chunks, and one may be larger than all of it.
                total += (
                    max(math.prod(leaf.shape), math.prod(chunk)) * np.dtype(leaf.dtype).itemsize
                )
        check_size(
            path, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), total
        )
        # As NumPy's, whatever devices they were on.
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))


def _checkpoint_in(path: str) -> pathlib.Path:
    """The folder of the arrays: this one, or one in it, or in the latest step that a manager has kept."""
    here = pathlib.Path(os.path.abspath(path))
    steps = [entry for entry in here.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    folder = max(steps, key=lambda entry: int(entry.name), default=here)
    if (folder / "_METADATA").is_file():
        return folder
    found = {inner.parent.name: inner.parent for inner in folder.glob("*/_METADATA")}
    for name in ("default", "state", *(found if len(found) == 1 else ())):
        if name in found:
            return found[name]
    if found:
        raise WeightsError(
            f"{path} holds several trees: give the folder of one, {' or '.join(sorted(found))}"
        )
    raise WeightsError(
        f"{path} is a folder, and no checkpoint: give the file in it, or the folder that Orbax "
        f"wrote"
    )


_READERS: dict[str, Callable[..., Any]] = {
    "safetensors": _read_safetensors,
    "npz": read_npz,
    "orbax": _read_orbax,
}
