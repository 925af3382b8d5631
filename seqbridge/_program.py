"""One compiled program for a function of stateful arguments.

A call reads the values of a flat list of variables, makes one call of one function that `jax.jit` compiled, and
writes back what changed. What changes is found while the function is traced.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax

from seqbridge._arguments import boxes_of, holders_of, rebuild, sort
from seqbridge._function import signature_of
from seqbridge._spread import Spread
from seqbridge._stateful import Locks, Stateful
from seqbridge._trace import Frame, commit, in_frame, read, tracing
from seqbridge._variable import Variable

P = ParamSpec("P")
R = TypeVar("R")

_MOST_PROGRAMS = 64  # kept of one function; the oldest goes first


class _Now(threading.local):
    """What a program is being traced for. Programs hold neither models nor arrays alive."""

    call: tuple[Sequence[Stateful], tuple[Variable, ...]] = (), ()
    batch: int = 0


class Bound(NamedTuple):
    """The flat list of a program's variables."""

    boxes: tuple[Variable, ...]
    lock: Locks | threading.RLock


class Program:
    """A compiled function of `(values of donated variables, values of the others, arrays)`."""

    def __init__(
        self, function: Callable[..., Any], signature: Hashable, n_closed: int, now: _Now, spread: Spread | None
    ):
        self._function = function
        self._spread = spread
        self._signature = signature
        self._n_closed = n_closed
        self._now = now
        self.donated: tuple[int, ...] | None = None  # not known yet
        self.compiled = jax.jit(self._traced)
        self.bound: Bound | None = None

    def bind(self, holders: list[Stateful]) -> Bound:
        """Finds the variables, and keeps them for as long as their holders live."""
        boxes = boxes_of(holders)
        locks = Locks(boxes)
        bound = self.bound = Bound(boxes, locks[0] if len(locks) == 1 else locks)
        me: Any = weakref.ref(self)
        for holder in holders:
            weakref.finalize(holder, _forget, me).atexit = False
        return bound

    def _traced(self, donated: list[Any], kept: list[Any], arrays: list[Any]) -> tuple[Any, dict[int, Any]]:
        holders, boxes = self._now.call
        values = iter(kept)
        given = dict(zip(self.donated or (), donated, strict=True))
        start = {box: given[i] if i in given else next(values) for i, box in enumerate(boxes)}
        spread, batch = self._spread, self._now.batch
        spread = spread if spread is not None and spread.many else None
        if spread is not None:
            start = {box: spread.used(box, value) for box, value in start.items()}
            arrays = spread.split(arrays, batch)
        with Frame(start, compiled=True) as frame:
            args, keywords = rebuild(self._signature, arrays, holders[self._n_closed :])
            out = self._function(*args, **keywords)
        changes = frame.changes()
        # A donated variable comes back in any case: its old array is gone.
        changed = {i: frame.values[b] for i, b in enumerate(boxes) if b in changes or i in given}
        if spread is not None:
            out = spread.split(out, batch, outputs=True)
            changed = {i: spread.stored(boxes[i], value) for i, value in changed.items()}
        return out, changed

    def donate(self, boxes: tuple[Variable, ...], arrays: list[Any]) -> None:
        """From now on gives the arrays of the variables that change to the program."""
        _, changed = jax.eval_shape(self._traced, [], [read(b) for b in boxes], arrays)
        self.donated = tuple(changed)
        self.compiled = jax.jit(self._traced, donate_argnums=0)

    def values(self, boxes: tuple[Variable, ...], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        """The values of donated and of other variables, checked: a donated buffer that is used twice kills JAX."""
        indices = self.donated or ()
        donated, kept = [boxes[i]._value for i in indices], []
        chosen = set(indices)
        seen = {id(a) for a in jax.tree.leaves(arrays)}
        for i, box in enumerate(boxes):
            if i not in chosen:
                kept.append(box._value)
                seen.add(id(box._value))
        for n, value in enumerate(donated):
            name = boxes[indices[n]].name
            if value.is_deleted():
                raise RuntimeError(f"the array of {name} was donated before and is gone; assign the variable first")
            if id(value) in seen:
                donated[n] = jax.numpy.copy(value)
            seen.add(id(value))
        return donated, kept


def _forget(program: weakref.ref[Program]) -> None:
    if (found := program()) is not None:
        found.bound = None


def places_of(function: Callable[..., Any], names: Iterable[str]) -> frozenset[str | int]:
    """Arguments by their names, and by the positions at which a call may give them."""
    chosen = {names} if isinstance(names, str) else set(names)
    signature = signature_of(function) if chosen else None
    positions = enumerate(signature.parameters) if signature is not None else ()
    return frozenset(chosen | {i for i, name in positions if name in chosen})


class Jitted(Generic[P, R]):
    """What `jit` returns: calls like the function that it was made from."""

    _spread: Spread | None = None

    def __init__(self, function: Callable[P, R], vars: Any, static_argnames: Iterable[str], donate: bool):
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._closed = holders_of(function, vars)
        self._static = places_of(function, static_argnames)
        self._donate = donate
        self._programs: dict[Hashable, Program] = {}
        self._now = _Now()

    def __call__(self, /, *args: P.args, **keywords: P.kwargs) -> R:
        program, (boxes, lock), arrays = self._prepare(args, keywords)
        try:
            if in_frame():
                out, changed = program.compiled([], [read(box) for box in boxes], arrays)
                commit({boxes[i]: new for i, new in changed.items()})
                return out
            with lock:
                if self._donate:
                    if program.donated is None:
                        program.donate(boxes, arrays)
                    out, changed = program.compiled(*program.values(boxes, arrays), arrays)
                else:
                    out, changed = program.compiled([], [box._value for box in boxes], arrays)
                if changed and tracing():
                    commit({boxes[i]: new for i, new in changed.items()})
                else:
                    for i, new in changed.items():
                        boxes[i]._value = new
            return out
        finally:
            self._now.call = (), ()

    def lower(self, /, *args: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """The program for these arguments as JAX' `Lowered`: `.as_text()`, `.compile()`, `.cost_analysis()`."""
        program, (boxes, _), arrays = self._prepare(args, keywords)
        given = program.values(boxes, arrays) if program.donated else ([], [read(box) for box in boxes])
        return program.compiled.lower(*given, arrays)

    def _prepare(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Program, Bound, list[Any]]:
        signature, arrays, holders = sort(args, keywords, self._static)
        key: Hashable = signature
        if self._closed:
            holders = self._closed + holders
            key = (signature, *[holder._token() for holder in self._closed])
        try:
            program = self._programs.get(key)
        except TypeError as error:
            named = {n: value for n, value in keywords.items() if n in self._static}
            bad = next((n for n, value in named.items() if not _hashable(value)), "a static argument")
            raise TypeError(f"{bad!r} is static, and a static argument must be hashable: {error}") from error
        if program is None:
            program = Program(self._function, signature, len(self._closed), self._now, self._spread)
            self._programs[key] = program
            if len(self._programs) > _MOST_PROGRAMS:
                del self._programs[next(iter(self._programs))]
        bound = program.bound or program.bind(holders)
        self._now.call = holders, bound.boxes
        return program, bound, arrays

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        return self if owner is None else types.MethodType(self, owner)

    def __repr__(self) -> str:
        return f"sb.jit({getattr(self._function, '__name__', type(self._function).__name__)})"


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
