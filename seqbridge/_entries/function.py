"""Plain callables as layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from seqbridge._entries.captured import check_captured, note_modules
from seqbridge._entries.closure_conversion import lift
from seqbridge._interface import MODE_FLAGS, PureLayer, Variables, call_text, nest, unnest

_KEY_NAMES = ("rng", "key")
_WRAPPERS = (
    "f",
    "fun",
    "func",
    "self",
)  # under which transformed functions, partials and methods hold what they wrap


def signature_of(function: Callable[..., Any], skip: int = 0) -> inspect.Signature | None:
    """The signature of a callable without its first `skip` parameters; None: it can't be read.

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
    """A function that shows itself as a method which takes what a layer takes, and more.

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
    """The neutral form of a plain callable.

    Arrays that the function holds become its parameters (see `_hidden`). A parameter `rng` or `key`
    that the call doesn't fill gets the layer's own PRNG key.

    Raises:
        TypeError: It can't be a layer; the message says why.
    """
    base, bound = function, {}
    while isinstance(base, functools.partial):
        bound = {**base.keywords, **bound}
        base = base.func
    if any(_returns_later(called) for called in (base, type(base).__call__)):
        raise TypeError(
            f"{_name(base)} is a coroutine or generator function: its call returns no arrays"
        )
    if isinstance(base, np.ufunc):
        if base is not function or not hasattr(jnp, base.__name__):
            raise TypeError(
                f"np.{base.__name__} takes no JAX tracers: write the function of jax.numpy"
            )
        function = base = getattr(jnp, base.__name__)
    signature = signature_of(function)
    lifted = lift(function, _name(function))
    # A transform of a module is called after the module, and takes what that takes.
    inner = inspect.unwrap(base, stop=lambda wrapped: not inspect.isfunction(wrapped))
    if inner is not base and not inspect.isfunction(inner):
        signature = signature_of(inner)
    if _says_nothing(inner, signature):
        signature = None
    named = signature.parameters if signature is not None and inspect.isfunction(inner) else {}
    name = _name(inner)
    variables = nest(
        {("params", *path): jnp.asarray(array) for path, array in lifted.arrays.items()}
    )

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        call = function
        if lifted.rebuild is not None:
            call = lifted.rebuild(unnest(variables["params"]))
        try:
            return call(*args, **keywords), {}
        except Exception as error:
            note_modules(error, function, name, lifted.modules)
            raise

    return PureLayer(
        init=lambda key, /, *args, **keywords: variables,
        ready=variables,
        sources={("params", *path): source for path, source in lifted.sources.items()},
        shorten=lambda path: tuple(part for part in path if part not in _WRAPPERS) or path,
        apply=apply,
        check_constants=lambda arrays: check_captured(function, name, arrays),
        signature=signature,
        label=name,
        ecosystem="function",
        text=call_text("partial", (base, *getattr(function, "args", ())), bound) if bound else name,
        decided=frozenset(bound) & MODE_FLAGS.keys(),
        key_name=next((n for n in _KEY_NAMES if n in named and n not in bound), None),
        takes_key=any(n in named and n not in bound for n in _KEY_NAMES),
    )


def _returns_later(function: Any) -> bool:
    kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    return any(kind(function) for kind in kinds)


def _of_jax(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "jax"


def _name(function: Any) -> str:
    if _of_jax(function) and "<locals>" in getattr(function, "__qualname__", ""):
        return function.__qualname__.partition(".")[0]  # what made it: `vmap`
    return getattr(function, "__name__", type(function).__name__)


def _says_nothing(function: Any, signature: inspect.Signature | None) -> bool:
    """Whether JAX wrapped something and couldn't read what that takes."""
    parameters = signature.parameters.values() if signature is not None else ()
    return _of_jax(function) and all(
        p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )
