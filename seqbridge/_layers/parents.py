"""The one link from a layer, or a nested model, to the models that hold it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from seqbridge._state import version


class Parents:
    """The models that an item was put into, held weakly.

    An edit that takes the item out leaves its link, so `holding` asks the model itself.

    Weak links are needed: a layer holds its variables, which ask these models for their names. A
    cycle would keep arrays alive until the garbage collector comes by.
    """

    __slots__ = ("_links",)

    def __init__(self) -> None:
        self._links: list[weakref.ref[Any]] = []

    def __iter__(self) -> Iterator[Any]:
        """The models that are alive, oldest first."""
        for link in list(self._links):
            if (model := link()) is not None:
                yield model

    def add(self, model: Any) -> bool:
        """Link to a model, once. Return whether it is the only one that is alive."""
        with version.lock:
            living = list(self)
            if not any(parent is model for parent in living):
                living.append(model)
                self._links = [weakref.ref(parent) for parent in living]
            return len(living) == 1

    def holding(self, item: Any) -> list[Any]:
        """Return the models in whose lists `item` stands now."""
        with version.lock:
            return [model for model in self if any(child is item for child in model)]
