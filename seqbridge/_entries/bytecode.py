"""What the code of a function uses of what is around it: names, and the attributes that it reads of them."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from seqbridge._interface import PureLayer, ask
from seqbridge._state import Stateful

Use: TypeAlias = tuple[str, ...]  # a name, and the attributes that are read of it in a row

_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_AROUND = (
    "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "LOAD_FROM_DICT_OR_GLOBALS",
)  # fmt: skip


@functools.lru_cache(maxsize=1024)
def uses(code: types.CodeType, own: str | None = None) -> tuple[Use, ...]:
    """Each use of a global or of a variable of an enclosing function, also in the functions inside of this one.

    Args:
        code: The code.
        own: A parameter whose uses are wanted, too: `self`, say.

    Examples:
        >>> uses((lambda x: x / jax.numpy.linalg.norm(x)).__code__)
        (('jax', 'numpy', 'linalg', 'norm'),)
    """
    found = dict.fromkeys(_uses(code, own))
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= dict.fromkeys(uses(inner))
    return tuple(
        use for use in found if use[0] == own or use[0] not in code.co_cellvars
    )  # which are its own


def _uses(code: types.CodeType, own: str | None) -> Iterator[Use]:
    if own is not None and "__class__" in code.co_freevars:  # for `super()`, which takes it unseen
        yield (own,)
    chain: Use = ()
    for step in dis.get_instructions(code):
        if chain and step.opname in _ATTRIBUTES:
            chain += (step.argval,)
            continue
        if chain:
            yield chain
        names = (
            step.argval if isinstance(step.argval, tuple) else (step.argval,)
        )  # some instructions load two
        if (
            "LOAD_FAST" in step.opname and own not in code.co_cellvars
        ):  # else that is how a closure is made
            yield from [(own,) for name in names[:-1] if own is not None and name == own]
            chain = (names[-1],) if names[-1] == own else ()
        else:
            chain = names if step.opname in _AROUND else ()
    if chain:
        yield chain


def is_constant(obj: Any) -> bool:
    """Whether a value is one that no function is asked to make a parameter of."""
    if type(obj) in (list, tuple):
        return all(map(is_constant, obj))
    kinds = (
        str
        | bytes
        | int
        | float
        | complex
        | None
        | types.ModuleType
        | np.ndarray
        | np.generic
        | np.dtype
    )
    return isinstance(obj, kinds) or getattr(type(obj), "holds_constants", False)


def used_of(value: Any, attributes: Iterable[str]) -> Any:
    """What is used of a value if these attributes are read of it, one of the other; None: only constants."""
    for name in attributes:
        module = _library(value)
        if name in ("init", "apply") and isinstance(module, PureLayer) and not module.ready:
            return None  # which are given the parameters
        inside = (
            value._asdict() if hasattr(type(value), "_asdict") else getattr(value, "__dict__", {})
        )
        if (
            isinstance(value, type)
            or name not in inside
            or (module and not is_constant(inside[name]))
        ):
            return value
        value = inside[name]
    return None if is_constant(value) else value


def _library(value: Any) -> PureLayer | bool:
    """The neutral form of a module of some library; True: a model, or what such a library has that is no entry."""
    try:
        return ask(value, type(value)) or isinstance(value, Stateful)
    except TypeError:
        return True
