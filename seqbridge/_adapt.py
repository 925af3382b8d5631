"""From an entry to its neutral form: find the adapter of its ecosystem, load it, ask it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from seqbridge._pure import PureLayer, bind

Adapter: TypeAlias = Callable[[Any], PureLayer | None]

GROUP = "seqbridge.adapters"
_registered: dict[str, Adapter] = {}


def register(name: str, adapt: Adapter) -> None:
    """Makes an adapter known for this process; an installed package does it by an entry point instead.

    Args:
        name: The module whose classes the adapter takes, such as `"mylibrary.layers"`.
        adapt: From an entry to its `PureLayer`; None: not mine; a `TypeError`: mine, but no entry, and what to write
            instead. It is asked for instances, for classes and for `partial(Class, ...)`.
    """
    _registered[name] = adapt
    _adapters.cache_clear()


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            owners = " and ".join(str(p.dist.name if p.dist else p.value) for p in (other, point))
            raise RuntimeError(f"two adapters claim {point.name!r}: {owners}. Uninstall one of them.")
    return found


def _owners(cls: type) -> Iterator[str]:
    """The modules that `cls` and its bases come from, and their parents: nearest class and longest name first."""
    for base in cls.__mro__:
        name = base.__module__
        while name:
            yield name
            name = name.rpartition(".")[0]


@functools.lru_cache(maxsize=1024)
def _adapters(cls: type) -> tuple[Adapter, ...]:
    # Only names are compared, so that no library is imported that the entry's own class didn't import.
    names = dict.fromkeys(_owners(cls))
    return tuple(
        _registered[name] if name in _registered else _installed()[name].load()
        for name in names
        if name in _registered or name in _installed()
    )


def ask(entry: Any, cls: type) -> PureLayer | None:
    """What the adapters of the ecosystem of `cls` make of `entry`."""
    for adapt in _adapters(cls):
        pure = adapt(entry)
        if pure is not None:
            return pure
    return None


def as_pure(entry: Any) -> PureLayer:
    """The neutral form of an entry.

    Raises:
        TypeError: It is no entry. The message says what to write instead.
    """
    from seqbridge._function import function_layer

    if isinstance(entry, PureLayer):
        return entry
    if isinstance(entry, type):
        pure = ask(entry, entry)
        if pure is None and any("__call__" in vars(base) for base in entry.__mro__):
            name = entry.__qualname__
            raise TypeError(f"got the class {name}: give an instance, {name}(...), or partial({name}, ...)")
        return pure or function_layer(entry)
    if isinstance(entry, functools.partial):
        if isinstance(entry.func, type):
            pure = ask(entry, entry.func)
        else:
            pure = ask(entry.func, type(entry.func))
            pure = pure and bind(pure, entry.args, entry.keywords)
        return pure or function_layer(entry)
    if inspect.ismethod(entry) and (pure := ask(entry.__self__, type(entry.__self__))):
        return with_method(pure, entry.__func__.__name__)
    pure = ask(entry, type(entry))
    if pure is not None:
        return pure
    if callable(entry):
        return function_layer(entry)
    raise TypeError(
        f"{entry!r:.80} ({type(entry).__module__}.{type(entry).__qualname__}) is no entry: give a module, a transform "
        f"or a callable. Adapters are installed for {', '.join(sorted({*_installed(), *_registered})) or 'nothing'}"
        f"{'' if _installed() else ' (is seqbridge itself installed by pip?)'}."
    )


def with_method(pure: PureLayer, method: Any) -> PureLayer:
    if pure.method is None:
        raise TypeError(f"{pure.label} ({pure.ecosystem}) has no methods to choose from: method={method!r}")
    return pure.method(method)
