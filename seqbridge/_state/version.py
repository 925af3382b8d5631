"""The version of all models' structures, and what is cached for as long as it stands."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

S = TypeVar("S")
T = TypeVar("T")


class _Version:
    """A count of the edits of all models: what was found out about one holds while it stands.

    No count comes twice, so that what a thread found before an edit is never taken for what holds
    after it.

    Attributes:
        number: The count.
        lock: Held while a structure is read, or while what must not be read by halves is written.
            Whoever holds it waits for nothing else.
    """

    def __init__(self) -> None:
        self.number = 0
        self.lock = threading.RLock()
        self._following = itertools.count(1).__next__

    def bump(self) -> None:
        """Say that a structure has changed; to be called after the change."""
        self.number = self._following()


version = _Version()


# A number that no two objects of a process share, dead ones included.
serial = itertools.count().__next__


class _Cached:
    """A result, and the version that it holds for. Its copies are empty.

    One object holds both, so that a thread that reads without a lock sees a result together with
    its own version.
    """

    __slots__ = ("number", "result")

    def __init__(self, number: int = -1, result: Any = None):
        self.number = number
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cached, ()  # the count means nothing in another process


_NOTHING = _Cached()


@overload
def cached_by_version(method: Callable[[S], T], /) -> Callable[[S], T]: ...
@overload
def cached_by_version(*, lock: str) -> Callable[[Callable[[S], T]], Callable[[S], T]]: ...
def cached_by_version(method: Callable[[Any], Any] | None = None, /, *, lock: str = "") -> Any:
    """Cache what a method without arguments returns, for as long as no model is edited.

    A reader takes no lock while the version stands. After an edit one thread computes the result,
    and others that ask for it meanwhile wait. The result is kept in the object's `__dict__`, under
    the name of the method and `_by_version`; a copy or a pickle of the object starts without it.

    Args:
        method: The method.
        lock: The attribute of the object that holds a lock, for a method that calls other people's
            code or reads variables. By default `version.lock` is held, so the method must not wait
            for anything.

    Examples:
        >>> class Names:
        ...     @cached_by_version
        ...     def index(self):
        ...         print("computed")
        ...         return {"kernel": 0}
        >>> names = Names()
        >>> names.index(), names.index()
        computed
        ({'kernel': 0}, {'kernel': 0})
        >>> version.bump()
        >>> names.index()
        computed
        {'kernel': 0}
    """
    if method is None:
        return functools.partial(_cached, lock=lock)
    return _cached(method)


def _cached(method: Callable[[Any], Any], lock: str = "") -> Callable[[Any], Any]:
    place = f"_{method.__name__.strip('_')}_by_version"

    @functools.wraps(method)
    def cached(self: Any) -> Any:
        found = self.__dict__.get(place, _NOTHING)
        if found.number == version.number:
            return found.result
        with getattr(self, lock) if lock else version.lock:
            found = self.__dict__.get(place, _NOTHING)
            number = version.number  # of before: an edit meanwhile makes the result an old one
            if found.number != number:
                found = _Cached(number, method(self))
                self.__dict__[place] = found
        return found.result

    return cached
