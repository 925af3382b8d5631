"""Closure conversion: the float arrays that a function holds become its parameters.

A function can hold arrays in its closure, its defaults, the arguments of a `partial`, the object of
a bound method or the attributes of a callable object. Each of these is made again with other arrays
in place. What can't be made again, such as a compiled function, is searched all the same, and
refused if it holds arrays.

This is a look at what a function holds, not at what it does. What it uses beside that is asked of
its trace: see `captured`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from seqbridge._entries.destructure import (
    Parts,
    attributes_of,
    contents,
    destructure,
    is_constant,
    is_plain_object,
    is_tree,
    names_in,
    set_attribute,
    with_attributes,
    wrapped_by,
)
from seqbridge._entries.object_copy import ObjectCopy, OriginalObject
from seqbridge._entries.reachable import classes_named_by, module_of_library
from seqbridge._interface import MODE_FLAGS, Origin, Path, PureLayer, nest, unnest
from seqbridge._state import Stateful


class Remaking:
    """The objects that are made again for one call.

    Attributes:
        made: By the id of each original what stands in its place, so that an object which is held
            at two places is one again.
        copies: The copies of objects.
    """

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}
        self.copies: list[ObjectCopy] = []


Make: TypeAlias = Callable[[Mapping[Path, Any], Remaking], Any]


class Rebuild(NamedTuple):
    """A way to make an object again.

    Attributes:
        make: From arrays to an object that holds these.
        lifts: Whether the object holds any of them.
        needed: Whether what holds the object must be made again, too. A reference back to an
            object that is being looked at is no reason.
    """

    make: Make
    lifts: bool = True
    needed: bool = True


class Lifted(NamedTuple):
    """Arrays that were lifted out of a function.

    Attributes:
        arrays: The arrays, by where they are held.
        sources: For those of a module, the module and their place in it.
        modules: The modules that were lifted.
        rebuild: The function again, with other arrays; None: it stays as it is.
    """

    arrays: dict[Path, Any]
    sources: dict[Path, Any]
    modules: list[Any]
    rebuild: Rebuild | None


class _Place(NamedTuple):
    """A place in a function or an object, where something is held.

    Attributes:
        path: The names that lead to it.
        names: The names in the code of the function that holds it; None: a function may read all of
            it.
        in_object: Whether an object holds it, of which a function may use something else.
        within: The ids of what it is inside of.
    """

    path: Path = ()
    names: frozenset[str] | None = None
    in_object: bool = False
    within: frozenset[int] = frozenset()


def lift(function: Callable[..., Any], name: str) -> Lifted:
    """Lift the arrays out of a function.

    Args:
        function: The function.
        name: What it is called in errors.

    Raises:
        TypeError: It holds a model, or a module or arrays that can't be lifted.
    """
    lifting = _Lifting(name)
    rebuild = lifting.visit(function, _Place())
    return Lifted(lifting.arrays, lifting.sources, lifting.modules, rebuild)


class _Lifting:
    """One pass over what a function holds."""

    def __init__(self, name: str):
        self.arrays: dict[Path, Any] = {}
        self.sources: dict[Path, Any] = {}
        self.modules: list[Any] = []
        self._name = name
        self._seen: dict[int, tuple[Any, Rebuild | None]] = {}

    def visit(self, obj: Any, place: _Place) -> Rebuild | None:
        """Lift the arrays in `obj`; None: there are none, and it stays as it is."""
        if (isinstance(obj, jax.Array) and not is_parameter(obj)) or is_constant(obj):
            return None
        if id(obj) in place.within:
            return _reference_to(obj)
        if id(obj) not in self._seen:
            found = self._look_at(obj, place)
            self._seen[id(obj)] = obj, None if found is None else _once(obj, found)
        return self._seen[id(obj)][1]

    def _look_at(self, obj: Any, place: _Place) -> Rebuild | None:
        if is_parameter(obj):
            return self._lift_array(obj, place.path)
        module = module_of_library(obj) if place.path else None
        if module is not None or isinstance(obj, Stateful):
            # An object may hold it for something else: whether it is used, the trace will tell.
            left_to_trace = place.in_object and not _is_liftable(module)
            if left_to_trace or _is_given_parameters(module, place.names):
                return None
            return self._lift_module(obj, module, place.path)
        if isinstance(obj, type) or _is_pure_method(obj):
            return None
        if inspect.isfunction(obj):
            for cls, reason in classes_named_by(obj):
                raise self._lost(f"uses the class {cls.__name__}", reason)
        parts = destructure(obj)
        if parts is not None:
            return self._visit_parts(obj, parts, place)
        if not place.in_object:
            self._refuse_closed(obj, place)
        return None

    def _visit_parts(self, obj: Any, parts: Parts, place: _Place) -> Rebuild | None:
        names = _names_of_holder(obj, place)
        is_object = is_plain_object(obj)
        rebuilds: list[Rebuild | None] = []
        for name, child in parts.children:
            unread = is_object and names is not None and name not in names
            inside = _Place(
                (*place.path, name), names, place.in_object or is_object, place.within | {id(obj)}
            )
            rebuilds.append(None if unread else self.visit(child, inside))
        lifts = any(again is not None and again.lifts for again in rebuilds)
        needed = lifts or any(again is not None and again.needed for again in rebuilds)
        if is_object and (needed or callable(obj)) and _can_be_copied(obj):
            return Rebuild(_copying(obj, parts, rebuilds, _shown(place)), lifts)
        if not needed or is_object:
            return None

        def make(values: Mapping[Path, Any], call: Remaking) -> Any:
            held = []
            for (_, child), again in zip(parts.children, rebuilds, strict=True):
                held.append(child if again is None else again.make(values, call))
            made = parts.make(held)
            if is_tree(obj):
                names = _lifted_names(parts, rebuilds)
                original = OriginalObject(obj, names, _shown(place))
                call.copies.append(ObjectCopy(original, made))
            return made

        return Rebuild(make, lifts)

    def _lift_array(self, array: Any, path: Path) -> Rebuild:
        self._add(path, array)
        return Rebuild(lambda values, call: values[path])

    def _add(self, path: Path, array: Any) -> None:
        if path in self.arrays:
            raise TypeError(
                f"{self._name} holds two arrays of one name, {'.'.join(path)}: call them otherwise"
            )
        self.arrays[path] = array

    def _lift_module(
        self, obj: Any, module: PureLayer | TypeError | None, path: Path
    ) -> Rebuild | None:
        place = ".".join(path)
        if isinstance(obj, Stateful):
            raise TypeError(
                f"{self._name} holds {place}, a {type(obj).__name__}: its variables would be lost. "
                "Put it into the list itself."
            )
        if not isinstance(module, PureLayer) or module.remake is None or not _is_pure(module):
            raise self._lost(f"holds {place}", module)
        ready, remake = unnest(module.ready or {}), module.remake
        places = {inner: (*path, *inner[1:]) for inner in ready}
        for inner, array in ready.items():
            self._add(places[inner], array)
            self.sources[places[inner]] = module.sources.get(inner, Origin(obj, inner))
        self.modules.append(obj)
        if not places:
            return None
        return Rebuild(
            lambda values, call: remake(nest({inner: values[at] for inner, at in places.items()}))
        )

    def _lost(self, what: str, reason: object) -> TypeError:
        cure = f" ({reason})" if isinstance(reason, TypeError) else ""
        return TypeError(
            f"{self._name} {what}: the parameters, mode and keys of that module would be lost. Put "
            f"the module into the list itself{cure}, or make {self._name} a module or a transform "
            "of that library."
        )

    def _refuse_closed(self, obj: Any, place: _Place) -> None:
        """Refuse an object that can't be made again and holds arrays."""
        if isinstance(obj, jax.stages.Compiled):
            raise TypeError(
                f"{self._name} is compiled ahead of time: what it holds can't be seen. Give the "
                "function itself."
            )
        inside = _Lifting(self._name)
        keys = 0
        for i, part in enumerate(contents(obj)):
            keys += is_key(part)
            path = (*place.path, str(i))
            inside.visit(part, _Place(path, place.names, within=place.within | {id(obj)}))
        if keys or inside.arrays:
            raise TypeError(
                f"{self._name} hides {keys + len(inside.arrays)} arrays inside a "
                f"{type(obj).__module__}.{type(obj).__name__}, from which they can't be lifted; "
                "they would be constants. Give the function that it wraps, or put the module "
                "itself into the list."
            )


