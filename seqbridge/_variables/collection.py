"""`VarCollection`: variables by name, live."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, get_args

import jax

from seqbridge._interface import Kind, Path, check_names, nearest, plain
from seqbridge._state import CacheKey, Stateful, Variable, cast, commit, distinct, locked, version
from seqbridge._variables.saving import VariableHolder

Table: TypeAlias = Mapping[str, Variable]
Selection: TypeAlias = Callable[[Table], Table]
Filter: TypeAlias = str | re.Pattern[str] | Callable[[Variable], bool] | Stateful


def selector(which: Filter) -> Selection:
    """Return what `subset` and `wrt=` take as a function from variables by name to some of them.

    Raises:
        TypeError: It is nothing that variables can be chosen by.
        ValueError: It is text, and neither a part of a name nor a regular expression.
    """
    if isinstance(which, Stateful):
        chosen = set(which.own_variables())
        return _selection(lambda name, variable: variable in chosen)
    if isinstance(which, str) and which in get_args(Kind):
        return _selection(lambda name, variable: variable.kind == which)
    if isinstance(which, re.Pattern):
        return _selection(lambda name, variable: which.search(name) is not None)
    if isinstance(which, str):
        return _by_text(which)
    if callable(which) and not isinstance(which, type):
        return _selection(lambda name, variable: which(variable))
    raise TypeError(
        f"can't choose variables by {which!r}: give a kind, a regular expression, a function of a "
        "Variable"
    )


def _selection(chosen: Callable[[str, Variable], bool]) -> Selection:
    def select(table: Table) -> Table:
        return {name: variable for name, variable in table.items() if chosen(name, variable)}

    return select


def _by_text(text: str) -> Selection:
    """Return the selection by a part of a name as it is printed, or by a regular expression."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(
            f"{text!r} is neither a part of a name, whose brackets are closed, nor a regular "
            f"expression: {error}"
        ) from None
    printed = re.compile(re.escape(text) + r"(?=$|[.\[(])")
    has_brackets = "[" in text or "(" in text

    def is_part_of(name: str) -> bool:
        return bool(printed.search(name) or printed.search(plain(name)))

    def select(table: Table) -> Table:
        parts = {name: variable for name, variable in table.items() if is_part_of(name)}
        # Brackets of a printed name mean themselves: "[1]" is a layer, not a set of characters.
        if parts and has_brackets:
            return parts
        return {
            name: variable
            for name, variable in table.items()
            if name in parts or pattern.search(name)
        }

    return select


