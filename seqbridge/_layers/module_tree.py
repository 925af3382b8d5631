"""`Structure`: what a model consists of, and what its variables are called."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import jax
from jax.sharding import PartitionSpec

from seqbridge._interface import habit, nearest
from seqbridge._layers.layer import Layer
from seqbridge._sharding import Placement, put
from seqbridge._state import (
    CacheKey,
    Content,
    Keys,
    Locks,
    PlainText,
    Variable,
    as_key,
    commit,
    locked,
    refuse_in_trace,
    stream,
    version,
)
from seqbridge._variables import VarCollection, VariableHolder

Item: TypeAlias = "Layer | Structure"


class _Facts(NamedTuple):
    """What follows from the structure of a model, valid as long as no model is edited."""

    edit: int = -1
    built: bool = False
    table: Mapping[str, Variable] = {}
    names: Mapping[Variable, str] = {}
    boxes: tuple[Variable, ...] = ()
    locks: Locks = Locks(())
    token: CacheKey = CacheKey(())


class Structure(VariableHolder):
    """Layers and nested models in order, with names for those that have one."""

    def __init__(self, seed: Any = 0) -> None:
        self._seed = seed
        self._layers: list[Item] = []
        self._labels: list[str | None] = []
        self._lock = threading.RLock()
        self._stream: Variable | None = None
        self._placement: Placement | None = None
        self._parents: weakref.WeakSet[Structure] = weakref.WeakSet()
        self._cache = _Facts()

    @property
    def names(self) -> tuple[str | None, ...]:
        """The name of each item; None where it has none."""
        return tuple(self._labels)

    def vars(self) -> VarCollection:
        """All variables by name, live: an edit of the model shows in it."""
        self._adopt()
        return VarCollection(self.variables_by_name, remark=self._unbuilt)

    def _unbuilt(self) -> str:
        waiting = [prefix for prefix, layer in walk(self) if not layer.built]
        return f"  not built yet: {', '.join(waiting)}; call model.build(...)" if waiting else ""

    def _adopt(self) -> None:
        """Tells layers and nested models where they stand."""
        with version.lock:
            for item in self._layers:
                if isinstance(item, Structure):
                    item._parents.add(self)
        for layer in leaves(self._layers):
            layer._join(self, self._lock)

    def _above(self) -> Iterator[Structure]:
        """This model, and all that it stands in. Whoever edits it holds their locks, and whoever calls one of them."""
        yield self
        for parent in self._holders():
            yield from parent._above()

    def _holders(self) -> list[Structure]:
        with version.lock:
            return [p for p in self._parents if any(item is self for item in p._layers)]

    def _roots(self) -> Iterator[Structure]:
        """The outermost models that this one stands in, itself if there is none."""
        parents = self._holders()
        for parent in parents:
            yield from parent._roots()
        if not parents:
            yield self

    def _initial_keys(self) -> Keys:
        """The keys that initial values start from, in a nested model those of the model that holds it."""
        for parent in self._holders():
            for i, item in enumerate(parent._layers):
                if item is self:
                    return parent._initial_keys().child(i)
        return Keys(lambda: as_key(self._seed))

    def _family(self) -> Iterator[Layer]:
        """The layers of all models that this one stands in."""
        return leaves(self._roots())

    def _facts(self) -> _Facts:
        facts = self._cache
        if facts.edit != version.number:
            with version.lock:
                facts = self._cache = self._found(version.number)
        return facts

    def _found(self, edit: int) -> _Facts:
        """What `_facts` keeps."""
        table: dict[str, Variable] = {}
        own = list(leaves(self._layers))
        draws = any(layer._random for layer in own)
        if draws and self._stream is None:
            self._make_stream()
        for prefix, layer in walk(self):
            table |= {
                full_name(prefix, name): box for name, box in layer.variables_by_name().items()
            }
        if self._stream is not None and draws:
            table[f"({type(self).__name__}).rng"] = self._stream
        names: dict[Variable, str] = {}
        for name, box in table.items():
            names.setdefault(box, name)
        return _Facts(
            edit=edit,
            built=all(layer.built for layer in own),
            table=table,
            names=names,
            boxes=tuple(names),
            locks=Locks(names, self._lock),
            token=CacheKey(self._parts()),
        )

    def shard(
        self,
        mesh: Any,
        rules: Mapping[str, PartitionSpec] | Sequence[tuple[str, PartitionSpec]] = (),
        *,
        logical: Mapping[str, Any] | None = None,
    ) -> Self:
        """Lays the variables out on a mesh of devices. Calls mean what they did before.

        Layers that come later are laid out by the same rules. An assignment keeps the layout.

        Args:
            mesh: A `jax.sharding.Mesh`, such as `jax.make_mesh((4, 2), ("data", "model"))`.
            rules: From a regular expression over names to a `jax.sharding.PartitionSpec`, in order:
                the first that is found in a variable's name holds. Without any the variable is laid
                out as its own library says, or else replicated, which is all that data parallelism
                needs. An axis of the batch may stand in a rule: the variable is stored in parts,
                and put together where it is used.
            logical: From the names that libraries give to dimensions to axes of the mesh:
                `{"embed": None, "mlp": "model"}`. What is no axis of the mesh and isn't named here
                is replicated.

        Returns:
            The model.

        Raises:
            RuntimeError: The model isn't built, or this is a JAX transform.
            TypeError, ValueError: What is wrong with a rule, with its variable; then nothing has
                moved.

        Examples:
            >>> import jax, jax.numpy as jnp
            >>> from seqbridge import Sequential
            >>> model = Sequential([lambda x, w=jnp.ones((4, 8)): x @ w])
            >>> mesh = jax.make_mesh((1,), ("data",))
            >>> tuple(model.shard(mesh, {"w$": jax.sharding.PartitionSpec(None, "data")})[0].w.value.sharding.spec)
            (None, 'data')
        """
        refuse_in_trace("laying a model out")
        if not self.built:
            raise RuntimeError(
                "the model isn't built: call model.build(...) first, then model.shard(mesh, rules)"
            )
        placement = Placement(mesh, rules, logical)
        with locked(lambda: [self]):
            self._place(placement)
            self._placement = placement
        return self

    def _place(self, placement: Placement, *, new: bool = False) -> None:
        """Lays the variables out, all of them or none."""
        with locked(lambda: [self]):
            shardings = placement.shardings(self.variables_by_name(), new=new)
            commit(
                {
                    variable: put(variable.value, sharding)
                    for variable, sharding in shardings.items()
                }
            )

    def _make_stream(self) -> Variable:
        with version.lock:  # or two threads would draw from two
            if self._stream is None:
                with (
                    jax.ensure_compile_time_eval()
                ):  # a value, even if this is asked for first inside a trace
                    made = Variable(stream(self._seed), kind="rng", collection="rng", name="rng")
                made.lock, made.namer = self._lock, stream_namer(self)
                self._stream = made
            return self._stream

    def _names(self) -> Mapping[Variable, str]:
        return self._facts().names

    def own_variables(self) -> tuple[Variable, ...]:
        return self._facts().boxes

    def variable_locks(self) -> Locks:
        return self._facts().locks

    @property
    def built(self) -> bool:
        """Whether every layer has its variables."""
        return self._facts().built

    def cache_key(self) -> CacheKey:
        return self._facts().token

    def _parts(self) -> Hashable:
        items = tuple(item._parts() for item in self._layers)
        stream = None if self._stream is None else self._stream.cache_parts
        return type(self), items, tuple(self._labels), stream

    def variables_by_name(self) -> Mapping[str, Variable]:
        return self._facts().table

    def _items(self) -> tuple[list[Item], list[str | None]]:
        with version.lock:  # of one moment; an edit makes new ones
            return self._layers, self._labels

    def _placed(self) -> list[tuple[str, Item]]:
        """Each item, after how it is written in a variable's name: `"[0]"`, `".conv"`."""
        pairs = enumerate(zip(*self._items(), strict=True))
        return [(f"[{i}]" if name is None else f".{name}", item) for i, (item, name) in pairs]

    def _lists(self) -> Iterator[Structure]:
        for item in self._layers:
            if isinstance(item, Structure):
                yield item
                yield from item._lists()

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._layers)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_labels", ()):
            raise AttributeError(f"{name} is a layer: write model[{name!r}] = ... to replace it")
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        layers, names = self._items() if "_labels" in self.__dict__ else ((), ())
        if name in names:
            return layers[names.index(name)]
        text = f"{type(self).__name__} has no {name!r}{nearest(name, filter(None, names)) or habit(name)}"
        raise AttributeError(text, name=name, obj=self)

    def _tree_content(self) -> Content:
        rows = []
        for i, (place, item) in enumerate(self._placed()):
            name = self._labels[i]
            label = f"[{i}] {name}: " if name else f"[{i}] "
            # A function that stands twice shares nothing, so it isn't to be marked as shared.
            bare = isinstance(item, Layer) and not item.variables_by_name()
            rows.append((label, place, PlainText(repr(item)) if bare else item))
        return Content(type(self).__name__, "([", "])", rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        with locked(lambda: [self]):
            made.__setstate__({k: copy.deepcopy(v, memo) for k, v in self.__getstate__().items()})
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_cache", "_parents")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Structure.__init__(self)
        vars(self).update(state)
        self._adopt()
        if (
            self._stream is not None and self._stream.namer is None
        ):  # a copy; else it is that of a model that lives
            self._stream.lock = self._lock
            self._stream.namer = stream_namer(self)


def walk(model: Structure, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Each place of the whole tree that holds a layer, with the name of that place: `"(Sequential)[0](Conv)"`."""
    prefix = f"{prefix}({type(model).__name__})"
    for place, layer in model._placed():
        if isinstance(layer, Layer):
            yield f"{prefix}{place}({layer.pure.label})", layer
        else:
            yield from walk(layer, prefix + place)


def full_name(place: str, name: str) -> str:
    """The name of a variable in a model: `"(Sequential)[0](Conv).bias"`, `"(Sequential)[1](List)[0](Linear).b"`."""
    return f"{place}{'' if name.startswith('[') else '.'}{name}"


def stream_namer(model: Structure) -> Any:
    me = weakref.ref(model)
    return lambda box: (home := me()) and home._names().get(box)


def leaves(items: Iterable[Item]) -> Iterator[Layer]:
    for item in items:
        if isinstance(item, Structure):
            yield from leaves(item._layers)
        else:
            yield item
