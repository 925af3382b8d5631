"""Parameters inside a function: found and lifted, or refused, but never silently made constants of a program.

A function can hold arrays in its closure, its defaults, the arguments of a `partial`, the object of
a bound method or the attributes of a callable object. Each of these can be made again with other
arrays in place. What can't be opened and made again, such as a compiled function, is searched all
the same, and refused if it holds arrays.

A NumPy array or a Python number is a constant, and so is an array that a function finds among the
globals of its module.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from seqbridge._entries.bytecode import Use, is_constant, used_of, uses
from seqbridge._entries.destructure import (
    cells_of,
    methods_of,
    opened,
    parts_of,
    read_of,
    wrapped_by,
)
from seqbridge._entries.function_like import FunctionLike
from seqbridge._interface import MODE_FLAGS, Origin, Path, PureLayer, ask, nest, unnest
from seqbridge._state import Stateful


class Arrays(dict[Path, Any]):
    """The arrays that a function holds, by where they are; those of a module also with where they are in it."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[Path, Any] = {}


Rebuild: TypeAlias = Callable[[Mapping[Path, Any]], Any]


def lift(function: Callable[..., Any]) -> tuple[Arrays, Rebuild | None]:
    """The arrays that `function` holds, by where they are, and how to make the function again with others.

    Raises:
        TypeError: It holds a module, a model or arrays that can't be lifted.
    """
    arrays = Arrays()
    name = getattr(function, "__name__", type(function).__name__)
    return arrays, _walk(function, (), arrays, name, set())


def _walk(
    obj: Any,
    path: Path,
    arrays: Arrays,
    name: str,
    seen: set[int],
    read: Collection[Use] | None = None,
) -> Rebuild | None:
    if _is_parameter(obj):
        if path in arrays:
            raise TypeError(
                f"{name} holds two arrays of one name, {'.'.join(path)}: call them otherwise"
            )
        arrays[path] = obj
        return lambda values: values[path]
    if is_constant(obj) or id(obj) in seen:
        return None
    if read is not None and all(used_of(obj, attributes) is None for attributes in read):
        return None
    if inspect.ismethod(obj) and used_of(obj.__self__, [getattr(obj, "__name__", "")]) is None:
        return None
    seen = seen | {id(obj)}
    if path and (pure := _module(obj, ".".join(path), name)):
        return _lift_module(obj, pure, path, arrays)
    if inspect.isfunction(obj):
        _refuse_globals(obj, name)
    if read is not None and not all(
        attribute in getattr(obj, "__dict__", {}) for attribute, *_ in read
    ):
        read = None  # of its class, whose methods may use all of it
    found = opened(obj, read)
    if found is None:
        _refuse_closed(obj, path, name, seen)
        return None
    children, make = found
    _refuse_methods(obj, name, seen)
    rebuilds = [
        _walk(
            child,
            (*path, label),
            arrays,
            name,
            seen,
            read_of(obj, label) if read is None else _rest(read, label),
        )
        for label, child in children
    ]
    if not any(rebuilds):
        return None
    pairs = [(rebuild, child) for rebuild, (_, child) in zip(rebuilds, children, strict=True)]
    return lambda values: make([rebuild(values) if rebuild else child for rebuild, child in pairs])


def _refuse_methods(obj: Any, name: str, seen: set[int]) -> None:
    """Refuses an object whose methods use a module, or close over arrays: they can't be made again."""
    if (
        inspect.isfunction(obj)
        or isinstance(obj, FunctionLike | functools.partial)
        or not callable(obj)
    ):
        return
    for member in methods_of(obj)[0]:
        if not inspect.isfunction(member):
            _module(member, f"one in its class {type(obj).__name__}", name, liftable=False)
        elif not inspect.ismethod(obj) or member is not obj.__func__:  # else it is walked through
            _refuse_globals(member, name)
            _refuse_closed(member, (), name, seen)


def _rest(read: Collection[Use], label: str) -> list[Use] | None:
    """What is read of one attribute of an object of which `read` is read; None: it may be all."""
    rest = [use[1:] for use in read if use[0] == label]
    return rest if rest and all(rest) else None


