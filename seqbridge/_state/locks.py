"""Locks of variables, held several at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from seqbridge._state.frames import VariableLike, in_frame
from seqbridge._state.interrupts import refuse_within_write
from seqbridge._state.version import version


class Lockable(Protocol):
    """Something that says which locks guard its variables."""

    def variable_locks(self) -> Locks: ...


class Locks(tuple[threading.RLock, ...]):
    """Several locks held as one.

    They are always taken in the same order, so that no two threads wait for each other.
    """

    __slots__ = ()

    def __new__(cls, variables: Iterable[VariableLike], *more: threading.RLock) -> Self:
        distinct = {id(variable.lock): variable.lock for variable in variables}
        distinct |= {id(lock): lock for lock in more}
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
def locked(find: Callable[[], Iterable[Lockable]]) -> Iterator[None]:
    """Hold the locks of everything that `find` returns.

    `find` is asked again if a model was edited before the locks were held. A transform holds those
    of all that its function knows of. Inside of it nothing more is taken: that would be one lock
    after another, in no order, and two threads could wait for each other.
    """
    while not in_frame():
        refuse_within_write()
        edit = version.number
        locks = [lock for holder in find() for lock in holder.variable_locks()]
        with Locks((), *locks):
            if version.number == edit:
                yield
                return
    yield
