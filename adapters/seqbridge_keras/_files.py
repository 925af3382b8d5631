"""The files that Keras writes."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import jax
import keras
import numpy as np

from seqbridge import WeightsError, read, unnest
from seqbridge_keras._template import sublayers

# A file may hold this much more than it weighs, as an archive of arrays may.
_FLOOR, _EXPANSION = 64 * 2**20, 100
_NOTE = 2**16


def read_h5(path: str, **_: Any) -> dict[str, Any]:
    """The arrays of a `.weights.h5`, in nested dicts as its groups are.

    Raises:
        WeightsError: Something in it lies elsewhere, or claims more than there is.
    """
    with h5py.File(path, "r") as file:
        return _group(file, "", {_address(file)}, [_FLOOR + _EXPANSION * os.path.getsize(path)])


def _group(group: Any, where: str, seen: set[Any], left: list[int]) -> dict[str, Any]:
    found = {}
    for name in group:
        place = f"{where}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise WeightsError(f"{place} is a link to somewhere else, which isn't followed")
        node = group[name]
        if (address := _address(node)) in seen:
            raise WeightsError(f"{place} has another name, too")
        seen.add(address)
        _check_notes(node, place)
        if isinstance(node, h5py.Group):
            found[name] = _group(node, place, seen, left)
        elif isinstance(node, h5py.Dataset):
            if node.is_virtual or node.external:
                raise WeightsError(f"{place} lies in another file")
            left[0] -= node.nbytes
            if left[0] < 0 or not _is_there(node):
                raise WeightsError(
                    f"{place} is to be {node.shape} of {node.dtype}, which isn't there"
                )
            if h5py.check_string_dtype(node.dtype) is None:  # texts are notes
                found[name] = np.asarray(node[()])
    return found


def _check_notes(node: Any, place: str) -> None:
    """Raises if a note on an array or a group claims more than the format has room for, as it would be read, too."""
    for name in node.attrs:
        note = node.attrs.get_id(name)
        if math.prod(note.shape) * note.dtype.itemsize > _NOTE:
            raise WeightsError(
                f"{place} has a note, {name!r}, that is to be {note.shape} of {note.dtype}"
            )


def _address(node: Any) -> Any:
    info = h5py.h5o.get_info(node.id)  # pyright: ignore[reportAttributeAccessIssue]
    return info.fileno, info.addr


def _is_there(node: h5py.Dataset) -> bool:
    """Whether all of an array is stored: what isn't would be read as zeros, and nothing said."""
    if node.chunks is None:
        return node.id.get_storage_size() >= node.nbytes
    return node.id.get_num_chunks() >= math.prod(
        -(-n // size) for n, size in zip(node.shape, node.chunks, strict=True)
    )


def read_weights(path: str, layers: Iterable[keras.Layer]) -> list[Any]:
    """The weights of a layer, as Keras itself loads them.

    Args:
        path: A file of this model, or of a model that holds this layer alone.
        layers: The layer, as it was built for inputs of several shapes. None of them is changed.

    Raises:
        WeightsError: The file is of something else.
    """
    arrays = [
        array for place, array in unnest(read(path, format="h5")).items() if place[0] != "optimizer"
    ]
    errors = []
    for layer in layers:
        for model in _models(layer):
            try:
                return _loaded(path, model, layer, arrays)
            except Exception as error:  # which of them doesn't fit can't be told from the type
                errors.append(error)
    why = " ".join(str(errors[0]).split())[:500]
    raise WeightsError(
        f"{path} doesn't fit, be it as a file of this model or of one that holds this layer alone "
        f"(save_weights writes "
        f"such files, and they are called *.weights.h5): {why}"
    ) from errors[0]


def _models(layer: keras.Layer) -> Iterator[keras.Model]:
    if isinstance(layer, keras.Model):
        yield layer
    yield _Alone(layer)


class _Alone(keras.Model):
    """A model of one layer, which need not know what it is called with."""

    def __init__(self, layer: keras.Layer):
        super().__init__()
        self.inner = layer
        self.built = True


def _loaded(path: str, model: keras.Model, layer: keras.Layer, arrays: list[Any]) -> list[Any]:
    """The values that the layer would have after `model.load_weights(path)`."""
    skipped = [o for o in (getattr(layer, "optimizer", None),) if o is not None]
    options: dict[str, Any] = (
        {"objects_to_skip": skipped} if skipped and path.endswith(".weights.h5") else {}
    )
    before = [(inner, dict(vars(inner))) for inner in sublayers(layer)]
    try:
        # In a scope in which no variable changes. Keras warns of weights that it leaves as they
        # were: they are missing.
        with (
            jax.ensure_compile_time_eval(),
            warnings.catch_warnings(),
            keras.StatelessScope() as scope,
        ):
            warnings.simplefilter("ignore", UserWarning)
            model.load_weights(path, **options)
    finally:
        for inner, attributes in before:  # some keep what follows from their variables
            for name in inner.__dict__.keys() - attributes.keys():
                del inner.__dict__[name]
            inner.__dict__.update(attributes)
    values = [scope.get_current_value(v) for v in layer.weights]
    missing = [v.path for v, value in zip(layer.weights, values, strict=True) if value is None]
    if missing:
        raise WeightsError(f"it has nothing for {', '.join(missing[:5])}")
    if len(arrays) > (
        taken := sum(scope.get_current_value(v) is not None for v in layer.variables)
    ):
        raise WeightsError(f"it has {len(arrays)} arrays, and this layer takes {taken}")
    stored, own = (
        Counter(a.dtype.name for a in arrays),
        Counter(str(v.dtype) for v in layer.weights),
    )
    if (
        len(arrays) == len(values) and stored != own
    ):  # Keras itself would cast, and say nothing of what is lost
        raise WeightsError(
            f"it has arrays of {', '.join(stored)}, and this layer weights of {', '.join(own)}"
        )
    return values
