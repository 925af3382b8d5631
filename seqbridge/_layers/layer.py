"""`Layer`: an entry together with its variables, its signature and its `PureLayer`."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax

from seqbridge._entries import as_pure, portable
from seqbridge._files import native_tree
from seqbridge._interface import Parameters, PureLayer, Variables, check_flags, colour, nearest
from seqbridge._layers.layout import Layout, lookup, namer, sources_of
from seqbridge._layers.mode import Mode, mode_flags, warn_of_unnamed
from seqbridge._layers.parents import Parents
from seqbridge._layers.traces import TraceCache
from seqbridge._state import (
    CacheKey,
    Content,
    Locks,
    Stateful,
    Variable,
    cast,
    commit,
    serial,
    strong,
    version,
)
from seqbridge._variables import VarCollection, VariableHolder


class EntryOptions(NamedTuple):
    """Options that a person may give an entry, beside its name."""

    method: str | Callable[..., Any] | None = None
    per_example: int | None = None
    trainable: bool = True
    freeze_state: bool = False
    mode: tuple[tuple[str, bool], ...] | None = None
    batched: tuple[str, ...] | None = None


class Layer(VariableHolder):
    """An entry together with its variables.

    `model[i]` is a layer. Its variables are attributes and items of it: `model[0].kernel`,
    `model[3].Dense_0.kernel`, `model[2]["mlp/~/linear_0"]["w"]`. A layer can be called on its own.

    Args:
        entry: A module, a transform, a `partial` of a module class, or a callable.
        name: What the layer is called in a model: `model["conv"]`, `model.conv`, and in the names
            of its variables.
        method: The method of the module to call in place of `__call__`: its name, or a function of
            the module.
        per_example: Whether the entry takes one example, so that it is mapped over the leading axis
            of its inputs (and gets a key of its own for each); 2: over two leading axes, batch and
            time, say. By default the adapter knows. Keywords aren't mapped, but for `batched`.
        trainable: False: no gradients, no updates.
        freeze_state: True: no call changes the layer's state, whatever its library says.
        mode: The name of a keyword of the entry that is True in training, `"is_train"`; or what its
            flags are in training, `{"eval_mode": False}`. They follow `training=` as the flags do
            that its adapter knows.
        batched: The keywords that hold a value for each example, `("mask",)`, and are mapped with
            the inputs.

    Attributes:
        entry: What the user gave.
        pure: Its `PureLayer`.

    Raises:
        TypeError: `entry` is no entry; the message says what to write instead.

    Examples:
        >>> import jax.numpy as jnp
        >>> double = Layer(lambda x, factor=2: x * factor, name="double")
        >>> double(jnp.ones(3), factor=3.0)
        Array([3., 3., 3.], dtype=float32)
    """

    # The class of a model, which makes a list of one of a layer that is called alone.
    model_class: ClassVar[type[Any]]

    # Public names inside the package: `call_parameters`, what a call may give; `entry_options`;
    # `native_layout`, None until the layer is built; `origin_path`, the positions that the key of
    # its initial values was folded with; `parent_models`; `trace_cache`.
    __slots__ = (
        "__weakref__",
        "_alone",
        "_serial",
        "_variables",
        "call_parameters",
        "copy_number",
        "entry",
        "entry_options",
        "name",
        "native_layout",
        "origin_path",
        "parent_models",
        "pure",
        "trace_cache",
    )

    internal_names: ClassVar[frozenset[str]] = VariableHolder.internal_names | {
        "cache_parts",
        "call_parameters",
        "changed_variables",
        "copy_number",
        "current_tree",
        "drop_variables",
        "entry_key",
        "entry_options",
        "fill_variables",
        "is_random",
        "join_model",
        "key_of_entry",
        "may_draw",
        "model_class",
        "model_of_one",
        "native_layout",
        "origin_path",
        "owner",
        "parent_models",
        "share_variables",
        "tied_variables",
        "variable_ties",
        "trace_cache",
    }

    def __init__(
        self,
        entry: Any,
        *,
        name: str | None = None,
        method: str | Callable[..., Any] | None = None,
        per_example: int | None = None,
        trainable: bool = True,
        freeze_state: bool = False,
        mode: Mode | None = None,
        batched: str | Sequence[str] | None = None,
    ):
        if isinstance(entry, Stateful):
            raise TypeError(_refusal(entry))
        check_flags(
            trainable=trainable,
            freeze_state=freeze_state,
        )
        pure = as_pure(entry, method)
        if per_example is not None:
            pure = dataclasses.replace(pure, per_example=_axes(per_example))
        names = None
        if batched is not None:
            names = (batched,) if isinstance(batched, str) else tuple(batched)
            pure = dataclasses.replace(pure, batched=names)
        flags: tuple[tuple[str, bool], ...] | None = None
        if mode is None:
            warn_of_unnamed(pure)
        else:
            flags = tuple(mode_flags(mode, pure).items())
            pure = dataclasses.replace(pure, mode_flags={**pure.mode_flags, **dict(flags)})
        if pure.ready is not None:
            pure = dataclasses.replace(
                pure, ready=jax.tree.map(strong, pure.ready), sources=sources_of(pure, self)
            )
        self.entry: Any = entry
        self.pure: PureLayer = pure
        self.name: str | None = name
        self.call_parameters: Parameters = Parameters(pure)
        for name in names or ():
            if not self.call_parameters.takes(name, 1):
                near = nearest(name, self.call_parameters.names)
                raise TypeError(f"batched={name!r}: {pure.label} takes no such keyword{near}")
        self.entry_options: EntryOptions = EntryOptions(
            method, per_example, trainable, freeze_state, flags, names
        )
        self.native_layout: Layout | None = None
        self.origin_path: tuple[int, ...] | None = None
        self.parent_models: Parents = Parents()
        self.trace_cache: TraceCache = TraceCache()
        self._variables: tuple[Variable, ...] = ()
        self._serial = serial()
        # Tells layers of one entry apart: copies, and those of a recipe.
        self.copy_number: int | None = self._serial if pure.recipe else None
        self._alone: Any = None
        if pure.ready is not None:
            self.fill_variables(Layout(pure, pure.ready))

    @property
    def built(self) -> bool:
        return self.native_layout is not None

    @property
    def owner(self) -> Any:
        """The object that holds the variables: layers of one owner share them."""
        return self.entry if self.pure.owner is None else self.pure.owner

    @property
    def entry_key(self) -> Hashable:
        """The identity of an entry with its options: layers of one key are one layer."""
        return id(self.entry), self.entry_options, self.copy_number

    @staticmethod
    def key_of_entry(entry: Any) -> Hashable:
        """The `entry_key` of a layer that would be made of `entry` alone."""
        return id(entry), EntryOptions(), None

    @property
    def may_draw(self) -> bool:
        """Whether some call may draw random numbers, so that a model needs a stream of keys."""
        return self.pure.takes_key and self.built

    @property
    def is_random(self) -> bool:
        """Whether a call is known to draw random numbers, or nothing is known of any call."""
        draws = self.trace_cache.draws
        return self.may_draw if draws is None else draws

    # Variables

    def own_variables(self) -> tuple[Variable, ...]:
        return self._variables

    def cache_key(self) -> CacheKey:
        return CacheKey(self.cache_parts())

    def cache_parts(self) -> Hashable:
        """The parts of the cache key: what a compiled program depends on."""
        return (self._serial, *(variable.cache_parts for variable in self._variables))

    def vars(self) -> VarCollection:
        """The layer's variables by their names within it, live."""
        return VarCollection(
            self.variables_by_name, remark=lambda: "" if self.built else "  not built yet"
        )

    def variables_by_name(self) -> dict[str, Variable]:
        if self.native_layout is None:
            return {}
        pairs = list(zip(self.native_layout.slots, self._variables, strict=True))
        pairs.sort(key=lambda pair: pair[0].kind)  # parameters, then state
        return {slot.shown: variable for slot, variable in pairs}

    def current_tree(self) -> Variables:
        """The arrays now, in the tree that `pure.apply` takes."""
        if self.native_layout is None:
            return {}
        return self.native_layout.tree([variable.value for variable in self._variables])

    def fill_variables(
        self,
        layout: Layout,
        lock: threading.RLock | None = None,
        known: Mapping[Hashable, Variable] | None = None,
    ) -> None:
        """Take initial values; from now on the layer is built.

        Args:
            layout: The structure, with the values.
            lock: The lock that guards the variables.
            known: Variables that the entry has already, in a layer of another method, by their tie.
        """
        trainable = self.entry_options.trainable
        variables = []
        for slot, array, tie in zip(
            layout.slots, layout.arrays, self.variable_ties(layout), strict=True
        ):
            variable = known.get(tie) if known else None
            if variable is not None:
                variable.trainable = variable.trainable and trainable
            else:
                variable = Variable(
                    array,
                    kind=slot.kind,
                    collection=slot.collection,
                    path=slot.path,
                    name=f"({self.pure.label}).{slot.shown}",
                    trainable=None if trainable and slot.trainable else False,
                    metadata=slot.note,
                    axes=slot.axes,
                    former=(slot.shown, slot.former) if slot.former else None,
                )
                variable.namer = namer(self.parent_models)
                variable.aliased = self.pure.ready is not None
                if lock is not None:
                    variable.lock = lock
            variables.append(variable)
        self._variables = tuple(variables)
        layout.arrays = []
        self.native_layout = layout
        version.bump()

    def drop_variables(self) -> None:
        """Give the variables back, of a build that failed."""
        self._variables, self.native_layout, self.origin_path = (), None, None

    def share_variables(self, variables: Sequence[Variable]) -> None:
        """Replace the variables by those that the layer shares with others, in the same order."""
        self._variables = tuple(variables)

    def variable_ties(self, layout: Layout) -> list[Hashable]:
        """Return the tie of each variable of a layout: variables of one tie are one.

        A tie is the object behind the variable, or else the entry, the native path and the shape.
        """
        arrays = self._variables if layout is self.native_layout else layout.arrays
        return layout.ties(self.pure.sources, self.owner, self.copy_number, arrays)

    def tied_variables(self) -> list[tuple[Hashable, Variable]]:
        """The variables with their ties."""
        if self.native_layout is None:
            return []
        return list(zip(self.variable_ties(self.native_layout), self._variables, strict=True))

    def join_model(self, model: Any, lock: threading.RLock) -> None:
        """Note a model that the layer stands in now; the lock of the first guards the variables."""
        with version.lock:
            first = self.parent_models.add(model)
            if first and any(variable.lock is not lock for variable in self._variables):
                for variable in self._variables:
                    variable.lock = lock
                version.bump()  # programs know the old lock

    def changed_variables(self, variables: Variables) -> dict[Variable, Any]:
        """The variables that `variables`, the tree after a call, changes.

        Raises:
            KeyError, ValueError, TypeError: The call changed the structure, a shape or a dtype.
        """
        assert self.native_layout is not None
        arrays = self.native_layout.flatten(f"the state of {self!r} after the call", variables)
        changed = {}
        for variable, new in zip(self._variables, arrays, strict=True):
            old = variable.value
            if new is old:
                continue
            if hasattr(new, "dtype") and new.dtype != old.dtype:
                raise TypeError(
                    f"{variable.name} was {old.dtype} and would become {new.dtype}: a state keeps "
                    "its dtype"
                )
            changed[variable] = cast(variable.name, new, old)
        return changed

    @property
    def native(self) -> Any:
        """The variables in the structure of the entry's own library; the arrays are the model's."""
        if self.native_layout is None:
            raise AttributeError(
                f"{self!r} isn't built: call model.build(...) first, or the model itself"
            )
        arrays = [variable.value for variable in self._variables]
        return self.pure.to_native(self.native_layout.annotated(arrays))

    def load_native(self, tree: Any, /, *, allow_pickle: bool = False) -> None:
        """Take the values of a native tree, all of them, or raise and take none.

        Args:
            tree: What `native` returns, from this model or another or the library, or the path of
                the library's file.
            allow_pickle: See `read`.

        Raises:
            AttributeError: The layer isn't built, so nothing is known to check the tree against.
            KeyError, ValueError, TypeError: Wrong names, a wrong shape or dtype.
        """
        native = native_tree(self.pure, tree, self.native, allow_pickle=allow_pickle)
        assert self.native_layout is not None
        arrays = self.native_layout.flatten("load_native", self.pure.from_native(native))
        with Locks(self._variables):
            changes = {}
            for variable, new in zip(self._variables, arrays, strict=True):
                changes[variable] = cast(variable.name, new, variable.value)
            commit(changes)

    # Calls

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        """Run the layer alone; takes what a model takes."""
        return self.model_of_one()(*args, **keywords)

    def model_of_one(self) -> Any:
        """A model of this layer alone, which draws from the stream of the model that holds it."""
        for model in self.parent_models.holding(self):
            if model is not self._alone:
                alone = self.model_class([self])
                alone.take_stream_of(model)
                return alone
        with version.lock:
            if self._alone is None:
                self._alone = self.model_class([self])  # kept: the next call takes the next key
        return self._alone

    # Attributes, copies, looks

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("entry", "name", "pure") and hasattr(self, "_alone"):
            raise AttributeError(
                f"{name} stays as it is: put another in its place, sb.Layer(entry, name=...)"
            )
        if name not in Layer.__slots__ and name in self.variables_by_name():
            raise AttributeError(
                f"{name} is a variable: write .{name}.assign(...), or .{name}.value = ..."
            )
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Layer.__slots__:
            raise AttributeError(name)
        return lookup(repr(self), self.variables_by_name(), name, AttributeError, built=self.built)

    def __getitem__(self, name: str) -> Any:
        named = self.variables_by_name()
        shown = name in named or any(other.startswith(f"{name}.") for other in named)
        if not shown:
            native = {".".join(variable.path): variable for variable in self._variables}
            named = native | named
        return lookup(repr(self), named, name, KeyError, built=self.built)

    def __dir__(self) -> list[str]:
        first_parts = (name.partition(".")[0] for name in self.variables_by_name())
        return [*super().__dir__(), *first_parts]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.variables_by_name())

    def _tree_content(self) -> Content:
        rows = []
        for name, variable in self.variables_by_name().items():
            place = f".{name}" if name.isidentifier() else f"[{name!r}]"
            rows.append((f"{name}: ", place, variable))
        brackets = (" {", "}") if rows else ("", "")
        return Content(repr(self), *brackets, rows, colour(self.pure.ecosystem, 0.9))

    def __repr__(self) -> str:
        return f"{self.pure.ecosystem} {self.pure.text or self.pure.label}"

    def __copy__(self) -> Layer:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        variables = copy.deepcopy(self._variables, memo)
        made = _remake(
            type(self),
            self.entry,
            self.name,
            self.entry_options,
            self.native_layout,
            variables,
            self.trace_cache.draws,
            self.origin_path,
        )
        made.trace_cache = self.trace_cache.copy()
        # Its entry is the same object, its variables are not; layers that share them still do.
        key: Any = ("copy of", id(self.owner), self.copy_number)
        made.copy_number = memo.setdefault(key, made._serial)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        layout = self.native_layout
        notes = None
        if layout is not None:
            numbered = list(range(len(self._variables)))
            notes = layout.described(numbered), portable(layout.inputs)
        return _remake, (
            type(self),
            portable(self.entry),
            self.name,
            self.entry_options,
            notes,
            self._variables,
            self.trace_cache.draws,
            self.origin_path,
        )


