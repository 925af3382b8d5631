"""Matching of stored arrays with variables.

Everything that is wrong is found before anything changes, and stands in one report.
"""

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
_Rule: TypeAlias = str | re.Pattern[str]

_MOST = 12  # lines of one kind in a report
_INTEGERS = category(jnp.int8)


@dataclass(frozen=True)
class Report:
    """Result of matching stored arrays with variables.

    Attributes:
        loaded: The variables that took an array.
        missing: The variables for which there is no array.
        unexpected: The stored arrays that no variable takes.
        wrong: The variables whose array has another shape or dtype, with what is wrong.
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
        """The report where nothing was loaded, though some variables would have been."""
        return "\n".join([f"{len(self.loaded)} variables fit", *self._lines()])

    def _lines(self) -> list[str]:
        missing = [f"missing: {name}{nearest(name, self.unexpected)}" for name in self.missing]
        unexpected = [
            f"unexpected: {name}{nearest(name, self.missing)}" for name in self.unexpected
        ]
        return [
            *_abridged(missing),
            *_abridged(unexpected),
            *_abridged(list(self.wrong.values())),
        ]


def _abridged(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST:
        return lines
    return [*lines[:_MOST], f"... and {len(lines) - _MOST} more"]


def renamed(names: Sequence[str], rename: Rename | None) -> dict[str, str]:
    """Return new names by stored names, without those that are to be left out.

    Raises:
        WeightsError: A name that nothing has, or one name for two arrays.
        TypeError: `rename` is of no kind that can rename.
    """
    taken: dict[str, str] = {}
    new: dict[str, str] = {}
    for old, name in _new_names(names, rename).items():
        if name is None:
            continue
        if name in taken:
            raise WeightsError(f"rename: {taken[name]} and {old} would both be called {name}")
        taken[name] = old
        new[old] = name
    return new


def _new_names(names: Sequence[str], rename: Rename | None) -> dict[str, str | None]:
    if rename is None:
        return {name: name for name in names}
    if isinstance(rename, Mapping):
        for rule in rename:
            if not any(_matches(rule, name) for name in names):
                text = rule.pattern if isinstance(rule, re.Pattern) else str(rule)
                raise WeightsError(f"rename: nothing is called {text!r}{nearest(text, names)}")
        return {name: _by_first_rule(name, rename) for name in names}
    if callable(rename):
        return {name: rename(name) for name in names}
    if isinstance(rename, Sequence) and not isinstance(rename, str):
        patterns = _patterns(rename)
        return {name: _by_patterns(name, patterns) for name in names}
    raise TypeError(
        "rename= takes a dict from old to new names, pairs of a regular expression and its "
        f"replacement, or a function; got {type(rename).__name__}"
    )


def _matches(rule: _Rule, name: str) -> bool:
    if isinstance(rule, re.Pattern):
        return rule.search(name) is not None
    return rule == name


def _by_first_rule(name: str, rules: Mapping[Any, str | None]) -> str | None:
    for rule, new in rules.items():
        if _matches(rule, name):
            if new is not None and isinstance(rule, re.Pattern):
                return rule.sub(new, name)
            return new
    return name


def _patterns(rename: Sequence[Any]) -> list[tuple[re.Pattern[str], str | None]]:
    """Return the pairs of a pattern and its replacement; a single pair stands for a list of one."""
    single = len(rename) == 2 and not isinstance(rename[0], tuple | list)
    pairs = [rename] if single else rename
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                "rename= takes pairs of a regular expression and what replaces it; got "
                f"{rename!r:.80}"
            )
    return [(re.compile(old), new) for old, new in pairs]


def _by_patterns(name: str, patterns: Iterable[tuple[re.Pattern[str], str | None]]) -> str | None:
    for pattern, new in patterns:
        if pattern.search(name) is None:
            continue
        if new is None:
            return None
        name = pattern.sub(new, name)
    return name


def is_key(array: Any) -> bool:
    """Return whether an array holds PRNG keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


class _MismatchError(Exception):
    """Array that a variable can't take; the text says why."""


