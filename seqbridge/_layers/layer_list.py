"""`LayerList`: layers and nested models in order, and the operations of a list on them.

Whatever changes the list goes through one door, `_admit`, and is one edit, `_edit`.
"""

from __future__ import annotations

import copy
import functools
import keyword
import threading
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableSequence,
    Sequence,
)
from typing import (
    Any,
    ClassVar,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    overload,
)

import jax

from seqbridge._interface import Call, Inputs, ask, habit, nearest
from seqbridge._layers.layer import Layer
from seqbridge._layers.module_tree import full_name, leaves, walk
from seqbridge._layers.parents import Parents
from seqbridge._layers.sharing import Undo, share
from seqbridge._sharding import Placement, put
from seqbridge._state import (
    CacheKey,
    Content,
    Keys,
    Locks,
    PlainText,
    Variable,
    as_key,
    cached_by_version,
    commit,
    locked,
    refuse_in_trace,
    stream,
    version,
)
from seqbridge._variables import VarCollection, VariableHolder

Child: TypeAlias = "Layer | LayerList"
Names: TypeAlias = "list[str | None]"
Entries: TypeAlias = "list[tuple[str | None, Any]]"

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="LayerList")


def _exclusive(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Wait for other threads before the list is read.

    Of two threads that append, neither's layer is lost.
    """

    @functools.wraps(method)
    def alone(self: M, *args: P.args, **keywords: P.kwargs) -> R:
        with locked(self.ancestor_models):
            return method(self, *args, **keywords)

    return alone


class StructureIndex(NamedTuple):
    """Facts that follow from the structure of a model.

    Attributes:
        built: Whether every layer has its variables.
        table: The variables by name, those of shared layers under each name.
        names: The first name of each variable.
        variables: The distinct variables, with a stream of keys that no call has used so far.
        locks: The locks that guard them, and the model's own.
        cache_key: What a compiled program depends on.
    """

    built: bool
    table: Mapping[str, Variable]
    names: Mapping[Variable, str]
    variables: tuple[Variable, ...]
    locks: Locks
    cache_key: CacheKey


class LayerList(VariableHolder, MutableSequence[Any]):
    """A list of layers and of lists of layers, with names for those that have one.

    Args:
        seed: What initial values and random draws start from: a seed or a PRNG key.

    Attributes:
        edit_lock: Guards the list, and the variables that were made for it.
        key_stream: The variable from which calls take their keys; None: no layer can draw.
        known_inputs: What the first layer takes, with None for sizes that may be anything, and the
            keywords of the call that the model was built for; None: that isn't known.
        known_structure: What the latest `init` has found of the layers; None: nothing.
        mesh_placement: How variables are laid out on a mesh; None: they aren't.
        parent_models: The models that hold this one.
        start_seed: `seed`.
    """

    # The call that runs the layers in order and does no more.
    plain_call: ClassVar[Callable[..., Any]]

    internal_names: ClassVar[frozenset[str]] = VariableHolder.internal_names | {
        "ancestor_models",
        "cache_parts",
        "call_keys",
        "check_plain_call",
        "edit_lock",
        "family_layers",
        "initial_keys",
        "key_stream",
        "known_inputs",
        "known_structure",
        "lay_out",
        "link_children",
        "make_key_stream",
        "mesh_placement",
        "named_children",
        "names_by_variable",
        "nested_models",
        "parent_models",
        "plain_call",
        "root_models",
        "start_seed",
        "swap_layers",
        "take_stream_of",
    }

    def __init__(self, seed: Any = 0) -> None:
        self.start_seed: Any = seed
        self._layers: list[Child] = []
        self._labels: Names = []
        self.key_stream: Variable | None = None
        self.mesh_placement: Placement | None = None
        self.known_inputs: tuple[Inputs, Call] | None = None
        self._begin()

    def _begin(self) -> None:
        """Set what no copy has in common with its model."""
        self.edit_lock: threading.RLock = threading.RLock()
        self.parent_models: Parents = Parents()
        self.known_structure: Any = None

    # Structure

    @property
    def names(self) -> tuple[str | None, ...]:
        """The name of each item; None where it has none."""
        return tuple(self._labels)

    @property
    def built(self) -> bool:
        """Whether every layer has its variables."""
        return self._index().built

    def named_children(self) -> list[tuple[str, Child]]:
        """Each item, after how it is written in a variable's name: `"[0]"`, `".conv"`."""
        layers, names = self._items()
        children = []
        for i, (layer, name) in enumerate(zip(layers, names, strict=True)):
            children.append((f"[{i}]" if name is None else f".{name}", layer))
        return children

    def nested_models(self) -> Iterator[LayerList]:
        """The models inside, at any depth."""
        for item in self._layers:
            if isinstance(item, LayerList):
                yield item
                yield from item.nested_models()

    def ancestor_models(self) -> Iterator[LayerList]:
        """Yield this model, and all that it stands in.

        Whoever edits it holds their locks, and whoever calls one of them holds them, too.
        """
        yield self
        for parent in self.parent_models.holding(self):
            yield from parent.ancestor_models()

    def root_models(self) -> Iterator[LayerList]:
        """The outermost models that this one stands in, itself if there is none."""
        parents = self.parent_models.holding(self)
        if not parents:
            yield self
        for parent in parents:
            yield from parent.root_models()

    def family_layers(self) -> Iterator[Layer]:
        """The layers of all models that this one stands in."""
        return leaves(self.root_models())

    def initial_keys(self) -> Keys:
        """The keys that initial values start from, in a nested model those of its parent."""
        for parent in self.parent_models.holding(self):
            position = next(i for i, item in enumerate(parent) if item is self)
            return parent.initial_keys().child(position)
        return Keys(lambda: as_key(self.start_seed))

    def link_children(self) -> None:
        """Tell layers and nested models where they stand."""
        for item in self._layers:
            if isinstance(item, LayerList):
                item.parent_models.add(self)
        for layer in leaves(self._layers):
            layer.join_model(self, self.edit_lock)

    def check_plain_call(self) -> None:
        """Raise a `TypeError` if a user's class runs the model in a way of its own."""
        if type(self).__call__ is not type(self).plain_call:
            raise TypeError(
                f"{type(self).__name__} has a __call__ of its own, which is seen only by who calls "
                "it: not by a model around it, nor by apply, trace, freeze or an export. Put what "
                "it does into the list, as a function"
            )

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        raise NotImplementedError

    @cached_by_version
    def _index(self) -> StructureIndex:
        layers = list(leaves(self._layers))
        if any(layer.may_draw for layer in layers):
            self.make_key_stream()
        table: dict[str, Variable] = {}
        for place, layer in walk(self):
            for name, variable in layer.variables_by_name().items():
                table[full_name(place, name)] = variable
        names: dict[Variable, str] = {}
        for name, variable in table.items():
            names.setdefault(variable, name)
        if self.key_stream is not None and any(layer.may_draw for layer in layers):
            stream_name = f"({type(self).__name__}).rng"
            names[self.key_stream] = stream_name
            # Whether a layer does draw is known after it was traced; till then nobody need see it.
            if any(layer.is_random for layer in layers):
                table[stream_name] = self.key_stream
        return StructureIndex(
            built=all(layer.built for layer in layers),
            table=table,
            names=names,
            variables=tuple(names),
            locks=Locks(names, self.edit_lock),
            cache_key=CacheKey(self.cache_parts()),
        )

    # Variables

    def vars(self) -> VarCollection:
        """All variables by name, live: an edit of the model shows in it."""
        self.link_children()
        return VarCollection(self.variables_by_name, remark=self._unbuilt_remark, whole=self)

    def _unbuilt_remark(self) -> str:
        waiting = [place for place, layer in walk(self) if not layer.built]
        if not waiting:
            return ""
        return f"  not built yet: {', '.join(waiting)}; call model.build(...)"

    def own_variables(self) -> tuple[Variable, ...]:
        return self._index().variables

    def variables_by_name(self) -> Mapping[str, Variable]:
        return self._index().table

    def names_by_variable(self) -> Mapping[Variable, str]:
        """The first name of each variable."""
        return self._index().names

    def variable_locks(self) -> Locks:
        return self._index().locks

    def cache_key(self) -> CacheKey:
        return self._index().cache_key

    def cache_parts(self) -> Hashable:
        """The parts of the cache key: what a compiled program depends on."""
        items = tuple(item.cache_parts() for item in self._layers)
        keys = None if self.key_stream is None else self.key_stream.cache_parts
        return type(self), items, tuple(self._labels), keys

    def make_key_stream(self) -> Variable:
        """The stream that calls take their keys from; made when it is first asked for."""
        with version.lock:  # or two threads would draw from two
            if self.key_stream is None:
                with jax.ensure_compile_time_eval():  # a value, even inside a trace
                    made = Variable(
                        stream(self.start_seed), kind="rng", collection="rng", name="rng"
                    )
                made.lock, made.namer = self.edit_lock, self._stream_namer()
                self.key_stream = made
            return self.key_stream

    def take_stream_of(self, model: LayerList) -> None:
        """Draw from the stream of another model from now on."""
        self.key_stream = model.make_key_stream()
        self.start_seed = model.start_seed

    def _stream_namer(self) -> Callable[[Variable], str | None]:
        parents = Parents()  # a weak link: the model holds its stream
        parents.add(self)

        def name_of(variable: Variable) -> str | None:
            for model in parents:
                return model.names_by_variable().get(variable)
            return None

        return name_of

    def lay_out(self, placement: Placement, *, new: bool = False) -> None:
        """Lay the variables out on a mesh, all of them or none; later builds follow.

        Args:
            placement: The mesh and the rules.
            new: Whether variables that lie on the mesh already stay where they are.
        """
        with locked(lambda: [self]):
            named = {name: variable for variable, name in self.names_by_variable().items()}
            shardings = placement.shardings(named, new=new)
            changes = {}
            for variable, sharding in shardings.items():
                changes[variable] = put(variable.value, sharding)
            commit(changes)
            self.mesh_placement = placement

    # The one door, and the one edit

    def _admit(self, entries: Entries, staying: Sequence[Child]) -> tuple[list[Child], Names]:
        """The items that `entries` become. One object is one layer, wherever it stands.

        Raises:
            TypeError: One of them is no entry.
            ValueError: A model would contain itself.
        """
        nested = [entry for _, entry in entries if isinstance(entry, LayerList)]
        replaced = set(leaves(self._layers)) - set(leaves(staying))
        family = [layer for layer in self.family_layers() if layer not in replaced]
        known: dict[Hashable, Layer] = {}
        for layer in [*leaves(nested), *family, *leaves(staying)]:
            known[layer.entry_key] = layer
        items: list[Child] = []
        names: Names = []
        for i, (name, entry) in enumerate(entries):
            try:
                item = self._item_of(entry, known)
            except TypeError as error:
                if not isinstance(entry, LayerList):
                    called = i if name is None else repr(name)
                    error.add_note(f"in entry {called} of the {len(entries)} given")
                raise
            own_name = item.name if isinstance(item, Layer) else None
            items.append(item)
            names.append(own_name if name is None else name)
        return items, names

    def _item_of(self, entry: Any, known: dict[Hashable, Layer]) -> Child:
        """The item that one entry becomes; a new layer is added to `known`."""
        if isinstance(entry, LayerList):
            if entry is self or any(inner is self for inner in entry.nested_models()):
                raise ValueError("a Sequential can't contain itself")
            entry.check_plain_call()
            return entry
        if isinstance(entry, Layer):
            return entry
        layer = known.get(Layer.key_of_entry(entry))
        if layer is None:
            layer = Layer(entry)
            known[layer.entry_key] = layer
        return layer

    def _set_first_items(self, entries: Entries) -> None:
        """Fill a list that is new."""
        items, names = self._admit(entries, [])
        names = first_names(items, names)
        self._check_names(names)
        self._layers, self._labels = items, names
        share(items, [], [])
        self.link_children()

    @_exclusive
    def _edit(self, layers: list[Child], names: Names) -> None:
        """Make `layers` the list, or change nothing.

        New layers are built if what reaches them is known.
        """
        refuse_in_trace("an edit of a model")
        names = first_names(layers, names)
        self._check_names(names)
        before = self._items()
        undo: list[Undo] = []
        try:
            share(layers, self._layers, undo)
            self._set_items(layers, names)
            self._after_edit()
            self.link_children()
            version.bump()
        except BaseException:
            self._set_items(*before)
            for step in reversed(undo):
                step()
            version.bump()  # a build may have looked at the list meanwhile
            raise

    def _after_edit(self) -> None:
        """Build what the edit has added."""

    def _items(self) -> tuple[list[Child], Names]:
        """Layers and names of one moment. An edit of this model makes new lists."""
        with version.lock:
            return self._layers, self._labels

    def _set_items(self, layers: list[Child], names: Names) -> None:
        with version.lock:
            self._layers, self._labels = layers, names

    def swap_layers(self, layers: Sequence[Child]) -> None:
        """Put other layers at the same places, which share their entries with those from before."""
        self._layers[:] = layers

    def _check_names(self, names: Names) -> None:
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
                    "them another name"
                )

    # The list

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._layers)

    def __bool__(self) -> bool:
        return len(self) > 0

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
            return self._model_of(layers[index], names[index])
        return layers[_position(names, index)]

    @_exclusive
    def __setitem__(self, index: int | str | slice, value: Any) -> None:
        layers, names = list(self._layers), list(self._labels)
        if isinstance(index, slice):
            replaced = range(len(self))[index]
            staying = [item for i, item in enumerate(layers) if i not in replaced]
            layers[index], names[index] = self._admit(entries_of(value), staying)
        else:
            where = _position(names, index)
            del layers[where]
            (item,), (name,) = self._admit([(None, value)], layers)
            layers.insert(where % len(names), item)
            names[where] = name or self._labels[where]
        self._edit(layers, names)

    @_exclusive
    def __delitem__(self, index: int | str | slice) -> None:
        layers, names = list(self._layers), list(self._labels)
        where = _position(names, index)
        del layers[where], names[where]
        self._edit(layers, names)

    @_exclusive
    def insert(self, index: int, value: Any) -> None:
        """Put an entry before position `index`."""
        layers, names = list(self._layers), list(self._labels)
        (item,), (name,) = self._admit([(None, value)], layers)
        layers.insert(index, item)
        names.insert(index, name)
        self._edit(layers, names)

    @_exclusive
    def append(self, value: Any) -> None:
        """Put an entry at the end."""
        self.insert(len(self), value)

    add = append

    @_exclusive
    def extend(self, values: Iterable[Any]) -> None:
        """Put all of `values` at the end, or, if one is no entry, none. A mapping gives names."""
        items, names = self._admit(entries_of(values), self._layers)
        self._edit(self._layers + items, self._labels + names)

    def __iadd__(self, values: Iterable[Any]) -> Self:
        self.extend(values)
        return self

    @_exclusive
    def __add__(self, values: Iterable[Any]) -> Self:
        layers, labels = self._items()
        items, names = self._admit(entries_of(values), layers)
        return self._joined(layers + items, labels + names)

    @_exclusive
    def __radd__(self, values: Iterable[Any]) -> Self:
        layers, labels = self._items()
        items, names = self._admit(entries_of(values), layers)
        return self._joined(items + layers, names + labels)

    def __mul__(self, n: int) -> Self:
        """The layers `n` times over, sharing their variables."""
        layers, names = self._items()
        return self._model_of(layers * n, first_names(layers * n, names * n))

    __rmul__ = __mul__

    @_exclusive
    def __imul__(self, n: int) -> Self:
        self._edit(self._layers * n, first_names(self._layers * n, self._labels * n))
        return self

    @_exclusive
    def pop(self, index: int | str = -1) -> Any:
        """Take a layer out and return it, with its variables."""
        layers, names = list(self._layers), list(self._labels)
        where = _position(names, index)
        layer = layers.pop(where)
        names.pop(where)
        self._edit(layers, names)
        return layer

    @_exclusive
    def remove(self, value: Any) -> None:
        """Take out the first item that is `value`, an entry or a layer."""
        del self[self.index(value)]

    @_exclusive
    def clear(self) -> None:
        """Take out everything."""
        self._edit([], [])

    @_exclusive
    def reverse(self) -> None:
        """Turn the order round."""
        self._edit(self._layers[::-1], self._labels[::-1])

    def copy(self) -> Self:
        """Another list of the same layers, which share their variables.

        `copy.deepcopy` makes independent ones.
        """
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

    def _joined(self, layers: list[Child], names: Names) -> Self:
        """The model of layers of this one and of others, whose entries may be the same."""
        undo: list[Undo] = []
        try:
            share(layers, self._layers, undo)
            version.bump()
            return self._model_of(layers, first_names(layers, names))
        except BaseException:
            for step in reversed(undo):
                step()
            version.bump()
            raise

    def _model_of(self, layers: list[Child], names: Names) -> Self:
        """Another model of these layers, which draws from the same stream of keys."""
        self._index()  # makes the stream
        made = type(self).__new__(type(self))
        vars(made).update(LayerList.__getstate__(self))
        made._begin()
        made._check_names(names)
        made._layers, made._labels = layers, names
        made.edit_lock = self.edit_lock
        if not layers or not self._layers or layers[0] is not self._layers[0]:
            made.known_inputs = None  # another layer comes first: what reaches it isn't known
        made.link_children()
        return made

    # Attributes, copies, looks

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_labels", ()):
            raise AttributeError(f"{name} is a layer: write model[{name!r}] = ... to replace it")
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        layers, names = self._items() if "_labels" in self.__dict__ else ([], [])
        if name in names:
            return layers[names.index(name)]
        near = nearest(name, [other for other in names if other]) or habit(name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}{near}", name=name, obj=self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        with locked(lambda: [self]):
            made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()
        vars(self).update(state)
        self.link_children()
        stream = self.key_stream
        if stream is not None and stream.namer is None:  # a copy; else that of a model that lives
            stream.lock = self.edit_lock
            stream.namer = self._stream_namer()

    def _tree_content(self) -> Content:
        rows = []
        for i, (place, item) in enumerate(self.named_children()):
            name = self._labels[i]
            label = f"[{i}] {name}: " if name else f"[{i}] "
            # A function that stands twice shares nothing, so it isn't to be marked as shared.
            bare = isinstance(item, Layer) and not item.own_variables()
            rows.append((label, place, PlainText(repr(item)) if bare else item))
        return Content(type(self).__name__, "([", "])", rows)


