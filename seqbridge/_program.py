"""One compiled program for a function of stateful arguments.

A call reads the values of a flat list of variables, makes one call of one function that `jax.jit` compiled, and
writes back what changed. What changes is found while the function is traced.
"""

from __future__ import annotations

import functools
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Self, TypeVar, overload

import jax

from seqbridge._arguments import boxes_of, holders_of, is_array, is_hashable, places_of, rebuild, sort, weakly
from seqbridge._pack import Cells, lost, pack, store
from seqbridge._spread import Spread
from seqbridge._stateful import Locks, Stateful, edits
from seqbridge._trace import Frame, commit, in_frame, read, tracing
from seqbridge._variable import Variable

Owner = TypeVar("Owner")
P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

_MOST_PROGRAMS = 64  # kept of one function; the oldest goes first


class Bound(NamedTuple):
    """What a program passes, and the variables that it is."""

    boxes: tuple[Variable, ...]
    cells: Cells
    lock: Locks | threading.RLock
    holders: tuple[int, ...]  # the ids of those that brought the variables, all of which live


class _Now(threading.local):
    """What a program is being traced for. Programs hold neither models nor arrays alive."""

    call: tuple[Sequence[Stateful], Bound] | None = None
    batch: int = 0


class Program:
    """A compiled function of `(values of donated cells, values of the others, arrays)`."""

    def __init__(
        self, function: Callable[..., Any], signature: Hashable, n_closed: int, now: _Now, spread: Spread | None
    ):
        self._function = function
        self._spread = spread if spread is not None and spread.many else None
        self._signature = signature
        self._n_closed = n_closed
        self._now = now
        self.donated: tuple[int, ...] | None = None  # not known yet
        self._kept: tuple[int, ...] = ()
        self.compiled = jax.jit(weakly(self._traced))
        self.bound: Bound | None = None
        self._watched: list[weakref.ref[Any]] = []  # the holders
        self.packed = False  # whether it was made sure that its variables are, if they are to be
        self.like: tuple[int, tuple[int | None, ...]] | None = None  # the call it is bound for; see `_remember`

    def bind(self, holders: list[Stateful]) -> Bound:
        """Finds the variables, and keeps them for as long as their holders live."""
        boxes = boxes_of(holders)
        locks = Locks(boxes)
        self.like = None
        bound = self.bound = Bound(boxes, Cells(boxes), locks[0] if len(locks) == 1 else locks, tuple(map(id, holders)))
        me = weakref.ref(self)

        def forget(_: Any) -> None:
            if (program := me()) is not None:
                program.bound = None

        self._watched = [weakref.ref(holder, forget) for holder in holders]
        return bound

    @functools.cached_property
    def nested(self) -> Callable[[list[Any], list[Any]], tuple[Any, dict[int, Any]]]:
        """The same inside another transform, whose own variables have whatever values it gave them."""
        return jax.jit(weakly(self._nested))

    def _nested(self, values: list[Any], arrays: list[Any]) -> tuple[Any, dict[int, Any]]:
        assert self._now.call is not None
        boxes = self._now.call[1].boxes
        out, changes = self._run(dict(zip(boxes, values, strict=True)), arrays)
        return out, {i: changes[box] for i, box in enumerate(boxes) if box in changes}

    def _run(self, start: dict[Variable, Any], arrays: list[Any]) -> tuple[Any, dict[Variable, Any]]:
        spread, batch = self._spread, self._now.batch
        if spread is not None:
            start = {box: spread.used(box, value) for box, value in start.items()}
            arrays = spread.split(arrays, batch)
        with Frame(start, compiled=True) as frame:
            assert self._now.call is not None
            args, keywords = rebuild(self._signature, arrays, self._now.call[0][self._n_closed :])
            out = self._function(*args, **keywords)
        return out if spread is None else spread.split(out, batch, outputs=True), frame.changes()

    def _traced(self, donated: list[Any], kept: list[Any], arrays: list[Any]) -> tuple[Any, dict[int, Any]]:
        assert self._now.call is not None
        cells, rest = self._now.call[1].cells, iter(kept)
        given = dict(zip(self.donated or (), donated, strict=True))
        held = [given[i] if i in given else next(rest) for i in range(len(cells))]
        out, changes = self._run(cells.values(held), arrays)
        # What was donated comes back in any case: its old array is gone.
        changed = given | cells.changed(held, changes)
        if self._spread is not None:
            changed = {i: self._spread.stored(cells[i], value) for i, value in changed.items()}
        return out, changed

    def donate(self, cells: Cells, arrays: list[Any]) -> None:
        """From now on gives the arrays of what changes to the program, but none that a module of the user's holds."""
        if self.donated is not None:
            return
        _, changed = jax.eval_shape(self._traced, [], [cell._array for cell in cells], arrays)
        self.donated = tuple(changed)
        self._kept = tuple(i for i in range(len(cells)) if i not in changed)
        for cell in (cells[i] for i in changed):
            if isinstance(cell, Variable) and cell._lent:
                cell._array, cell._lent = jax.numpy.copy(cell._array), False
        self.compiled = jax.jit(weakly(self._traced), donate_argnums=0)

    def values(self, cells: Cells, arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        """The values of donated and of other cells, checked: a donated buffer that is used twice kills JAX."""
        held = [cell._array for cell in cells]
        if not self.donated:
            return [], held
        if True in [value.is_deleted() for value in held]:
            name = next(cell.name for cell, value in zip(cells, held, strict=True) if value.is_deleted())
            raise RuntimeError(f"the array of {name} was donated before and is gone: assign it, or load the model")
        donated = held if not self._kept else [held[i] for i in self.donated]
        kept = [held[i] for i in self._kept]
        ids = set(map(id, held))
        if len(ids) < len(held) or not ids.isdisjoint(map(id, arrays)):
            donated = list(donated)
            seen = {*map(id, arrays), *map(id, kept)}
            for n, value in enumerate(donated):
                if id(value) in seen:
                    donated[n] = jax.numpy.copy(value)
                seen.add(id(value))
        return donated, kept


class Jitted(Generic[P, R]):
    """What `jit` returns: calls like the function that it was made from."""

    _spread: Spread | None = None
    __wrapped__: Callable[P, R]

    def __init__(self, function: Callable[P, R], vars: Any, static_argnames: Iterable[str], donate: bool, pack: bool):
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._closed = holders_of(function, vars)
        self._static = places_of(function, static_argnames)
        self._donate = donate
        self._pack = pack
        self._programs: dict[Hashable, Program] = {}
        self._now = _Now()
        self._latest: Program | None = None
        self._warned = False

    def __call__(self, /, *args: P.args, **keywords: P.kwargs) -> R:
        program, (boxes, cells, lock, _), arrays = self._prepare(args, keywords)
        try:
            if in_frame():
                return self._inside(program, boxes, arrays)
            with lock:
                if self._donate:
                    program.donate(cells, arrays)
                    out, changed = program.compiled(*program.values(cells, arrays), arrays)
                else:
                    out, changed = program.compiled([], [cell._array for cell in cells], arrays)
                if changed and tracing():
                    return self._inside(program, boxes, arrays)
                store(cells, changed)
            return out
        except Exception as error:
            if gone := lost(cells):
                error.add_note(f"the arrays of {gone} were donated and are gone: assign them, or load the model")
            raise
        finally:
            self._now.call = None

    def _inside(self, program: Program, boxes: tuple[Variable, ...], arrays: list[Any]) -> Any:
        out, changed = program.nested([read(box) for box in boxes], arrays)
        commit({boxes[i]: new for i, new in changed.items()})
        return out

    def lower(self, /, *args: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """The program for these arguments as JAX' `Lowered`: `.as_text()`, `.compile()`, `.cost_analysis()`."""
        program, (_, cells, lock, _), arrays = self._prepare(args, keywords)
        with lock:
            if self._donate:
                program.donate(cells, arrays)
            return program.compiled.lower(*program.values(cells, arrays), arrays)

    def _prepare(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Program, Bound, list[Any]]:
        if not keywords and (found := self._again(args)) is not None:
            return found
        signature, arrays, holders = sort(args, keywords, self._static)
        key: Hashable = signature
        if self._closed:
            holders = self._closed + holders
            key = (signature, *[holder._token() for holder in self._closed])
        try:
            program = self._programs.get(key)
        except TypeError as error:
            named = {**dict(enumerate(args)), **keywords}
            bad = next((n for n, value in named.items() if n in self._static and not is_hashable(value)), None)
            if bad is None:
                raise
            raise TypeError(
                f"argument {bad!r} is static, and a static argument must be hashable: {error}. Give a tuple, say"
            ) from error
        if program is None:
            program = Program(self._function, signature, len(self._closed), self._now, self._spread)
            for other in list(self._programs.values()):  # a model that was edited: what it has no more may go
                if other.bound and not set(other.bound.holders).isdisjoint(map(id, holders)):
                    other.bound = None
            self._programs[key] = program
            if len(self._programs) > _MOST_PROGRAMS:
                del self._programs[next(iter(self._programs))]
                self._warn()
        if self._pack and not program.packed and not tracing():
            before = edits.count
            pack(holders)
            if edits.count != before:  # the variables lie in other arrays now, for which there is another program
                return self._prepare(args, keywords)
            program.packed = True
        bound = program.bound or program.bind(holders)
        self._now.call = holders, bound
        self._remember(args, keywords, program, bound, holders)
        return program, bound, arrays

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self!r} was compiled {_MOST_PROGRAMS + 1} times. Each value of what is static (a bool, a string, a "
                "function, what static_argnames names) is another program, and so is each edit of a model: give as an "
                "array what changes often, and the same function object each time",
                stacklevel=4,
            )

    def _again(self, args: tuple[Any, ...]) -> tuple[Program, Bound, list[Any]] | None:
        """What the call before prepared, if this one is like it, as nearly every call is."""
        program = self._latest
        bound = program and program.bound
        if not (program and bound and program.like) or program.like[0] != edits.count:
            return None
        kinds = program.like[1]
        if len(kinds) != len(args):
            return None
        arrays: list[Any] = []
        holders = list(self._closed)
        for value, known in zip(args, kinds, strict=True):
            if id(value) == known:
                holders.append(value)
            elif known is None and is_array(value):
                arrays.append(value)
            else:
                return None
        self._now.call = holders, bound
        return program, bound, arrays

    def _remember(
        self, args: tuple[Any, ...], keywords: Any, program: Program, bound: Bound, holders: list[Stateful]
    ) -> None:
        """Notes ids: those of the same objects for as long as the program is bound, since all of them live then."""
        self._latest, program.like = program, None
        if keywords or self._static or self._pack > program.packed or bound.holders != tuple(map(id, holders)):
            return
        if all(isinstance(arg, Stateful) or is_array(arg) for arg in args) and all(h._steady for h in holders):
            kinds = tuple(id(arg) if isinstance(arg, Stateful) else None for arg in args)
            program.like = edits.count, kinds

    @overload
    def __get__(self, owner: None, cls: type, /) -> Self: ...
    @overload
    def __get__(self: Jitted[Concatenate[Owner, Q], R], owner: Owner, cls: type | None = None, /) -> Callable[Q, R]: ...
    def __get__(self, owner: Any, cls: type | None = None, /) -> Any:
        return self if owner is None else types.MethodType(self, owner)

    def __repr__(self) -> str:
        return f"sb.jit({getattr(self._function, '__name__', type(self._function).__name__)})"
