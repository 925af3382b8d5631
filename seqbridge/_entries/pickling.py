"""Entries as pickle can carry them: by import path, or else as their adapter says."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import jax

from seqbridge._interface import Inputs, Keywords, PureLayer, ask
from seqbridge._state import Stateful


class _Call:
    """Unpickles as `function(*args)`, in place of `obj`."""

    def __init__(self, obj: Any, function: Callable[..., Any], args: Inputs):
        self._obj = obj  # kept, so that no other object gets its id
        self._call = function, args
        _calls[id(obj)] = self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


# By the id of their objects; a pickler keeps those of one pickle, so that an object which stands at
# two places is one again.
_calls: WeakValueDictionary[int, _Call] = WeakValueDictionary()


def portable(obj: Any) -> Any:
    """Return `obj`, or something that unpickles as it.

    JAX functions don't pickle in every version, though all can be imported, and modules tend to
    hold local functions. The class of a shape has stood in several modules of JAX.
    """
    known = _calls.get(id(obj))
    if known is not None:
        return known
    if isinstance(obj, jax.ShapeDtypeStruct):
        return _Call(obj, _shape, (obj.shape, obj.dtype))
    if callable(obj):
        module = getattr(obj, "__module__", None)
        name = getattr(obj, "__qualname__", getattr(obj, "__name__", None))
        if isinstance(module, str) and isinstance(name, str) and _find(module, name) is obj:
            return _Call(obj, _load, (module, name))
    if isinstance(obj, types.MethodType):
        return _Call(obj, getattr, (portable(obj.__self__), obj.__func__.__name__))
    if isinstance(obj, functools.partial):
        parts = portable(obj.func), portable(obj.args), portable(obj.keywords)
        return _Call(obj, _partial, parts)
    if type(obj) is list or type(obj) is tuple:
        return type(obj)(portable(o) for o in obj)  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
    if type(obj) is dict:
        return {k: portable(v) for k, v in obj.items()}  # pyright: ignore[reportFunctionMemberAccess]
    pure = obj if isinstance(obj, PureLayer) else None
    if pure is None and not isinstance(obj, type | Stateful):
        pure = ask(obj, type(obj))
    if pure is not None and pure.reduce is not None:
        function, args = pure.reduce
        return _Call(obj, function, tuple(portable(arg) for arg in args))
    return obj


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _find(module: str, path: str) -> Any:
    """The object of this path in a module that is imported, or None."""
    found = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _load(module: str, path: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _partial(function: Callable[..., Any], args: Inputs, keywords: Keywords) -> Any:
    return functools.partial(function, *args, **keywords)
