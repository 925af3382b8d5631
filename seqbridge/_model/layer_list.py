"""`LayerList`: the list's own operations. Whatever changes the list goes through one door and is one edit."""

from __future__ import annotations

import functools
import keyword
from collections.abc import Callable, Iterable, Mapping, MutableSequence
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar, overload

from seqbridge._interface import ask, nearest
from seqbridge._layers import Item, Layer, Structure, leaves, share
from seqbridge._passes import check_plain
from seqbridge._state import locked, refuse_in_trace, version

Entries: TypeAlias = "list[tuple[str | None, Any]]"

M = TypeVar("M", bound=Structure)
P = ParamSpec("P")
R = TypeVar("R")


def _exclusive(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Waits for others before the list is read: of two threads that append, neither's layer is lost."""

    @functools.wraps(method)
    def alone(self: M, *args: P.args, **keywords: P.kwargs) -> R:
        with locked(self._above):
            return method(self, *args, **keywords)

    return alone


class LayerList(Structure, MutableSequence[Any]):
    """A list whose items are layers and lists of layers."""

    # The one door, and the one edit

    def _admit(self, entries: Entries, staying: list[Item]) -> tuple[list[Item], list[str | None]]:
        """The items that `entries` become. One entry object is one layer, wherever it stands.

        Raises:
            TypeError: One of them is no entry.
            ValueError: A model would contain itself.
        """
        nested = [entry for _, entry in entries if isinstance(entry, Structure)]
        replaced = set(leaves(self._layers)) - set(leaves(staying))
        family = [layer for layer in self._family() if layer not in replaced]
        known = {layer._key: layer for layer in [*leaves(nested), *family, *leaves(staying)]}
        items: list[Item] = []
        for i, (name, entry) in enumerate(entries):
            if isinstance(entry, Structure):
                if entry is self or any(inner is self for inner in entry._lists()):
                    raise ValueError("a Sequential can't contain itself")
                check_plain(entry)
                item: Item = entry
            elif isinstance(entry, Layer):
                item = entry
            elif (key := Layer._key_of(entry)) in known:
                item = known[key]
            else:
                try:
                    item = known[key] = Layer(entry)
                except TypeError as error:
                    error.add_note(
                        f"in entry {i if name is None else repr(name)} of the {len(entries)} given"
                    )
                    raise
            items.append(item)
        own = [item.name if isinstance(item, Layer) else None for item in items]
        return items, [own[i] if name is None else name for i, (name, _) in enumerate(entries)]

    @_exclusive
    def _edit(self, layers: list[Item], names: list[str | None]) -> None:
        """Makes `layers` the list, with its new layers built if what reaches them is known; or changes nothing."""
        refuse_in_trace("an edit of a model")
        names = first_names(layers, names)
        self._check_names(names)
        before = self._layers, self._labels
        undo = share(layers, self._layers)
        try:
            self._set(layers, names)
            self._after_edit()
            self._adopt()
            version.bump()
        except BaseException:
            self._set(*before)
            undo()
            version.bump()  # a build may have looked at the list meanwhile
            raise

    def _set(self, layers: list[Item], names: list[str | None]) -> None:
        with version.lock:
            self._layers, self._labels = layers, names

    def _after_edit(self) -> None:
        """Builds what the edit has added."""

    def _check_names(self, names: list[str | None]) -> None:
        for i, name in enumerate(names):
            if name is None:
                continue
            if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(
                    f"{name!r} can't be the name of a layer: it must be a Python identifier"
                )
            if hasattr(type(self), name) or name in vars(self):
                raise ValueError(
                    f"{name!r} can't be the name of a layer: it is an attribute of "
                    f"{type(self).__name__}"
                )
            if name in names[:i]:
                raise ValueError(
                    f"two layers are called {name!r}, [{names.index(name)}] and [{i}]: give one of "
                    f"them another name"
                )

    # The list

    @overload
    def __getitem__(self, index: int | str) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | str | slice) -> Any:
        """A layer, by position or name; or, by a slice, a model that shares these layers.

        What stands at a place, a `Layer` or a nested model, is known when the program runs; a type
        checker is told by an annotation: `block: sb.Sequential = model["block"]`.
        """
        layers, names = self._items()
        if isinstance(index, slice):
            return self._sharing(layers[index], names[index])
        return layers[_position(names, index)]

    @_exclusive
    def __setitem__(self, index: int | str | slice, value: Any) -> None:
        layers, names = list(self._layers), list(self._labels)
        if isinstance(index, slice):
            replaced = range(len(self))[index]
            staying = [item for i, item in enumerate(layers) if i not in replaced]
            layers[index], names[index] = self._admit(entries_of(value), staying)
        else:
            where = self._position(index)
            del layers[where]
            (item,), (name,) = self._admit([(None, value)], layers)
            layers.insert(where % len(names), item)
            names[where] = name or self._labels[where]
        self._edit(layers, names)

    @_exclusive
    def __delitem__(self, index: int | str | slice) -> None:
        layers, names = list(self._layers), list(self._labels)
        where = self._position(index)
        del layers[where], names[where]
        self._edit(layers, names)

    @_exclusive
    def insert(self, index: int, value: Any) -> None:
        """Puts an entry before position `index`."""
        layers, names = list(self._layers), list(self._labels)
        (item,), (name,) = self._admit([(None, value)], layers)
        layers.insert(index, item)
        names.insert(index, name)
        self._edit(layers, names)

    @_exclusive
    def append(self, value: Any) -> None:
        """Puts an entry at the end."""
        self.insert(len(self), value)

    add = append

    @_exclusive
    def extend(self, values: Iterable[Any]) -> None:
        """Puts all of `values` at the end, or, if one is no entry, none. A mapping gives names."""
        items, names = self._admit(entries_of(values), self._layers)
        self._edit(self._layers + items, self._labels + names)

    def __iadd__(self, values: Iterable[Any]) -> Self:
        self.extend(values)
        return self

    def __add__(self, values: Iterable[Any]) -> Self:
        layers, labels = self._items()
        items, names = self._admit(entries_of(values), layers)
        return self._sharing(layers + items, first_names(layers + items, labels + names))

    def __radd__(self, values: Iterable[Any]) -> Self:
        layers, labels = self._items()
        items, names = self._admit(entries_of(values), layers)
        return self._sharing(items + layers, first_names(items + layers, names + labels))

    def __mul__(self, n: int) -> Self:
        """The layers `n` times over, sharing their variables."""
        layers, names = self._items()
        return self._sharing(layers * n, first_names(layers * n, names * n))

    __rmul__ = __mul__

    @_exclusive
    def __imul__(self, n: int) -> Self:
        self._edit(self._layers * n, first_names(self._layers * n, self._labels * n))
        return self

    @_exclusive
    def pop(self, index: int | str = -1) -> Any:
        """Takes a layer out and returns it, with its variables."""
        layers, names = list(self._layers), list(self._labels)
        where = self._position(index)
        layer = layers.pop(where)
        names.pop(where)
        self._edit(layers, names)
        return layer

    @_exclusive
    def remove(self, value: Any) -> None:
        """Takes out the first item that is `value`, an entry or a layer."""
        del self[self.index(value)]

    @_exclusive
    def clear(self) -> None:
        """Takes out everything."""
        self._edit([], [])

    @_exclusive
    def reverse(self) -> None:
        """Turns the order round."""
        self._edit(self._layers[::-1], self._labels[::-1])

    def copy(self) -> Self:
        """Another list of the same layers, which share their variables; `copy.deepcopy` makes independent ones."""
        return self[:]

    __copy__ = copy

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The first position of `value`, an entry or a layer, which is compared by identity."""
        for i in range(len(self))[start:stop]:
            if _is(self._layers[i], value):
                return i
        raise ValueError(f"{value!r:.80} is not in the list")

    def count(self, value: Any) -> int:
        """At how many positions `value` stands, an entry or a layer."""
        return sum(_is(item, value) for item in self._layers)

    def __contains__(self, value: object) -> bool:
        return self.count(value) > 0

    def _position(self, index: Any) -> Any:
        return _position(self._labels, index)

    def _sharing(self, layers: list[Item], names: list[str | None]) -> Self:
        """Another model of these layers."""
        self._facts()  # makes the stream, so that both take their keys from one
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        Structure.__init__(made, self._seed)
        made._check_names(names)
        made._layers, made._labels = layers, names
        made._lock, made._stream, made._placement = self._lock, self._stream, self._placement
        made._adopt()
        return made


def _position(names: list[str | None], index: Any) -> Any:
    """The position of a name; an index or a slice as it is, for a list to judge."""
    if not isinstance(index, str):
        return index
    if index not in names:
        near = nearest(index, filter(None, names))
        raise KeyError(
            f"no layer is called {index!r}{near}; a new one comes by extend({{{index!r}: ...}})"
        )
    return names.index(index)


def _is(item: Item, value: Any) -> bool:
    return item is value or (isinstance(item, Layer) and item.entry is value)


def is_entry(values: Any) -> bool:
    """Whether a tuple is an entry of some library, rather than a row of entries."""
    return type(values) is tuple and ask(values, tuple) is not None


def entries_of(values: Any) -> Entries:
    if isinstance(values, Structure):
        return list(zip(values.names, values._layers, strict=True))
    if isinstance(values, Mapping):
        return list(values.items())
    if is_entry(values) or not isinstance(values, Iterable):
        raise TypeError(
            f"this {type(values).__name__} is one entry, or none: give [entry], or "
            f"model.append(entry)"
        )
    return [(None, value) for value in values]


def first_names(items: list[Item], names: list[str | None]) -> list[str | None]:
    """The names, where an item that stands twice under one name keeps it at its first place only."""
    seen: dict[str, Item] = {}
    kept: list[str | None] = []
    for item, name in zip(items, names, strict=True):
        again = name is not None and seen.setdefault(name, item) is item and name in kept
        kept.append(None if again else name)
    return kept