def _axes(per_example: Any) -> int:
    """Return over how many axes a layer is mapped.

    Raises:
        TypeError: It is no bool, and no number of axes.
    """
    if isinstance(per_example, bool | int) and per_example >= 0:
        return int(per_example)
    raise TypeError(
        "per_example= is True, False, or the number of leading axes that the layer is mapped over, "
        f"not {per_example!r:.60}"
    )


def _refusal(entry: Stateful) -> str:
    """Say what to write in place of an object of seqbridge that is no entry."""
    name = type(entry).__name__
    if isinstance(entry, Variable):
        return (
            "a Variable is no entry: give a function that uses its array, which becomes a "
            "parameter, lambda x, w=variable.value: x * w"
        )
    if isinstance(entry, Layer) or callable(entry):
        return f"a Layer takes an entry, not a {name}: that stands in the list itself"
    return f"a {name} is no entry: put the model or the layer into the list that it is of"


def _remake(
    cls: type[Layer],
    entry: Any,
    name: str | None,
    options: EntryOptions,
    layout: Layout | tuple[Any, Any] | None,
    variables: tuple[Variable, ...],
    draws: bool | None,
    origin_path: tuple[int, ...] | None,
) -> Layer:
    """A layer with the variables of another: with its layout, or the notes to make one from."""
    layer = cls.__new__(cls)
    given = options._asdict()
    if options.mode is not None:
        given["mode"] = dict(options.mode)
    Layer.__init__(layer, entry, name=name, **given)
    if isinstance(layout, tuple):
        layout = Layout(layer.pure, *layout)
    layer.native_layout = layout
    layer.origin_path = origin_path
    layer.trace_cache.draws = draws
    layer.share_variables(variables)
    for variable in variables:
        variable.namer = namer(layer.parent_models)
    return layer
