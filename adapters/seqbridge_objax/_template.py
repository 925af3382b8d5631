"""A copy of a module of boxes, which runs with whatever values it is given and keeps none."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax

from seqbridge import Variables, nest, unnest

Place: TypeAlias = tuple[str, str]
"""A collection and the name of a box."""


class Box(Protocol):
    """A variable of a module."""

    value: Any


class Template:
    """A copy of a module, so that the module itself never sees a value of ours.

    Args:
        module: The module.
        boxes: Its boxes by name. One with two names has its first.

    Attributes:
        sources: The module's own boxes by their places.
        values: Their values by their places.
        draws: Whether the module draws random numbers.
    """

    def __init__(self, module: Any, boxes: dict[str, Box]):
        places: dict[int, Place] = {}
        for name, box in boxes.items():
            places.setdefault(id(box), (_collection(box), name))
        copies = {id(box): _copy_box(box) for box in boxes.values()}
        self.sources = {places[id(box)]: box for box in boxes.values()}
        self.values = {place: box.value for place, box in self.sources.items()}
        self.draws = any(collection == "rng" for collection, _ in self.sources)
        self._boxes = {place: copies[id(box)] for place, box in self.sources.items()}
        self._module = copy.deepcopy(module, dict(copies))
        self._lock = threading.RLock()

    def call(
        self, function: Callable[[Any], Any], variables: Variables, key: jax.Array | None
    ) -> tuple[Any, Variables]:
        """Return what a function of the module returns with these variables, and the new state."""
        given = {**self.values, **unnest(variables)}
        if key is not None:
            keys = [place for place in self._boxes if place[0] == "rng"]
            for i, place in enumerate(keys):
                given[place] = _key_like(self.values[place], key, i)
        with self._lock:
            try:
                for place, box in self._boxes.items():
                    _write(box, given[place])
                out = function(self._module)
                state = {}
                for place, box in self._boxes.items():
                    if place[0] == "state":
                        state[place] = box.value
                return out, nest(state)
            finally:
                for place, box in self._boxes.items():
                    _write(box, self.values[place])


def _collection(box: Box) -> str:
    """Return what a box is, by Objax' own names for the kinds of them."""
    kinds = {base.__name__ for base in type(box).__mro__}
    if "RandomState" in kinds:
        return "rng"
    if kinds & {"BaseState", "StateVar"}:
        return "state"
    return "params"


def _copy_box(box: Box) -> Box:
    # Not by `copy.copy`: an Objax box hands on what it doesn't know to its array, which it hasn't
    # got at that moment.
    made = object.__new__(type(box))
    vars(made).update(vars(box))
    return made


def _write(box: Any, value: object) -> None:
    """Give a box a value, without the checks that a tracer doesn't pass."""
    if not hasattr(type(box), "assign"):
        box.value = value
    elif "check" in inspect.signature(box.assign).parameters:
        box.assign(value, check=False)
    else:
        box.assign(value)


def _key_like(old: jax.Array, key: jax.Array, i: int) -> jax.Array:
    """Return the `i`-th key that comes of a key, in the form of an old one."""
    key = jax.random.fold_in(key, i)
    if jax.numpy.issubdtype(old.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.bits(key, old.shape, old.dtype)