class VarCollection(VariableHolder, Mapping[str, Variable]):
    """Ordered names and their variables.

    A mapping from name to `Variable`, where one variable may stand under several names. A
    collection that comes from a model is live: it shows every edit of the model. To JAX it is a
    pytree: a mapping from name to array, in which each variable stands once, so that
    `jax.tree.map`, `jax.grad` and optax take it.

    Args:
        variables: Names and variables, or a function that returns them (then the collection is
            live).
        remark: A function that returns the end of the table's last line, which says what isn't
            built yet. Empty: everything is.
        whole: What these are all variables of, in place of which the collection may stand.

    Examples:
        >>> import jax.numpy as jnp
        >>> v = VarCollection({"w": Variable(jnp.ones((3, 4))), "b": Variable(jnp.zeros(4))})
        >>> print(v)
        w                          12 (3, 4)
        b                           4 (4,)
        +Total(2)                  16
        >>> list(v.subset("^b"))
        ['b']
        >>> v.assign({"w": jnp.zeros((3, 4)), "b": jnp.ones(4)})
        >>> float(v["b"].value.sum())
        4.0
    """

    __slots__ = ("__weakref__", "_made", "_remark", "_seen", "_source", "_whole")

    internal_names: ClassVar[frozenset[str]] = VariableHolder.internal_names | {"distinct_by_name"}

    steady_key = False  # its source may be anybody's function

    def __init__(
        self,
        variables: Mapping[str, Variable] | Callable[[], Mapping[str, Variable]] = {},  # noqa: B006
        *,
        remark: Callable[[], str] = str,
        whole: Stateful | None = None,
    ):
        self._remark = remark
        self._whole = whole
        if isinstance(variables, Mapping):
            fixed = dict(variables)
            for name, variable in fixed.items():
                if not isinstance(variable, Variable):
                    raise TypeError(f"{name!r} is no Variable but {type(variable).__name__}")
            self._source: Callable[[], Mapping[str, Variable]] = lambda: fixed
        elif isinstance(variables, Stateful) or not callable(variables):
            message = f"a VarCollection takes variables by name, not a {type(variables).__name__}"
            if isinstance(variables, Stateful):
                message += ", whose .vars() are such a collection"
            raise TypeError(message)
        else:
            self._source = variables
        self._seen: tuple[Any, ...] | None = None

    @property
    def built(self) -> bool:
        """Whether the models and layers that it comes from have all their variables."""
        return not self._remark()

    def own_variables(self) -> tuple[Variable, ...]:
        if self._whole is not None:
            return self._whole.own_variables()
        return distinct(self._source().values())

    def cache_key(self) -> CacheKey:
        table = self._source()
        seen = (version.number, *table, *[v.buffer_slot.serial for v in table.values()])
        if seen != self._seen:
            whole = None if self._whole is None else self._whole.cache_key()
            self._made = CacheKey((whole, *((name, v.cache_parts) for name, v in table.items())))
            self._seen = seen
        return self._made

    def variables_by_name(self) -> Mapping[str, Variable]:
        return self._source()

    def __getitem__(self, name: str) -> Variable:
        variables = self._source()
        if name not in variables:
            raise KeyError(f"no variable is called {name!r}{nearest(name, variables)}")
        return variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source())

    def __len__(self) -> int:
        return len(self._source())

    def __eq__(self, other: object) -> bool:
        return object.__eq__(self, other)  # identity: a mapping would compare its items

    def __hash__(self) -> int:
        return object.__hash__(self)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return VarCollection, (dict(self._source()),)

    def __add__(self, other: VarCollection) -> VarCollection:
        """Return both, live. Raise `ValueError` if one name means two variables."""
        if not isinstance(other, VarCollection):
            return NotImplemented

        def joined() -> dict[str, Variable]:
            both = dict(self._source())
            for name, variable in other._source().items():
                if both.setdefault(name, variable) is not variable:
                    raise ValueError(
                        f"two variables are called {name!r}: rename one of the collections first"
                    )
            return both

        joined()  # raises now rather than later
        return VarCollection(joined, remark=lambda: self._remark() or other._remark())

    def __repr__(self) -> str:
        lines: list[str] = []
        first: dict[Variable, str] = {}
        numbers = 0
        width = min(100, max([20, *(len(name) for name in self)]))
        for name, variable in self.items():
            array = variable.value
            if not hasattr(array, "dtype"):  # a tree of masks, say
                lines.append(f"{name:<{width}} {array!r}")
                continue
            notes = _notes(variable)
            if variable in first:
                notes.append(f"shared with {_place(first[variable])}")
            else:
                first[variable] = name
                numbers += array.size
            line = f"{name:<{width}} {array.size:8d} {array.shape}"
            lines.append(f"{line}  {' '.join(notes)}" if notes else line)
        total = f"+Total({len(first)})"
        lines.append(f"{total:<{width}} {numbers:8d}{self._remark()}")
        return "\n".join(lines)

    def subset(self, which: Filter | None = None) -> VarCollection:
        """Return some of the variables, live.

        Args:
            which: A kind (`"params"`, `"state"`, `"rng"`); a part of a name as it is printed, with
                or without the names of classes (`"[10]"`, `"encoder[0].kernel"`), or else a regular
                expression that is searched in the name; a function of a `Variable`; another
                collection, a layer or a model. None: all.

        Raises:
            TypeError: Something else is given.
            ValueError: The text is neither a part of a name nor a regular expression.
            KeyError: A kind is misspelt.
        """
        if which is None:
            return self
        select = selector(which)
        if isinstance(which, str) and which not in get_args(Kind):
            near = nearest(which, get_args(Kind), cutoff=0.85)  # "stage" isn't near "state"
            if near and self and not select(self._source()):
                raise KeyError(f"no variable has {which!r} in its name, and it is no kind{near}")
        return VarCollection(lambda: select(self._source()), remark=self._remark)

    def rename(self, new: Mapping[str, str] | Callable[[str], str]) -> VarCollection:
        """Return the same variables under other names, live.

        Args:
            new: From old to new name (names that it lacks stay), or a function of the old name.

        Raises:
            KeyError: A name that the collection doesn't have.
            ValueError: Two variables would get one name.
        """
        if isinstance(new, Mapping):
            for name in new:
                self[name]  # raises for a name that isn't there

        def new_name(old: str) -> str:
            return new.get(old, old) if isinstance(new, Mapping) else new(old)

        def renamed() -> dict[str, Variable]:
            names: dict[str, Variable] = {}
            for old, variable in self._source().items():
                name = new_name(old)
                if names.setdefault(name, variable) is not variable:
                    raise ValueError(f"two variables would be called {name!r}")
            return names

        renamed()  # raises now rather than later
        return VarCollection(renamed, remark=self._remark)

    def tensors(self) -> dict[str, jax.Array]:
        """Return the arrays by name, each variable once, under its first name."""
        with locked(lambda: [self]):
            return {name: variable.value for name, variable in self.distinct_by_name().items()}

    def distinct_by_name(self) -> dict[str, Variable]:
        """Return the variables by name, each once, under its first name."""
        first: dict[Variable, str] = {}
        for name, variable in self._source().items():
            first.setdefault(variable, name)
        return {name: variable for variable, name in first.items()}

    def assign(self, values: Mapping[str, Any] | Sequence[Any]) -> None:
        """Replace all arrays at once, or raise and replace none.

        Args:
            values: Arrays by name (a mapping, or another collection), or a list in the order of the
                distinct variables. Each as `Variable.assign` takes it.

        Raises:
            KeyError: Names are missing, or unknown.
            ValueError: A wrong shape, or a list of the wrong length.
            TypeError: A wrong dtype.
        """
        with locked(lambda: [self]):
            self._assign(values)

    def _assign(self, values: Mapping[str, Any] | Sequence[Any]) -> None:
        first = self.distinct_by_name()
        if isinstance(values, Mapping):
            # Other names of shared variables are known, and needn't be there.
            got = [name for name in values if name in first or name not in self]
            check_names("assign", got, first)
            values = [values[name] for name in first]
        elif not isinstance(values, Sequence):
            raise TypeError(
                f"assign takes arrays by name, or a list of them, not {type(values).__name__}"
            )
        elif len(values) != len(first):
            raise ValueError(
                f"got {len(values)} arrays for {len(first)} variables: {', '.join(first)}"[:500]
            )
        changes: dict[Variable, Any] = {}
        for (name, variable), value in zip(first.items(), values, strict=True):
            changes[variable] = cast(name, value, variable.value)
        commit(changes)


