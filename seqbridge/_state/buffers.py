"""Buffers: a variable's array is a slot of a buffer, and a program passes and returns buffers.

An `ArrayBuffer` is one array of one variable, the usual case. A `KeyBuffer` holds the numbers of a
PRNG key. A `PackedBuffer`, in `packing.py`, holds many small variables in one array.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from seqbridge._state.frames import Tracer, VariableLike
from seqbridge._state.interrupts import finish_on_interrupt, writer
from seqbridge._state.version import serial


class Buffer(Protocol):
    """An array that programs pass, with the values of some variables in numbered slots.

    Attributes:
        array: What a program takes and returns.
    """

    array: Any

    @property
    def name(self) -> str:
        """The name of its variable, or of the first of several, as errors show it."""
        ...

    def variables(self) -> list[Any]:
        """Return the living variables."""
        ...

    def get(self, slot: int, /) -> Any:
        """Return the value in a slot."""

    def set(self, slot: int, value: Any, /) -> None:
        """Replace the value in a slot."""

    def is_deleted(self, slot: int, /) -> bool:
        """Whether the value in a slot is gone: it was donated to a program that failed."""
        ...

    def unalias(self) -> None:
        """Copy the array if an object of the user's may hold it, since it will be donated."""

    def dissolve(self) -> None:
        """Give each variable a buffer of its own, if several share this one."""

    # Inside a program

    def unpack(self, array: Any, slots: Collection[int], /) -> dict[int, Any]:
        """Return the values in some slots, of the traced array."""
        ...

    def repack(self, array: Any, new: Mapping[int, Any], /) -> Any:
        """Return the traced array with new values in some slots."""


class BufferSlot:
    """The place of a variable's value. One object, so that a thread reads all of it at once.

    Attributes:
        buffer: The buffer.
        index: The number of the slot in it.
        serial: A number that no other has. A program knows a variable by it, so a program that was
            compiled before a variable moved isn't for it any more.
    """

    __slots__ = ("buffer", "index", "serial")

    def __init__(self, buffer: Buffer, index: int = 0):
        self.buffer: Buffer = buffer
        self.index: int = index
        self.serial: int = serial()


class _SingleBuffer:
    """A buffer of one variable, which it doesn't keep alive."""

    __slots__ = ("_variable",)

    def __init__(self, variable: VariableLike):
        self._variable = weakref.ref(variable)

    @property
    def name(self) -> str:
        variable = self._variable()
        return "a variable" if variable is None else variable.name

    def variables(self) -> list[Any]:
        variable = self._variable()
        return [] if variable is None else [variable]

    def dissolve(self) -> None:
        """Nothing: its variable has it for itself."""


class ArrayBuffer(_SingleBuffer):
    """One array of one variable.

    Args:
        variable: The variable.
        array: Its value.

    Attributes:
        array: The value. No property: a call of a program reads it of every variable.
    """

    __slots__ = ("array",)

    def __init__(self, variable: VariableLike, array: Any):
        super().__init__(variable)
        self.array = array

    def get(self, slot: int, /) -> Any:
        return self.array

    def set(self, slot: int, value: Any, /) -> None:
        self.array = value

    def is_deleted(self, slot: int = 0, /) -> bool:
        array = self.array
        return isinstance(array, jax.Array) and not isinstance(array, Tracer) and array.is_deleted()

    def unalias(self) -> None:
        for variable in self.variables():
            if variable.aliased:
                self.array = jnp.copy(self.array)
                variable.aliased = False

    def unpack(self, array: Any, slots: Collection[int], /) -> dict[int, Any]:
        return {0: array}

    def repack(self, array: Any, new: Mapping[int, Any], /) -> Any:
        return new[0]


