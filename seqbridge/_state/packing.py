"""`PackedBuffer`: many small variables in one array, so that a program passes one in place of many.

Nobody above need know: a variable that is packed is read and assigned like any other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import weakref
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._state.buffers import BufferSlot, own_slot
from seqbridge._state.interrupts import finish_on_interrupt
from seqbridge._state.locks import locked
from seqbridge._state.variable import Stateful, Variable
from seqbridge._state.version import version

# The size of the largest variable that is packed, in bytes: to copy a larger one takes longer than
# to pass it by itself.
_MOST_BYTES = 2**16


class PackedBuffer:
    """The array that small variables of one dtype lie in, one after the other.

    Args:
        variables: The variables. From now on they are kept here.
    """

    __slots__ = ("_joined", "_pending", "_shapes", "_starts", "_taken", "_variables")

    def __init__(self, variables: Sequence[Variable]):
        values = [variable.stored for variable in variables]
        sizes = [value.size for value in values]
        self._shapes: list[tuple[int, ...]] = [value.shape for value in values]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._joined = _join(values)
        self._pending: dict[int, jax.Array] = {}  # values that aren't in the array yet
        self._taken: dict[int, jax.Array] = {}  # values that were taken out of it
        self._variables = [weakref.ref(variable) for variable in variables]
        for slot, variable in enumerate(variables):
            _move(variable, BufferSlot(self, slot))

    @property
    def array(self) -> jax.Array:
        """The array that holds all values."""
        if self._pending:
            joined = self._with_pending()
            if joined is not None:
                self._joined = joined
                self._pending = {}
        return self._joined

    @array.setter
    def array(self, new: jax.Array) -> None:
        self._joined = new
        self._pending = {}
        self._taken = {}  # last: see `get`

    def _with_pending(self) -> jax.Array | None:
        """Return the array with the values that were assigned since; None: the others are gone."""
        with jax.ensure_compile_time_eval():
            if not self._joined.is_deleted():
                joined = jnp.copy(self._joined)
                for slot, value in self._pending.items():
                    joined = _put(joined, value, _on_device(self._starts[slot]))
                return joined
            slots = range(len(self._shapes))
            if len(self._pending) == len(slots):
                return _join([self._pending[slot] for slot in slots])
        return None

    @property
    def name(self) -> str:
        living = self.variables()
        return f"{living[0].name} and {len(living) - 1} more" if living else "packed variables"

    def variables(self) -> list[Variable]:
        living = []
        for reference in self._variables:
            variable = reference()
            if variable is not None:
                living.append(variable)
        return living

    def get(self, slot: int, /) -> jax.Array:
        # A thread may read while another calls a program. So this dict is read before the array:
        # if the array is an old one, so is the dict, and nobody reads what is noted in it.
        taken = self._taken
        for known in (self._pending, taken):
            value = known.get(slot)
            if value is not None:
                return value
        # Another thread may donate the array between two lines.
        with contextlib.suppress(RuntimeError, ValueError):
            if not self._joined.is_deleted():
                value = taken[slot] = self._take_out(slot)
                return value
        # It was donated, and there is a new one before that thread gives the lock back; or it is
        # gone.
        variable = self._variables[slot]()
        with contextlib.nullcontext() if variable is None else variable.lock:
            value = self._pending.get(slot)
            return self._take_out(slot) if value is None else value

    def _take_out(self, slot: int) -> jax.Array:
        """Return the value in a slot of the array, deleted if the array is."""
        shape = self._shapes[slot]
        with jax.ensure_compile_time_eval():  # a value, even if it is asked for inside a trace
            if self._joined.is_deleted():
                gone = jnp.zeros(shape, self._joined.dtype, device=self._joined.sharding)
                gone.delete()
                return gone
            return _take(self._joined, _on_device(self._starts[slot]), shape)

    def set(self, slot: int, value: jax.Array, /) -> None:
        variable = self._variables[slot]()
        if value.sharding != self._joined.sharding and variable is not None:
            self.dissolve()
            variable.stored = value
            return
        self._pending[slot] = value
        # Another dict, as a thread may be about to note in this one what it has read of the old
        # array.
        self._taken = {other: known for other, known in self._taken.items() if other != slot}

    def is_deleted(self, slot: int, /) -> bool:
        return slot not in self._pending and self._joined.is_deleted()

    def unalias(self) -> None:
        """Nothing: the array is a copy."""

    def dissolve(self) -> None:
        for variable in self.variables():
            if packed_buffer_of(variable) is self:
                _move(variable, own_slot(variable, variable.stored))

    # Inside a program

    def unpack(self, joined: Any, slots: Collection[int], /) -> dict[int, Any]:
        values = {}
        for slot in slots:
            flat = joined[self._starts[slot] : self._starts[slot + 1]]
            values[slot] = flat.reshape(self._shapes[slot])
        return values

    def repack(self, joined: Any, new: Mapping[int, Any], /) -> Any:
        pieces = []
        end = 0  # of what is in the pieces
        for slot in sorted(new):
            if end < self._starts[slot]:
                pieces.append(joined[end : self._starts[slot]])
            pieces.append(new[slot].reshape(-1))
            end = self._starts[slot + 1]
        return jnp.concatenate([*pieces, joined[end:]])


@finish_on_interrupt
def _move(variable: Variable, place: BufferSlot) -> None:
    variable.buffer_slot = place
    version.bump()  # what a program passes for the variable has changed


@jax.jit
def _join(values: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([value.reshape(-1) for value in values])


def _on_device(start: int) -> jax.Array:
    # Said to be a transfer, which `jax.transfer_guard("disallow")` asks for.
    return jax.device_put(np.int32(start))


@functools.partial(jax.jit, static_argnums=2)
def _take(joined: jax.Array, start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(joined, (start,), (math.prod(shape),)).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _put(joined: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(joined, value.reshape(-1), (start,))


def pack(holders: Iterable[Stateful]) -> None:
    """Pack the small variables of each holder: those that a step changes or reads together."""
    holders = list(holders)
    with locked(lambda: holders):
        for holder in holders:
            _pack(holder)


def _pack(holder: Stateful) -> None:
    groups: dict[Hashable, list[Variable]] = defaultdict(list)
    for variable in holder.own_variables():
        group = _group(variable)
        if group is not None:
            groups[group].append(variable)
    for variables in groups.values():
        if len(variables) > 1:
            _pack_group(variables)


def _pack_group(variables: list[Variable]) -> None:
    found = dict.fromkeys(packed_buffer_of(variable) for variable in variables)
    if len(found) == 1 and None not in found:
        return  # they are in one buffer already
    packed = [buffer for buffer in found if buffer is not None]
    # Whoever shared a buffer with one of them stays with it, or two models that share layers would
    # part them for ever.
    neighbours = [variable for buffer in packed for variable in buffer.variables()]
    for buffer in packed:
        buffer.dissolve()
    PackedBuffer(list(dict.fromkeys([*variables, *neighbours])))


def _group(variable: Variable) -> Hashable:
    """Return all that variables in one buffer have in common; None: it has an array of its own."""
    value = variable.stored
    if not value.is_fully_addressable or not value.is_fully_replicated:
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return None
    if not value.size or value.nbytes > _MOST_BYTES:
        return None
    return id(variable.lock), variable.kind, variable.trainable, value.dtype, value.sharding


def packed_buffer_of(variable: Variable) -> PackedBuffer | None:
    """Return the packed buffer that a variable is in, if it is in one."""
    buffer = variable.buffer_slot.buffer
    return buffer if isinstance(buffer, PackedBuffer) else None
