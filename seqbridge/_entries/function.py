"""Plain callables as layers."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from seqbridge._entries.captured import check_captured, note_modules
from seqbridge._entries.closure_conversion import Remaking, lift
from seqbridge._interface import MODE_FLAGS, PureLayer, Variables, call_text, nest, unnest

FUNCTION = "function"  # the library of an entry that is of none
_KEY_NAMES = ("rng", "key")
# Under which transformed functions, partials and methods hold what they wrap.
_WRAPPERS = ("f", "fun", "func", "self")


def signature_of(function: Callable[..., Any], skip: int = 0) -> inspect.Signature | None:
    """Return the signature of a callable without its first parameters; None: it has none.

    Examples:
        >>> signature_of(lambda self, x, scale=1.0: x, skip=1)
        <Signature (x, scale=1.0)>
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None
    return signature.replace(parameters=list(signature.parameters.values())[skip:])


def as_method(function: Callable[..., Any], pure: PureLayer, *keywords: str) -> Callable[..., Any]:
    """Return a function that shows itself as a method which takes what a layer takes, and more.

    Args:
        function: The function.
        pure: The layer.
        *keywords: The names of more keywords, None by default; `"*rest"` are more inputs.

    Examples:
        >>> from seqbridge import Layer
        >>> def call(self, *args, **keywords): ...
        >>> signature_of(as_method(call, Layer(lambda x, scale=1.0: x).pure, "key"))
        <Signature (self, /, x, scale=1.0, *, key=None)>
    """
    parameters = dict(pure.signature.parameters) if pure.signature else {}
    for name in keywords:
        if not name.startswith("*"):
            parameters.setdefault(
                name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
            )
        elif all(p.kind is not p.VAR_POSITIONAL for p in parameters.values()):
            parameters[name] = inspect.Parameter(name[1:], inspect.Parameter.VAR_POSITIONAL)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    rest = sorted(parameters.values(), key=lambda p: p.kind)
    function.__signature__ = inspect.Signature([own, *rest])  # pyright: ignore[reportFunctionMemberAccess]
    return function


def function_layer(function: Callable[..., Any]) -> PureLayer:
    """Return the `PureLayer` of a plain callable.

    Arrays that the function holds become its parameters; what else it uses is checked when it is
    traced. A parameter `rng` or `key` that the call doesn't fill gets the layer's own PRNG key.

    Raises:
        TypeError: It can't be a layer; the message says why.
    """
    base, bound = function, {}
    while isinstance(base, functools.partial):
        bound = {**base.keywords, **bound}
        base = base.func
    _refuse_coroutine(base)
    if isinstance(base, np.ufunc):
        function = base = _of_jax_numpy(base, function)
    lifted = lift(function, _name(function))
    # A transform of a module is called after the module, and takes what that takes.
    inner = inspect.unwrap(base, stop=lambda wrapped: not inspect.isfunction(wrapped))
    signature = _signature(function, base, inner)
    name = _name(inner)
    key_names = []
    if signature is not None and inspect.isfunction(inner):
        key_names = [n for n in _KEY_NAMES if n in signature.parameters and n not in bound]
    variables = nest({("params", *path): jnp.asarray(a) for path, a in lifted.arrays.items()})

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        call = function
        remaking = Remaking()
        if lifted.rebuild is not None:
            call = lifted.rebuild.make(unnest(variables.get("params", {})), remaking)
        try:
            out = call(*args, **keywords)
        except Exception as error:
            with contextlib.suppress(Exception):  # what is wrong comes first
                note_modules(error, function, name, lifted.modules)
            raise
        for made in remaking.copies:
            made.keep_changes(name, remaking.made)
        return out, {}

    return PureLayer(
        init=lambda key, /, *args, **keywords: variables,
        ready=variables,
        sources={("params", *path): source for path, source in lifted.sources.items()},
        shorten=lambda path: tuple(part for part in path if part not in _WRAPPERS) or path,
        apply=apply,
        check_constants=lambda arrays: check_captured(function, name, lifted.modules, arrays),
        signature=signature,
        label=name,
        ecosystem=FUNCTION,
        text=call_text("partial", (base, *getattr(function, "args", ())), bound) if bound else name,
        decided=frozenset(bound) & MODE_FLAGS.keys(),
        key_name=key_names[0] if key_names else None,
        takes_key=bool(key_names),
    )


def _refuse_coroutine(function: Any) -> None:
    kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    for called in (function, type(function).__call__):
        if any(kind(called) for kind in kinds):
            raise TypeError(
                f"{_name(function)} is a coroutine or generator function: its call returns no "
                "arrays"
            )


def _of_jax_numpy(ufunc: np.ufunc, function: Any) -> Callable[..., Any]:
    """The function of `jax.numpy` that stands for one of NumPy, which takes no tracers."""
    if ufunc is not function or not hasattr(jnp, ufunc.__name__):
        raise TypeError(
            f"np.{ufunc.__name__} takes no JAX tracers: write the function of jax.numpy"
        )
    return getattr(jnp, ufunc.__name__)


def _signature(function: Any, base: Any, inner: Any) -> inspect.Signature | None:
    """The signature of a function; None: inputs only.

    Args:
        function: The function.
        base: The function inside its partials.
        inner: What that is a transform of.
    """
    of_module = inner is not base and not inspect.isfunction(inner)
    signature = signature_of(inner if of_module else function)
    if signature is not None and _is_of_jax(inner):
        rest = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        if all(parameter.kind in rest for parameter in signature.parameters.values()):
            return None  # JAX has wrapped something and couldn't read what that takes
    return signature


def _is_of_jax(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "jax"


def _name(function: Any) -> str:
    if _is_of_jax(function) and "<locals>" in getattr(function, "__qualname__", ""):
        return function.__qualname__.partition(".")[0]  # what made it: `vmap`
    return getattr(function, "__name__", type(function).__name__)
