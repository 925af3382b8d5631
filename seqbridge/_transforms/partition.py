"""The arguments of a transformed function: holders of variables, static values and arrays."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from types import FunctionType, NoneType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._entries import FunctionLike, signature_of
from seqbridge._interface import Inputs, Keywords
from seqbridge._state import CacheKey, Stateful, Tracer, Variable, distinct, known_variables

_ARRAY, _STATIC, _BOOL, _STATEFUL, _DICT, _TREE = range(6)


class _Tree(NamedTuple):
    """A container in a signature: the keys of a dict, or JAX' description, and its parts."""

    treedef: Any
    leaves: tuple[Any, ...]


class _Unhashable(tuple[type, Any]):
    """A static value that a compiled function can't be told from others by."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise TypeError(
            f"{self[1]!r:.60} ({self[0].__name__}) is no array, so it is static, and a static "
            "argument must be hashable: give a tuple or a frozenset of it, say, or let the "
            "function close over it"
        )


_GIVEN = object()  # the place of an array in a signature
_kinds: dict[type, int] = {}  # of the types that were met

# A signature, arrays and holders. A named tuple would take half as long again to make.
Partitioned: TypeAlias = tuple[Hashable, list[Any], list[Stateful]]


def partition(args: Inputs, keywords: Keywords, static: Collection[str | int] = ()) -> Partitioned:
    """Take arguments apart; `combine` puts them together.

    Args:
        args: The positional arguments.
        keywords: The arguments by keyword.
        static: The positions and names of those that are static in any case.

    Returns:
        The signature, which is everything but arrays and holders: two calls of one signature run
            one program, unless their arrays differ in shape or dtype. The arrays, which are traced.
            The models, layers, collections and optimizers.
    """
    arrays: list[Any] = []
    holders: list[Stateful] = []
    parts: list[Any] = [len(args)]
    for i, value in enumerate(args):
        kind = _kinds.get(type(value))
        if i in static:
            parts.append((type(value), value))
        elif kind == _ARRAY:  # as in `_partition`, whose call would take longer than this
            arrays.append(value)
            parts.append(_GIVEN)
        elif kind == _STATEFUL:
            holders.append(value)
            parts.append(value.cache_key())
        else:
            parts.append(_partition(value, arrays, holders))
    for name, value in sorted(keywords.items()):
        parts.append(name)
        if name in static:
            parts.append((type(value), value))
        else:
            parts.append(_partition(value, arrays, holders))
    return tuple(parts), arrays, holders


def is_array(value: Any) -> bool:
    """Whether `partition` takes a value for an array; False if it has met none of its type yet."""
    return _kinds.get(type(value)) == _ARRAY


def _partition(value: Any, arrays: list[Any], holders: list[Stateful]) -> Any:
    """Return the part of a signature for one value; add its arrays and holders to the lists."""
    kind = _kinds.get(type(value))
    if kind is None:
        kind = _kinds[type(value)] = _kind_of(type(value))
    if kind == _ARRAY:
        arrays.append(value)
        return _GIVEN
    if kind == _STATIC:
        return type(value), value
    if kind == _BOOL:
        return bool, bool(value)
    if kind == _DICT:  # JAX would want its keys to be sortable
        leaves = tuple([_partition(leaf, arrays, holders) for leaf in value.values()])
        return _Tree(tuple(value), leaves)
    if kind == _STATEFUL:
        holders.append(value)
        return value.cache_key()
    leaves, treedef = jax.tree.flatten(value, is_leaf=is_stateful)
    if len(leaves) == 1 and leaves[0] is value:
        static = type(value), value
        return static if callable(value) or isinstance(value, Hashable) else _Unhashable(static)
    return _Tree(treedef, tuple([_partition(leaf, arrays, holders) for leaf in leaves]))


def is_stateful(value: Any) -> bool:
    """Whether a value holds variables."""
    return isinstance(value, Stateful)


def _kind_of(cls: type) -> int:
    if issubclass(cls, Stateful):
        return _STATEFUL
    if issubclass(cls, np.bool_):
        return _BOOL
    if cls is dict:
        return _DICT
    if issubclass(cls, bool | str | bytes | NoneType | enum.Enum | type | FunctionType):
        return _STATIC
    if issubclass(
        cls,
        jax.Array | Tracer | np.ndarray | np.generic | int | float | complex | jax.ShapeDtypeStruct,
    ):
        return _ARRAY
    return _TREE


def combine(
    signature: Any, arrays: Iterable[Any], holders: Iterable[Stateful]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that `partition` took apart, with other arrays and holders in place."""
    each_array, each_holder = iter(arrays), iter(holders)
    n, *parts = signature
    args = [_combine(part, each_array, each_holder) for part in parts[:n]]
    keywords = {}
    for name, part in zip(parts[n::2], parts[n + 1 :: 2], strict=True):
        keywords[name] = _combine(part, each_array, each_holder)
    return tuple(args), keywords