def _once(obj: Any, found: Rebuild) -> Rebuild:
    """Make an object once in a call, however many hold it."""

    def make(values: Mapping[Path, Any], call: Remaking) -> Any:
        if id(obj) not in call.made:
            call.made[id(obj)] = found.make(values, call)
        return call.made[id(obj)]

    return found._replace(make=make)


def _reference_to(obj: Any) -> Rebuild:
    """Return what stands for an object inside of itself."""
    is_copied = is_plain_object(obj) and callable(obj)
    return Rebuild(lambda values, call: call.made.get(id(obj), obj), lifts=False, needed=is_copied)


def _copying(obj: Any, parts: Parts, rebuilds: Sequence[Rebuild | None], place: str) -> Make:
    """Return how to copy an object of the user's, with other things in some attributes."""
    original = OriginalObject(obj, _lifted_names(parts, rebuilds), place)

    def make(values: Mapping[Path, Any], call: Remaking) -> Any:
        made = with_attributes(obj, {})
        call.made[id(obj)] = made  # before its parts, which may refer to it
        for (name, child), again in zip(parts.children, rebuilds, strict=True):
            # Its other attributes are those that it has by now.
            if again is not None and (again.lifts or getattr(obj, name, None) is child):
                set_attribute(made, name, again.make(values, call))
        call.copies.append(ObjectCopy(original, made))
        return made

    return make


def _lifted_names(parts: Parts, rebuilds: Sequence[Rebuild | None]) -> set[str]:
    """The attributes that hold parameters."""
    names: set[str] = set()
    for (name, _), again in zip(parts.children, rebuilds, strict=True):
        if again is not None and again.lifts:
            names.add(name.partition(".")[0])
    return names