def match_stored(
    table: Mapping[str, Variable],
    stored: Mapping[str, Any],
    *,
    rename: Rename | None = None,
    aliases: Mapping[str, Sequence[str]] = {},
    lossy: bool = False,
) -> tuple[dict[Variable, jax.Array], Report]:
    """Match stored arrays with variables.

    Args:
        table: The variables by name; a shared one has several names.
        stored: The arrays by name.
        rename: See `renamed`.
        aliases: Other names that an array had.
        lossy: Whether a dtype may be another one even if that loses precision.

    Returns:
        The arrays that variables are to take, and what doesn't fit.
    """
    all_names = list(stored)
    for names in aliases.values():
        all_names += names
    new = _with_later_names(renamed(all_names, rename), table)
    first: dict[Variable, str] = {}
    for name, variable in table.items():
        first.setdefault(variable, name)
    by_plain_name = _by_plain_name(table)

    found: dict[Variable, Any] = {}
    wrong: dict[str, str] = {}
    unexpected: list[str] = []
    for old, array in stored.items():
        names = [new[name] for name in (old, *aliases.get(old, ())) if name in new]
        takers: dict[Variable, None] = {}
        for name in names:
            variable = table.get(name, by_plain_name.get(plain(name)))
            if variable is not None:
                takers[variable] = None
        if names and not takers:
            unexpected.append(names[0])
        for variable in takers:
            if variable in found and not _equal(found[variable], array):
                name = first[variable]
                wrong[name] = f"two arrays for {name}, which is shared: {names[0]} is another value"
            found[variable] = array

    changes: dict[Variable, jax.Array] = {}
    for variable, name in first.items():
        if variable not in found:
            continue
        try:
            value = _converted(name, found[variable], variable.value, lossy=lossy)
        except _MismatchError as mismatch:
            wrong[name] = str(mismatch)
            continue
        if name not in wrong:
            changes[variable] = value
    loaded = tuple(first[variable] for variable in changes)
    missing = tuple(name for variable, name in first.items() if variable not in found)
    return changes, Report(loaded, missing, tuple(unexpected), wrong)


def _with_later_names(names: dict[str, str], table: Mapping[str, Variable]) -> dict[str, str]:
    """Return new names by stored names, those of earlier versions replaced by those of this one.

    That is done for a whole layer or not at all, as a name may have meant another variable of it.
    """
    layers: dict[str, dict[str, tuple[str, re.Pattern[str]]]] = {}
    for name, variable in table.items():
        if variable.former is not None:
            shown, pattern = variable.former
            inside = layers.setdefault(plain(name).removesuffix(shown), {})
            inside[shown] = name, re.compile(pattern)
    for prefix, variables in layers.items():
        stored = {
            plain(name).removeprefix(prefix): old
            for old, name in names.items()
            if plain(name).startswith(prefix)
        }
        if variables.keys() <= stored.keys():
            continue
        later: dict[str, str] = {}
        for inner, old in stored.items():
            fitting = [name for name, pattern in variables.values() if pattern.fullmatch(inner)]
            if len(fitting) == 1:
                later[old] = fitting[0]
        if len(set(later.values())) == len(later) == len(stored) == len(variables):
            names = names | later
    return names


def _by_plain_name(table: Mapping[str, Variable]) -> dict[str, Variable | None]:
    """Return the variables by their names without classes; None: the name means several."""
    found: dict[str, Variable | None] = {}
    for name, variable in table.items():
        short = plain(name)
        unique = found.get(short, variable) is variable
        found[short] = variable if unique else None
    return found


def _equal(a: Any, b: Any) -> bool:
    """Return whether two arrays are equal, where NaN equals NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    both_nan = (a != a) & (b != b)
    return bool(((a == b) | both_nan).all())


def _converted(name: str, array: Any, like: jax.Array, *, lossy: bool) -> jax.Array:
    """Return an array as a variable takes it.

    Raises:
        _MismatchError: The variable can't take it.
    """
    if array.shape != like.shape:
        raise _MismatchError(f"wrong shape: {name} is {like.shape}, and the file has {array.shape}")
    problem = f"wrong dtype: {name} is {like.dtype}, and the file has {array.dtype}"
    if is_key(like) or is_key(array):
        if array.dtype != like.dtype:
            raise _MismatchError(problem)
        return cast(name, array, like)
    if array.dtype == like.dtype:
        return cast(name, array if isinstance(array, jax.Array) else jnp.array(array), like)
    # NumPy converts, since JAX would first make the array one of a dtype that it takes by default,
    # and say nothing of what is lost.
    with np.errstate(over="ignore", invalid="ignore"):
        new = np.asarray(array).astype(like.dtype)
    before, after = category(array.dtype), category(like.dtype)
    if before > after:
        raise _MismatchError(problem)
    if after == _INTEGERS and not bool((new.astype(array.dtype) == array).all()):
        raise _MismatchError(problem)
    if before > _INTEGERS and bool((np.isfinite(new) != np.isfinite(array)).any()):
        raise _MismatchError(f"{problem}, with numbers that are too large for it")
    safe = before == after and np.can_cast(array.dtype, like.dtype, "safe")
    if not safe and not lossy:
        raise _MismatchError(f"{problem} (cast=True takes it)")
    return cast(name, jnp.array(new), like)