def _combine(part: Any, arrays: Iterator[Any], holders: Iterator[Stateful]) -> Any:
    if part is _GIVEN:
        return next(arrays)
    if isinstance(part, CacheKey):
        return next(holders)
    if isinstance(part, _Tree):
        leaves = [_combine(leaf, arrays, holders) for leaf in part.leaves]
        if isinstance(part.treedef, tuple):
            return dict(zip(part.treedef, leaves, strict=True))
        return jax.tree.unflatten(part.treedef, leaves)
    return part[1]


def holders_of(function: Any, vars: Any) -> list[Stateful]:
    """Return the holders of variables that a function brings along.

    These are the function itself, the `self` of a method, and what `vars=` names.

    Args:
        function: The function that is to be transformed; None: what it closes over isn't known.
        vars: A holder, or a list or dict of holders; None: none.

    Raises:
        TypeError: `vars` is something else.
    """
    found: list[Stateful] = []
    for holder in (function, getattr(function, "__self__", None)):
        if isinstance(holder, Stateful):
            found.append(holder)
    if isinstance(function, FunctionLike):  # compiled, and compiled again
        found += function.closed_holders
    _, _, given = partition((vars,), {})
    if vars is not None and not given:
        raise TypeError(
            f"vars= takes model.vars(), a model or a list of them, not {type(vars).__name__}"
        )
    return found + given


def variables_of(holders: Iterable[Stateful]) -> tuple[Variable, ...]:
    """Return the variables of some holders, each once."""
    found: list[Variable] = []
    for holder in holders:
        found += holder.own_variables()
    return distinct(found)


def usable_variables(holders: Iterable[Stateful]) -> tuple[Variable, ...]:
    """Return the variables of some holders, and those that a transform around knows of."""
    return distinct([*variables_of(holders), *known_variables()])


def is_differentiable(variable: Variable) -> bool:
    """Whether a variable has a gradient: it is trainable, and its numbers aren't integers."""
    return variable.trainable and jnp.issubdtype(variable.dtype, jnp.inexact)


def values_of(variables: Iterable[Variable]) -> dict[Variable, Any]:
    """Return the values that variables have here and now."""
    return {variable: variable.value for variable in variables}


def places_of(function: Callable[..., Any], names: Iterable[str]) -> frozenset[str | int]:
    """Return arguments by their names, and by the positions at which a call may give them."""
    chosen = {names} if isinstance(names, str) else set(names)
    signature = signature_of(function) if chosen else None
    if signature is None:
        return frozenset(chosen)
    positions = {i for i, name in enumerate(signature.parameters) if name in chosen}
    return frozenset(chosen | positions)


def is_hashable(value: Any) -> bool:
    """Whether a value, with all that it holds, can be hashed."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def weakly(method: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method, and doesn't keep its object alive.

    For what an object keeps compiled of its own method: a cycle otherwise, which would hold
    variables. In profiles and in what JAX logs it is called like `function`, which it runs.
    """
    found: Any = weakref.WeakMethod(method)

    def traced(*args: Any) -> Any:
        return found()(*args)

    traced.__name__ = getattr(function, "__name__", type(function).__name__)
    return traced
