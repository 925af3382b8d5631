"""Parts of functions and objects, and how to make them again with other parts in place."""

from __future__ import annotations

import collections
import copy
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from seqbridge._entries.function_like import FunctionLike
from seqbridge._interface import path_text

_CONTAINERS = dict | list | tuple | set | frozenset | collections.deque
_NUMBERS = int | float | complex | np.ndarray | np.generic
_CONSTANTS = str | bytes | _NUMBERS | None | types.ModuleType | np.dtype


class Parts(NamedTuple):
    """The parts of an object.

    Attributes:
        children: Each part with its name.
        make: From other parts, in the same order, to an object like this one.
    """

    children: list[tuple[str, Any]]
    make: Callable[[list[Any]], Any]


def destructure(obj: Any) -> Parts | None:
    """Take an object apart; None: it can't be made again."""
    if isinstance(obj, functools.partial):
        return _parts_of_partial(obj)
    if inspect.ismethod(obj):
        children = [("self", obj.__self__), ("func", obj.__func__)]
        return Parts(children, lambda c: types.MethodType(c[1], c[0]))
    if inspect.isfunction(obj):
        return _parts_of_function(obj)
    if isinstance(obj, FunctionLike):  # inside a model that is compiled it makes no difference
        holders = [(str(i), holder) for i, holder in enumerate(obj.closed_holders)]
        return Parts([("func", obj.wrapped_function), *holders], lambda c: c[0])
    if type(obj) in (dict, types.MappingProxyType):
        children = [(str(key), value) for key, value in obj.items()]
        return Parts(children, lambda c: dict(zip(obj, c, strict=True)))
    if type(obj) is collections.OrderedDict:
        children = [(str(key), value) for key, value in obj.items()]
        return Parts(children, lambda c: collections.OrderedDict(zip(obj, c, strict=True)))
    if type(obj) is collections.defaultdict:
        children = [(str(key), value) for key, value in obj.items()]
        factory = obj.default_factory
        return Parts(children, lambda c: collections.defaultdict(factory, zip(obj, c, strict=True)))
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):  # a namedtuple
        fields: tuple[str, ...] = obj._fields  # pyright: ignore[reportAttributeAccessIssue]
        return Parts([(name, getattr(obj, name)) for name in fields], lambda c: type(obj)(*c))
    if type(obj) in (list, tuple):
        return Parts([(str(i), value) for i, value in enumerate(obj)], type(obj))
    if type(obj) is collections.deque:
        children = [(str(i), value) for i, value in enumerate(obj)]
        return Parts(children, lambda c: collections.deque(c, obj.maxlen))
    if is_tree(obj):
        return _parts_of_tree(obj)
    if is_plain_object(obj):
        attributes = attributes_of(obj)
        return Parts(
            list(attributes.items()),
            lambda c: with_attributes(obj, dict(zip(attributes, c, strict=True))),
        )
    return None


def is_constant(obj: Any) -> bool:
    """Whether a value is one that no function is asked to make a parameter of."""
    if type(obj) in (list, tuple):
        return all(is_constant(value) for value in obj)
    return isinstance(obj, _CONSTANTS) or getattr(type(obj), "holds_constants", False)


def is_plain_object(obj: Any) -> bool:
    """Whether an object is its attributes and nothing else."""
    if isinstance(obj, type | _CONTAINERS | _CONSTANTS) or of_jax(obj) or inspect.isroutine(obj):
        return False
    if type(obj).__module__ == "functools":  # a cache, say, which only its decorator can make
        return False
    return not is_tree(obj)


def is_tree(obj: Any) -> bool:
    """Whether a class is registered with JAX as a tree, as dataclasses of several libraries are."""
    if isinstance(obj, type | _CONTAINERS | _CONSTANTS) or of_jax(obj):
        return False
    return not jax.tree_util.all_leaves([obj])


def _parts_of_tree(obj: Any) -> Parts:
    """The children of a tree by their keys. It is made again as JAX does it."""
    children, treedef = jax.tree_util.tree_flatten_with_path(
        obj, is_leaf=lambda node: node is not obj
    )
    named = [(".".join(path_text(path)), child) for path, child in children]
    return Parts(named, treedef.unflatten)


