"""What holds variables: models, layers, collections, optimizers. The transforms know them by this class alone."""

from __future__ import annotations

import contextlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from seqbridge._trace import in_frame, refuse_within_write

if TYPE_CHECKING:
    from seqbridge._variable import Variable


class _Edits:
    """Counts the edits of all models: what is cached of a model's structure holds while this stands still.

    No count comes twice, so that what a thread found before an edit is never taken for what holds
    after it.

    Attributes:
        lock: Held while a structure is read, or while what must not be read by halves is written.
            Whoever holds it waits for nothing else.
    """

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.RLock()
        self._following = itertools.count(1).__next__

    def note(self) -> None:
        """Says that a structure has changed; to be called after the change."""
        self.count = self._following()


edits = _Edits()


serial = (
    itertools.count().__next__
)  # a number that no two objects of a process share, dead ones included


class Token:
    """What a compiled program depends on of one holder of variables. Holds no array and no object alive."""

    __slots__ = ("_hash", "parts")

    def __init__(self, parts: Hashable):
        self.parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Token) and self.parts == other.parts)


class Stateful(ABC):
    """Something that holds variables."""

    __slots__ = ()

    # Whether the token can't change while no model is edited.
    _steady = True

    @abstractmethod
    def _boxes(self) -> tuple[Variable, ...]:
        """The distinct variables, in order."""

    @abstractmethod
    def _token(self) -> Token:
        """Equal if and only if a program that was traced with the one holds for the other."""

    @abstractmethod
    def _by_name(self) -> Mapping[str, Variable]:
        """The variables by name."""

    def _locks(self) -> Locks:
        """What a thread holds that reads all of this at one moment, or changes it."""
        return Locks(self._boxes())

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from seqbridge._tree import unfolding  # which knows all that hold variables

        return unfolding(self, path, subtree_renderer)


class Locks(tuple[threading.RLock, ...]):
    """Several locks held as one, always in the same order, so that no two threads wait for each other."""

    __slots__ = ()

    def __new__(cls, variables: Iterable[Variable], *more: threading.RLock) -> Self:
        distinct = {id(lock): lock for lock in (*(v._lock for v in variables), *more)}
        return super().__new__(cls, (distinct[key] for key in sorted(distinct)))

    def __enter__(self) -> None:
        held = 0
        try:
            for lock in self:
                lock.acquire()
                held += 1
        except BaseException:  # Ctrl-C, while it waits for one of them
            for lock in self[:held]:
                lock.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for lock in reversed(self):
            lock.release()


@contextlib.contextmanager
def held(find: Callable[[], Iterable[Stateful]]) -> Iterator[None]:
    """Holds the locks of what `find` finds, which it is asked again if a model was edited before they were held.

    A transform holds those of all that its function knows of. Inside of it nothing more is taken:
    that would be one lock after another, in no order, and two threads could wait for each other.
    """
    while not in_frame():
        refuse_within_write()
        edit = edits.count
        with Locks((), *(lock for holder in find() for lock in holder._locks())):
            if edits.count == edit:
                yield
                return
    yield


def distinct(variables: Iterable[Variable]) -> tuple[Variable, ...]:
    return tuple(dict.fromkeys(variables))