def _is_parameter(obj: Any) -> bool:
    return isinstance(obj, jax.Array) and jnp.issubdtype(obj.dtype, jnp.inexact)


def _module(obj: Any, place: str, name: str, *, liftable: bool = True) -> PureLayer | None:
    """The neutral form of a module that can be lifted out of the function that holds it; None: it is no module.

    Raises:
        TypeError: A module that can't be lifted, or a model.
    """
    where = (
        f"{name} uses the class {obj.__name__}"
        if isinstance(obj, type)
        else f"{name} holds {place}"
    )
    if isinstance(obj, Stateful):
        raise TypeError(
            f"{where}, a {type(obj).__name__}: its variables would be lost. Put it into the list "
            f"itself."
        )
    cure = ""
    try:
        pure = ask(obj, obj if isinstance(obj, type) else type(obj))
    except TypeError as error:
        pure, cure = None, f" ({error})"
    else:
        if pure is None or (liftable and pure.remake is not None and _only_parameters(pure)):
            return pure
    raise TypeError(
        f"{where}: the parameters, mode and keys of that module would be lost. Put the module into "
        f"the list "
        f"itself{cure}, or make {name} a module or a transform of that library."
    )


def _only_parameters(pure: PureLayer) -> bool:
    """Whether a module is its parameters and nothing else: no state, and no mode that the function couldn't set."""
    flags = (
        MODE_FLAGS.keys() & set(pure.signature.parameters if pure.signature else ()) - pure.decided
    )
    return not flags and all(
        pure.kinds.get(collection) == "params" for collection in pure.ready or ()
    )


def _lift_module(module: Any, pure: PureLayer, path: Path, arrays: Arrays) -> Rebuild | None:
    ready, remake = unnest(pure.ready or {}), pure.remake
    places = {p: (*path, *p[1:]) for p in ready}
    arrays.update({places[p]: array for p, array in ready.items()})
    arrays.sources |= {places[p]: pure.sources.get(p, Origin(module, p)) for p in ready}
    if not places or remake is None:
        return None
    return lambda values: remake(nest({p: values[place] for p, place in places.items()}))


def _refuse_globals(function: types.FunctionType, name: str, seen: set[int] | None = None) -> None:
    """Refuses a function that builds modules, or uses one that is a global of its own module.

    Also where it stands in a container, in a class of that module, or in a function of it that this
    one calls.
    """
    seen = seen or set()
    seen.add(id(function))
    names = dict.fromkeys(_names(function.__code__))
    packages = {
        n: cell for n, cell in cells_of(function).items() if isinstance(cell, types.ModuleType)
    }
    for label, *attributes in uses(function.__code__):
        value = (
            packages.get(label)
            if label in function.__code__.co_freevars
            else function.__globals__.get(label)
        )
        for used in _reached(value, attributes, names, function.__module__):
            called = _called(used)
            if inspect.isfunction(called):
                if called.__globals__ is function.__globals__ and id(called) not in seen:
                    _refuse_globals(called, name, seen)
            elif used is not None:
                _module(used, label, name, liftable=False)
            if callable(used) and (held := next(_modules(used, with_globals=False), None)):
                raise TypeError(
                    f"{name} uses {label}, which holds a {held.label} ({held.ecosystem}): its "
                    f"parameters would be "
                    f"constants. Put {label} into the list itself."
                )


def _called(used: Any) -> Any:
    """The function that a call of something comes to: of a method, a `partial`, what a decorator has made."""
    seen = list[Any]()
    while not any(used is one for one in seen):
        seen.append(used)
        inner = used.func if isinstance(used, functools.partial) else wrapped_by(used)
        used = used.__func__ if inspect.ismethod(used) else used if inner is None else inner
    return used


