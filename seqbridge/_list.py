"""`LayerList`: the list of layers, its names and its edits. What a model computes is in `_sequential`."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableSequence
from typing import Any, NamedTuple, Self, TypeAlias, overload

from seqbridge._collection import VarCollection, nearest
from seqbridge._forward import walk
from seqbridge._layer import Layer
from seqbridge._stateful import Locks, Stateful, Token, edits
from seqbridge._trace import refuse_in_trace
from seqbridge._variable import Variable

Item: TypeAlias = "Layer | LayerList"
Entries: TypeAlias = "list[tuple[str | None, Any]]"


class _Facts(NamedTuple):
    """What follows from the structure of a model, valid as long as no model is edited."""

    edit: int = -1
    built: bool = False
    table: Mapping[str, Variable] = {}
    names: Mapping[Variable, str] = {}
    boxes: tuple[Variable, ...] = ()
    locks: Locks = Locks(())
    token: Token = Token(())


class LayerList(Stateful, MutableSequence[Any]):
    """A list whose items are layers and lists of layers, with names for those that have one."""

    def __init__(self) -> None:
        self._layers: list[Item] = []
        self._labels: list[str | None] = []
        self._lock = threading.RLock()
        self._stream: Variable | None = None
        self._cache = _Facts()

    @property
    def names(self) -> tuple[str | None, ...]:
        """The name of each item; None where it has none."""
        return tuple(self._labels)

    # The one door, and the one edit

    def _admit(self, entries: Entries, staying: list[Item]) -> tuple[list[Item], list[str | None]]:
        """The items that `entries` become. One entry object is one layer, wherever it stands.

        Raises:
            TypeError: One of them is no entry.
            ValueError: A model would contain itself.
        """
        nested = [entry for _, entry in entries if isinstance(entry, LayerList)]
        known = {layer._key: layer for layer in _leaves(staying + nested)}
        items: list[Item] = []
        for i, (name, entry) in enumerate(entries):
            if isinstance(entry, LayerList):
                if entry is self or any(inner is self for inner in entry._lists()):
                    raise ValueError("a Sequential can't contain itself")
                item: Item = entry
            elif isinstance(entry, Layer):
                item = entry
            elif (key := Layer.key_of(entry)) in known:
                item = known[key]
            else:
                try:
                    item = known[key] = Layer(entry)
                except TypeError as error:
                    error.add_note(f"in entry {i if name is None else repr(name)} of the {len(entries)} given")
                    raise
            items.append(item)
        names = [n if n is not None else getattr(item, "name", None) for (n, _), item in zip(entries, items, strict=True)]
        return items, names

    def _edit(self, layers: list[Item], names: list[str | None]) -> None:
        """Makes `layers` the list, with its new layers built if what reaches them is known; or changes nothing."""
        refuse_in_trace("an edit of a model")
        self._check_names(names)
        with self._lock:
            before = self._layers, self._labels
            self._layers, self._labels = layers, names
            try:
                _unify(layers)
                self._after_edit(before[0])
            except BaseException:
                self._layers, self._labels = before
                raise
            edits.count += 1
            self._adopt()

    def _after_edit(self, before: list[Item]) -> None:
        """Builds what the edit has added."""

    def _check_names(self, names: list[str | None]) -> None:
        for i, name in enumerate(names):
            if name is None:
                continue
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"{name!r} can't be the name of a layer: it must be a Python identifier")
            if hasattr(type(self), name):
                raise ValueError(f"{name!r} can't be the name of a layer: it is an attribute of {type(self).__name__}")
            if name in names[:i]:
                raise ValueError(f"two layers are called {name!r}")

    def _adopt(self) -> None:
        """Names the variables of the layers that no living model names."""
        members: dict[LayerList, set[Layer]] = {}
        for layer in _leaves(self._layers):
            home = layer._home()
            if home is not None and home not in members:
                members[home] = set(_leaves(home._layers))
            if home is None or layer not in members[home]:
                layer._home = weakref.ref(self)

    # What is cached of the structure, as long as no model is edited

    def _facts(self) -> _Facts:
        if self._cache.edit != edits.count:
            table: dict[str, Variable] = {}
            leaves = list(_leaves(self._layers))
            for prefix, layer in walk(self):
                table |= {f"{prefix}.{name}": box for name, box in layer._named().items()}
            if self._stream is not None and any(layer._random for layer in leaves):
                table[f"({type(self).__name__}).rng"] = self._stream
            names: dict[Variable, str] = {}
            for name, box in table.items():
                names.setdefault(box, name)
            self._cache = _Facts(
                edit=edits.count,
                built=self._stream is not None and all(layer.built for layer in leaves),
                table=table,
                names=names,
                boxes=tuple(names),
                locks=Locks(names, self._lock),
                token=Token(self._parts()),
            )
        return self._cache

    def _names(self) -> Mapping[Variable, str]:
        return self._facts().names

    def _boxes(self) -> tuple[Variable, ...]:
        return self._facts().boxes

    def _locks(self) -> Locks:
        return self._facts().locks

    @property
    def built(self) -> bool:
        """Whether every layer has its variables."""
        return self._facts().built

    def _token(self) -> Token:
        return self._facts().token

    def _parts(self) -> Hashable:
        items = tuple(item._parts() for item in self._layers)
        stream = None if self._stream is None else self._stream._serial
        return type(self), items, tuple(self._labels), stream

    def _by_name(self) -> Mapping[str, Variable]:
        return self._facts().table

    def vars(self) -> VarCollection:
        """All variables by name, live: an edit of the model shows in it."""
        self._adopt()
        return VarCollection(self._by_name)

    def _places(self) -> list[str]:
        """How each item is written in a variable's name: `"[0]"`, `".conv"`."""
        return [f"[{i}]" if name is None else f".{name}" for i, name in enumerate(self.names)]

    def _lists(self) -> Iterator[LayerList]:
        for item in self._layers:
            if isinstance(item, LayerList):
                yield item
                yield from item._lists()

    # The list

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int | str) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | str | slice) -> Any:
        """A layer, by position or name; or, by a slice, a model that shares these layers."""
        if isinstance(index, slice):
            return self._sharing(self._layers[index], self._labels[index])
        return self._layers[self._position(index)]

    def __setitem__(self, index: int | str | slice, value: Any) -> None:
        layers, names = list(self._layers), list(self._labels)
        if isinstance(index, slice):
            replaced = range(len(self))[index]
            staying = [item for i, item in enumerate(layers) if i not in replaced]
            layers[index], names[index] = self._admit(_entries(value), staying)
        else:
            i = self._position(index)
            (item,), (name,) = self._admit([(None, value)], layers[:i] + layers[i + 1 :])
            layers[i], names[i] = item, name or names[i]
        self._edit(layers, names)

    def __delitem__(self, index: int | str | slice) -> None:
        layers, names = list(self._layers), list(self._labels)
        where = index if isinstance(index, slice) else self._position(index)
        del layers[where], names[where]
        self._edit(layers, names)

    def insert(self, index: int, value: Any) -> None:
        """Puts an entry before position `index`."""
        layers, names = list(self._layers), list(self._labels)
        items, new = self._admit([(None, value)], layers)
        layers.insert(index, items[0])
        names.insert(index, new[0])
        self._edit(layers, names)

    def append(self, value: Any) -> None:
        """Puts an entry at the end."""
        self.insert(len(self), value)

    add = append

    def extend(self, values: Iterable[Any]) -> None:
        """Puts all of `values` at the end, or, if one is no entry, none. A mapping gives names."""
        items, names = self._admit(_entries(values), self._layers)
        self._edit(self._layers + items, self._labels + names)

    def __iadd__(self, values: Iterable[Any]) -> Self:
        self.extend(values)
        return self

    def __add__(self, values: Iterable[Any]) -> Self:
        items, names = self._admit(_entries(values), self._layers)
        return self._sharing(self._layers + items, _first_names(self._layers + items, self._labels + names))

    def __radd__(self, values: Iterable[Any]) -> Self:
        items, names = self._admit(_entries(values), self._layers)
        return self._sharing(items + self._layers, _first_names(items + self._layers, names + self._labels))

    def __mul__(self, n: int) -> Self:
        """The layers `n` times over, sharing their variables."""
        return self._sharing(self._layers * n, _first_names(self._layers * n, self._labels * n))

    __rmul__ = __mul__

    def __imul__(self, n: int) -> Self:
        self._edit(self._layers * n, _first_names(self._layers * n, self._labels * n))
        return self

    def pop(self, index: int | str = -1) -> Any:
        """Takes a layer out and returns it, with its variables."""
        if not self._layers:
            raise IndexError("pop from empty list")
        layer = self[index]
        del self[index]
        return layer

    def remove(self, value: Any) -> None:
        """Takes out the first item that is `value`, an entry or a layer."""
        del self[self.index(value)]

    def clear(self) -> None:
        """Takes out everything."""
        self._edit([], [])

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

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        names = self.__dict__.get("_labels", ())
        if name in names:
            return self._layers[names.index(name)]
        named = [n for n in names if n is not None]
        raise AttributeError(f"{type(self).__name__} has no {name!r}{nearest(name, named)}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(n for n in self.names if n is not None)})

    def _position(self, index: int | str) -> int:
        if not isinstance(index, str):
            return range(len(self))[index] if len(self) else [][index]
        if index not in self.names:
            raise KeyError(f"no layer is called {index!r}{nearest(index, filter(None, self.names))}")
        return self.names.index(index)

    def _sharing(self, layers: list[Item], names: list[str | None]) -> Self:
        """Another model of these layers."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        LayerList.__init__(made)
        made._check_names(names)
        made._layers, made._labels = layers, names
        made._lock, made._stream = self._lock, self._stream
        made._adopt()
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__({k: copy.deepcopy(v, memo) for k, v in self.__getstate__().items()})
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LayerList.__init__(self)
        self.__dict__.update(state)
        for layer in _leaves(self._layers):
            layer._home = weakref.ref(self)
            for box in layer._variables:
                box._lock = self._lock
        if self._stream is not None:
            self._stream._lock = self._lock
            self._stream._namer = stream_namer(self)


def stream_namer(model: LayerList) -> Any:
    me = weakref.ref(model)
    return lambda box: (home := me()) and home._names().get(box)


def _leaves(items: Iterable[Item]) -> Iterator[Layer]:
    for item in items:
        if isinstance(item, LayerList):
            yield from _leaves(item._layers)
        else:
            yield item


def _is(item: Item, value: Any) -> bool:
    return item is value or (isinstance(item, Layer) and item.entry is value)


def _entries(values: Any) -> Entries:
    if isinstance(values, LayerList):
        return list(zip(values.names, values._layers, strict=True))
    if isinstance(values, Mapping):
        return list(values.items())
    return [(None, value) for value in values]


def _first_names(items: list[Item], names: list[str | None]) -> list[str | None]:
    """The names, without those of a layer that stands at an earlier position already."""
    return [n if not any(item is other for other in items[:i]) else None for i, (item, n) in enumerate(zip(items, names, strict=True))]


def _unify(items: list[Item]) -> None:
    """Makes one layer of those that nested models made of one entry, each for itself, where one at most is built."""
    found: dict[Hashable, Layer] = {}
    for layer in _leaves(items):
        if layer.built or layer._key not in found:
            found[layer._key] = layer
    owners = [owner for item in items if isinstance(item, LayerList) for owner in (item, *item._lists())]
    for layers in [items, *(owner._layers for owner in owners)]:
        layers[:] = [i if isinstance(i, LayerList) or i.built else found[i._key] for i in layers]