class KeyBuffer(_SingleBuffer):
    """A PRNG key, or an array of keys, of one variable; programs take and return its numbers.

    Of a key that a program returns JAX makes an object in Python. That takes its time, and Ctrl-C
    could come in between: what was donated would be lost.

    Args:
        variable: The variable.
        key: Its value.
    """

    __slots__ = ("_forms", "_impl")

    def __init__(self, variable: VariableLike, key: jax.Array):
        super().__init__(variable)
        self._impl = jax.random.key_impl(key)
        # The numbers and the key, of which one may not be there yet. A list for each value: a
        # thread that reads without a lock completes the one that it has found.
        self._forms: list[Any] = [None, key]

    @property
    def array(self) -> jax.Array:
        """The numbers."""
        forms = self._forms
        if forms[0] is None:
            with jax.ensure_compile_time_eval():
                # A copy, or the key of the user's would be donated, too.
                forms[0] = jnp.copy(jax.random.key_data(forms[1]))
        return forms[0]

    @array.setter
    def array(self, new: jax.Array) -> None:
        self._forms = [new, None]

    def get(self, slot: int, /) -> jax.Array:
        forms = self._forms
        variable = self._variable()
        if forms[1] is None and forms[0].is_deleted() and variable is not None:
            # Another thread has donated it, and has a new one before it gives the lock back.
            with variable.lock:
                forms = self._forms
        if forms[1] is None:
            with jax.ensure_compile_time_eval():  # a value, even if it is asked for inside a trace
                forms[1] = self._as_key(forms[0])
        return forms[1]

    def _as_key(self, numbers: jax.Array) -> jax.Array:
        if not numbers.is_deleted():
            return jax.random.wrap_key_data(numbers, impl=self._impl)
        gone = jax.random.wrap_key_data(jnp.zeros(numbers.shape, numbers.dtype), impl=self._impl)
        gone.delete()
        return gone

    def set(self, slot: int, key: jax.Array, /) -> None:
        self._forms = [None, key]

    def is_deleted(self, slot: int = 0, /) -> bool:
        numbers, key = self._forms
        return (key if numbers is None else numbers).is_deleted()

    def unalias(self) -> None:
        """Nothing: the numbers are a copy."""

    def unpack(self, numbers: Any, slots: Collection[int], /) -> dict[int, Any]:
        return {0: jax.random.wrap_key_data(numbers, impl=self._impl)}

    def repack(self, numbers: Any, new: Mapping[int, Any], /) -> Any:
        return jax.random.key_data(new[0])


def own_slot(variable: VariableLike, value: Any) -> BufferSlot:
    """Return the slot of a new buffer that one variable has for itself."""
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and not isinstance(value, Tracer)
    buffer = KeyBuffer(variable, value) if is_key else ArrayBuffer(variable, value)
    return BufferSlot(buffer)


class Buffers(tuple[Buffer, ...]):
    """The buffers that a program passes for some variables, each once, in order.

    Attributes:
        variables: For each buffer, those of the variables that are in it, by slot.
    """

    variables: list[dict[int, Any]]

    def __new__(cls, variables: Iterable[Any]) -> Self:
        found: dict[Buffer, dict[int, Any]] = {}
        for variable in variables:
            place = variable.buffer_slot
            found.setdefault(place.buffer, {})[place.index] = variable
        made = super().__new__(cls, found)
        made.variables = list(found.values())
        return made

    def arguments(
        self, donated: Sequence[int] | None, kept: Sequence[int], others: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Return the arrays of the donated buffers and those of the kept ones.

        An array that is donated twice, or donated and passed, kills the process: such a one is
        copied.

        Args:
            donated: The numbers of the donated buffers; None: a program that donates nothing.
            kept: The numbers of the rest.
            others: What else the program is given.

        Raises:
            RuntimeError: An array is gone, since it was donated before.
        """
        arrays = [buffer.array for buffer in self]
        if not donated:
            return [], arrays
        for i, array in enumerate(arrays):
            if array.is_deleted():
                raise RuntimeError(
                    f"the array of {self[i].name} was donated before and is gone: assign it, or "
                    "load the model"
                )
        given = [arrays[i] for i in donated] if kept else arrays
        rest = [arrays[i] for i in kept]
        ids = {id(array) for array in arrays}
        if len(ids) == len(arrays) and ids.isdisjoint([id(other) for other in others]):
            return given, rest
        taken = {id(array) for array in [*others, *rest]}
        single = []
        for array in given:
            single.append(jnp.copy(array) if id(array) in taken else array)
            taken.add(id(array))
        return single, rest

    # Inside a program

    def unpack(self, arrays: Sequence[Any]) -> dict[Any, Any]:
        """Return the value of each variable, of the traced arrays of the buffers."""
        found: dict[Any, Any] = {}
        for buffer, array, variables in zip(self, arrays, self.variables, strict=True):
            values = buffer.unpack(array, variables)
            for slot, variable in variables.items():
                found[variable] = values[slot]
        return found

    def repack(self, arrays: Sequence[Any], changes: Mapping[Any, Any]) -> dict[int, Any]:
        """Return the new arrays of the buffers that changed, by their numbers."""
        found: dict[int, Any] = {}
        for i, (buffer, array) in enumerate(zip(self, arrays, strict=True)):
            new: dict[int, Any] = {}
            for slot, variable in self.variables[i].items():
                if variable in changes:
                    new[slot] = changes[variable]
            if new:
                found[i] = buffer.repack(array, new)
        return found


@finish_on_interrupt
@writer
def store(buffers: Sequence[Buffer], arrays: Mapping[int, Any]) -> None:
    """Write the arrays of some buffers, by their numbers."""
    for i, array in arrays.items():
        buffers[i].array = array


def lost(variables: Iterable[Any]) -> str:
    """Return the names of the variables whose array was donated to a program that failed."""
    gone = []
    for variable in variables:
        place = variable.buffer_slot
        if place.buffer.is_deleted(place.index):
            gone.append(variable.name)
    more = f" and {len(gone) - 4} more" if len(gone) > 4 else ""
    return ", ".join(gone[:4]) + more
