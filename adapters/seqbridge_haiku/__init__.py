"""The adapter of Haiku: transforms, and `partial(hk.Linear, 3)` for classes, become layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import haiku as hk
import jax

from seqbridge import PureLayer, Variables, call_text, nest, signature_of
from seqbridge_haiku._export import export as export
from seqbridge_haiku._files import read_pickle as read_pickle
from seqbridge_haiku._parts import parts

Path: TypeAlias = tuple[str, ...]
Method: TypeAlias = str | Callable[..., Any]
"""The name of a method, or a function that takes the module first."""


def adapt(entry: object) -> PureLayer | None:
    """Return the `PureLayer` of a `Transformed`, `TransformedWithState` or `partial(Module, ...)`.

    Raises:
        TypeError: A module class or instance, a multi-transform, or a transform of a class.
    """
    if isinstance(entry, type):
        if issubclass(entry, hk.Module):
            raise TypeError(f"got the class {entry.__name__}: write {_suggest_partial(entry)}")
        return None
    if isinstance(entry, functools.partial):
        if isinstance(entry.func, type) and issubclass(entry.func, hk.Module):
            return _from_class(entry, "__call__")
        return None
    if isinstance(entry, hk.Module):
        cls = type(entry)
        raise TypeError(
            f"this {cls.__name__} belongs to the transform that made it: "
            f"write {_suggest_partial(cls)}"
        )
    if isinstance(entry, hk.MultiTransformed | hk.MultiTransformedWithState):
        raise TypeError(
            "a multi_transform has many functions: give hk.transform_with_state of the one to run"
        )
    if isinstance(entry, hk.Transformed | hk.TransformedWithState):
        return _from_transform(entry)
    return None


def _suggest_partial(cls: type) -> str:
    """Return what to write in place of a class."""
    prefix = ""
    if cls in vars(hk).values():
        prefix = "hk."
    elif cls in vars(hk.nets).values():
        prefix = "hk.nets."
    return f"partial({prefix}{cls.__name__}, ...)"


def _from_transform(entry: hk.Transformed | hk.TransformedWithState) -> PureLayer:
    function = getattr(entry.init, "_original_fn", None)
    if isinstance(function, type) and issubclass(function, hk.Module):
        name = function.__name__
        raise TypeError(
            f"hk.transform({name}) makes a module and doesn't call it: "
            f"write {_suggest_partial(function)}"
        )
    names = list(inspect.signature(entry.apply).parameters)
    if isinstance(entry, hk.TransformedWithState):
        pair, transform = entry, hk.transform_with_state
        takes_key = names[2:3] == ["rng"]  # after params and state
    else:
        pair, transform = hk.with_empty_state(entry), hk.transform
        takes_key = names[1:2] == ["rng"]  # after params
    name = getattr(function, "__name__", "<lambda>")
    return _make_layer(
        pair,
        signature=signature_of(entry.init, skip=1),
        label=type(entry).__name__ if name == "<lambda>" else name,
        text=call_text(transform.__name__, (function or entry.apply,)),
        takes_key=takes_key,
        held=(function,),
        shorten=_shorten_path,
        reduce=(transform, (function,)) if function is not None and takes_key else None,
    )


def _from_class(entry: functools.partial[hk.Module], method: Method) -> PureLayer:
    cls: Any = entry.func
    if isinstance(method, str) and not callable(getattr(cls, method, None)):
        raise TypeError(f"{cls.__name__} has no method {method!r}")

    if cls is hk.Sequential and entry.args and method == "__call__":
        first = next(iter(entry.args[0]))  # which gets all that a Sequential gets
        signature = signature_of(first)
    elif isinstance(method, str):
        signature = signature_of(getattr(cls, method), skip=1)
    else:
        signature = signature_of(method, skip=1)
    # By this name Haiku's modules mean a key, at whatever place.
    rng = signature.parameters.get("rng") if signature is not None else None
    if signature is not None and rng is not None:
        others = [p for p in signature.parameters.values() if p.name != "rng"]
        signature = signature.replace(parameters=others)

    def forward(args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        module: Any = entry()
        if signature is not None and rng is not None:
            keywords = signature.bind(*args, **keywords).arguments
            args = ()
            # An MLP refuses a key that it has no use for.
            if rng.default is rng.empty or "dropout_rate" in keywords:
                keywords["rng"] = hk.next_rng_key()
        if isinstance(method, str):
            return getattr(module, method)(*args, **keywords)
        return method(module, *args, **keywords)

    return _make_layer(
        hk.transform_with_state(forward),
        signature=signature,
        label=cls.__name__,
        text=call_text(cls.__name__, entry.args, entry.keywords),
        takes_key=True,
        held=(*entry.args, *entry.keywords.values()),
        in_one_piece=True,
        shorten=_shorten_path_within_module,
        method=lambda other: _from_class(entry, other),
    )


def _make_layer(
    pair: hk.TransformedWithState, *, takes_key: bool, in_one_piece: bool = False, **fields: Any
) -> PureLayer:
    """Return the `PureLayer` that runs a transform.

    Args:
        pair: The transform.
        takes_key: Whether its `apply` takes a key.
        in_one_piece: Whether the function takes its inputs as a tuple and its keywords as a dict,
            so that a keyword called `state`, say, doesn't meet Haiku's own.
        **fields: More fields of the `PureLayer`.
    """

    def pack(
        args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((args, keywords), {}) if in_one_piece else (args, keywords)

    def init(key: jax.Array, /, *args: Any, **keywords: Any) -> Variables:
        args, keywords = pack(args, keywords)
        params, state = pair.init(key, *args, **keywords)
        return {"params": params, "state": state}

    def apply(
        variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        args, keywords = pack(args, keywords)
        if takes_key:
            args = (key, *args)
        out, state = pair.apply(variables["params"], variables["state"], *args, **keywords)
        if isinstance(out, hk.Module):
            raise TypeError(f"the transform returns a {type(out).__name__} and doesn't call it")
        return out, {"state": state} if state else {}

    def to_native(variables: Variables) -> tuple[Any, Any]:
        return variables["params"], variables["state"]

    return PureLayer(
        init=init,
        apply=apply,
        ecosystem="haiku",
        recipe=True,
        takes_key=takes_key,
        to_native=to_native,
        from_native=_from_native,
        parts=parts,
        **fields,
    )


def _from_native(tree: Any) -> Variables:
    params, state = tree if isinstance(tree, tuple) else (tree, {})
    return {"params": _nest_scopes(params), "state": _nest_scopes(state)}


def _nest_scopes(tree: Any) -> Any:
    """Nest a flat dict whose names are `"scope//name"`, as arrays often lie in an npz.

    Any other tree is returned as it is.
    """
    if not isinstance(tree, Mapping):
        return tree
    if not any(isinstance(name, str) and "//" in name for name in tree):
        return tree
    return nest({tuple(name.rsplit("//", 1)): array for name, array in tree.items()})


def _shorten_path(path: Path) -> Path:
    """Show `("mlp/~/linear_0", "w")` as `mlp.linear_0.w`."""
    scope, *names = path
    modules = [name for name in scope.split("/") if name != "~"]
    return (*modules, *names)


def _shorten_path_within_module(path: Path) -> Path:
    """Show `("mlp/~/linear_0", "w")` as `linear_0.w`, since the label says `MLP` already."""
    return _shorten_path(path)[1:]
