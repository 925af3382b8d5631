"""The files that Keras writes."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import h5py
import jax
import keras
import numpy as np

from seqbridge import WeightsError, read, unnest
from seqbridge_keras._template import sublayers

Node: TypeAlias = h5py.Group | h5py.Dataset | h5py.Datatype

# A file may hold this much more than it weighs, as an archive of arrays may.
_FLOOR, _EXPANSION = 64 * 2**20, 100
# The bytes that a note on an array or a group may have.
_NOTE = 2**16


def read_h5(path: str, **_: object) -> dict[str, Any]:
    """Return the arrays of a `.weights.h5`, in nested dicts as its groups are.

    Raises:
        WeightsError: Something in it lies elsewhere, or claims more than there is.
    """
    with h5py.File(path, "r") as file:
        return _Reader(file, limit=_FLOOR + _EXPANSION * os.path.getsize(path)).read(file, "")


class _Reader:
    """Reads the arrays of a file, and nothing that isn't in it.

    Args:
        file: The file.
        limit: How many bytes its arrays may have together.
    """

    def __init__(self, file: h5py.File, limit: int):
        self._seen = {_address(file)}
        self._left = limit

    def read(self, group: h5py.Group, where: str) -> dict[str, Any]:
        """Return the arrays of a group, which stands at the place `where`."""
        found = {}
        for name in group:
            place = f"{where}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise WeightsError(f"{place} is a link to somewhere else, which isn't followed")
            node = group[name]
            address = _address(node)
            if address in self._seen:
                raise WeightsError(f"{place} has another name, too")
            self._seen.add(address)
            _check_notes(node, place)
            if isinstance(node, h5py.Group):
                found[name] = self.read(node, place)
            elif isinstance(node, h5py.Dataset):
                self._check_size(node, place)
                if h5py.check_string_dtype(node.dtype) is None:  # texts are notes
                    found[name] = np.asarray(node[()])
        return found

    def _check_size(self, node: h5py.Dataset, place: str) -> None:
        if node.is_virtual or node.external:
            raise WeightsError(f"{place} lies in another file")
        self._left -= node.nbytes
        if self._left < 0 or not _is_stored(node):
            raise WeightsError(f"{place} is to be {node.shape} of {node.dtype}, which isn't there")


def _check_notes(node: Node, place: str) -> None:
    """Raise if a note on an array or a group, which is read, too, claims to be very large."""
    for name in node.attrs:
        note = node.attrs.get_id(name)
        if math.prod(note.shape) * note.dtype.itemsize > _NOTE:
            raise WeightsError(
                f"{place} has a note, {name!r}, that is to be {note.shape} of {note.dtype}"
            )


def _address(node: Node) -> tuple[int, int]:
    info = h5py.h5o.get_info(node.id)  # pyright: ignore[reportAttributeAccessIssue]
    return info.fileno, info.addr


def _is_stored(node: h5py.Dataset) -> bool:
    """Whether all of an array is stored: what isn't would be read as zeros, and nothing said."""
    if node.chunks is None:
        return node.id.get_storage_size() >= node.nbytes
    counts = [-(-n // size) for n, size in zip(node.shape, node.chunks, strict=True)]
    return node.id.get_num_chunks() >= math.prod(counts)


def read_weights(path: str, layers: Iterable[keras.Layer]) -> list[Any]:
    """Return the weights of a layer, as Keras itself loads them.

    Args:
        path: A file of this model, or of a model that holds this layer alone.
        layers: The layer, as it was built for inputs of several shapes. None of them is changed.

    Raises:
        WeightsError: The file is of something else.
    """
    stored = unnest(read(path, format="h5"))
    arrays = [array for place, array in stored.items() if place[0] != "optimizer"]
    errors = []
    for layer in layers:
        for model in _models_of(layer):
            try:
                return _load(path, model, layer, arrays)
            except Exception as error:  # which of them doesn't fit can't be told from the type
                errors.append(error)
    why = " ".join(str(errors[0]).split())[:500]
    raise WeightsError(
        f"{path} doesn't fit, be it as a file of this model or of one that holds this layer alone "
        f"(save_weights writes such files, and they are called *.weights.h5): {why}"
    ) from errors[0]


def _models_of(layer: keras.Layer) -> Iterator[keras.Model]:
    """Yield the models that a file with the weights of this layer may be of."""
    if isinstance(layer, keras.Model):
        yield layer
    yield _ModelOfOne(layer)


class _ModelOfOne(keras.Model):
    """A model of one layer, which need not know what it is called with."""

    def __init__(self, layer: keras.Layer):
        super().__init__()
        self.inner = layer
        self.built = True


def _load(path: str, model: keras.Model, layer: keras.Layer, arrays: list[np.ndarray]) -> list[Any]:
    """Return the values that the layer would have after `model.load_weights(path)`.

    Args:
        path: The file.
        model: The model that the file may be of.
        layer: The layer inside. It isn't changed.
        arrays: The arrays in the file.

    Raises:
        WeightsError: The file has other arrays than the layer.
    """
    options: dict[str, Any] = {}
    optimizer = getattr(layer, "optimizer", None)
    if optimizer is not None and path.endswith(".weights.h5"):
        options["objects_to_skip"] = [optimizer]
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

    values = [scope.get_current_value(variable) for variable in layer.weights]
    missing = []
    for variable, value in zip(layer.weights, values, strict=True):
        if value is None:
            missing.append(variable.path)
    if missing:
        raise WeightsError(f"it has nothing for {', '.join(missing[:5])}")
    taken = sum(scope.get_current_value(variable) is not None for variable in layer.variables)
    if len(arrays) > taken:
        raise WeightsError(f"it has {len(arrays)} arrays, and this layer takes {taken}")
    stored_dtypes = Counter(array.dtype.name for array in arrays)
    own_dtypes = Counter(str(variable.dtype) for variable in layer.weights)
    # Keras itself would cast, and say nothing of what is lost.
    if len(arrays) == len(values) and stored_dtypes != own_dtypes:
        raise WeightsError(
            f"it has arrays of {', '.join(stored_dtypes)}, "
            f"and this layer weights of {', '.join(own_dtypes)}"
        )
    return values