def _notes(variable: Variable) -> list[str]:
    """Return what a row of the table says of a variable, apart from its shape."""
    notes: list[str] = []
    if variable.kind != "params":
        notes.append(variable.kind)
    if variable.trainable != (variable.kind == "params"):
        notes.append("frozen")
    if variable.value.dtype != "float32":
        notes.append(str(variable.value.dtype))
    return notes


def _place(name: str) -> str:
    """Return which layer of a model a name stands for, `"[3][1]"`; else the name itself."""
    model, _, _ = name.rpartition("(")
    return plain(model).removeprefix(".") or name


class _Static(NamedTuple):
    """Static part of a collection as a pytree.

    Attributes:
        names: All names, each with the position of its variable among the leaves.
        attributes: Kind, collection, path and `trainable` of each variable.
    """

    names: tuple[tuple[str, int], ...]
    attributes: tuple[tuple[str, str, Path, bool], ...]


def _flatten(collection: VarCollection) -> tuple[list[tuple[Any, Any]], _Static]:
    first = collection.distinct_by_name()
    leaves = [(jax.tree_util.DictKey(name), v.value) for name, v in first.items()]
    position = {variable: i for i, variable in enumerate(first.values())}
    names = tuple((name, position[variable]) for name, variable in collection.items())
    attributes = tuple((v.kind, v.collection, v.path, v.trainable) for v in first.values())
    return leaves, _Static(names, attributes)


def _unflatten(static: _Static, leaves: Iterable[Any]) -> VarCollection:
    variables: list[Variable] = []
    for leaf, attributes in zip(leaves, static.attributes, strict=True):
        kind, collection, path, trainable = attributes
        # JAX puts anything into a pytree (a tracer, a shape, None), so the leaf isn't converted.
        variable = Variable.from_leaf(
            leaf, kind=kind, collection=collection, path=path, trainable=trainable
        )
        variables.append(variable)
    return VarCollection({name: variables[i] for name, i in static.names})


jax.tree_util.register_pytree_with_keys(VarCollection, _flatten, _unflatten)
