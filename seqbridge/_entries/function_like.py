"""Objects that behave like functions in a class, in a copy and in a pickle."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

Owner = TypeVar("Owner")
P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class FunctionLike(Generic[P, R]):
    """Something that is made of a function and stands in its place."""

    wrapped_function: Callable[P, R]
    closed_holders: list[Any]  # of variables that the function uses and doesn't take

    @overload
    def __get__(self, owner: None, cls: type, /) -> Self: ...
    @overload
    def __get__(
        self: FunctionLike[Concatenate[Owner, Q], R], owner: Owner, cls: type | None = None, /
    ) -> Callable[Q, R]: ...
    def __get__(self, owner: Any, cls: type | None = None, /) -> Any:
        me: Any = self
        return me if owner is None else types.MethodType(me, owner)

    def __reduce__(self) -> str:
        if not isinstance(self.wrapped_function, types.FunctionType):
            raise TypeError(f"{self!r} is for one object: copy that, and make sb.jit of the copy")
        # As Python has functions: by name, and no copy is another.
        return self.wrapped_function.__qualname__

    def __repr__(self) -> str:
        name = getattr(self.wrapped_function, "__name__", type(self.wrapped_function).__name__)
        return f"sb.jit({name})"
