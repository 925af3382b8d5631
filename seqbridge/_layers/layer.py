"""`Layer`: an entry together with its variables, its signature and its neutral form."""

from __future__ import annotations

import copy
import dataclasses
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import jax

from seqbridge._entries import as_pure, owner_of, portable, with_method
from seqbridge._files import native_tree
from seqbridge._interface import Parameters, PureLayer, Variables, check_flags, colour
from seqbridge._layers.jaxpr import Draws
from seqbridge._layers.layout import Layout, lookup, namer
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
            of its inputs (and gets a key of its own for each). By default the adapter knows.
            Keywords aren't mapped.
        trainable: False: no gradients, no updates.

    Attributes:
        entry: What the user gave.
        pure: Its neutral form.

    Raises:
        TypeError: `entry` is no entry; the message says what to write instead.

    Examples:
        >>> import jax.numpy as jnp
        >>> double = Layer(lambda x, factor=2: x * factor, name="double")
        >>> double(jnp.ones(3), factor=3.0)
        Array([3., 3., 3.], dtype=float32)
    """

    # The class of a model, which makes a list of one of a layer that is called alone.
    model_of: ClassVar[Callable[[list[Layer]], Any]]

    __slots__ = (
        "__weakref__",
        "_copy",
        "_draws",
        "_homes",
        "_layout",
        "_origin",
        "_outputs",
        "_serial",
        "_solo",
        "_variables",
        "call_parameters",
        "entry",
        "entry_options",
        "name",
        "pure",
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
            raise TypeError(
                f"a Layer takes an entry, not a {type(entry).__name__}: that stands in the list "
                f"itself"
            )
        check_flags(trainable=trainable, per_example=per_example is not None and per_example)
        pure = as_pure(entry)
        if method is not None:
            pure = with_method(pure, method)
        if per_example is not None and per_example != pure.per_example:
            pure = dataclasses.replace(pure, per_example=per_example)
        if pure.ready is not None:
            pure = dataclasses.replace(pure, ready=jax.tree.map(strong, pure.ready))
        self.entry: Any = entry
        self.pure: PureLayer = pure
        self.name: str | None = name
        self.call_parameters = Parameters(pure)
        self._layout: Layout | None = None
        self._variables: tuple[Variable, ...] = ()
        self._homes: list[weakref.ref[Any]] = []  # the models that it stands in; see `namer`
        self._copy = 0
        self._origin: tuple[int, ...] | None = (
            None  # the positions that its initial values were folded with
        )
        self.entry_options = (method, per_example, trainable)
        self._outputs: dict[Hashable, Any] = {}
        self._draws: dict[Hashable, Draws] = {}
        self._serial = serial()
        self._solo: Any = None
        if pure.ready is not None:
            self._fill(Layout(pure, pure.ready))

    @property
    def built(self) -> bool:
        return self._layout is not None

    @property
    def _key(self) -> Hashable:
        """What makes two layers of one entry the same."""
        return id(self.entry), self.entry_options, self._copy

    @staticmethod
    def _key_of(entry: Any) -> Hashable:
        return id(entry), (None, None, True), 0

    def own_variables(self) -> tuple[Variable, ...]:
        return self._variables

    def cache_key(self) -> CacheKey:
        return CacheKey(self._parts())

    def _parts(self) -> Hashable:
        return (self._serial, *(variable.cache_parts for variable in self._variables))

    def vars(self) -> VarCollection:
        """The layer's variables by their names within it, live."""
        return VarCollection(
            self.variables_by_name, remark=lambda: "" if self.built else "  not built yet"
        )

    def variables_by_name(self) -> dict[str, Variable]:
        if self._layout is None:
            return {}
        pairs = zip(self._layout.slots, self._variables, strict=True)
        return {
            slot.shown: box for slot, box in sorted(pairs, key=lambda pair: pair[0].kind)
        }  # params, then state

    def _tree(self) -> Variables:
        """The arrays now, as the neutral form wants them."""
        return self._layout.tree([box.value for box in self._variables]) if self._layout else {}

    def _fill(
        self,
        layout: Layout,
        lock: threading.RLock | None = None,
        known: Mapping[Hashable, Variable] | None = None,
    ) -> None:
        """Takes initial values; from now on the layer is built.

        Args:
            layout: The structure, with the values.
            lock: What guards the variables.
            known: Variables that the entry has already, in a layer of another method, by what ties
                them.
        """
        made = []
        for slot, array, tie in zip(layout.slots, layout.arrays, self._ties(layout), strict=True):
            if known and tie in known:
                made.append(known[tie])
                known[tie].trainable = known[tie].trainable and self.entry_options[2]
                continue
            box = Variable(
                array,
                kind=slot.kind,
                collection=slot.collection,
                path=slot.path,
                name=f"({self.pure.label}).{slot.shown}",
                trainable=None if self.entry_options[2] and slot.trainable else False,
                metadata=slot.note,
                axes=slot.axes,
            )
            box.namer, box.lock, box.aliased = (
                namer(self._homes),
                lock or box.lock,
                self.pure.ready is not None,
            )
            made.append(box)
        self._variables = tuple(made)
        layout.arrays = []
        self._layout = layout
        version.bump()

    def _ties(self, layout: Layout) -> list[Hashable]:
        """What each variable is tied by: the object behind it, or else the entry, the native path and the shape."""
        arrays = self._variables if layout is self._layout else layout.arrays
        return layout.ties(self.pure.sources, owner_of(self.entry), self._copy, arrays)

    def _tied_variables(self) -> list[tuple[Hashable, Variable]]:
        return (
            list(zip(self._ties(self._layout), self._variables, strict=True))
            if self._layout
            else []
        )

    def _join(self, model: Any, lock: threading.RLock) -> None:
        """Notes a model that the layer stands in now. The lock of the first one guards the variables, for good."""
        with version.lock:
            living = [home for home in self._homes if home() is not None]
            for box in [] if living else [box for box in self._variables if box.lock is not lock]:
                box.lock = lock
                version.bump()  # programs know the old one
            self._homes[:] = (
                living if any(home() is model for home in living) else [*living, weakref.ref(model)]
            )

    def _changes(self, variables: Variables) -> dict[Variable, Any]:
        """Which variables `variables`, the tree after a call, changes.

        Raises:
            KeyError, ValueError, TypeError: The call changed the structure, a shape or a dtype.
        """
        assert self._layout is not None
        arrays = self._layout.flatten(f"the state of {self!r} after the call", variables)
        changed = {}
        for box, new in zip(self._variables, arrays, strict=True):
            if new is (old := box.value):
                continue
            if hasattr(new, "dtype") and new.dtype != old.dtype:
                raise TypeError(
                    f"{box.name} was {old.dtype} and would become {new.dtype}: a state keeps its "
                    f"dtype"
                )
            changed[box] = cast(box.name, new, old)
        return changed

    @property
    def native(self) -> Any:
        """The variables in the structure that the entry's own library uses; the arrays are the model's own."""
        if not self._layout:
            raise AttributeError(
                f"{self!r} isn't built: call model.build(...) first, or the model itself"
            )
        return self.pure.to_native(self._layout.annotated([box.value for box in self._variables]))

    def load_native(self, tree: Any, /, *, allow_pickle: bool = False) -> None:
        """Takes the values of a native tree, all of them, or raises and takes none.

        Args:
            tree: What `native` returns, from this model or another or the library, or the path of
                the library's file.
            allow_pickle: See `read`.

        Raises:
            AttributeError: The layer isn't built, so nothing is known to check the tree against.
            KeyError, ValueError, TypeError: Wrong names, a wrong shape or dtype.
        """
        native = native_tree(self.pure, tree, self.native, allow_pickle=allow_pickle)
        assert self._layout is not None
        arrays = self._layout.flatten("load_native", self.pure.from_native(native))
        with Locks(self._variables):
            commit(
                {
                    v: cast(v.name, new, v.value)
                    for v, new in zip(self._variables, arrays, strict=True)
                }
            )

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        """Runs the layer alone; takes what a model takes."""
        return self._alone()(*args, **keywords)

    def _alone(self) -> Any:
        for home in self._homes:
            if (model := home()) is not None and model is not self._solo and self in model:
                alone = self.model_of([self])
                alone._stream, alone._seed = model._make_stream(), model._seed
                return alone
        with version.lock:
            if self._solo is None:
                self._solo = self.model_of([self])  # kept: the next call must take the next key
        return self._solo

    @property
    def _random(self) -> bool:
        """Whether a call draws random numbers, or may."""
        return (
            any(d.used for d in list(self._draws.values()))
            if self._draws
            else self.pure.takes_key and self.built
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("entry", "name", "pure") and hasattr(self, "_solo"):
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
        native = {".".join(box.path): box for box in self._variables}
        shown = name in named or any(n.startswith(f"{name}.") for n in named)
        return lookup(
            repr(self), named if shown else native | named, name, KeyError, built=self.built
        )

    def __dir__(self) -> list[str]:
        return [
            *object.__dir__(self),
            *(name.partition(".")[0] for name in self.variables_by_name()),
        ]

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
        rest = copy.deepcopy(self._variables, memo), dict(self._draws), self._origin
        made = _remake(type(self), self.entry, self.name, self.entry_options, self._layout, *rest)
        made._copy = made._serial  # its entry is the same object, its variables are not
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        layout = self._layout
        notes = layout and (
            layout.described(list(range(len(self._variables)))),
            portable(layout.inputs),
        )
        rest = self._variables, self._draws, self._origin
        return _remake, (
            type(self),
            portable(self.entry),
            self.name,
            self.entry_options,
            notes,
            *rest,
        )


def _remake(
    cls: type[Layer], entry: Any, name: str | None, options: Any, layout: Any, *rest: Any
) -> Layer:
    """A layer with the variables of another. Its layout, or a tree of notes from which to make it."""
    layer = cls.__new__(cls)
    Layer.__init__(
        layer,
        entry,
        name=name,
        **dict(zip(("method", "per_example", "trainable"), options, strict=True)),
    )
    layer._variables, layer._draws, layer._origin = rest
    layer._layout = Layout(layer.pure, *layout) if isinstance(layout, tuple) else layout
    for box in layer._variables:
        box.namer = namer(layer._homes)
    return layer
