"""A simple look at what a function may mean by the names in its code.

It runs no code and follows no values, so that it finds too much, or too little. It gives a name to
what the trace of a function was found to use, and says what may be wrong where a call fails.
"""

from __future__ import annotations

import collections
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from seqbridge._entries.destructure import (
    attributes_of,
    destructure,
    is_constant,
    names_in,
    of_jax,
    wrapped_by,
)
from seqbridge._interface import PureLayer, ask
from seqbridge._state import Stateful

_STEPS = 6
_MOST = 5_000  # objects that are looked at


class Found(NamedTuple):
    """Something that a function can reach.

    Attributes:
        place: How it is written, as far as that can be told: `CONFIG.table`.
        value: The object.
    """

    place: str
    value: Any


def module_of_library(obj: Any) -> PureLayer | TypeError | None:
    """The `PureLayer` of a module, or why it can't be an entry; None: it is no module."""
    try:
        return ask(obj, obj if isinstance(obj, type) else type(obj))
    except TypeError as error:
        return error


def reachable(function: Any, *, into_objects: bool = True) -> Iterator[Found]:
    """Yield what a function can reach in a few steps, the nearest first.

    Args:
        function: The function.
        into_objects: False: objects are found, and not what is in them.
    """
    base = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    children = _children if into_objects else _children_of_functions
    yield from _search(Found("", function), getattr(base, "__module__", None), children)


def model_inside(entry: Any) -> Stateful | None:
    """Return a model that a module, or a `partial` of its class, holds at any depth; else None."""
    for obj in objects_inside(entry):
        if isinstance(obj, Stateful):
            return obj
    return None


def objects_inside(entry: Any) -> Iterator[Any]:
    """Yield an object and what stands in its attributes and containers, but no arrays."""
    waiting, seen = collections.deque([entry]), dict[int, Any]()
    while waiting and len(seen) < _MOST:
        obj = waiting.popleft()
        is_leaf = is_constant(obj) or isinstance(obj, jax.Array | type | PureLayer)
        if is_leaf or id(obj) in seen or inspect.isroutine(obj) or of_jax(obj):
            continue
        seen[id(obj)] = obj
        yield obj
        if isinstance(obj, functools.partial):
            waiting.extend([*obj.args, *obj.keywords.values()])
        elif isinstance(obj, dict):
            waiting.extend(obj.values())
        elif isinstance(obj, list | tuple):
            waiting.extend(obj)  # `+=` would ask an `__radd__` of its own
        elif not isinstance(obj, Stateful):
            waiting.extend(attributes_of(obj).values())


def classes_named_by(function: types.FunctionType) -> Iterator[tuple[type, object]]:
    """Classes of libraries' modules that a function names, each with what its adapter says.

    Also those that a function of the same module names which this one calls.
    """

    def functions_and_classes(found: Found, module: str | None) -> Iterator[Found]:
        if inspect.isfunction(found.value):
            for child in _children(found, module):
                if inspect.isfunction(child.value) or isinstance(child.value, type):
                    yield child

    for found in _search(Found("", function), function.__module__, functions_and_classes):
        if isinstance(found.value, type):
            reason = module_of_library(found.value)
            if reason is not None:
                yield found.value, reason


def _search(
    start: Found,
    module: str | None,
    children: Callable[[Found, str | None], Iterator[Found]],
) -> Iterator[Found]:
    waiting = collections.deque([(start, 0)])
    seen: dict[int, Any] = {}
    while waiting and len(seen) < _MOST:
        found, steps = waiting.popleft()
        if id(found.value) in seen:
            continue
        seen[id(found.value)] = found.value
        yield found
        if steps < _STEPS:
            waiting.extend((child, steps + 1) for child in children(found, module))


def _children(found: Found, module: str | None) -> Iterator[Found]:
    place, obj = found
    if _is_leaf(obj):
        return
    wrapped = wrapped_by(obj)
    if wrapped is not None:
        yield Found(place, wrapped)
    if inspect.isfunction(obj):
        if not of_jax(obj):
            yield from _named_by(obj, module)
    elif isinstance(obj, functools.partial):
        for value in (obj.func, *obj.args, *obj.keywords.values()):
            yield Found(place, value)
    elif inspect.ismethod(obj):
        yield Found(place or "self", obj.__self__)
        yield Found(place, obj.__func__)
    elif isinstance(obj, property):
        yield Found(place, obj.fget)
    elif isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield Found(f"{place}[{key!r}]", value)
    elif isinstance(obj, list | tuple | collections.deque):
        for i, value in enumerate(list(obj)):
            yield Found(f"{place}[{i}]", value)
    elif isinstance(obj, type):
        yield from _attributes_of_class(obj, place)
    elif not of_jax(obj):
        for name, value in attributes_of(obj).items():
            yield Found(f"{place or 'self'}.{name}", value)
        yield from _attributes_of_class(type(obj), place or "self")


def _children_of_functions(found: Found, module: str | None) -> Iterator[Found]:
    obj = found.value
    holds_functions = isinstance(obj, functools.partial | list | tuple | dict)
    if holds_functions or inspect.isroutine(obj) or wrapped_by(obj) is not None:
        yield from _children(found, module)


def _is_leaf(obj: Any) -> bool:
    """Whether nothing is to be looked for in an object."""
    if type(obj) in (list, tuple):
        return False
    return isinstance(obj, Stateful | jax.Array) or is_constant(obj)


def _attributes_of_class(cls: type, place: str) -> Iterator[Found]:
    for base in cls.__mro__:
        if base.__module__ != "builtins":
            for name, value in vars(base).items():
                yield Found(f"{place}.{name}", value)


def _named_by(function: types.FunctionType, module: str | None) -> Iterator[Found]:
    """Yield a function's closure, its defaults, and the globals that it names.

    Globals count only if the function is of this module.
    """
    parts = destructure(function)
    assert parts is not None
    found = dict(parts.children)
    names = names_in(function.__code__)
    if function.__module__ == module:
        for name in sorted(names & function.__globals__.keys()):
            found.setdefault(name, function.__globals__[name])
    for name, value in found.items():
        if isinstance(value, types.ModuleType):
            yield from _named_of_package(value, names)
        else:
            yield Found(name, value)


def _named_of_package(package: types.ModuleType, names: frozenset[str]) -> Iterator[Found]:
    """Yield what these names may mean as `package.name`, or `package.inner.name`."""
    waiting, seen = [(package.__name__.rpartition(".")[2], package)], set[int]()
    while waiting:
        place, here = waiting.pop()
        seen.add(id(here))
        for name in sorted(names & vars(here).keys()):
            value = vars(here)[name]
            if not isinstance(value, types.ModuleType):
                yield Found(f"{place}.{name}", value)
            elif id(value) not in seen:
                waiting.append((f"{place}.{name}", value))
