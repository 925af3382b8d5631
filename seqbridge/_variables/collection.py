"""`VarCollection`: variables under their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import jax

from seqbridge._interface import Kind, check_names, nearest, plain
from seqbridge._state import CacheKey, Stateful, Variable, cast, commit, distinct, locked, version
from seqbridge._variables.saving import VariableHolder

Table: TypeAlias = Mapping[str, Variable]
Filter: TypeAlias = str | re.Pattern[str] | Callable[[Variable], bool] | Stateful


def selector(which: Filter) -> Callable[[Table], Table]:
    """What `subset` and `wrt=` take, as a function of variables by name.

    Raises:
        TypeError, ValueError: It is nothing to choose by.
    """
    if isinstance(which, Stateful):
        chosen = set(which.own_variables())
        return lambda table: {n: v for n, v in table.items() if v in chosen}
    if isinstance(which, str) and which in get_args(Kind):
        return lambda table: {n: v for n, v in table.items() if v.kind == which}
    if isinstance(which, str | re.Pattern):
        return _by_text(which)
    if callable(which) and not isinstance(which, type):
        return lambda table: {n: v for n, v in table.items() if which(v)}
    raise TypeError(
        f"can't choose variables by {which!r}: give a kind, a regular expression, a function of a "
        f"Variable"
    )


def _by_text(which: str | re.Pattern[str]) -> Callable[[Table], Table]:
    try:
        pattern = re.compile(which)
    except re.error as error:
        text = f"{which!r} is neither a part of a name, whose brackets are closed, nor a regular expression: {error}"
        raise ValueError(text) from None
    if isinstance(which, re.Pattern):
        return lambda table: {n: v for n, v in table.items() if pattern.search(n)}
    printed = re.compile(re.escape(which) + r"(?=$|[.\[(])")

    def choose(table: Table) -> Table:
        # Brackets of a printed name mean themselves: "[1]" is a layer, and no class of characters.
        same = {n: v for n, v in table.items() if printed.search(n) or printed.search(plain(n))}
        alone = same and set(which) & set("[(")
        return same if alone else {n: v for n, v in table.items() if n in same or pattern.search(n)}

    return choose


class VarCollection(VariableHolder, Mapping[str, Variable]):
    """Ordered names and their variables.

    A mapping from name to `Variable`, where one variable may stand under several names. A
    collection that comes from a model is live: it shows every edit of the model. To JAX it is a
    pytree: a mapping from name to array, in which each variable stands once, so that
        `jax.tree.map`, `jax.grad` and optax take it.

    Args:
        variables: Names and variables, or a function that returns them (then the collection is
            live).
        remark: What the last line of the table ends with, of what isn't built.

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

    __slots__ = ("__weakref__", "_made", "_remark", "_seen", "_source")

    steady_key = False  # its source may be anybody's function

    def __init__(
        self,
        variables: Mapping[str, Variable] | Callable[[], Mapping[str, Variable]] = {},  # noqa: B006
        *,
        remark: Callable[[], str] = str,
    ):
        self._remark = remark
        if isinstance(variables, Mapping):
            fixed = dict(variables)
            for name, variable in fixed.items():
                if not isinstance(variable, Variable):
                    raise TypeError(f"{name!r} is no Variable but {type(variable).__name__}")
            self._source: Callable[[], Mapping[str, Variable]] = lambda: fixed
        elif isinstance(variables, Stateful) or not callable(variables):
            cure = (
                ", whose .vars() are such a collection" if isinstance(variables, Stateful) else ""
            )
            raise TypeError(
                f"a VarCollection takes variables by name, not a {type(variables).__name__}{cure}"
            )
        else:
            self._source = variables
        self._seen: tuple[Any, ...] | None = None

    @property
    def built(self) -> bool:
        """Whether the models and layers that it is of have all their variables."""
        return not self._remark()

    def own_variables(self) -> tuple[Variable, ...]:
        return distinct(self._source().values())

    def cache_key(self) -> CacheKey:
        table = self._source()
        seen = (version.number, *table, *[v.buffer_slot.serial for v in table.values()])
        if seen != self._seen:
            self._made = CacheKey(tuple((name, v.cache_parts) for name, v in table.items()))
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
        """Both, live. Raises `ValueError` if one name means two variables."""
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

        joined()
        return VarCollection(joined, remark=lambda: self._remark() or other._remark())

    def __repr__(self) -> str:
        rows, seen = [], set()
        width = min(100, max([20, *map(len, self)]))
        for name, variable in self.items():
            array = variable.value
            if not hasattr(array, "dtype"):  # a tree of masks, say
                rows.append(f"{name:<{width}} {array!r}")
                continue
            notes = [] if variable.kind == "params" else [variable.kind]
            notes += [] if variable.trainable == (variable.kind == "params") else ["frozen"]
            notes += [] if array.dtype == "float32" else [str(array.dtype)]
            notes += ["shared"] if variable in seen else []
            rows.append(
                f"{name:<{width}} {array.size:8d} {array.shape}{'  ' if notes else ''}{' '.join(notes)}"
            )
            seen.add(variable)
        total = f"+Total({len(seen)})"
        return "\n".join(
            [*rows, f"{total:<{width}} {sum(v.value.size for v in seen):8d}{self._remark()}"]
        )

    def subset(self, which: Filter | None = None) -> VarCollection:
        """Some of the variables, live.

        Args:
            which: A kind (`"params"`, `"state"`, `"rng"`); a part of a name as it is printed, with
                or without the names of classes (`"[10]"`, `"encoder[0].kernel"`), or else a regular
                expression that is searched in the name; a function of a `Variable`; another
                collection, a layer or a model. None: all.

        Raises:
            TypeError, ValueError: Something else is given.
            KeyError: A kind is misspelt.
        """
        if which is None:
            return self
        choose = selector(which)
        kinds = () if which in get_args(Kind) else get_args(Kind)
        near = (
            nearest(which, kinds, cutoff=0.85) if isinstance(which, str) else ""
        )  # "stage" is no "state"
        if near and self and not choose(self._source()):
            raise KeyError(f"no variable has {which!r} in its name, and it is no kind{near}")
        return VarCollection(lambda: choose(self._source()), remark=self._remark)

    def rename(self, new: Mapping[str, str] | Callable[[str], str]) -> VarCollection:
        """The same variables under other names, live.

        Args:
            new: From old to new name (names that it lacks stay), or a function of the old name.

        Raises:
            KeyError: A name that the collection doesn't have.
            ValueError: Two variables would get one name.
        """
        if isinstance(new, Mapping):
            for name in new:
                self[name]
        changed = (lambda name: new.get(name, name)) if isinstance(new, Mapping) else new

        def renamed() -> dict[str, Variable]:
            names = {}
            for old, variable in self._source().items():
                if names.setdefault(changed(old), variable) is not variable:
                    raise ValueError(f"two variables would be called {changed(old)!r}")
            return names

        renamed()
        return VarCollection(renamed, remark=self._remark)

    def tensors(self) -> dict[str, jax.Array]:
        """The arrays by name, each variable once, under its first name."""
        with locked(lambda: [self]):
            return {name: variable.value for name, variable in self._first().items()}

    def assign(self, values: Mapping[str, Any] | Sequence[Any]) -> None:
        """Replaces all arrays at once, or raises and replaces none.

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

    def _assign(self, values: Any) -> None:
        first = self._first()
        if isinstance(values, Mapping):
            check_names("assign", (n for n in values if n not in self or n in first), first)
            values = [values[name] for name in first]
        elif not isinstance(values, Sequence):
            raise TypeError(
                f"assign takes arrays by name, or a list of them, not {type(values).__name__}"
            )
        elif len(values) != len(first):
            raise ValueError(
                f"got {len(values)} arrays for {len(first)} variables: {', '.join(first)}"[:500]
            )
        commit(
            {v: cast(n, new, v.value) for (n, v), new in zip(first.items(), values, strict=True)}
        )

    def _first(self) -> dict[str, Variable]:
        names: dict[Variable, str] = {}
        for name, variable in self._source().items():
            names.setdefault(variable, name)
        return {name: variable for variable, name in names.items()}


def _flatten(collection: VarCollection) -> tuple[list[tuple[Any, Any]], Any]:
    first = collection._first()
    position = {variable: i for i, variable in enumerate(first.values())}
    rest = tuple((v.kind, v.collection, v.path, v.trainable) for v in first.values())
    names = tuple((name, position[v]) for name, v in collection.items())
    return [(jax.tree_util.DictKey(name), v.value) for name, v in first.items()], (names, rest)


def _unflatten(aux: Any, leaves: Iterable[Any]) -> VarCollection:
    names, rest = aux
    boxes = []
    for leaf, (kind, collection, path, trainable) in zip(leaves, rest, strict=True):
        # JAX puts anything into a pytree (a tracer, a shape, None), so the leaf isn't converted.
        boxes.append(
            Variable.from_leaf(
                leaf, kind=kind, collection=collection, path=path, trainable=trainable
            )
        )
    return VarCollection({name: boxes[i] for name, i in names})


jax.tree_util.register_pytree_with_keys(VarCollection, _flatten, _unflatten)
