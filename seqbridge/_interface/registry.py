"""Registry of adapters: installed by entry points, or registered by hand.

An adapter is found by the module of an entry's class.
"""

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
    """Register an adapter for this process; an installed package declares an entry point instead.

    Args:
        name: The module whose classes the adapter takes, such as `"mylibrary.layers"`; or one
            class.
        adapt: From an entry to its `PureLayer`. It returns None for what isn't its own, and raises
            a `TypeError` for what is its own but no entry, which says what to write instead. It is
            called for instances, for classes and for `partial(Class, ...)`.

    Raises:
        TypeError: An argument is something else.

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
            raise RuntimeError(
                f"two adapters claim {point.name!r}: {_owner(other)} and {_owner(point)}. "
                "Uninstall one of them."
            )
    return found


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} ({point.value})" if point.dist else point.value


@functools.lru_cache(maxsize=1024)
def _adapter_names(cls: type) -> tuple[str, ...]:
    """Return the names that an adapter of `cls` may be registered under.

    These are the classes that it derives from, their modules, and the packages of these. The
    nearest class comes first, and of each the longest name.
    """
    names: dict[str, None] = {}
    for base in cls.__mro__:
        names.update(dict.fromkeys(_names_of(base)))
    return tuple(names)


def _names_of(cls: type) -> list[str]:
    """The name of a class, of its module, and of each package of that."""
    parts = f"{cls.__module__}.{cls.__qualname__}".split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


@functools.cache
def _adapter(name: str) -> Adapter | None:
    # Names alone are compared, so that no library is imported that the entry's own class didn't
    # import.
    if name in _registered:
        return _registered[name]
    if name in _installed():
        return _installed()[name].load()
    return None


def ask(entry: Any, cls: type) -> PureLayer | None:
    """Return the `PureLayer` that the adapters for `cls` make of `entry`, or None."""
    for name in _adapter_names(cls):
        adapt = _adapter(name)
        if adapt is None:
            continue
        pure = adapt(entry)
        if pure is not None:
            return pure
    return None


def has_adapter(cls: type) -> bool:
    """Whether a class itself, not one that it derives from, is one that an adapter takes."""
    names = _names_of(cls)
    return any(name in _registered or name in _installed() for name in names)


def register_export(name: str, export: Export) -> None:
    """Register an export, `to_<name>`, for this process.

    An installed package declares an entry point instead.

    Args:
        name: The name of the library, as in `to_<name>`.
        export: From a `PureLayer` to an object of the library. Its docstring becomes that of
            `to_<name>`.

    Raises:
        TypeError: An argument is something else.

    Examples:
        >>> import seqbridge as sb
        >>> def export(layer):
        ...     return lambda *x, **keywords: layer.apply(layer.ready, None, *x, **keywords)[0]
        >>> sb.register_export("call", export)
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
    """Return the names of all exports."""
    return sorted({*entry_points(group=EXPORTS).names, *_exports})


def exporter(name: str) -> Export:
    """Return the export of this name: a function from a `PureLayer` to an object of its library.

    Raises:
        AttributeError: There is none.
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
    """Return what all adapters take, by module or class.

    Adapters of plain Python objects are called by their own library instead.
    """
    names: list[str] = []
    installed = _installed()
    for name in {*installed, *_registered}:
        if name.startswith("builtins.") and name in installed:
            names.append(installed[name].value.partition(":")[0].removeprefix("seqbridge_"))
        else:
            names.append(name)
    return sorted(names)
