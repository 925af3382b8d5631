"""One compiled program for a function of stateful arguments.

A call reads the values of a flat list of variables, makes one call of one function that `jax.jit`
compiled, and writes back what changed. What changes is found while the function is traced.
"""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax

from seqbridge._entries import FunctionLike
from seqbridge._sharding import BatchSharding
from seqbridge._state import (
    Cell,
    Cells,
    Frame,
    Locks,
    Stateful,
    Variable,
    commit,
    in_frame,
    lost,
    pack,
    read,
    store,
    tracing,
    values,
    version,
    writer,
)
from seqbridge._transforms.partition import (
    boxes_of,
    combine,
    holders_of,
    is_array,
    is_hashable,
    partition,
    places_of,
    weakly,
)

P = ParamSpec("P")
R = TypeVar("R")

_MOST_PROGRAMS = 64  # kept of one function; the oldest goes first


class Bound(NamedTuple):
    """What a program passes, and the variables that it is, as long as no model is edited."""

    edit: int
    boxes: tuple[Variable, ...]
    cells: Cells
    lock: Locks | threading.RLock
    holders: tuple[int, ...]  # the ids of those that brought the variables, all of which live
    refs: list[weakref.ref[Stateful]]  # which say when one of them doesn't


class _Now(threading.local):
    """What a program is being traced for. Programs hold neither models nor arrays alive."""

    call: tuple[Sequence[Stateful], Bound] | None = None
    batch: int = 0


class Program:
    """A compiled function of `(values of donated cells, values of the others, arrays)`."""

    def __init__(
        self,
        function: Callable[..., Any],
        signature: Hashable,
        n_closed: int,
        now: _Now,
        spread: BatchSharding | None,
    ):
        self._function = function
        self._spread = spread if spread is not None and spread.many else None
        self._signature = signature
        self._n_closed = n_closed
        self._now = now
        self.donated: tuple[int, ...] | None = None  # not known yet
        self.kept: tuple[int, ...] = ()
        self.compiled = jax.jit(weakly(self._traced, self._function))
        self.bound: Bound | None = None
        self.packed = False  # whether it was made sure that its variables are, if they are to be
        self.like: tuple[Bound, tuple[int | None, ...]] | None = (
            None  # the call it is bound for; see `_remember`
        )

    def bind(self, holders: list[Stateful], edit: int) -> Bound:
        """Finds the variables, and keeps them for as long as their holders live."""
        boxes = boxes_of(holders)
        locks = Locks(boxes)
        forget = functools.partial(_forget, weakref.ref(self))
        refs = [weakref.ref(holder, forget) for holder in holders]
        lock = locks[0] if len(locks) == 1 else locks
        bound = self.bound = Bound(edit, boxes, Cells(boxes), lock, tuple(map(id, holders)), refs)
        return bound

    @functools.cached_property
    def nested(self) -> Callable[[list[Any], list[Any]], tuple[Any, dict[int, Any]]]:
        """The same inside another transform, whose own variables have whatever values it gave them."""
        return jax.jit(weakly(self._nested, self._function))

    def _nested(self, values: list[Any], arrays: list[Any]) -> tuple[Any, dict[int, Any]]:
        assert self._now.call is not None
        boxes = self._now.call[1].boxes
        out, changes = self._run(dict(zip(boxes, values, strict=True)), arrays)
        return out, {i: changes[box] for i, box in enumerate(boxes) if box in changes}

    def _run(
        self, start: dict[Variable, Any], arrays: list[Any]
    ) -> tuple[Any, dict[Variable, Any]]:
        spread, batch = self._spread, self._now.batch
        if spread is not None:
            start = {box: spread.used(box, value) for box, value in start.items()}
            arrays = spread.split(arrays, batch)
        with Frame(start, compiled=True) as frame:
            assert self._now.call is not None
            args, keywords = combine(self._signature, arrays, self._now.call[0][self._n_closed :])
            out = self._function(*args, **keywords)
            if held := next((x for x in jax.tree.leaves(out) if isinstance(x, Stateful)), None):
                raise TypeError(
                    f"the function returns {type(held).__name__}, whose variables are changed in "
                    f"place: return arrays"
                )
        return out if spread is None else spread.split(out, batch, outputs=True), frame.changes()

    def _traced(
        self, donated: list[Any], kept: list[Any], arrays: list[Any]
    ) -> tuple[Any, dict[int, Any]]:
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
        self.kept = tuple(i for i in range(len(cells)) if i not in changed)
        for cell in (cells[i] for i in changed):
            if isinstance(cell, Variable) and cell.aliased:
                cell._array, cell.aliased = jax.numpy.copy(cell._array), False
        self.compiled = jax.jit(weakly(self._traced, self._function), donate_argnums=0)
        self.donated = tuple(changed)  # last: from now on all of this holds


def _forget(program: weakref.ref[Program], _: Any) -> None:
    if (found := program()) is not None:
        found.bound = found.like = None


