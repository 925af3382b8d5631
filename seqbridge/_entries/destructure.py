"""What a function or another callable object holds, and how to make it again with something else in place."""

from __future__ import annotations

import collections
import copy
import functools
import inspect
import types
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax

from seqbridge._entries.bytecode import Use, uses
from seqbridge._entries.function_like import FunctionLike

_Items = dict | list | tuple | set | frozenset | collections.deque
Opened: TypeAlias = tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]


def opened(obj: Any, read: Collection[Use] | None = None) -> Opened | None:
    """The parts of `obj` and how to make it again from such parts; None: it can't be opened.

    Args:
        obj: A function, a container, an object.
        read: The attributes of it that are used, each with what is read of it; None: all of it may
            be.
    """
    if isinstance(obj, functools.partial):
        n = 1 + len(obj.args)
        children = [
            ("func", obj.func),
            *((str(i), a) for i, a in enumerate(obj.args)),
            *obj.keywords.items(),
        ]
        return children, lambda c: functools.partial(
            *c[:n], **dict(zip(obj.keywords, c[n:], strict=True))
        )
    if inspect.ismethod(obj):
        return [("self", obj.__self__), ("func", obj.__func__)], lambda c: types.MethodType(
            c[1], c[0]
        )
    if inspect.isfunction(obj):
        return _open_function(obj)
    if isinstance(obj, FunctionLike):  # inside a model that is compiled it makes no difference
        return [
            ("func", obj.wrapped_function),
            *((str(i), holder) for i, holder in enumerate(obj.closed_holders)),
        ], lambda c: c[0]
    if type(obj) in (dict, types.MappingProxyType):
        return [(str(k), v) for k, v in obj.items()], lambda c: dict(zip(obj, c, strict=True))
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return [(f, getattr(obj, f)) for f in obj._fields], lambda c: type(obj)(*c)  # pyright: ignore
    if type(obj) in (list, tuple):
        return [(str(i), v) for i, v in enumerate(obj)], type(obj)
    # A pytree is a module of a library that no adapter is here for; how its parts belong together
    # isn't known.
    plain = (
        hasattr(obj, "__dict__")
        and not isinstance(obj, type | types.ModuleType | _Items)
        and not _from_jax(obj)
    )
    if (
        plain
        and (callable(obj) or read is not None)
        and all(leaf is obj for leaf in jax.tree.leaves(obj))
    ):
        if read is None and _slots(obj):
            return None
        held = vars(obj) if read is None else {name: vars(obj)[name] for name, *_ in read}
        return list(held.items()), lambda c: _with_attributes(obj, dict(zip(held, c, strict=True)))
    return None


def read_of(obj: Any, label: str) -> list[Use] | None:
    """What a function reads of a variable around it, or a bound method of its object; None: it may use all of that."""
    if inspect.ismethod(obj) and label == "self":
        return methods_of(obj)[1]
    if not inspect.isfunction(obj) or label not in obj.__code__.co_freevars:
        return None
    read = [tuple(attributes) for name, *attributes in uses(obj.__code__) if name == label]
    return read if read and all(read) else None


def methods_of(obj: Any) -> tuple[list[Any], list[Use] | None]:
    """The function of a bound method, or `__call__` of an object, with what else of its class that uses.

    Returns:
        The functions and what else is in the class, and what these functions read of their object;
        None: it may be all.
    """
    first, owner = (
        (obj.__func__, obj.__self__) if inspect.ismethod(obj) else (type(obj).__call__, obj)
    )
    found: dict[int, types.FunctionType] = {}
    others: list[Any] = []
    read: list[Use] = []
    whole = (
        not inspect.isfunction(first) or not hasattr(owner, "__dict__") or isinstance(owner, type)
    )
    waiting = [first]
    while waiting:
        here = waiting.pop()
        if not inspect.isfunction(here) or id(here) in found:
            continue
        found[id(here)] = here
        own = here.__code__.co_varnames[0] if here.__code__.co_argcount else None
        for name, *attributes in uses(here.__code__, own):
            if name != own:
                continue
            member = (
                inspect.getattr_static(type(owner), attributes[0], None) if attributes else None
            )
            if isinstance(member, property):  # which comes before what the object has of that name
                waiting.append(member.fget or first)
            elif attributes and attributes[0] in getattr(owner, "__dict__", {}):
                read.append(tuple(attributes))
            elif inspect.isfunction(member):
                waiting.append(member)
            elif isinstance(member, staticmethod | classmethod):
                others.append(member.__func__)
            elif member is not None and not hasattr(type(member), "__get__"):
                others.append(member)
            else:  # of the object itself, of nobody knows whom, or what a descriptor makes of it
                waiting.append(wrapped_by(member))
                whole = True
    return [*found.values(), *others], None if whole else read


def cells_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function closes over."""
    return {
        name: cell.cell_contents
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        )
        if cell != types.CellType()  # an empty cell, of a name that isn't bound yet
    }


def _open_function(function: types.FunctionType) -> Opened:
    cells = cells_of(function)
    defaults = function.__defaults__ or ()
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    only = function.__kwdefaults__ or {}

    def make(children: list[Any]) -> Callable[..., Any]:
        inside = dict(zip(cells, children, strict=False))
        values = children[len(cells) :]
        closure = tuple(
            types.CellType(inside[name]) if name in inside else cell
            for name, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            )
        )
        made = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            tuple(values[: len(named)]) or None,
            closure,
        )
        made.__kwdefaults__ = dict(zip(only, values[len(named) :], strict=True)) or None
        made.__dict__.update(function.__dict__)
        return made

    return [*cells.items(), *named.items(), *only.items()], make


def _with_attributes(obj: Any, attributes: dict[str, Any]) -> Any:
    made = copy.copy(obj)
    if made is obj:  # of which a class says that there is one
        made = object.__new__(type(obj))
        made.__dict__.update(vars(obj))
    made.__dict__.update(attributes)
    return made


def _from_jax(obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] in ("jax", "jaxlib")


def parts_of(obj: Any) -> list[Any]:
    """What an object that can't be made again holds."""
    wrapped = wrapped_by(obj)
    if wrapped is not None:
        return [wrapped]
    items = (
        list(obj.values())
        if isinstance(obj, dict)
        else list(obj)
        if isinstance(obj, _Items)
        else []
    )
    bound = (
        obj.__self__
        if inspect.isbuiltin(obj) and not isinstance(obj.__self__, types.ModuleType)
        else None
    )
    leaves = [leaf for leaf in jax.tree.leaves(obj) if leaf is not obj]
    return [*getattr(obj, "__dict__", {}).values(), *_slots(obj), *items, bound, *leaves]


def wrapped_by(obj: Any) -> Any:
    """The function that a decorator has wrapped."""
    try:
        return obj.__wrapped__
    except Exception:  # whatever an object of the user's does that is asked for what it hasn't
        return None


def _slots(obj: Any) -> list[Any]:
    found = []
    for base in type(obj).__mro__:
        names = vars(base).get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            found.append(
                getattr(obj, f"_{base.__name__.lstrip('_')}{name}" if private else name, None)
            )
    return [
        value
        for value in found
        if value is not None and value is not getattr(obj, "__dict__", None)
    ]
