"""The adapter of Haiku: transforms, and module classes given as `partial(hk.Linear, 3)`, become layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk

from seqbridge import PureLayer, Variables, call_text, nest, signature_of
from seqbridge_haiku._export import export as export
from seqbridge_haiku._files import read_pickle as read_pickle
from seqbridge_haiku._parts import parts


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of a `Transformed`, a `TransformedWithState` or `partial(Module, ...)`.

    Raises:
        TypeError: A module class or instance, a multi-transform, or a transform of a class.
    """
    if isinstance(entry, type):
        if issubclass(entry, hk.Module):
            raise TypeError(f"got the class {entry.__name__}: write {_partial(entry)}")
        return None
    if isinstance(entry, functools.partial):
        return _from_class(entry, "__call__") if issubclass(entry.func, hk.Module) else None  # pyright: ignore
    if isinstance(entry, hk.Module):
        kind = type(entry)
        raise TypeError(
            f"this {kind.__name__} belongs to the transform that made it: write {_partial(kind)}"
        )
    if isinstance(entry, hk.MultiTransformed | hk.MultiTransformedWithState):
        raise TypeError(
            "a multi_transform has many functions: give hk.transform_with_state of the one to run"
        )
    if isinstance(entry, hk.Transformed | hk.TransformedWithState):
        return _from_transform(entry)
    return None


def _partial(kind: type) -> str:
    """What to write for a class."""
    space = next(
        (
            f"{text}."
            for text, module in (("hk", hk), ("hk.nets", hk.nets))
            if kind in vars(module).values()
        ),
        "",
    )
    return f"partial({space}{kind.__name__}, ...)"


def _from_transform(entry: hk.Transformed | hk.TransformedWithState) -> PureLayer:
    function = getattr(entry.init, "_original_fn", None)
    if isinstance(function, type) and issubclass(function, hk.Module):
        name = function.__name__
        raise TypeError(
            f"hk.transform({name}) makes a module and doesn't call it: write {_partial(function)}"
        )
    with_state = isinstance(entry, hk.TransformedWithState)
    names = list(inspect.signature(entry.apply).parameters)
    draws = names[1 + with_state : 2 + with_state] == ["rng"]
    name = getattr(function, "__name__", "<lambda>")
    remake = hk.transform_with_state if with_state else hk.transform
    return _layer(
        entry if with_state else hk.with_empty_state(entry),  # pyright: ignore[reportArgumentType]
        signature=signature_of(entry.init, skip=1),
        label=type(entry).__name__ if name == "<lambda>" else name,
        text=call_text(remake.__name__, (function or entry.apply,)),
        takes_key=draws,
        held=(function,),
        shorten=_by_module,
        reduce=(remake, (function,)) if function is not None and draws else None,
    )


def _from_class(entry: functools.partial[Any], method: str | Callable[..., Any]) -> PureLayer:
    cls: Any = entry.func
    if isinstance(method, str) and not callable(getattr(cls, method, None)):
        raise TypeError(f"{cls.__name__} has no method {method!r}")

    signature = signature_of(getattr(cls, method) if isinstance(method, str) else method, skip=1)
    if cls is hk.Sequential and entry.args and method == "__call__":
        signature = signature_of(
            next(iter(entry.args[0]))
        )  # the first layer gets all that a Sequential gets
    key = signature.parameters.get("rng") if signature is not None else None
    if (
        signature is not None and key is not None
    ):  # by this name Haiku's modules mean a key, at whatever place
        signature = signature.replace(
            parameters=[p for n, p in signature.parameters.items() if n != "rng"]
        )

    def forward(args: Any, keywords: Any) -> Any:
        module = entry()
        if signature is not None and key is not None:
            args, keywords = (), signature.bind(*args, **keywords).arguments
            if (
                key.default is key.empty or "dropout_rate" in keywords
            ):  # an MLP refuses a key that it has no use for
                keywords["rng"] = hk.next_rng_key()
        return (
            getattr(module, method)(*args, **keywords)
            if isinstance(method, str)
            else method(module, *args, **keywords)
        )

    return _layer(
        hk.transform_with_state(forward),
        signature=signature,
        label=cls.__name__,
        text=call_text(cls.__name__, entry.args, entry.keywords),
        takes_key=True,
        held=(*entry.args, *entry.keywords.values()),
        # In one piece, so that a keyword called `state`, say, doesn't meet Haiku's own.
        pack=lambda args, keywords: ((args, keywords), {}),
        shorten=_within_module,
        method=lambda other: _from_class(entry, other),
    )


def _layer(
    pair: hk.TransformedWithState,
    *,
    takes_key: bool,
    pack: Callable[..., Any] = lambda args, keywords: (args, keywords),
    **fields: Any,
) -> PureLayer:
    def init(key: Any, /, *args: Any, **keywords: Any) -> Variables:
        args, keywords = pack(args, keywords)
        params, state = pair.init(key, *args, **keywords)
        return {"params": params, "state": state}

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        args, keywords = pack(args, keywords)
        rng = (key,) if takes_key else ()
        out, state = pair.apply(variables["params"], variables["state"], *rng, *args, **keywords)
        if isinstance(out, hk.Module):
            raise TypeError(f"the transform returns a {type(out).__name__} and doesn't call it")
        return out, {"state": state} if state else {}

    return PureLayer(
        init=init,
        apply=apply,
        ecosystem="haiku",
        takes_key=takes_key,
        to_native=lambda variables: (variables["params"], variables["state"]),
        from_native=_from_native,
        parts=parts,
        **fields,
    )


def _from_native(tree: Any) -> Variables:
    params, state = tree if isinstance(tree, tuple) else (tree, {})
    return {"params": _by_scope(params), "state": _by_scope(state)}


def _by_scope(tree: Any) -> Any:
    """Nested dicts, also of a flat one whose names are `"scope//name"`, as arrays often lie in an npz."""
    if not isinstance(tree, Mapping) or not any(
        isinstance(name, str) and "//" in name for name in tree
    ):
        return tree
    return nest({tuple(name.rsplit("//", 1)): array for name, array in tree.items()})


def _by_module(path: tuple[str, ...]) -> tuple[str, ...]:
    """`("mlp/~/linear_0", "w")` is shown as `mlp.linear_0.w`."""
    return (*(part for part in path[0].split("/") if part != "~"), *path[1:])


def _within_module(path: tuple[str, ...]) -> tuple[str, ...]:
    """`("mlp/~/linear_0", "w")` is shown as `linear_0.w`, since the label says `MLP` already."""
    return _by_module(path)[1:]
