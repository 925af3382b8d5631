"""`FirstPlaces`: what a table, a picture or a `repr` says of variables that it has shown before."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TypeAlias

from seqbridge._layers.layer import Layer

Place: TypeAlias = tuple[str, ...]
"""The way to an item from the outermost model: `("[3]", ".conv")`, as `named_children` has it."""


class FirstPlaces:
    """The place at which each variable was met first, on a walk through a model.

    Variables go by keys: by themselves, or, before a layer is built, by whatever two layers that
    will share them have in common.
    """

    def __init__(self) -> None:
        self._first: dict[Hashable, Place] = {}

    def add(self, place: Place, keys: Collection[Hashable]) -> str:
        """Note the variables of an item, and return what `shared` says of them."""
        for key in keys:
            self._first.setdefault(key, place)
        return self._shared(place, keys)

    def add_model(self, place: Place, model: Hashable, keys: Collection[Hashable]) -> str:
        """As `add`, for a model whose layers were added."""
        first = self._first.setdefault(model, place)
        return self._shared(place, keys if first == place else [model])

    def _shared(self, place: Place, keys: Collection[Hashable]) -> str:
        elsewhere: list[Place] = []
        for key in keys:
            first = self._first[key]
            if first[: len(place)] != place:
                elsewhere.append(first)
        if not elsewhere:
            return ""
        partly = "partly " if len(elsewhere) < len(keys) else ""
        return f"{partly}shared with {_text(place, list(dict.fromkeys(elsewhere)))}"


def sharing_keys(layer: Layer) -> Collection[Hashable]:
    """The keys of a layer's variables; before it is built, it stands for them itself."""
    return layer.own_variables() if layer.built else (layer,)


def _text(place: Place, others: list[Place]) -> str:
    """Name other places: by the one model that they all are in, unless `place` is in it, too."""
    common = others[0]
    for other in others:
        while other[: len(common)] != common:
            common = common[:-1]
    if common and place[: len(common)] != common:
        others = [common]
    return ", ".join("".join(other).removeprefix(".") for other in others)
