"""What a model, or a file, consists of in terms that no library owns: its parts, and where they stand."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from seqbridge._files import WeightsError, read
from seqbridge._interface import Part, Path, Untyped, unnest
from seqbridge._layers import Layer, LayerList, full_name, walk
from seqbridge._model import as_model
from seqbridge._passes import trace
from seqbridge._state import Locks, Variable

Shapes: TypeAlias = dict[str, tuple[int, ...]]
GROUP = "seqbridge.layouts"


@dataclass(eq=False)
class Piece:
    """A part at its place.

    Attributes:
        name: What it is called: `"(Sequential)[0](MLP).linear_0"`.
        part: What it is.
        names: What its arrays are called, by their paths in `part`.
        arrays: The arrays, as NumPy has them.
        boxes: The variables that hold them; none in a file.
    """

    name: str
    part: Part | Untyped
    names: Mapping[Path, str]
    arrays: Mapping[Path, np.ndarray]
    boxes: Mapping[Path, Variable]

    def __post_init__(self) -> None:
        self._seen: dict[str, tuple[Part, Shapes] | None] = {}

    def canonical(self, part: Part) -> dict[str, np.ndarray]:
        """The weights in the canonical layout."""
        return {
            name: np.asarray(weight.read(*(self.arrays[path] for path in weight.paths)))
            for name, weight in part.weights.items()
        }

    def seen_as(self, kind: str, options: Mapping[str, Any]) -> tuple[Part, Shapes] | None:
        """The piece as a part of some kind, with the shapes of its weights; None: it isn't of that kind."""
        asked = f"{kind} {options}"
        if asked not in self._seen:
            part = self.part.as_kind(kind, options) if isinstance(self.part, Untyped) else self.part
            self._seen[asked] = None
            if part is not None and part.kind == kind:
                with contextlib.suppress(
                    ValueError, IndexError, TypeError
                ):  # arrays of another rank
                    shapes = (
                        {}
                        if part.refused
                        else {n: a.shape for n, a in self.canonical(part).items()}
                    )
                    self._seen[asked] = part, shapes
        return self._seen[asked]


class Side(NamedTuple):
    """All that is to be carried, or to be filled.

    Attributes:
        pieces: The parts, in order.
        rest: Arrays of which nobody says what they are, by name.
        boxes: The variables that hold these.
    """

    pieces: list[Piece]
    rest: dict[str, np.ndarray]
    boxes: dict[str, Variable]


def side_of(x: Any) -> tuple[Side, LayerList | None]:
    """The parts of a model, a layer or an entry, or of the arrays of a file; and the model, if it is one.

    Raises:
        WeightsError: The file can't be read, or nobody knows what its arrays belong to.
        RuntimeError: The model isn't built.
        TypeError: It is none of these.
    """
    if isinstance(x, str | os.PathLike):
        x = read(x)
    if (
        isinstance(x, Mapping)
        and x
        and not any(callable(v) or isinstance(v, LayerList | Layer) for v in x.values())
    ):
        return _of_arrays(x), None
    model, _ = as_model(x)
    if not model.built:
        raise RuntimeError(
            "port: a model has no weights before it is built: call model.build(...) first"
        )
    return _of_model(model), model


def _of_arrays(tree: Mapping[str, Any]) -> Side:
    arrays = {".".join(path): np.asarray(leaf) for path, leaf in unnest(tree).items()}
    for point in entry_points(group=GROUP):
        found: Sequence[Untyped] | None = point.load()(arrays)
        if found is not None:
            break
    else:
        some = ", ".join(list(arrays)[:3])
        raise WeightsError(
            f"port: nothing says what layers these arrays belong to ({some}, ...): put them into a "
            f"model of their own "
            "library, model[i].load_native(tree), and give that model"
        )
    taken = {path for untyped in found for path in untyped.paths}
    pieces = []
    for untyped in found:
        own = {path: arrays[path[0]] for path in untyped.paths}
        pieces.append(Piece(untyped.name, untyped, {path: path[0] for path in own}, own, {}))
    return Side(pieces, {name: a for name, a in arrays.items() if (name,) not in taken}, {})


def _of_model(model: LayerList) -> Side:
    pieces: list[Piece] = []
    rest: dict[str, np.ndarray] = {}
    boxes: dict[str, Variable] = {}
    seen: set[Variable] = set()
    with Locks(model.variables_by_name().values()):
        for prefix, layer in walk(model):
            table = {}
            names = {}
            if layer.native_layout is None:
                continue
            for slot, box in zip(layer.native_layout.slots, layer.own_variables(), strict=True):
                table[(slot.collection, *slot.path)] = box
                names[(slot.collection, *slot.path)] = slot.shown
            for part in _parts(layer):
                paths = {path for weight in part.weights.values() for path in weight.paths}
                own = {path: table[path] for path in paths if path in table}
                if len(own) < len(paths) or seen.issuperset(own.values()):
                    continue  # not as it is known; or shared, which is carried once
                seen.update(own.values())
                where = _common([names[path] for path in own])
                pieces.append(
                    Piece(
                        full_name(prefix, where) if where else prefix,
                        part,
                        {path: full_name(prefix, names[path]) for path in own},
                        {path: np.asarray(box.value) for path, box in own.items()},
                        own,
                    )
                )
            for path, box in table.items():
                if box not in seen:
                    seen.add(box)
                    name = full_name(prefix, names[path])
                    rest[name], boxes[name] = np.asarray(box.value), box
    return Side(pieces, rest, boxes)


def _parts(layer: Layer) -> list[Part]:
    if layer.pure.parts is None:
        return []
    return list(layer.pure.parts(functools.partial(_run, layer)))


def _run(layer: Layer) -> None:
    """Calls a layer on the shapes that it was built for."""
    assert layer.native_layout is not None
    if layer.native_layout.inputs is None:
        raise RuntimeError(
            f"{layer!r} came with its values, so it isn't known what inputs it is for"
        )
    args, keywords = layer.native_layout.inputs
    trace(layer, layer.current_tree(), args, keywords)


def _common(names: Sequence[str]) -> str:
    """The place that all of these stand in: of `"a.b.kernel"` and `"a.b.bias"`, `"a.b"`."""
    parents = [name.split(".")[:-1] for name in names]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return ".".join(parts[0] for parts in same)
