"""Parameters inside a function: found and lifted, or refused, but never silently made constants of a program.

A function can hold arrays in its closure, its defaults, the arguments of a `partial`, the object of a bound method or
the attributes of a callable object. Each of these can be made again with other arrays in place. What can't be opened
and made again, such as a compiled function, is searched all the same, and refused if it holds arrays.

A NumPy array or a Python number is a constant, and so is an array that a function finds among the globals of its
module.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from seqbridge._paths import Path, nest, unnest
from seqbridge._pure import MODE_FLAGS, Origin, PureLayer
from seqbridge._registry import ask
from seqbridge._stateful import Stateful


class Arrays(dict[Path, Any]):
    """The arrays that a function holds, by where they are; those of a module also with where they are in it."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[Path, Any] = {}


Rebuild: TypeAlias = Callable[[Mapping[Path, Any]], Any]
Opened: TypeAlias = tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]


def lift(function: Callable[..., Any]) -> tuple[Arrays, Rebuild | None]:
    """The arrays that `function` holds, by where they are, and how to make the function again with others.

    Raises:
        TypeError: It holds a module, a model or arrays that can't be lifted.
    """
    arrays = Arrays()
    name = getattr(function, "__name__", type(function).__name__)
    return arrays, _walk(function, (), arrays, name, set())


def _walk(obj: Any, path: Path, arrays: Arrays, name: str, seen: set[int]) -> Rebuild | None:
    if _is_parameter(obj):
        arrays[path] = obj
        return lambda values: values[path]
    if isinstance(obj, str | bytes | int | float | types.ModuleType) or obj is None or id(obj) in seen:
        return None
    seen = seen | {id(obj)}
    if path and (pure := _module(obj, ".".join(path), name)):
        return _lift_module(obj, pure, path, arrays)
    if inspect.isfunction(obj):
        _refuse_globals(obj, name)
    opened = _open(obj)
    if opened is None:
        _refuse_closed(obj, path, name, seen)
        return None
    children, make = opened
    rebuilds = [_walk(child, (*path, label), arrays, name, seen) for label, child in children]
    if not any(rebuilds):
        return None
    pairs = [(rebuild, child) for rebuild, (_, child) in zip(rebuilds, children, strict=True)]
    return lambda values: make([rebuild(values) if rebuild else child for rebuild, child in pairs])


def _is_parameter(obj: Any) -> bool:
    return isinstance(obj, jax.Array) and jnp.issubdtype(obj.dtype, jnp.inexact)


def _open(obj: Any) -> Opened | None:
    """The parts of `obj` and how to make it again from such parts; None: it can't be opened."""
    if isinstance(obj, functools.partial):
        n = 1 + len(obj.args)
        children = [("func", obj.func), *((str(i), a) for i, a in enumerate(obj.args)), *obj.keywords.items()]
        return children, lambda c: functools.partial(*c[:n], **dict(zip(obj.keywords, c[n:], strict=True)))
    if inspect.ismethod(obj):
        return [("self", obj.__self__)], lambda c: types.MethodType(obj.__func__, c[0])
    if inspect.isfunction(obj):
        return _open_function(obj)
    if type(obj) in (dict, types.MappingProxyType):
        return [(str(k), v) for k, v in obj.items()], lambda c: dict(zip(obj, c, strict=True))
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return [(f, getattr(obj, f)) for f in obj._fields], lambda c: type(obj)(*c)  # pyright: ignore
    if type(obj) in (list, tuple):
        return [(str(i), v) for i, v in enumerate(obj)], type(obj)
    # A pytree is a module of a library that no adapter is here for; how its parts belong together isn't known.
    plain = callable(obj) and hasattr(obj, "__dict__") and not isinstance(obj, type) and not _from_jax(obj)
    if plain and all(leaf is obj for leaf in jax.tree.leaves(obj)):
        return list(vars(obj).items()), lambda c: _with_attributes(obj, dict(zip(vars(obj), c, strict=True)))
    return None


def _open_function(function: types.FunctionType) -> Opened:
    cells = {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        if cell != types.CellType()  # an empty cell, of a name that isn't bound yet
    }
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


def _module(obj: Any, place: str, name: str, *, liftable: bool = True) -> PureLayer | None:
    """The neutral form of a module that can be lifted out of the function that holds it; None: it is no module.

    Raises:
        TypeError: A module that can't be lifted, or a model.
    """
    where = f"{name} uses the class {obj.__name__}" if isinstance(obj, type) else f"{name} holds {place}"
    if isinstance(obj, Stateful):
        raise TypeError(f"{where}, a {type(obj).__name__}: its variables would be lost. Put it into the list itself.")
    cure = ""
    try:
        pure = ask(obj, obj if isinstance(obj, type) else type(obj))
    except TypeError as error:
        pure, cure = None, f" ({error})"
    else:
        if pure is None or (liftable and pure.remake is not None and _only_parameters(pure)):
            return pure
    raise TypeError(
        f"{where}: the parameters, mode and keys of that module would be lost. Put the module into the list "
        f"itself{cure}, or make {name} a module or a transform of that library."
    )