def attributes_of(obj: Any) -> dict[str, Any]:
    """The attributes of an object, also those in slots."""
    return {**getattr(obj, "__dict__", {}), **_slots(obj)}


def contents(obj: Any) -> list[Any]:
    """Return what is inside an object that can't be made again, as far as that can be seen."""
    wrapped = wrapped_by(obj)
    if wrapped is not None:
        return [wrapped]
    found = list(attributes_of(obj).values())
    if isinstance(obj, dict):
        found.extend(obj.values())
    elif isinstance(obj, _CONTAINERS):
        found.extend(obj)
    if inspect.isbuiltin(obj) and not isinstance(obj.__self__, types.ModuleType):
        found.append(obj.__self__)
    return found + [leaf for leaf in jax.tree.leaves(obj) if leaf is not obj]


def wrapped_by(obj: Any) -> Any:
    """The function that a decorator has wrapped, or None."""
    try:
        return obj.__wrapped__
    except Exception:  # whatever an object of the user's does that is asked for what it hasn't
        return None


def of_jax(obj: Any) -> bool:
    """Whether the class of an object, or a function, is one of JAX."""
    module = obj.__module__ if inspect.isfunction(obj) else type(obj).__module__
    return (module or "").partition(".")[0] in ("jax", "jaxlib")


@functools.lru_cache(maxsize=1024)
def names_in(code: types.CodeType) -> frozenset[str]:
    """The globals and attributes that code names, also in the functions inside of it."""
    names = frozenset(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names |= names_in(inner)
    return names


def _parts_of_partial(partial: functools.partial[Any]) -> Parts:
    arguments = [(str(i), value) for i, value in enumerate(partial.args)]
    n = 1 + len(arguments)

    def make(parts: list[Any]) -> functools.partial[Any]:
        keywords = dict(zip(partial.keywords, parts[n:], strict=True))
        return functools.partial(*parts[:n], **keywords)

    return Parts([("func", partial.func), *arguments, *partial.keywords.items()], make)


def _parts_of_function(function: types.FunctionType) -> Parts:
    code = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    empty = types.CellType()  # that of a name which isn't bound yet
    closed = {name: cell.cell_contents for name, cell in cells.items() if cell != empty}
    defaults = function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    keyword_only = function.__kwdefaults__ or {}

    def make(parts: list[Any]) -> Callable[..., Any]:
        n = len(closed)
        filled = cells | {
            name: types.CellType(value) for name, value in zip(closed, parts[:n], strict=True)
        }
        made = types.FunctionType(
            code,
            function.__globals__,
            function.__name__,
            tuple(parts[n : n + len(named)]) or None,
            tuple(filled.values()),
        )
        made.__kwdefaults__ = dict(zip(keyword_only, parts[n + len(named) :], strict=True)) or None
        made.__dict__.update(function.__dict__)
        return made

    return Parts([*closed.items(), *named.items(), *keyword_only.items()], make)


def with_attributes(obj: Any, attributes: dict[str, Any]) -> Any:
    """Return a copy of an object with some of its attributes replaced."""
    # Not by `copy`, as the class may have ways of its own to be copied or pickled.
    try:
        made = object.__new__(type(obj))
    except TypeError:  # a class made in C
        made = copy.copy(obj)
    for name, value in {**attributes_of(obj), **attributes}.items():
        set_attribute(made, name, value)
    return made


def set_attribute(obj: Any, name: str, value: Any) -> None:
    """Set an attribute, also one in a slot, past whatever the class does at that."""
    if hasattr(obj, "__dict__") and not inspect.ismemberdescriptor(getattr(type(obj), name, None)):
        obj.__dict__[name] = value
    else:
        object.__setattr__(obj, name, value)


def _slots(obj: Any) -> dict[str, Any]:
    found = {}
    for base in type(obj).__mro__:
        names = vars(base).get("__slots__", ())
        for written in [names] if isinstance(names, str) else names:
            name = _mangled(written, base)
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                found[name] = getattr(obj, name)
    return found


def _mangled(name: str, cls: type) -> str:
    """The name under which Python keeps an attribute that is private to a class."""
    if name.startswith("__") and not name.endswith("__"):
        return f"_{cls.__name__.lstrip('_')}{name}"
    return name
