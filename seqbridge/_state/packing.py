"""`Pack`: many small variables in one array, so that a call of a program passes one array in place of many.

Nobody above need know: a variable that lies in a pack is read and assigned like any other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import weakref
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._state.buffers import Bare, Within
from seqbridge._state.frames import Tracer, writer
from seqbridge._state.locks import locked
from seqbridge._state.variable import Stateful, Variable
from seqbridge._state.version import serial, version

_MOST_BYTES = (
    2**16
)  # of a variable that is packed: to copy a larger one takes longer than to pass it by itself


class Pack:
    """The array that small variables of one dtype lie in, one after the other.

    Args:
        boxes: The variables. From now on they hold their places in the pack.
    """

    __slots__ = ("__weakref__", "_boxes", "_joined", "_own", "_seen", "_shapes", "_starts")

    def __init__(self, boxes: Sequence[Variable]):
        values = [box.stored for box in boxes]
        self._shapes = tuple(value.shape for value in values)
        self._starts = tuple(itertools.accumulate(map(math.prod, self._shapes), initial=0))
        self._joined = _join(values)
        self._own: dict[int, jax.Array] = {}  # values that aren't in the array yet
        self._seen: dict[int, jax.Array] = {}  # values that were taken out of it
        self._boxes = [weakref.ref(box) for box in boxes]
        for i, box in enumerate(boxes):
            self._move(box, Within(self, i))

    @property
    def _array(self) -> jax.Array:
        """All values, as a program takes them."""
        gone = self._own and self._joined.is_deleted()
        if self._own and (not gone or len(self._own) == len(self._shapes)):
            with jax.ensure_compile_time_eval():
                if gone:
                    joined = _join([self._own[i] for i in range(len(self._shapes))])
                else:
                    joined = jnp.copy(self._joined)
                    for i, value in self._own.items():
                        joined = _put(joined, value, _start(self._starts[i]))
            self._joined, self._own = joined, {}
        return self._joined

    @_array.setter
    def _array(self, new: jax.Array) -> None:
        self._joined = new
        self._own = {}
        self._seen = {}  # last: see `get`

    @property
    def name(self) -> str:
        living = [box.name for box in self.living()]
        return f"{living[0]} and {len(living) - 1} more" if living else "a pack"

    def living(self) -> list[Variable]:
        return [box for ref in self._boxes if (box := ref()) is not None]

    def get(self, i: int) -> jax.Array:
        # A thread may read while another calls a program: `seen` is the newer array's only if
        # `_joined` is, too.
        seen = self._seen
        if (own := self._own.get(i)) is not None:
            return own
        if (known := seen.get(i)) is not None:
            return known
        with contextlib.suppress(RuntimeError, ValueError):
            if not self._joined.is_deleted():
                seen[i] = known = self._taken(i)
                return known
        # Another thread has donated the array, and has a new one before it gives the lock back; or
        # it is gone.
        box = self._boxes[i]()
        with contextlib.nullcontext() if box is None else box.lock:
            return self._taken(i) if i not in self._own else self._own[i]

    def _taken(self, i: int) -> jax.Array:
        with jax.ensure_compile_time_eval():  # a value, even if it is asked for inside a trace
            if self._joined.is_deleted():
                gone = jnp.zeros(self._shapes[i], self._joined.dtype, device=self._joined.sharding)
                gone.delete()
                return gone
            return _take(self._joined, _start(self._starts[i]), self._shapes[i])

    def set(self, i: int, value: jax.Array) -> bool:
        if value.sharding != self._joined.sharding:
            self.dissolve()
            return False
        self._own[i] = value
        # Another dict, as a thread may be about to note in this one what it has read of the old
        # array.
        self._seen = {n: array for n, array in self._seen.items() if n != i}
        return True

    def dissolve(self) -> None:
        """Gives each variable its own array again."""
        for ref in self._boxes:
            if (box := ref()) is not None and pack_of(box) is self:
                self._move(box, box.stored)

    @staticmethod
    def _move(box: Variable, to: Any) -> None:
        try:
            _put_at(box, to)
        except BaseException:  # Ctrl-C, between two lines
            _put_at(box, to)
            raise

    # Inside a program

    def parts(self, joined: Any, which: Iterable[int]) -> dict[int, Any]:
        """Values of single variables, of the value of all."""
        starts = self._starts
        return {i: joined[starts[i] : starts[i + 1]].reshape(self._shapes[i]) for i in which}

    def rejoined(self, joined: Any, new: Mapping[int, Any]) -> Any:
        """The value of all, after some have got new values."""
        pieces, done = [], 0
        for i in sorted(new):
            if done < self._starts[i]:
                pieces.append(joined[done : self._starts[i]])
            pieces.append(new[i].reshape(-1))
            done = self._starts[i + 1]
        return jnp.concatenate([*pieces, joined[done:]])


def _put_at(box: Variable, place: Any) -> None:
    box._array = place
    box._serial = serial()  # programs that took the variable otherwise aren't for it any more
    version.bump()


@jax.jit
def _join(values: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([value.reshape(-1) for value in values])


def _start(place: int) -> jax.Array:
    return jax.device_put(
        np.int32(place)
    )  # said to be a transfer, which `jax.transfer_guard("disallow")` asks for


@functools.partial(jax.jit, static_argnums=2)
def _take(joined: jax.Array, start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(joined, (start,), (math.prod(shape),)).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _put(joined: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(joined, value.reshape(-1), (start,))


def pack(holders: Iterable[Stateful]) -> None:
    """Puts the small variables of each holder into packs, those that a step changes or reads together."""
    holders = list(holders)
    with locked(lambda: holders):
        _pack(holders)


def _pack(holders: Iterable[Stateful]) -> None:
    for holder in holders:
        groups: dict[Hashable, list[Variable]] = defaultdict(list)
        for box in holder.own_variables():
            if (group := _group(box)) is not None:
                groups[group].append(box)
        for boxes in groups.values():
            packs = dict.fromkeys(p for box in boxes if (p := pack_of(box)) is not None)
            if len(boxes) > 1 and not (len(packs) == 1 and all(map(pack_of, boxes))):
                # Whoever was in a pack stays with its neighbours, or two models that share layers
                # would part them for ever.
                together = dict.fromkeys([*boxes, *(box for p in packs for box in p.living())])
                for p in packs:
                    p.dissolve()
                Pack(list(together))


def _group(box: Variable) -> Hashable:
    """What the variables of a pack have in common; None: the variable has an array of its own."""
    value = box.stored
    small = (
        value.nbytes <= _MOST_BYTES
        and value.size
        and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    )
    if not small or not value.is_fully_addressable or not value.is_fully_replicated:
        return None
    return id(box.lock), box.kind, box.trainable, value.dtype, value.sharding


def pack_of(box: Variable) -> Pack | None:
    place = box._array
    return place.holder if type(place) is Within and isinstance(place.holder, Pack) else None


Cell: TypeAlias = Variable | Pack | Bare


def cell_of(box: Variable) -> Cell:
    """What holds the array that a program takes for a variable."""
    place: Any = box._array
    return cast(Cell, place.holder) if type(place) is Within else box


def living(cell: Cell) -> list[Variable]:
    """The variables of a cell."""
    return [cell] if isinstance(cell, Variable) else cell.living()


@writer
def store(cells: Sequence[Cell], arrays: Mapping[int, Any]) -> None:
    """Writes the arrays of cells, by their numbers."""
    try:
        for i, array in arrays.items():
            cells[i]._array = array
    except BaseException:  # Ctrl-C, between two of them
        for i, array in arrays.items():
            cells[i]._array = array
        raise


def values(
    cells: Sequence[Cell], donated: Sequence[int] | None, kept: Sequence[int], arrays: Iterable[Any]
) -> tuple[list[Any], list[Any]]:
    """The arrays of donated and of other cells, checked: a donated buffer that is used twice kills JAX."""
    held = [cell._array for cell in cells]
    if not donated:
        return [], held
    if True in [value.is_deleted() for value in held]:
        name = next(
            cell.name for cell, value in zip(cells, held, strict=True) if value.is_deleted()
        )
        raise RuntimeError(
            f"the array of {name} was donated before and is gone: assign it, or load the model"
        )
    given = held if not kept else [held[i] for i in donated]
    others = [held[i] for i in kept]
    ids = set(map(id, held))
    if len(ids) < len(held) or not ids.isdisjoint(map(id, arrays)):
        given = list(given)
        seen = {*map(id, arrays), *map(id, others)}
        for n, value in enumerate(given):
            if id(value) in seen:
                given[n] = jnp.copy(value)
            seen.add(id(value))
    return given, others


def lost(cells: Sequence[Cell]) -> str:
    """The names of those whose array was donated to a program that failed, and is gone."""
    now = [cell_of(cell) if isinstance(cell, Variable) else cell for cell in cells]
    arrays = [cell._joined if isinstance(cell, Pack) else cell._array for cell in now]
    real = [isinstance(array, jax.Array) and not isinstance(array, Tracer) for array in arrays]
    gone = [
        c.name
        for c, array, known in zip(cells, arrays, real, strict=True)
        if known and array.is_deleted()
    ]
    return ", ".join(gone[:4]) + (f" and {len(gone) - 4} more" if len(gone) > 4 else "")


class Cells(tuple[Cell, ...]):
    """What a program passes: variables, and packs in place of those that lie in one."""

    inside: dict[int, dict[int, Variable]]

    def __new__(cls, boxes: Iterable[Variable]) -> Self:
        found: dict[Cell, dict[int, Variable]] = {}
        for box in boxes:
            cell = cell_of(box)
            members = found.setdefault(cell, {})
            if cell is not box:
                members[box._array.place] = box
        made = super().__new__(cls, found)
        made.inside = {n: members for n, members in enumerate(found.values()) if members}
        return made

    def values(self, held: Sequence[Any]) -> dict[Variable, Any]:
        """The value of each variable, of those of the cells."""
        found: dict[Variable, Any] = {}
        for n, (cell, value) in enumerate(zip(self, held, strict=True)):
            if not isinstance(cell, Variable):
                parts = cell.parts(value, self.inside[n])
                found |= {box: parts[i] for i, box in self.inside[n].items()}
            else:
                found[cell] = value
        return found

    def changed(self, held: Sequence[Any], changes: Mapping[Variable, Any]) -> dict[int, Any]:
        """The new values of the cells that changed, by their numbers."""
        found: dict[int, Any] = {}
        for n, (cell, value) in enumerate(zip(self, held, strict=True)):
            if not isinstance(cell, Variable):
                new = {i: changes[box] for i, box in self.inside[n].items() if box in changes}
                if new:
                    found[n] = cell.rejoined(value, new)
            elif cell in changes:
                found[n] = changes[cell]
        return found
