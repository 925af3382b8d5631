"""`Bare`: what a variable holds in place of a key, so that programs take and return numbers.

Of a key that a program returns JAX makes an object in Python. That takes its time, and Ctrl-C could
come in between: what was donated would be lost.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Boxed(Protocol):
    """A variable, as far as buffers know it."""

    lock: threading.RLock

    @property
    def name(self) -> str: ...


class Holder(Protocol):
    """An array in which those of several variables lie."""

    def get(self, index: int, /) -> Any:
        """The value of one."""

    def set(self, index: int, value: Any, /) -> bool:
        """Takes a new value of one, or says that the variable is to hold it itself."""
        ...


class Within(NamedTuple):
    """A place in a holder."""

    holder: Holder
    place: int


class Bare:
    """A key, or an array of keys, and its numbers.

    Args:
        box: The variable.
        key: Its value.
    """

    __slots__ = ("__weakref__", "_box", "_forms", "_impl")

    def __init__(self, box: Boxed, key: jax.Array):
        self._box = weakref.ref(box)
        self._impl = jax.random.key_impl(key)
        # The numbers and the key, of which one may not be there yet. A list for each value: a
        # thread that reads without a lock completes the one that it has found.
        self._forms: list[Any] = [None, key]

    @property
    def _array(self) -> jax.Array:
        """The numbers, as a program takes them."""
        forms = self._forms
        if forms[0] is None:
            with jax.ensure_compile_time_eval():
                forms[0] = jnp.copy(
                    jax.random.key_data(forms[1])
                )  # or the key of the user's would be donated, too
        return forms[0]

    @_array.setter
    def _array(self, new: jax.Array) -> None:
        self._forms = [new, None]

    @property
    def name(self) -> str:
        return box.name if (box := self._box()) is not None else "a key"

    def living(self) -> list[Boxed]:
        return [box] if (box := self._box()) is not None else []

    def get(self, _: int) -> jax.Array:
        forms = self._forms
        if forms[1] is None:
            if forms[0].is_deleted() and (box := self._box()) is not None:
                with (
                    box.lock
                ):  # another thread has donated it, and has a new one before it gives the lock back
                    forms = self._forms
            with jax.ensure_compile_time_eval():  # a value, even if it is asked for inside a trace
                forms[1] = self._made(forms[0])
        return forms[1]

    def _made(self, numbers: jax.Array) -> jax.Array:
        if not numbers.is_deleted():
            return jax.random.wrap_key_data(numbers, impl=self._impl)
        gone = jax.random.wrap_key_data(jnp.zeros(numbers.shape, numbers.dtype), impl=self._impl)
        gone.delete()
        return gone

    def set(self, _: int, key: jax.Array) -> bool:
        self._forms = [None, key]
        return True

    def dissolve(self) -> None:
        """It is of one variable, wherever that lies."""

    # Inside a program

    def parts(self, numbers: Any, which: Iterable[int]) -> dict[int, Any]:
        return {i: jax.random.wrap_key_data(numbers, impl=self._impl) for i in which}

    def rejoined(self, numbers: Any, new: Mapping[int, Any]) -> Any:
        (key,) = new.values()
        return jax.random.key_data(key)