def _reached(
    value: Any, attributes: Iterable[str], names: Iterable[str], module: str
) -> Iterator[Any]:
    """What a function of a module may use by a global: the value, what is in a container, in a class, in a package."""
    if isinstance(value, types.ModuleType):
        for name in attributes:
            value = vars(value).get(name) if isinstance(value, types.ModuleType) else value
        yield from _classes(value, names) if isinstance(value, types.ModuleType) else ()
        yield from (value,) if isinstance(value, type) else ()
        return
    waiting, seen = [used_of(value, attributes)], dict[int, Any]()
    while waiting:
        here = waiting.pop()
        if isinstance(here, str | bytes | int | float) or id(here) in seen:
            continue
        seen[id(here)] = here
        if type(here) in (list, tuple, dict):
            waiting += here.values() if type(here) is dict else here
            continue
        yield here
        if isinstance(here, type) and here.__module__ == module:
            waiting += [vars(here).get(name) for name in names]


def _classes(module: types.ModuleType, names: Iterable[str]) -> Iterator[type]:
    """The classes that a function which uses these names may mean by `module.name`, or `module.inner.name`."""
    waiting, seen = [module], set[int]()
    while waiting:
        here = waiting.pop()
        seen.add(id(here))
        for used in [getattr(here, name, None) for name in names if name in vars(here)]:
            if isinstance(used, type):
                yield used
            elif isinstance(used, types.ModuleType) and id(used) not in seen:
                waiting.append(used)


def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return (*code.co_names, *(name for c in inner for name in _names(c)))


def _refuse_closed(obj: Any, path: Path, name: str, seen: set[int]) -> None:
    """Refuses an object that can't be made again and holds arrays."""
    if isinstance(obj, jax.Array | type):
        return
    if isinstance(obj, jax.stages.Compiled):
        raise TypeError(
            f"{name} is compiled ahead of time: what it holds can't be seen. Give the function "
            f"itself."
        )
    inside = Arrays()
    parts = (
        parts_of(obj)
        if not inspect.isfunction(obj)
        else [child for _, child in (opened(obj) or ([], None))[0]]
    )
    for i, child in enumerate(parts):
        if isinstance(child, jax.Array) and jnp.issubdtype(child.dtype, jax.dtypes.prng_key):
            inside[(*path, str(i))] = child
        _walk(child, (*path, str(i)), inside, name, seen)
    if inside:
        raise TypeError(
            f"{name} hides {len(inside)} arrays inside a "
            f"{type(obj).__module__}.{type(obj).__name__}, from which they "
            "can't be lifted; they would be constants. Give the function that it wraps, or put the "
            "module itself into "
            "the list."
        )


def check_held(pure: PureLayer) -> None:
    """Refuses an entry if a function that it calls holds a module with parameters.

    Its own library takes such a function for a constant, and the parameters with it.

    Raises:
        TypeError: With what to do instead.
    """
    for held in pure.held:
        if module := next(_modules(held, with_globals=True), None):
            raise TypeError(
                f"{pure.label} ({pure.ecosystem}) holds a {module.label} ({module.ecosystem}) in a "
                f"function: its "
                "parameters would be constants. Put it into the list itself, as an entry of its "
                "own."
            )


def _modules(held: Any, *, with_globals: bool) -> Iterator[PureLayer]:
    """The modules with parameters that a function holds, or a container of functions."""
    waiting, seen = [held], dict[int, Any]()
    while waiting:
        obj = waiting.pop()
        if (
            id(obj) in seen
            or isinstance(obj, type)
            or not (callable(obj) or type(obj) in (list, tuple, dict))
        ):
            continue
        seen[id(obj)] = obj
        try:
            module = ask(obj, type(obj))
        except TypeError:  # an adapter's word on what is no entry
            module = None
        if module is not None and module.ready:
            yield module
        if with_globals and inspect.isfunction(obj):
            names = [use for use in uses(obj.__code__) if use[0] not in obj.__code__.co_freevars]
            found = [(obj.__globals__.get(name), attributes) for name, *attributes in names]
            used = [
                used_of(value, attributes)
                for value, attributes in found
                if not isinstance(value, types.ModuleType)
            ]
            waiting += [value for value in used if not inspect.isroutine(value)]
        found = opened(obj)
        waiting += parts_of(obj) if found is None else [child for _, child in found[0]]
