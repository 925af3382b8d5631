"""Which stored arrays are which variables: everything that is wrong, in one report, before anything changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import WeightsError
from seqbridge._interface import nearest, plain
from seqbridge._state import Variable, cast, category

Rename: TypeAlias = Mapping[Any, str | None] | Sequence[Any] | Callable[[str], str | None]
_MOST = 12  # lines of one kind


@dataclass(frozen=True)
class Report:
    """What became of stored arrays and of the variables that they are for.

    Attributes:
        loaded: The variables that took an array.
        missing: Those for which there is none.
        unexpected: Stored arrays that no variable takes.
        wrong: Variables whose array has another shape or dtype, with what is wrong.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every variable has taken an array, and every array was taken."""
        return not (self.missing or self.unexpected or self.wrong)

    def __str__(self) -> str:
        return "\n".join([f"loaded {len(self.loaded)} variables", *self._lines()])

    __repr__ = __str__

    @property
    def refused(self) -> str:
        """The report where nothing was loaded, though some would have been."""
        return "\n".join([f"{len(self.loaded)} variables fit", *self._lines()])

    def _lines(self) -> list[str]:
        lines = _some(f"missing: {name}{nearest(name, self.unexpected)}" for name in self.missing)
        lines += _some(
            f"unexpected: {name}{nearest(name, self.missing)}" for name in self.unexpected
        )
        return lines + _some(self.wrong.values())


def _some(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [*lines[:_MOST], *([f"... and {len(lines) - _MOST} more"] if len(lines) > _MOST else [])]


def renamed(names: Sequence[str], rename: Rename | None) -> dict[str, str]:
    """From stored names to those that they are to have; what is to be left out is left out.

    Raises:
        WeightsError: A name that nothing has, or one name for two arrays.
        TypeError: What can't rename.
    """
    if isinstance(rename, Mapping):
        for old in rename:
            if not any(_matches(old, name) for name in names):
                raise WeightsError(
                    f"rename: nothing is called {_text(old)!r}{nearest(_text(old), names)}"
                )
        new = {name: _by_rules(name, rename.items(), first=True) for name in names}
    elif callable(rename):
        new = {name: rename(name) for name in names}
    elif isinstance(rename, Sequence) and not isinstance(rename, str):
        pairs = [rename] if len(rename) == 2 and not isinstance(rename[0], tuple | list) else rename
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise TypeError(
                f"rename= takes pairs of a regular expression and what replaces it; got "
                f"{rename!r:.80}"
            )
        new = {
            name: _by_rules(name, [(re.compile(old), to) for old, to in pairs]) for name in names
        }
    elif rename is None:
        new = {name: name for name in names}
    else:
        raise TypeError(
            f"rename= takes a dict from old to new names, pairs of a regular expression and its "
            f"replacement, or a "
            f"function; got {type(rename).__name__}"
        )
    taken: dict[str, str] = {}
    for old, name in new.items():
        if name is not None and taken.setdefault(name, old) != old:
            raise WeightsError(f"rename: {taken[name]} and {old} would both be called {name}")
    return {old: name for old, name in new.items() if name is not None}


def _text(rule: Any) -> str:
    return rule.pattern if isinstance(rule, re.Pattern) else str(rule)


def _matches(rule: Any, name: str) -> bool:
    return rule.search(name) is not None if isinstance(rule, re.Pattern) else rule == name


def _by_rules(
    name: str, rules: Iterable[tuple[Any, str | None]], *, first: bool = False
) -> str | None:
    for old, new in rules:
        if _matches(old, name):
            if new is None:
                return None
            name = old.sub(new, name) if isinstance(old, re.Pattern) else new
            if first:
                break
    return name


def fit(
    table: Mapping[str, Variable],
    stored: Mapping[str, Any],
    *,
    rename: Rename | None = None,
    also: Mapping[str, Sequence[str]] = {},
    loose: bool = False,
) -> tuple[dict[Variable, Any], Report]:
    """The arrays that variables are to take, and what doesn't fit.

    Args:
        table: The variables by name; a shared one has several.
        stored: The arrays by name.
        rename: See `renamed`.
        also: Other names that an array had.
        loose: Whether a dtype may be another, even if that loses precision.
    """
    new = renamed([*stored, *(name for names in also.values() for name in names)], rename)
    first: dict[Variable, str] = {}
    places: dict[str, Variable | None] = {}
    for name, variable in table.items():
        first.setdefault(variable, name)
        places[plain(name)] = (
            variable if places.get(plain(name), variable) is variable else None
        )  # None: of several
    found: dict[Variable, Any] = {}
    wrong: dict[str, str] = {}
    unexpected: list[str] = []
    for old, array in stored.items():
        names = [new[name] for name in (old, *also.get(old, ())) if name in new]
        variables = {table.get(name, places.get(plain(name))) for name in names} - {None}
        if names and not variables:
            unexpected.append(names[0])
        for variable in variables:
            assert variable is not None
            if variable in found and not _same(found[variable], array):
                name = first[variable]
                wrong[name] = f"two arrays for {name}, which is shared: {names[0]} is another value"
            found[variable] = array
    changes: dict[Variable, Any] = {}
    for variable, array in ((v, found[v]) for v in first if v in found):
        problem, value = _value(first[variable], array, variable.value, loose)
        if problem:
            wrong[first[variable]] = problem
        elif first[variable] not in wrong:
            changes[variable] = value
    missing = tuple(name for variable, name in first.items() if variable not in found)
    loaded = tuple(first[variable] for variable in changes)
    return changes, Report(loaded, missing, tuple(unexpected), wrong)


def _same(a: Any, b: Any) -> bool:
    return (
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    )


def _value(name: str, array: Any, like: Any, loose: bool) -> tuple[str, Any]:
    """What is wrong with an array for a variable, or nothing and the array that it takes."""
    if array.shape != like.shape:
        return f"wrong shape: {name} is {like.shape}, and the file has {array.shape}", None
    problem = f"wrong dtype: {name} is {like.dtype}, and the file has {array.dtype}"
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) or jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        return (problem, None) if array.dtype != like.dtype else ("", cast(name, array, like))
    if array.dtype == like.dtype:
        return "", cast(name, array if isinstance(array, jax.Array) else jnp.array(array), like)
    # In NumPy, since JAX would first make it what it takes by default, and say nothing of what is
    # lost.
    with np.errstate(over="ignore", invalid="ignore"):
        new = np.asarray(array).astype(like.dtype)
    before, after = category(array.dtype), category(like.dtype)
    whole = after == category(jnp.int8)
    if before > after or (whole and not bool((new.astype(array.dtype) == array).all())):
        return problem, None
    if before > category(jnp.int8) and bool((np.isfinite(new) != np.isfinite(array)).any()):
        return f"{problem}, with numbers that are too large for it", None
    if not loose and (before != after or not np.can_cast(array.dtype, like.dtype, "safe")):
        return f"{problem} (cast=True takes it)", None
    return "", cast(name, jnp.array(new), like)
