"""`Copy`: a view of one copy of a repeated layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from seqbridge._files import native_tree
from seqbridge._interface import Call, Variables, mode_of
from seqbridge._layers import Layer, Layout, lookup
from seqbridge._model import Sequential
from seqbridge._passes import Run, traverse
from seqbridge._state import CacheKey, Locks, Operators, Stateful, Variable, cast, commit, locked


class CopyVariable(Operators):
    """The row of one copy in a variable of all copies. It is read and assigned like a variable.

    Args:
        whole: The variable of all copies.
        index: Which copy.
    """

    __slots__ = ("_index", "_whole")

    def __init__(self, whole: Variable, index: int):
        self._whole = whole
        self._index = index

    @property
    def name(self) -> str:
        """`"(Sequential)[3](Repeat).kernel[17]"`."""
        return f"{self._whole.name}[{self._index}]"

    @property
    def value(self) -> jax.Array:
        return self._whole.value[self._index]

    @value.setter
    def value(self, new: Any) -> None:
        self.assign(new)

    def assign(self, value: Any) -> None:
        """Replace this copy's array, as `Variable.assign` does."""
        with self._whole.lock:
            commit({self._whole: self.replaced(value)})

    def replaced(self, value: Any) -> jax.Array:
        """Return the array of all copies, with `value` in place of this one's."""
        new = cast(self.name, value, self.value)
        return self._whole.value.at[self._index].set(new)

    @property
    def trainable(self) -> bool:
        return self._whole.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        raise AttributeError(
            f"the copies are trained together: set {self._whole.name} trainable, or not"
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "ndim", "size"):
            return getattr(self.value, name)
        if name in ("kind", "collection", "path"):
            return getattr(self._whole, name)
        raise AttributeError(
            f"a copy's variable has no attribute {name!r}; the array has it: write .value.{name}"
        )

    def __repr__(self) -> str:
        return f"CopyVariable({self.name}, {self.dtype}{list(self.shape)})"


class Copy(Stateful):
    """A view of one copy of a repeated layer: `model[3][17]`.

    Its variables are attributes and items of it, and it can be called on its own, as a layer can.

    Args:
        repeat: The copies.
        one: The layer that was repeated.
        index: Which copy.
    """

    def __init__(self, repeat: Layer, one: Layer, index: int):
        self._repeat = repeat
        self._one = one
        self._index = index

    def own_variables(self) -> tuple[Variable, ...]:
        return self._repeat.own_variables()

    def cache_key(self) -> CacheKey:
        return CacheKey((self._repeat.cache_key(), self._index))

    def variables_by_name(self) -> Mapping[str, Variable]:
        return self._repeat.variables_by_name()

    def _layout(self) -> Layout:
        if self._repeat.native_layout is None:
            raise AttributeError(
                f"{self!r} isn't built: call model.build(...) first, or the model itself"
            )
        return self._repeat.native_layout

    def _rows(self) -> list[CopyVariable]:
        return [CopyVariable(variable, self._index) for variable in self._repeat.own_variables()]

    def vars(self) -> Mapping[str, CopyVariable]:
        """Return this copy's variables by name; each can be read and assigned."""
        named = self._repeat.variables_by_name()
        return {name: CopyVariable(whole, self._index) for name, whole in named.items()}

    @property
    def native(self) -> Any:
        """This copy's variables in the structure that the entry's own library uses."""
        arrays = [row.value for row in self._rows()]
        return self._one.pure.to_native(self._layout().annotated(arrays))

    def load_native(self, tree: Any, /, *, allow_pickle: bool = False) -> None:
        """Load the values of a native tree, or of a file, as `Layer.load_native` does."""
        native = native_tree(self._one.pure, tree, self.native, allow_pickle=allow_pickle)
        with Locks(self._repeat.own_variables()):
            commit(self._changes("load_native", self._one.pure.from_native(native)))

    def _changes(self, what: str, tree: Variables) -> dict[Variable, jax.Array]:
        """Return the arrays of all copies with the values of `tree` in place of this one's."""
        arrays = self._layout().flatten(what, tree)
        pairs = zip(self._rows(), arrays, strict=True)
        return {row._whole: row.replaced(new) for row, new in pairs}

    def __call__(
        self, /, *args: Any, training: bool | None = None, rng: Any = None, **keywords: Any
    ) -> Any:
        """Run this copy alone, on the arguments that a model takes."""
        alone = self._repeat.model_of_one()
        with locked(lambda: [alone]):
            tree = self._layout().tree([row.value for row in self._rows()])
            run = Run(lambda _: tree)
            changes: dict[Variable, Any] = {}
            keys = alone.call_keys(rng, changes).child(self._index)
            call = Call(mode_of(training), keywords)
            outputs = traverse(Sequential([self._one]), args, call, run, keys)
            for state in run.states.values():
                changes |= self._changes("the state after the call", state)
            commit(changes)
        return outputs

    def _lookup(self, name: str, error: type[Exception]) -> Any:
        variables: Mapping[str, Any] = self.vars()
        return lookup(repr(self), variables, name, error, built=self._repeat.built)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._lookup(name, AttributeError)

    def __getitem__(self, name: str) -> Any:
        return self._lookup(name, KeyError)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":
            raise AttributeError("the copies are trained together: set it of what repeats them")
        if not name.startswith("_"):
            raise AttributeError(f"write .{name}.assign(...), or .{name}.value = ...")
        object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        names = {name.partition(".")[0] for name in self.vars()}
        return sorted(names.union(super().__dir__()))

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.vars())

    def __repr__(self) -> str:
        return f"copy {self._index} of {self._repeat!r}"
