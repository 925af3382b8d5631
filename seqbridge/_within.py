"""`Within`: what a variable holds whose array lies in another array."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


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