def _shown(place: _Place) -> str:
    """How an object is called in errors."""
    return ".".join(part for part in place.path if part not in ("func", "self")) or "self"


def _can_be_copied(obj: Any) -> bool:
    """Whether an object has attributes that a call may set, and there can be a copy of it."""
    if not hasattr(obj, "__dict__") and not attributes_of(obj):
        return False
    try:
        with_attributes(obj, {})
    except Exception:  # whatever an object of the user's does that is copied
        return False
    return True


def is_parameter(obj: Any) -> bool:
    """Whether an object is an array that can be trained."""
    return isinstance(obj, jax.Array) and jnp.issubdtype(obj.dtype, jnp.inexact)


def is_key(obj: Any) -> bool:
    """Whether an object is an array of PRNG keys."""
    return isinstance(obj, jax.Array) and jnp.issubdtype(obj.dtype, jax.dtypes.prng_key)


def _names_of_holder(obj: Any, place: _Place) -> frozenset[str] | None:
    """The names in the code that uses the parts of `obj`; None: it may use all of them."""
    if inspect.ismethod(obj):
        return _names_in_methods(obj.__func__, type(obj.__self__))
    if is_plain_object(obj) and callable(obj):
        own = _names_in_methods(type(obj).__call__, type(obj))
        if place.path[-1:] == ("self",) and place.names is not None:
            return place.names  # of the method that it is the object of
        return own if own is None or place.names is None else own | place.names
    while isinstance(obj, functools.partial):
        obj = obj.func
    obj = obj if wrapped_by(obj) is None else inspect.unwrap(obj)
    return names_in(obj.__code__) if inspect.isfunction(obj) else place.names


def _names_in_methods(method: Any, cls: type) -> frozenset[str] | None:
    """The names in a method, and in what it names of its class; None: they can't be told."""
    names: set[str] = set()
    # A method may call its object.
    calls = [vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)]
    waiting = [method, *calls]
    while waiting:
        function = _function_of(waiting.pop())
        if function is None:
            continue
        new = names_in(function.__code__) - names
        names |= new
        if not new.isdisjoint(("getattr", "vars", "__dict__")):
            return None
        for name in new:
            waiting += [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
    return frozenset(names)


def _function_of(member: Any) -> types.FunctionType | None:
    """The function of a member of a class: a method, a property, what a decorator made of one."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, functools.cached_property | functools.partialmethod):
        member = member.func
    if wrapped_by(member) is not None:
        member = inspect.unwrap(member)
    return member if inspect.isfunction(member) else None


def _is_liftable(module: PureLayer | TypeError | None) -> bool:
    return isinstance(module, PureLayer) and module.remake is not None and _is_pure(module)


def _is_pure(module: PureLayer) -> bool:
    """Whether a module is its parameters and nothing else.

    It has no state, and no mode that the function couldn't set.
    """
    taken = module.signature.parameters if module.signature is not None else {}
    if any(flag in taken and flag not in module.decided for flag in MODE_FLAGS):
        return False
    return all(module.kinds.get(collection) == "params" for collection in module.ready or ())


def _is_given_parameters(
    module: PureLayer | TypeError | None, names: frozenset[str] | None
) -> bool:
    """Whether a function calls a module as a pure one, with parameters from elsewhere."""
    if not isinstance(module, PureLayer) or module.ready:
        return False
    return names is not None and not names.isdisjoint(("init", "apply"))


def _is_pure_method(obj: Any) -> bool:
    if not inspect.ismethod(obj) or obj.__name__ not in ("init", "apply"):
        return False
    module = module_of_library(obj.__self__)
    return isinstance(module, PureLayer) and not module.ready


def check_held(pure: PureLayer) -> None:
    """Refuse an entry if a function that it calls holds a module with parameters.

    Its own library takes such a function for a constant, and the parameters with it.

    Raises:
        TypeError: With what to do instead.
    """
    for held in pure.held:
        for module in _modules_held_by(held):
            raise TypeError(held_text(pure, module))


def held_text(pure: PureLayer, module: PureLayer) -> str:
    """The message for a module in a function that an entry of another library calls."""
    return (
        f"{pure.label} ({pure.ecosystem}) holds a {module.label} ({module.ecosystem}) in a "
        "function: its parameters would be constants. Put it into the list itself, as an entry of "
        "its own."
    )


def _modules_held_by(function: Any) -> Iterator[PureLayer]:
    """Modules with parameters that a function, or a container of functions, holds."""
    waiting, seen = [function], dict[int, Any]()
    while waiting:
        obj = waiting.pop()
        is_holder = callable(obj) or type(obj) in (list, tuple, dict)
        if id(obj) in seen or isinstance(obj, type) or not is_holder:
            continue
        seen[id(obj)] = obj
        module = module_of_library(obj)
        if isinstance(module, PureLayer) and module.ready:
            yield module
        parts = destructure(obj)
        if parts is None:
            waiting += contents(obj)
        else:
            waiting += [child for _, child in parts.children]
