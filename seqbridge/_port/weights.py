"""Weights of a model, or of a file, by layers, in terms that no library owns."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from seqbridge._files import WeightsError, read
from seqbridge._interface import Keywords, Part, Path, Untyped, unnest
from seqbridge._layers import Layer, LayerList, full_name, walk
from seqbridge._model import as_model
from seqbridge._passes import traced
from seqbridge._state import Locks, Variable

Shapes: TypeAlias = dict[str, tuple[int, ...]]
GROUP = "seqbridge.layouts"


@dataclass(eq=False)
class LayerWeights:
    """Weights of one layer: a part at its place.

    Attributes:
        name: The name of the layer: `"(Sequential)[0](MLP).linear_0"`.
        part: What the weights are.
        names: The names of the arrays, by their paths in `part`.
        arrays: The arrays, as NumPy has them.
        variables: The variables that hold the arrays; none in a file.
    """

    name: str
    part: Part | Untyped
    names: Mapping[Path, str]
    arrays: Mapping[Path, np.ndarray]
    variables: Mapping[Path, Variable]
    _seen: dict[str, tuple[Part, Shapes] | None] = field(default_factory=dict, init=False)

    @property
    def known_part(self) -> Part:
        """The part; for layers of a model, which always know theirs."""
        assert isinstance(self.part, Part)
        return self.part

    def canonical(self, part: Part) -> dict[str, np.ndarray]:
        """Return the weights in the canonical layout."""
        weights: dict[str, np.ndarray] = {}
        for name, weight in part.weights.items():
            arrays = [self.arrays[path] for path in weight.paths]
            weights[name] = np.asarray(weight.read(*arrays))
        return weights

    def seen_as(self, kind: str, options: Keywords) -> tuple[Part, Shapes] | None:
        """Return the part that the weights are as a layer of this kind, and their shapes.

        None: they can't be of this kind.
        """
        asked = f"{kind} {options}"
        if asked not in self._seen:
            self._seen[asked] = self._as_kind(kind, options)
        return self._seen[asked]

    def _as_kind(self, kind: str, options: Keywords) -> tuple[Part, Shapes] | None:
        part = self.part
        if isinstance(part, Untyped):
            part = part.as_kind(kind, options)
        if part is None or part.kind != kind:
            return None
        if part.refused:
            return part, {}
        try:
            weights = self.canonical(part)
        except (ValueError, IndexError, TypeError):  # arrays of another rank
            return None
        return part, {name: array.shape for name, array in weights.items()}


class ModelWeights(NamedTuple):
    """Weights of a model or a file, which are to be read or to be replaced.

    Attributes:
        layers: Those of layers of known kinds, in order.
        single_arrays: All other arrays, by name.
        single_variables: The variables that hold these; none in a file.
    """

    layers: list[LayerWeights]
    single_arrays: dict[str, np.ndarray]
    single_variables: dict[str, Variable]


def weights_of(x: Any) -> tuple[ModelWeights, LayerList | None]:
    """Return the weights of a model, a layer, an entry or a file, and the model, if there is one.

    Raises:
        WeightsError: The file can't be read, or no adapter knows what its arrays belong to.
        RuntimeError: The model isn't built.
        TypeError: It is none of these.
    """
    if isinstance(x, str | os.PathLike):
        x = read(x)
    if isinstance(x, Mapping) and x and not any(_is_entry(value) for value in x.values()):
        return _weights_of_arrays(x), None
    model, _ = as_model(x)
    if not model.built:
        raise RuntimeError(
            "port: a model has no weights before it is built: call model.build(...) first"
        )
    return _weights_of_model(model), model


def _is_entry(value: Any) -> bool:
    return callable(value) or isinstance(value, LayerList | Layer)


def _weights_of_arrays(tree: Mapping[str, Any]) -> ModelWeights:
    arrays = {".".join(path): np.asarray(leaf) for path, leaf in unnest(tree).items()}
    layers: list[LayerWeights] = []
    taken: set[str] = set()
    for untyped in _untyped_layers(arrays):
        names = {path: path[0] for path in untyped.paths}
        own = {path: arrays[name] for path, name in names.items()}
        layers.append(LayerWeights(untyped.name, untyped, names, own, {}))
        taken.update(names.values())
    rest = {name: array for name, array in arrays.items() if name not in taken}
    return ModelWeights(layers, rest, {})


def _untyped_layers(arrays: Mapping[str, np.ndarray]) -> Sequence[Untyped]:
    """Return the layers that the first adapter which knows these arrays finds in them."""
    for point in entry_points(group=GROUP):
        found: Sequence[Untyped] | None = point.load()(arrays)
        if found is not None:
            return found
    some = ", ".join(list(arrays)[:3])
    raise WeightsError(
        f"port: nothing says what layers these arrays belong to ({some}, ...): put them into a "
        "model of their own library, model[i].load_native(tree), and give that model"
    )


def _weights_of_model(model: LayerList) -> ModelWeights:
    weights = ModelWeights([], {}, {})
    seen: set[Variable] = set()  # shared variables are read once
    with Locks(model.variables_by_name().values()):
        for place, layer in walk(model):
            if layer.native_layout is not None:
                _add_layer(weights, place, layer, seen)
    return weights


def _add_layer(weights: ModelWeights, place: str, layer: Layer, seen: set[Variable]) -> None:
    """Add the weights of one entry, which may be several layers, and its single arrays."""
    assert layer.native_layout is not None
    variables: dict[Path, Variable] = {}
    names: dict[Path, str] = {}
    for slot, variable in zip(layer.native_layout.slots, layer.own_variables(), strict=True):
        path = (slot.collection, *slot.path)
        variables[path] = variable
        names[path] = slot.shown
    for part in _parts(layer):
        paths: set[Path] = set()
        for weight in part.weights.values():
            paths.update(weight.paths)
        own = {path: variables[path] for path in paths if path in variables}
        if len(own) < len(paths):
            continue  # the layer isn't as its part says
        if seen.issuperset(own.values()):
            continue
        seen.update(own.values())
        inside = _common_parent([names[path] for path in own])
        found = LayerWeights(
            full_name(place, inside) if inside else place,
            part,
            {path: full_name(place, names[path]) for path in own},
            {path: np.asarray(variable.value) for path, variable in own.items()},
            own,
        )
        weights.layers.append(found)
    for path, variable in variables.items():
        if variable not in seen:
            seen.add(variable)
            name = full_name(place, names[path])
            weights.single_arrays[name] = np.asarray(variable.value)
            weights.single_variables[name] = variable


def _parts(layer: Layer) -> list[Part]:
    if layer.pure.parts is None:
        return []
    return list(layer.pure.parts(functools.partial(_run, layer)))


def _run(layer: Layer) -> None:
    """Call a layer on the shapes that it was built for."""
    assert layer.native_layout is not None
    if layer.native_layout.inputs is None:
        raise RuntimeError(
            f"{layer!r} came with its values, so it isn't known what inputs it is for"
        )
    args, keywords = layer.native_layout.inputs
    traced(layer, layer.current_tree(), args, keywords)  # not from the cache: someone looks on


def _common_parent(names: Sequence[str]) -> str:
    """Return the place that all names stand in: of `"a.b.kernel"` and `"a.b.bias"`, `"a.b"`."""
    parents = [name.split(".")[:-1] for name in names]
    columns = zip(*parents, strict=False)
    common = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return ".".join(column[0] for column in common)
