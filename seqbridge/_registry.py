"""The adapters: installed by entry points or registered by hand, found by the modules of an entry's class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from seqbridge._pure import PureLayer

Adapter: TypeAlias = Callable[[Any], PureLayer | None]

GROUP = "seqbridge.adapters"
_registered: dict[str, Adapter] = {}


def register(name: str, adapt: Adapter) -> None:
    """Makes an adapter known for this process; an installed package does it by an entry point instead.

    Args:
        name: The module whose classes the adapter takes, such as `"mylibrary.layers"`.
        adapt: From an entry to its `PureLayer`; None: not mine; a `TypeError`: mine, but no entry, and what to write
            instead. It is asked for instances, for classes and for `partial(Class, ...)`.

    Examples:
        >>> import fractions
        >>> from seqbridge import Sequential, signature_of
        >>> def adapt(entry):
        ...     if not isinstance(entry, fractions.Fraction):
        ...         return None
        ...     return PureLayer(
        ...         init=lambda key, /, x: {},
        ...         apply=lambda variables, key, /, x: (x * float(entry), {}),
        ...         signature=signature_of(lambda x: x),
        ...         label="Fraction",
        ...         ecosystem="fractions",
        ...     )
        >>> register("fractions", adapt)
        >>> Sequential([fractions.Fraction(1, 2)])(3.0)
        1.5
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


def known() -> list[str]:
    """The names of all adapters."""
    return sorted({*_installed(), *_registered})