def _only_parameters(pure: PureLayer) -> bool:
    """Whether a module is its parameters and nothing else: no state, and no mode that the function couldn't set."""
    flags = MODE_FLAGS.keys() & set(pure.signature.parameters if pure.signature else ()) - pure.decided
    return not flags and all(pure.kinds.get(collection) == "params" for collection in pure.ready or ())


def _lift_module(module: Any, pure: PureLayer, path: Path, arrays: Arrays) -> Rebuild | None:
    ready, remake = unnest(pure.ready or {}), pure.remake
    places = {p: (*path, *p[1:]) for p in ready}
    arrays.update({places[p]: array for p, array in ready.items()})
    arrays.sources |= {places[p]: pure.sources.get(p, Origin(module, p)) for p in ready}
    if not places or remake is None:
        return None
    return lambda values: remake(nest({p: values[place] for p, place in places.items()}))


def _refuse_globals(function: types.FunctionType, name: str) -> None:
    """Refuses a function that builds modules, or uses one that is a global of its own module."""
    names = _names(function.__code__)
    for label in names:
        value = function.__globals__.get(label)
        found = [value]
        if isinstance(value, types.ModuleType):
            found = [used for n in names if isinstance(used := getattr(value, n, None), type)]
        for used in found:
            if used is not None and not inspect.isfunction(used):
                _module(used, label, name, liftable=False)
            if callable(used) and (held := next(_modules(used, with_globals=False), None)):
                raise TypeError(
                    f"{name} uses {label}, which holds a {held.label} ({held.ecosystem}): its parameters would be "
                    f"constants. Put {label} into the list itself."
                )


def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return (*code.co_names, *(name for c in inner for name in _names(c)))


def _strings(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else [n for n in names if not n.startswith("__")]


def _refuse_closed(obj: Any, path: Path, name: str, seen: set[int]) -> None:
    """Refuses an object that can't be made again and holds arrays."""
    if isinstance(obj, jax.Array | type):
        return
    if isinstance(obj, jax.stages.Compiled):
        raise TypeError(f"{name} is compiled ahead of time: what it holds can't be seen. Give the function itself.")
    inside = Arrays()
    for i, child in enumerate(_parts(obj)):
        if isinstance(child, jax.Array) and jnp.issubdtype(child.dtype, jax.dtypes.prng_key):
            inside[(*path, str(i))] = child
        _walk(child, (*path, str(i)), inside, name, seen)
    if inside:
        raise TypeError(
            f"{name} hides {len(inside)} arrays inside a {type(obj).__module__}.{type(obj).__name__}, from which they "
            "can't be lifted; they would be constants. Give the function that it wraps, or put the module itself into "
            "the list."
        )


def _parts(obj: Any) -> list[Any]:
    """What an object that can't be made again holds."""
    wrapped = getattr(obj, "__wrapped__", None)
    if wrapped is not None:
        return [wrapped]
    slots = [getattr(obj, n, None) for base in type(obj).__mro__ for n in _strings(getattr(base, "__slots__", ()))]
    leaves = [leaf for leaf in jax.tree.leaves(obj) if leaf is not obj]
    return [*getattr(obj, "__dict__", {}).values(), *slots, *leaves]


def check_held(pure: PureLayer) -> None:
    """Refuses an entry if a function that it calls holds a module with parameters.

    Its own library takes such a function for a constant, and the parameters with it.

    Raises:
        TypeError: With what to do instead.
    """
    for held in pure.held:
        if module := next(_modules(held, with_globals=True), None):
            raise TypeError(
                f"{pure.label} ({pure.ecosystem}) holds a {module.label} ({module.ecosystem}) in a function: its "
                "parameters would be constants. Put it into the list itself, as an entry of its own."
            )


def _modules(held: Any, *, with_globals: bool) -> Iterator[PureLayer]:
    """The modules with parameters that a function holds, or a container of functions."""
    waiting, seen = [held], dict[int, Any]()
    while waiting:
        obj = waiting.pop()
        if id(obj) in seen or isinstance(obj, type) or not (callable(obj) or type(obj) in (list, tuple, dict)):
            continue
        seen[id(obj)] = obj
        try:
            module = ask(obj, type(obj))
        except TypeError:  # an adapter's word on what is no entry
            module = None
        if module is not None and module.ready:
            yield module
        if with_globals and inspect.isfunction(obj):
            used = [obj.__globals__.get(label) for label in _names(obj.__code__)]
            waiting += [value for value in used if not inspect.isroutine(value)]
        opened = _open(obj)
        waiting += _parts(obj) if opened is None else [child for _, child in opened[0]]
