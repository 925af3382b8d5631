"""`Layer`: an entry together with its variables, its signature and its neutral form."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from seqbridge._adapt import as_pure, with_method
from seqbridge._collection import VarCollection, check_names, nearest
from seqbridge._dispatch import Parameters
from seqbridge._pickle import portable
from seqbridge._pure import Annotated, Path, PureLayer, Variables
from seqbridge._stateful import Locks, Stateful, Token, edits, serial
from seqbridge._trace import Tracer, commit, tracing
from seqbridge._variable import Kind, Variable, cast

if TYPE_CHECKING:
    import threading

_KEY = jax.eval_shape(lambda: jax.random.key(0))


class Slot(NamedTuple):
    """Where one variable stands in its layer."""

    collection: str
    path: Path
    kind: Kind
    shown: str
    note: Any


class Layout:
    """The structure of a layer's variables: the native tree without its arrays."""

    def __init__(self, pure: PureLayer, variables: Variables):
        leaves, self.treedef = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_annotated)
        paths = [tuple(_part(key) for key in path) for path, _ in leaves]
        shown = [".".join(pure.shorten(path[1:])) for path in paths]
        often = Counter(shown)
        self.slots = tuple(
            Slot(
                collection=path[0],
                path=path[1:],
                kind=pure.kinds.get(path[0], "state"),
                # Two libraries' worth of collections may hold one path twice; then the collection tells them apart.
                shown=name if often[name] == 1 or path[0] == "params" else ".".join(path),
                note=leaf.note if _is_annotated(leaf) else None,
            )
            for (_, leaf), path, name in zip(leaves, paths, shown, strict=True)
        )
        self.arrays = [leaf.value if _is_annotated(leaf) else leaf for _, leaf in leaves]

    def tree(self, arrays: list[Any]) -> Variables:
        return jax.tree_util.tree_unflatten(self.treedef, arrays)

    def annotated(self, arrays: list[Any]) -> Variables:
        notes = (slot.note for slot in self.slots)
        return self.tree([a if n is None else Annotated(a, n) for a, n in zip(arrays, notes, strict=True)])

    def flatten(self, what: str, variables: Variables) -> list[Any]:
        """The arrays of a tree of this structure.

        Raises:
            KeyError: Another structure.
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_annotated)
        if treedef != self.treedef:
            check_names(
                what,
                ("/".join(map(_part, path)) for path, _ in leaves),
                ("/".join((s.collection, *s.path)) for s in self.slots),
            )
            raise KeyError(f"{what}: another structure: {treedef}, not {self.treedef}")
        return [leaf.value if _is_annotated(leaf) else leaf for _, leaf in leaves]


def _is_annotated(leaf: Any) -> bool:
    return isinstance(leaf, Annotated)


def _part(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


class Layer(Stateful):
    """An entry together with its variables.

    `model[i]` is a layer. Its variables are attributes and items of it: `model[0].kernel`,
    `model[3].Dense_0.kernel`, `model[2]["mlp/~/linear_0"]["w"]`. A layer can be called on its own.

    Args:
        entry: A module, a transform, a `partial` of a module class, or a callable.
        name: What the layer is called in a model: `model["conv"]`, `model.conv`, and in the names of its variables.
        method: The method of the module to call in place of `__call__`: its name, or a function of the module.
        per_example: Whether the entry takes one example, so that it is mapped over the leading axis of its inputs
            (and gets a key of its own for each). By default the adapter knows. Keywords aren't mapped.
        trainable: False: no gradients, no updates.

    Attributes:
        entry: What the user gave.
        pure: Its neutral form.
        native: The variables in the structure that the entry's own library uses.

    Raises:
        TypeError: `entry` is no entry; the message says what to write instead.

    Examples:
        >>> import jax.numpy as jnp
        >>> double = Layer(lambda x, factor=2: x * factor, name="double")
        >>> double(jnp.ones(3), factor=3.0)
        Array([3., 3., 3.], dtype=float32)
    """

    __slots__ = (
        "__weakref__", "_draws", "_home", "_layout", "_options", "_outputs", "_serial", "_variables", "entry", "name",
        "parameters", "pure",
    )  # fmt: skip

    def __init__(
        self,
        entry: Any,
        *,
        name: str | None = None,
        method: str | Callable[..., Any] | None = None,
        per_example: bool | None = None,
        trainable: bool = True,
    ):
        if isinstance(entry, Stateful):
            kind = type(entry).__name__
            raise TypeError(f"a Layer takes an entry, not a {kind}: put the {kind} into the list itself")
        pure = as_pure(entry)
        if method is not None:
            pure = with_method(pure, method)
        if per_example is not None and per_example != pure.per_example:
            pure = dataclasses.replace(pure, per_example=per_example)
        self.entry = entry
        self.pure = pure
        self.name = name
        self.parameters = Parameters(pure)
        self._layout: Layout | None = None
        self._variables: tuple[Variable, ...] = ()
        self._home: Callable[[], Any] = lambda: None  # a weak reference to the model that names the variables
        self._options = (method, per_example, trainable)
        self._outputs: dict[Hashable, Any] = {}
        self._draws: dict[Hashable, bool] = {}
        self._serial = serial()

    # What the layer holds

    @property
    def built(self) -> bool:
        return self._layout is not None

    @property
    def _key(self) -> Hashable:
        """What makes two layers of one entry the same layer."""
        return id(self.entry), self._options

    @staticmethod
    def key_of(entry: Any) -> Hashable:
        return id(entry), (None, None, True)

    def _boxes(self) -> tuple[Variable, ...]:
        return self._variables

    def _token(self) -> Token:
        return Token(self._parts())

    def _parts(self) -> Hashable:
        return (self._serial, *((v._serial, v.trainable) for v in self._variables))

    def _by_name(self) -> Mapping[str, Variable]:
        return self._named()

    def vars(self) -> VarCollection:
        """The layer's variables by their names within it, live."""
        return VarCollection(self._named)

    def _named(self) -> dict[str, Variable]:
        if self._layout is None:
            return {}
        pairs = zip(self._layout.slots, self._variables, strict=True)
        return {slot.shown: box for slot, box in sorted(pairs, key=lambda pair: pair[0].kind)}  # params, then state

    def _tree(self) -> Variables:
        """The arrays now, as the neutral form wants them."""
        return self._layout.tree([box.value for box in self._variables]) if self._layout else {}

    def _fill(self, layout: Layout, lock: threading.RLock) -> None:
        """Takes initial values; from now on the layer is built."""
        self._variables = tuple(
            Variable(
                jnp.asarray(array),
                kind=slot.kind,
                collection=slot.collection,
                path=slot.path,
                name=f"({self.pure.label}).{slot.shown}",
                trainable=None if self._options[2] else False,
                metadata=slot.note,
            )
            for slot, array in zip(layout.slots, layout.arrays, strict=True)
        )
        layout.arrays = []
        self._layout = layout
        for box in self._variables:
            box._lock = lock
            box._namer = self._name_of
        edits.count += 1

    def _name_of(self, box: Variable) -> str | None:
        model = self._home()
        return model and model._names().get(box)

    def _changes(self, variables: Variables) -> dict[Variable, Any]:
        """Which variables `variables`, the tree after a call, changes.

        Raises:
            KeyError, ValueError, TypeError: The call changed the structure, a shape or a dtype.
        """
        assert self._layout is not None
        changed = {}
        for box, new in zip(self._variables, self._layout.flatten("the state after the call", variables), strict=True):
            old = box.value
            if new is old:
                continue
            if new.dtype != old.dtype:
                raise TypeError(f"{box.name} was {old.dtype} and would become {new.dtype}: a state keeps its dtype")
            changed[box] = cast(box.name, new, old)
        return changed

    @property
    def native(self) -> Any:
        """The variables in the structure that the entry's own library uses; the arrays are the model's own."""
        if not self._layout:
            raise AttributeError(f"{self!r} isn't built: it has variables after model.build(...) or the first call")
        return self.pure.to_native(self._layout.annotated([box.value for box in self._variables]))

    def load_native(self, tree: Any) -> None:
        """Takes the values of a native tree, all of them, or raises and takes none.

        Args:
            tree: What `native` returns, from this or another model, or from the entry's own library.

        Raises:
            AttributeError: The layer isn't built, so nothing is known to check the tree against.
            KeyError: Names are missing, or unknown.
            ValueError: A wrong shape.
            TypeError: A wrong dtype.
        """
        if not self._layout:
            raise AttributeError(f"{self!r} isn't built: call model.build(...) first, then load")
        arrays = self._layout.flatten("load_native", self.pure.from_native(tree))
        with Locks(self._variables):
            commit({v: cast(v.name, new, v.value) for v, new in zip(self._variables, arrays, strict=True)})

    # What the layer does

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        """Runs the layer alone; takes what a model takes."""
        return self._alone()(*args, **keywords)

    def _alone(self) -> Any:
        from seqbridge._sequential import Sequential

        model, alone = self._home(), Sequential([self])
        if model is not None:
            alone._stream, alone._key = model._stream, model._key
        return alone

    def _apply(self, variables: Variables, key: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """`(outputs, new_state)`, from all that the layer needs."""
        call = self._apply_per_example if self.pure.per_example else self._apply_batch
        return call(variables, key, args, keywords)

    def _apply_batch(self, variables: Variables, key: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        name = self.pure.key_name
        if name is not None and name not in keywords and name not in self.parameters.positional[: len(args)]:
            keywords = {**keywords, name: key}
        return self.pure.apply(variables, key, *args, **keywords)

    def _apply_per_example(
        self, variables: Variables, key: Any, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        batch = jax.tree.leaves(args)[0].shape[0]
        keys = None if key is None else jax.random.split(key, batch)

        def one(key: Any, args: tuple[Any, ...]) -> Any:
            return self._apply_batch(variables, key, args, keywords)

        try:
            return jax.vmap(one, out_axes=(0, None))(keys, args)
        except ValueError as error:
            if "out_axes" in str(error):
                error.add_note("a per-example layer whose state depends on the example has no state for the batch")
            raise

    def _evaluate(self, variables: Variables, args: Any, keywords: dict[str, Any], training: Any) -> tuple[Any, Any]:
        """The shapes of outputs and new state, computing nothing. Notes whether the layer draws random numbers."""
        leaves, treedef = jax.tree.flatten((variables, args, keywords))
        dynamic = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

        def call(key: Any, arrays: list[Any]) -> Any:
            filled = list(leaves)
            for i, array in zip(dynamic, arrays, strict=True):
                filled[i] = array
            return self._apply(jax.tree.unflatten(treedef, filled)[0], key, *jax.tree.unflatten(treedef, filled)[1:])

        shapes = [jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype) for i in dynamic]
        jaxpr, out = jax.make_jaxpr(call, return_shape=True)(_KEY, shapes)
        key = jaxpr.jaxpr.invars[0]
        used = any(v is key for eqn in jaxpr.jaxpr.eqns for v in eqn.invars) or key in jaxpr.jaxpr.outvars
        if used and not self._random:
            edits.count += 1  # models now show their stream of keys
        self._draws[_signature(args, keywords, training)] = used
        return out

    def _draws_random(self, variables: Variables, args: Any, keywords: dict[str, Any], training: Any) -> bool:
        """Whether a call draws random numbers, so that it costs a key only if it must."""
        if not self.pure.takes_key:
            return False
        signature = _signature(args, keywords, training)
        if signature not in self._draws:
            self._evaluate(variables, args, keywords, training)
        return self._draws[signature]

    @property
    def _random(self) -> bool:
        """Whether any call so far drew random numbers."""
        return any(self._draws.values())

    # How the layer looks

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Layer.__slots__:
            raise AttributeError(name)
        return lookup(self, self._named(), name, AttributeError)

    def __getitem__(self, name: str) -> Any:
        return lookup(self, self._named(), name, KeyError)

    def __dir__(self) -> Iterator[str]:
        yield from object.__dir__(self)
        yield from (name.partition(".")[0] for name in self._named())

    def __repr__(self) -> str:
        return f"{self.pure.ecosystem} {self.pure.text or self.pure.label}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        import copy

        _no_tracers(self)
        made = _restore_layer(self.entry, self.name, self._options, self._layout, copy.deepcopy(self._variables, memo))
        made._draws = dict(self._draws)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        _no_tracers(self)
        notes = self._layout and self._layout.annotated(list(range(len(self._variables))))
        return _unpickle, (portable(self.entry), self.name, self._options, notes, self._variables)


def _no_tracers(layer: Layer) -> None:
    if tracing() and any(isinstance(box.value, Tracer) for box in layer._variables):
        raise RuntimeError(f"{layer!r} can't be copied inside a JAX transform: the copy would keep tracers")


def _restore_layer(
    entry: Any, name: str | None, options: Any, layout: Layout | None, boxes: tuple[Variable, ...]
) -> Layer:
    method, per_example, trainable = options
    layer = Layer(entry, name=name, method=method, per_example=per_example, trainable=trainable)
    layer._layout, layer._variables = layout, boxes
    for box in boxes:
        box._namer = layer._name_of
    return layer


def _unpickle(entry: Any, name: str | None, options: Any, notes: Any, boxes: tuple[Variable, ...]) -> Layer:
    layer = _restore_layer(entry, name, options, None, boxes)
    layer._layout = None if notes is None else Layout(layer.pure, notes)
    return layer


def _signature(args: tuple[Any, ...], keywords: Mapping[str, Any], training: Any) -> Hashable:
    static = bool, str, int, type(None)
    given = ((k, type(v), v if isinstance(v, static) else None) for k, v in keywords.items())
    return len(args), training, tuple(sorted(given, key=lambda item: item[0]))


class Branch:
    """The variables below one name of a layer: `model[3].Dense_0`."""

    def __init__(self, variables: Mapping[str, Variable], name: str):
        self._variables = variables
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lookup(self, self._variables, name, AttributeError)

    def __getitem__(self, name: str) -> Any:
        return lookup(self, self._variables, name, KeyError)

    def __dir__(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in self._variables})

    def vars(self) -> VarCollection:
        return VarCollection(self._variables)

    def __repr__(self) -> str:
        return repr(self.vars())


def lookup(owner: Any, variables: Mapping[str, Variable], name: str, error: type[Exception]) -> Any:
    """The variable called `name`, or the branch of those below it."""
    if name in variables:
        return variables[name]
    below = {n[len(name) + 1 :]: v for n, v in variables.items() if n.startswith(f"{name}.")}
    if below:
        return Branch(below, name)
    first = sorted({n.partition(".")[0] for n in variables})
    if isinstance(owner, Layer) and not owner.built:
        raise error(f"{owner!r} has no {name!r}: it isn't built, and has variables after model.build(...)")
    what = repr(owner) if isinstance(owner, Layer) else owner._name
    raise error(f"{what} has no {name!r}{nearest(name, first)} Its variables: {', '.join(first) or 'none'}")