class Jitted(FunctionLike[P, R]):
    """What `jit` returns: calls like the function that it was made from."""

    _spread: BatchSharding | None = None
    __wrapped__: Callable[P, R]

    def __init__(
        self,
        function: Callable[P, R],
        vars: Any,
        static_argnames: Iterable[str],
        donate: bool,
        pack: bool,
    ):
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
        cells: Sequence[Cell] = ()
        try:
            while True:
                program, (edit, boxes, cells, lock, _, _), arrays = self._prepare(args, keywords)
                if in_frame():
                    return self._inside(program, boxes, arrays)
                with lock:
                    if (
                        edit != version.number
                    ):  # another thread was faster, and the variables may lie elsewhere now
                        continue
                    if self._donate:
                        return self._donating(program, boxes, cells, arrays)
                    out, changed = program.compiled([], [cell._array for cell in cells], arrays)
                    if changed and tracing():
                        return self._inside(program, boxes, arrays)
                    store(cells, changed)
                return out
        except BaseException as error:  # Ctrl-C, too
            if gone := lost(cells):
                error.add_note(
                    f"the arrays of {gone} were donated and are gone: assign them, or load the "
                    f"model"
                )
            raise
        finally:
            self._now.call = None

    @writer
    def _donating(
        self, program: Program, boxes: tuple[Variable, ...], cells: Cells, arrays: list[Any]
    ) -> Any:
        inside, out, changed = tracing(), None, {}
        program.donate(cells, arrays)
        given = (*values(cells, program.donated, program.kept, arrays), arrays)
        try:
            # As a loop, since Ctrl-C can't come between a result and its name there. What was
            # donated would be lost.
            for out, changed in map(program.compiled, *zip(given)):  # noqa: B007
                pass
            if changed and inside:
                return self._inside(program, boxes, arrays)
            store(cells, changed)
        except BaseException:
            if not inside:
                store(cells, changed)
            raise
        return out

    def _inside(self, program: Program, boxes: tuple[Variable, ...], arrays: list[Any]) -> Any:
        out, changed = program.nested([read(box) for box in boxes], arrays)
        commit({boxes[i]: new for i, new in changed.items()})
        return out

    def lower(self, /, *args: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """The program for these arguments as JAX' `Lowered`: `.as_text()`, `.compile()`, `.cost_analysis()`."""
        while True:
            program, bound, arrays = self._prepare(args, keywords)
            with bound.lock:
                if bound.edit == version.number:
                    if self._donate:
                        program.donate(bound.cells, arrays)
                    return program.compiled.lower(
                        *values(bound.cells, program.donated, program.kept, arrays), arrays
                    )

    def _prepare(
        self, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Program, Bound, list[Any]]:
        if not keywords and (found := self._again(args)) is not None:
            return found
        edit = version.number
        signature, arrays, holders = partition(args, keywords, self._static)
        key: Hashable = signature
        if self._closed:
            holders = self._closed + holders
            key = (signature, *[holder.cache_key() for holder in self._closed])
        try:
            program = self._programs.get(key)
        except TypeError as error:
            named = {**dict(enumerate(args)), **keywords}
            bad = next(
                (n for n, value in named.items() if n in self._static and not is_hashable(value)),
                None,
            )
            if bad is None:
                raise
            raise TypeError(
                f"argument {bad!r} is static, and a static argument must be hashable: {error}. "
                f"Give a tuple, say"
            ) from error
        if program is None:
            program = Program(self._function, signature, len(self._closed), self._now, self._spread)
            for other in list(
                self._programs.values()
            ):  # a model that was edited: what it has no more may go
                if other.bound and not set(other.bound.holders).isdisjoint(map(id, holders)):
                    other.bound = other.like = None
            self._programs[key] = program
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)), None)
                self._warn()
        if self._pack and not program.packed and not tracing():
            pack(holders)
            if (
                version.number != edit
            ):  # the variables lie in other arrays now, for which there is another program
                return self._prepare(args, keywords)
            program.packed = True
        bound = program.bound
        if bound is None or bound.edit != edit:
            bound = program.bind(holders, edit)
        self._now.call = holders, bound
        self._remember(args, keywords, program, bound, holders)
        return program, bound, arrays

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self!r} was compiled {_MOST_PROGRAMS + 1} times. Each value of what is static "
                f"(a bool, a string, a "
                "function, what static_argnames names) is another program, and so is each edit of "
                "a model: give as an "
                "array what changes often, and the same function object each time",
                stacklevel=4,
            )

    def _again(self, args: tuple[Any, ...]) -> tuple[Program, Bound, list[Any]] | None:
        """What the call before prepared, if this one is like it, as nearly every call is."""
        program = self._latest
        if program is None or (like := program.like) is None:
            return None
        bound, kinds = like
        if program.bound is not bound or bound.edit != version.number or len(kinds) != len(args):
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
        self,
        args: tuple[Any, ...],
        keywords: Any,
        program: Program,
        bound: Bound,
        holders: list[Stateful],
    ) -> None:
        """Notes ids: those of the same objects for as long as the program is bound, since all of them live then."""
        self._latest, program.like = program, None
        if (
            keywords
            or self._static
            or self._pack > program.packed
            or bound.holders != tuple(map(id, holders))
        ):
            return
        if all(isinstance(arg, Stateful) or is_array(arg) for arg in args) and all(
            h._steady for h in holders
        ):
            kinds = tuple(id(arg) if isinstance(arg, Stateful) else None for arg in args)
            program.like = bound, kinds
