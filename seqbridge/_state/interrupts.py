"""Signals: writes that Ctrl-C doesn't tear apart, and handlers that don't see half of one.

Python runs the handlers of signals between any two instructions of the main thread. That of Ctrl-C
raises `KeyboardInterrupt` there; others may call anything, such as a model or its `save`.
"""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


def finish_on_interrupt(write: Callable[P, None]) -> Callable[P, None]:
    """Decorate a function that writes several things: it writes all of them, although Ctrl-C comes.

    Args:
        write: Is run again from its start if anything is raised in it, and must come to the same
            result then.

    Examples:
        >>> @finish_on_interrupt
        ... def move(variable, place):
        ...     variable.place = place
        ...     version.bump()
    """

    @functools.wraps(write)
    def finishing(*args: P.args, **keywords: P.kwargs) -> None:
        try:
            write(*args, **keywords)
        except BaseException:
            write(*args, **keywords)
            raise

    return finishing


def call_and_keep(
    function: Callable[..., R], arguments: Iterable[Any], keep: Callable[[R], None]
) -> R:
    """Call a function, and keep its result although Ctrl-C comes right after it has returned.

    For what consumes its arguments: a program frees the arrays that were donated to it, so that
    without its result both the old and the new values would be lost.

    Args:
        function: The function.
        arguments: Its positional arguments.
        keep: Stores the result. It may be called twice.
    """
    result: R | None = None
    try:
        # A loop, since no signal is handled between the return of a function that C code calls and
        # the assignment of the loop's variable. After a plain call one may be.
        for result in itertools.starmap(function, [arguments]):
            keep(result)
    except BaseException:
        if result is not None:
            keep(result)
        raise
    assert result is not None
    return result


_writers: set[types.CodeType] = set()


def writer(function: F) -> F:
    """Mark a function that writes variables in turn, or gives their arrays away meanwhile."""
    _writers.add(function.__code__)
    return function


def refuse_within_write() -> None:
    """Raise if a signal handler asks for this, and has come into the middle of a writer.

    What is to happen would see half of a step, or change it. The calls on the stack say so. A flag
    would cost each step a little, and Ctrl-C might leave it set.

    Raises:
        RuntimeError: A function that is marked by `writer` is running in this thread.
    """
    frame = sys._getframe().f_back
    while frame is not None:
        if frame.f_code in _writers:
            raise RuntimeError(
                "a signal handler has come into the middle of a step, whose variables are half "
                "written: let the handler set a flag, and save, load or call when the step is done"
            )
        frame = frame.f_back
