"""What the code of a function uses of what is around it: names, and the attributes that it reads of them."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import TypeAlias

Use: TypeAlias = tuple[str, ...]  # a name, and the attributes that are read of it in a row

_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_AROUND = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF")


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
    return tuple(use for use in found if use[0] == own or use[0] not in code.co_cellvars)  # which are its own


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
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)  # some instructions load two
        if "LOAD_FAST" in step.opname and own not in code.co_cellvars:  # else that is how a closure is made
            yield from [(own,) for name in names[:-1] if own is not None and name == own]
            chain = (names[-1],) if names[-1] == own else ()
        else:
            chain = names if step.opname in _AROUND else ()
    if chain:
        yield chain
