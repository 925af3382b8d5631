"""What a function or another callable object holds, and how to make it again with something else in place."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias

import jax

from seqbridge._callable import FunctionLike
from seqbridge._uses import Use, uses

Opened: TypeAlias = tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]


def opened(obj: Any, read: Collection[Use] | None = None) -> Opened | None:
    """The parts of `obj` and how to make it again from such parts; None: it can't be opened.

    Args:
        obj: A function, a container, an object.
        read: The attributes of it that are used, each with what is read of it; None: all of it may be.
    """
    if isinstance(obj, functools.partial):
        n = 1 + len(obj.args)
        children = [("func", obj.func), *((str(i), a) for i, a in enumerate(obj.args)), *obj.keywords.items()]
        return children, lambda c: functools.partial(*c[:n], **dict(zip(obj.keywords, c[n:], strict=True)))
    if inspect.ismethod(obj):
        return [("self", obj.__self__)], lambda c: types.MethodType(obj.__func__, c[0])
    if inspect.isfunction(obj):
        return _open_function(obj)
    if isinstance(obj, FunctionLike):  # inside a model that is compiled it makes no difference
        return [("func", obj._function), *((str(i), holder) for i, holder in enumerate(obj._closed))], lambda c: c[0]
    if type(obj) in (dict, types.MappingProxyType):
        return [(str(k), v) for k, v in obj.items()], lambda c: dict(zip(obj, c, strict=True))
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return [(f, getattr(obj, f)) for f in obj._fields], lambda c: type(obj)(*c)  # pyright: ignore
    if type(obj) in (list, tuple):
        return [(str(i), v) for i, v in enumerate(obj)], type(obj)
    # A pytree is a module of a library that no adapter is here for; how its parts belong together isn't known.
    plain = hasattr(obj, "__dict__") and not isinstance(obj, type | types.ModuleType) and not _from_jax(obj)
    known = read is not None and all(name in vars(obj) for name, *_ in read) if plain else False
    if plain and (callable(obj) or known) and all(leaf is obj for leaf in jax.tree.leaves(obj)):
        held = {name: vars(obj)[name] for name, *_ in read} if read is not None and known else vars(obj)
        return list(held.items()), lambda c: _with_attributes(obj, dict(zip(held, c, strict=True)))
    return None


def read_of(obj: Any, label: str) -> list[Use] | None:
    """What a function, or the function of a bound method, reads of a part of it; None: it may use all of that."""
    function = obj.__func__ if inspect.ismethod(obj) else obj
    if not inspect.isfunction(function):
        return None
    own = function.__code__.co_varnames[0] if inspect.ismethod(obj) and function.__code__.co_argcount else None
    wanted = own if label == "self" and own is not None else label
    if wanted != own and label not in function.__code__.co_freevars:
        return None
    read = [attributes for name, *attributes in uses(function.__code__, own) if name == wanted]
    return [tuple(attributes) for attributes in read] if read and all(read) else None


def cells_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function closes over."""
    return {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
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
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        )
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, tuple(values[: len(named)]) or None, closure
        )
        made.__kwdefaults__ = dict(zip(only, values[len(named) :], strict=True)) or None
        made.__dict__.update(function.__dict__)
        return made

    return [*cells.items(), *named.items(), *only.items()], make


def _with_attributes(obj: Any, attributes: dict[str, Any]) -> Any:
    made = copy.copy(obj)
    made.__dict__.update(attributes)
    return made


def _from_jax(obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] in ("jax", "jaxlib")


def parts_of(obj: Any) -> list[Any]:
    """What an object that can't be made again holds."""
    wrapped = getattr(obj, "__wrapped__", None)
    if wrapped is not None:
        return [wrapped]
    slots = [getattr(obj, n, None) for base in type(obj).__mro__ for n in _strings(getattr(base, "__slots__", ()))]
    leaves = [leaf for leaf in jax.tree.leaves(obj) if leaf is not obj]
    return [*getattr(obj, "__dict__", {}).values(), *slots, *leaves]


def _strings(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else [n for n in names if not n.startswith("__")]
