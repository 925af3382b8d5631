"""The adapters: installed by entry points or registered by hand, found by the modules of an entry's class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from seqbridge._interface.pure_layer import PureLayer

Adapter: TypeAlias = Callable[[Any], PureLayer | None]
Export: TypeAlias = Callable[..., Any]

GROUP = "seqbridge.adapters"
EXPORTS = "seqbridge.exports"
_registered: dict[str, Adapter] = {}
_exports: dict[str, Export] = {}


def register(name: str | type, adapt: Adapter) -> None:
    """Makes an adapter known for this process; an installed package does it by an entry point instead.

    Args:
        name: The module whose classes the adapter takes, such as `"mylibrary.layers"`; or one
            class.
        adapt: From an entry to its `PureLayer`; None: not mine; a `TypeError`: mine, but no entry,
            and what to write instead. It is asked for instances, for classes and for
            `partial(Class, ...)`.

    Raises:
        TypeError: Something else.

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
    if isinstance(name, type):
        name = f"{name.__module__}.{name.__qualname__}"
    if not isinstance(name, str) or not callable(adapt):
        raise TypeError(
            f"register takes the name of a module, or a class, and a function; got {name!r}, "
            f"{adapt!r:.60}"
        )
    _registered[name] = adapt
    _adapter.cache_clear()


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if _owner(other) != _owner(point):
            owners = " and ".join(_owner(p) for p in (other, point))
            raise RuntimeError(
                f"two adapters claim {point.name!r}: {owners}. Uninstall one of them."
            )
    return found


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} ({point.value})" if point.dist else point.value


@functools.lru_cache(maxsize=1024)
def _names(cls: type) -> tuple[str, ...]:
    """What an adapter of `cls` may be called: the classes it derives from, their modules, and the parents of these.

    The nearest class comes first, and of each the longest name.
    """
    names: dict[str, None] = {}
    for base in cls.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        while name:
            names[name] = None
            name = name.rpartition(".")[0]
    return tuple(names)


@functools.cache
def _adapter(name: str) -> Adapter | None:
    # Only names are compared, so that no library is imported that the entry's own class didn't
    # import.
    if name in _registered:
        return _registered[name]
    return _installed()[name].load() if name in _installed() else None


def ask(entry: Any, cls: type) -> PureLayer | None:
    """What the adapters of the ecosystem of `cls` make of `entry`."""
    for name in _names(cls):
        adapt = _adapter(name)
        pure = adapt and adapt(entry)
        if pure is not None:
            return pure
    return None


def register_export(name: str, export: Export) -> None:
    """Makes a way out known for this process, `to_<name>`; an installed package does it by an entry point instead.

    Args:
        name: The name of the library, as in `to_<name>`.
        export: From a `PureLayer` to an object of the library. Its docstring becomes that of
            `to_<name>`.

    Raises:
        TypeError: Something else.

    Examples:
        >>> import seqbridge as sb
        >>> sb.register_export("call", lambda layer: lambda *x, **kw: layer.apply(layer.ready, None, *x, **kw)[0])
        >>> sb.to_call(lambda x, factor=2.0: x * factor, ())(3.0, factor=3.0)
        9.0
    """
    if not isinstance(name, str) or not name.isidentifier() or not callable(export):
        raise TypeError(
            f"register_export takes a name, as in to_<name>, and a function; got {name!r}, "
            f"{export!r:.60}"
        )
    _exports[name] = export


def exports() -> list[str]:
    """The names of all ways out."""
    return sorted({*entry_points(group=EXPORTS).names, *_exports})


def exporter(name: str) -> Export:
    """The way out of an adapter: the function that makes an object of its library of a `PureLayer`.

    Raises:
        AttributeError: There is none of this name.
        ImportError: Its library isn't installed.
    """
    if name in _exports:
        return _exports[name]
    points = list(entry_points(group=EXPORTS, name=name))
    if not points:
        near = get_close_matches(name, exports(), n=1)
        guess = f"; did you mean 'to_{near[0]}'?" if near else "."
        known = ", ".join(f"to_{n}" for n in exports())
        raise AttributeError(f"seqbridge has no 'to_{name}'{guess} There are {known} and to_pure")
    try:
        return points[0].load()
    except ImportError as error:
        if not getattr(error, "__notes__", ()):  # or the adapter has said what to do
            error.add_note(f'to_{name} needs what this installs: pip install "seqbridge[{name}]"')
        raise


def known() -> list[str]:
    """What all adapters take, or, of those that aren't asked by a library's name, what they are called."""
    packages = {
        name: point.value.partition(":")[0].removeprefix("seqbridge_")
        for name, point in _installed().items()
    }
    names = {*packages, *_registered}
    return sorted(
        packages.get(name, name) if name.startswith("builtins.") else name for name in names
    )