# Attributes that a copy, a pickle or another model of the same layers makes anew.
_NOT_COPIED = ("edit_lock", "parent_models", "known_structure", "_index_by_version")


def _position(names: Names, index: Any) -> Any:
    """The position of a name; an index or a slice as it is, for a list to judge."""
    if not isinstance(index, str):
        return index
    if index not in names:
        near = nearest(index, [name for name in names if name])
        raise KeyError(
            f"no layer is called {index!r}{near}; a new one comes by extend({{{index!r}: ...}})"
        )
    return names.index(index)


def _is(item: Child, value: Any) -> bool:
    return item is value or (isinstance(item, Layer) and item.entry is value)


def is_entry(values: Any) -> bool:
    """Whether a tuple is an entry of some library, rather than a row of entries."""
    return type(values) is tuple and ask(values, tuple) is not None


def entries_of(values: Any) -> Entries:
    """The entries that a list, a mapping or a model gives, with their names.

    Raises:
        TypeError: It is one entry, or none.
    """
    if isinstance(values, LayerList):
        return list(zip(values.names, values, strict=True))
    if isinstance(values, Mapping):
        return list(values.items())
    if is_entry(values) or not isinstance(values, Iterable):
        raise TypeError(
            f"this {type(values).__name__} is one entry, or none: give [entry], or "
            "model.append(entry)"
        )
    return [(None, value) for value in values]


def first_names(items: Sequence[Child], names: Names) -> Names:
    """The names, where an item that stands twice under one name keeps it at its first place."""
    first: dict[str, Child] = {}
    kept: Names = []
    for item, name in zip(items, names, strict=True):
        again = name is not None and name in kept and first[name] is item
        kept.append(None if again else name)
        if name is not None:
            first.setdefault(name, item)
    return kept
