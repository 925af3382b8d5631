"""From an entry to a `PureLayer`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from seqbridge._entries.captured import check_of_held
from seqbridge._entries.closure_conversion import check_held
from seqbridge._entries.function import FUNCTION, function_layer
from seqbridge._entries.reachable import model_inside
from seqbridge._interface import PureLayer, ask, bind, exports, has_adapter, known
from seqbridge._state import Stateful


def as_pure(entry: Any, method: Any = None) -> PureLayer:
    """Return the `PureLayer` of an entry.

    Args:
        entry: The entry.
        method: As for `with_method`; None: the entry is called itself.

    Raises:
        TypeError: It is no entry, can't be called, or hides parameters. The message says what to
            write instead.
    """
    pure = _find(entry)
    if method is not None and method != "__call__":
        pure = with_method(pure, method)
    elif pure.method is not None:
        _check_called(entry)
    check_held(pure)
    if pure is not entry and pure.ecosystem != FUNCTION:
        _refuse_model_inside(entry, pure)
    if pure.check_constants is None and (check := check_of_held(pure)):
        return dataclasses.replace(pure, check_constants=check)
    return pure


def _refuse_model_inside(entry: Any, pure: PureLayer) -> None:
    model = model_inside(entry)
    if model is not None:
        cure = "Put both into the list"
        if pure.ecosystem in exports():
            cure = f"Make it a module of that library, sb.to_{pure.ecosystem}(...)"
        raise TypeError(
            f"{pure.label} holds a {type(model).__name__}: to its library the variables of that "
            f"would be constants. {cure}"
        )


def _find(entry: Any) -> PureLayer:
    if isinstance(entry, PureLayer):
        return entry
    if isinstance(entry, type):
        return _of_class(entry)
    if isinstance(entry, functools.partial):
        return _of_partial(entry)
    owner = owner_of(entry)
    if isinstance(owner, Stateful):
        name = type(owner).__name__
        raise TypeError(f"got a method of a {name}: put the {name} into the list itself")
    pure = _of_object(entry)
    if pure is not None:
        return pure
    if callable(entry):
        return function_layer(entry)
    text = " ".join(repr(entry).split())
    wanted = "a module, a transform or a callable"
    if type(entry) in (list, tuple, dict):
        wanted += ", or Sequential(...) for several entries in one"
    raise TypeError(f"{text:.80} ({_path(type(entry))}) is no entry: give {wanted}; {_known()}")


def _of_object(entry: Any) -> PureLayer | None:
    """The layer of a module, or of a bound method of one."""
    owner = owner_of(entry)
    if owner is not entry:
        of_owner = ask(owner, type(owner))
        if of_owner is not None:
            return dataclasses.replace(with_method(of_owner, entry.__func__.__name__), owner=owner)
    return ask(entry, type(entry))


def _of_class(cls: type) -> PureLayer:
    pure = ask(cls, cls)
    if pure is None and _makes_callables(cls):
        name = cls.__qualname__
        raise TypeError(
            f"got the class {name}: give an instance, {name}(...), or partial({name}, ...)"
        )
    return pure or function_layer(cls)


def _of_partial(entry: functools.partial[Any]) -> PureLayer:
    if isinstance(entry.func, type):
        pure = ask(entry, entry.func)
        if pure is not None:
            return dataclasses.replace(pure, recipe=True)
        if _makes_callables(entry.func):
            raise TypeError(f"there is no adapter for {_path(entry.func)}: {_known()}")
    else:
        owner = owner_of(entry.func)
        # `partial(net.apply, params)` is a function of arrays, whatever `net` holds.
        own = owner is entry.func or entry.func.__name__ in ("__call__", *_own_methods(type(owner)))
        pure = _of_object(entry.func) if own else None
        if pure is not None:
            return dataclasses.replace(bind(pure, entry.args, entry.keywords), owner=owner)
    return function_layer(entry)


def _check_called(entry: Any) -> None:
    """Raise a `TypeError` if a module has methods, and can't be called itself."""
    called = entry.func if isinstance(entry, functools.partial) else entry
    cls = called if isinstance(called, type) else type(called)
    if isinstance(entry, PureLayer) or _makes_callables(cls):
        return
    cure = ""
    methods = _own_methods(cls)
    if methods:
        others = f" (or {', '.join(map(repr, methods[1:]))})" if methods[1:] else ""
        cure = f": choose a method, sb.Layer(entry, method={methods[0]!r}){others}"
    raise TypeError(f"{cls.__name__} can't be called{cure}")


def _own_methods(cls: type) -> list[str]:
    """The public methods of a class, apart from those of the library that it is a module of."""
    bases = [base for base in cls.__mro__ if not has_adapter(base)]
    theirs: set[str] = set()
    for base in cls.__mro__:
        if base not in bases:
            theirs.update(vars(base))  # what is called so is for the library to call
    methods: dict[str, None] = {}
    for base in bases:
        fields = inspect.get_annotations(base)
        for name, member in vars(base).items():
            is_method = callable(member) and not isinstance(member, type) and name not in fields
            if is_method and not name.startswith("_") and name not in theirs:
                methods[name] = None
    return list(methods)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def owner_of(entry: Any) -> Any:
    """The object of a bound method; any other entry belongs to itself."""
    if hasattr(entry, "__self__") and hasattr(entry, "__func__"):
        return entry.__self__
    return entry


def _known() -> str:
    names = ", ".join(known()) or "nothing (is seqbridge itself installed by pip?)"
    return f"there are adapters for {names}"


def _makes_callables(cls: type) -> bool:
    """Whether it is the instances of a class that are called, rather than the class."""
    return any("__call__" in vars(base) for base in cls.__mro__)


def with_method(pure: PureLayer, method: Any) -> PureLayer:
    """The layer that calls another method of its module.

    Args:
        pure: The layer.
        method: The name of the method, or a function of the module.

    Raises:
        TypeError: There are no methods to choose from.
    """
    if method == "__call__":
        return pure
    if pure.method is None:
        raise TypeError(
            f"{pure.label} ({pure.ecosystem}) has no methods to choose from: method={method!r}"
        )
    return dataclasses.replace(pure.method(method), recipe=pure.recipe)
