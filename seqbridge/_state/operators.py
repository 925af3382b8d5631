"""Arithmetic on whatever holds one array in `.value`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import jax

_IN_PLACE = {  # the operators that are refused in place: `v += x`
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
    "matmul": "@", "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
}  # fmt: skip


def _plain(other: Any) -> Any:
    """Return the array of an operand."""
    return other.value if isinstance(other, Operators) else other


class Operators:
    """The operators of an array, on the value; equality is left alone, since it is identity."""

    __slots__ = ()

    # So that NumPy leaves `array + variable` to the variable.
    __array_priority__ = 1000

    @property
    @abstractmethod
    def value(self) -> jax.Array:
        """The array."""

    def __add__(self, other: Any) -> jax.Array:
        return self.value + _plain(other)

    def __radd__(self, other: Any) -> jax.Array:
        return _plain(other) + self.value

    def __sub__(self, other: Any) -> jax.Array:
        return self.value - _plain(other)

    def __rsub__(self, other: Any) -> jax.Array:
        return _plain(other) - self.value

    def __mul__(self, other: Any) -> jax.Array:
        return self.value * _plain(other)

    def __rmul__(self, other: Any) -> jax.Array:
        return _plain(other) * self.value

    def __truediv__(self, other: Any) -> jax.Array:
        return self.value / _plain(other)

    def __rtruediv__(self, other: Any) -> jax.Array:
        return _plain(other) / self.value

    def __floordiv__(self, other: Any) -> jax.Array:
        return self.value // _plain(other)

    def __rfloordiv__(self, other: Any) -> jax.Array:
        return _plain(other) // self.value

    def __mod__(self, other: Any) -> jax.Array:
        return self.value % _plain(other)

    def __rmod__(self, other: Any) -> jax.Array:
        return _plain(other) % self.value

    def __pow__(self, other: Any) -> jax.Array:
        return self.value ** _plain(other)

    def __rpow__(self, other: Any) -> jax.Array:
        return _plain(other) ** self.value

    def __matmul__(self, other: Any) -> jax.Array:
        return self.value @ _plain(other)

    def __rmatmul__(self, other: Any) -> jax.Array:
        return _plain(other) @ self.value

    def __divmod__(self, other: Any) -> tuple[jax.Array, jax.Array]:
        return divmod(self.value, _plain(other))

    def __rdivmod__(self, other: Any) -> tuple[jax.Array, jax.Array]:
        return divmod(_plain(other), self.value)

    def __and__(self, other: Any) -> jax.Array:
        return self.value & _plain(other)

    def __rand__(self, other: Any) -> jax.Array:
        return _plain(other) & self.value

    def __or__(self, other: Any) -> jax.Array:
        return self.value | _plain(other)

    def __ror__(self, other: Any) -> jax.Array:
        return _plain(other) | self.value

    def __xor__(self, other: Any) -> jax.Array:
        return self.value ^ _plain(other)

    def __rxor__(self, other: Any) -> jax.Array:
        return _plain(other) ^ self.value

    def __lshift__(self, other: Any) -> jax.Array:
        return self.value << _plain(other)

    def __rlshift__(self, other: Any) -> jax.Array:
        return _plain(other) << self.value

    def __rshift__(self, other: Any) -> jax.Array:
        return self.value >> _plain(other)

    def __rrshift__(self, other: Any) -> jax.Array:
        return _plain(other) >> self.value

    def __lt__(self, other: Any) -> jax.Array:
        return self.value < _plain(other)

    def __le__(self, other: Any) -> jax.Array:
        return self.value <= _plain(other)

    def __gt__(self, other: Any) -> jax.Array:
        return self.value > _plain(other)

    def __ge__(self, other: Any) -> jax.Array:
        return self.value >= _plain(other)

    def __neg__(self) -> jax.Array:
        return -self.value

    def __pos__(self) -> jax.Array:
        return +self.value

    def __invert__(self) -> jax.Array:
        return ~self.value

    def __abs__(self) -> jax.Array:
        return abs(self.value)

    def __setitem__(self, index: Any, new: Any) -> None:
        raise TypeError(
            "a part is replaced by `v.value = v.value.at[index].set(x)`, and all of it by "
            "`v.value = x`"
        )


def _refusal(sign: str) -> Callable[[Operators, Any], NoReturn]:
    def refuse(self: Operators, other: Any) -> NoReturn:
        raise TypeError(
            f"`v {sign}= x` would give the name v to a new array and leave the variable as it is: "
            f"write `v.value {sign}= x`, which changes it"
        )

    return refuse


for _name, _sign in _IN_PLACE.items():
    setattr(Operators, f"__i{_name}__", _refusal(_sign))
