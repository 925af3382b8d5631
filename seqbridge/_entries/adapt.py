"""From an entry to its neutral form."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from seqbridge._entries.captured import check_of_held
from seqbridge._entries.closure_conversion import check_held
from seqbridge._entries.function import function_layer
from seqbridge._interface import PureLayer, ask, bind, known
from seqbridge._state import Stateful


def as_pure(entry: Any) -> PureLayer:
    """The neutral form of an entry.

    Raises:
        TypeError: It is no entry, or hides parameters. The message says what to write instead.
    """
    pure = _find(entry)
    check_held(pure)
    check = check_of_held(pure)
    return pure if check is None else dataclasses.replace(pure, check_constants=check)


def _find(entry: Any) -> PureLayer:
    if isinstance(entry, PureLayer):
        return entry
    if isinstance(entry, type):
        pure = ask(entry, entry)
        if pure is None and _makes_callables(entry):
            name = entry.__qualname__
            raise TypeError(
                f"got the class {name}: give an instance, {name}(...), or partial({name}, ...)"
            )
        return pure or function_layer(entry)
    if isinstance(entry, functools.partial):
        if isinstance(entry.func, type):
            pure = ask(entry, entry.func)
            if pure is None and _makes_callables(entry.func):
                cls = f"{entry.func.__module__}.{entry.func.__qualname__}"
                raise TypeError(f"there is no adapter for {cls}: {_known()}")
        else:
            pure = ask(entry.func, type(entry.func))
            pure = pure and bind(pure, entry.args, entry.keywords)
        return pure or function_layer(entry)
    if isinstance(owner := owner_of(entry), Stateful):
        raise TypeError(
            f"got a method of a {type(owner).__name__}: put the {type(owner).__name__} into the "
            f"list itself"
        )
    if owner is not entry and (pure := ask(owner, type(owner))):
        return with_method(pure, entry.__func__.__name__)
    pure = ask(entry, type(entry))
    if pure is not None:
        return pure
    if callable(entry):
        return function_layer(entry)
    several = (
        ", or Sequential(...) for several entries in one"
        if type(entry) in (list, tuple, dict)
        else ""
    )
    raise TypeError(
        f"{' '.join(repr(entry).split()):.80} "
        f"({type(entry).__module__}.{type(entry).__qualname__}) is no entry: give "
        f"a module, a transform or a callable{several}; {_known()}"
    )


def owner_of(entry: Any) -> Any:
    """The module that a bound method belongs to; any other entry belongs to itself."""
    return entry.__self__ if hasattr(entry, "__self__") and hasattr(entry, "__func__") else entry


def _known() -> str:
    names = ", ".join(known()) or "nothing (is seqbridge itself installed by pip?)"
    return f"there are adapters for {names}"


def _makes_callables(cls: type) -> bool:
    """Whether it is the instances of a class that are called, rather than the class."""
    return any("__call__" in vars(base) for base in cls.__mro__)


def with_method(pure: PureLayer, method: Any) -> PureLayer:
    if method == "__call__":
        return pure
    if pure.method is None:
        raise TypeError(
            f"{pure.label} ({pure.ecosystem}) has no methods to choose from: method={method!r}"
        )
    return pure.method(method)
