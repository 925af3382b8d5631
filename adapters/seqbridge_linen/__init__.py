"""The adapter of Flax linen: any `flax.linen.Module`, unbound, becomes a layer."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta, unfreeze

from seqbridge import MODE_FLAGS, Annotated, PureLayer, Variables, call_text, nest, signature_of
from seqbridge_linen._export import export as export
from seqbridge_linen._files import read_msgpack as read_msgpack
from seqbridge_linen._parts import parts


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of a linen module, or of `partial(Module, ...)`.

    Raises:
        TypeError: A module class, a bound module, or one that belongs to another module.
    """
    if isinstance(entry, type):
        if issubclass(entry, nn.Module):
            raise TypeError(f"got the class {entry.__name__}: give a module, {entry.__name__}(...)")
        return None
    module = entry if isinstance(entry, nn.Module) else entry()
    if not isinstance(module, nn.Module):
        return None
    name = type(module).__name__
    if isinstance(module.parent, nn.Module) and not _has_variables(module):
        module = module.clone(
            parent=None, name=None
        )  # made in a method of another module, as linen's modules are
    if module.scope is not None:
        raise TypeError(
            f"this {name} is bound to variables: give the unbound module, {name}(...), and hand "
            f"over the variables by "
            "model[i].load_native(variables)"
        )
    if module.parent is not None:
        raise TypeError(
            f"this {name} belongs to a {type(module.parent).__name__}: give that, or a module of "
            f"its own"
        )
    return _layer(module, "__call__")


def _layer(module: nn.Module, method: str | Callable[..., Any]) -> PureLayer:
    if isinstance(method, str) and not callable(getattr(type(module), method, None)):
        raise TypeError(f"{type(module).__name__} has no method {method!r}")
    signature = _signature(module, method)

    def call(bound: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        # By position as far as it goes: `nn.remat` takes its static arguments by position only.
        args, keywords = _by_position(signature, args, keywords)
        return (
            getattr(bound, method)(*args, **keywords)
            if isinstance(method, str)
            else method(bound, *args, **keywords)
        )

    def init(key: Any, /, *args: Any, **keywords: Any) -> Variables:
        variables = module.init(key, args, keywords, method=call)
        return jax.tree.map(_annotate, unfreeze(variables), is_leaf=_is_box)

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        given = {name: tree for name, c in variables.items() if (tree := _without_sown(c))}
        out, state = module.apply(
            given,
            args,
            keywords,
            method=call,
            rngs=key,
            mutable=[name for name in variables if name != "params"],
        )
        return out, meta.unbox(unfreeze(state))

    return PureLayer(
        init=init,
        apply=apply,
        signature=signature,
        label=type(module).__name__,
        ecosystem="linen",
        text=call_text(type(module).__name__, (), _given_fields(module)),
        decided=_decided(module),
        to_native=lambda variables: jax.tree.map(
            _box, variables, is_leaf=lambda v: isinstance(v, Annotated)
        ),
        from_native=lambda tree: meta.unbox(unfreeze(_nested(tree))),
        method=lambda other: _layer(module, other),
        held=tuple(_functions(module)),
        reduce=(_make, (type(module), _given_fields(module))),
        parts=parts,
    )


def _has_variables(module: nn.Module) -> bool:
    return module.scope is not None and any(module.variables.values())


def _signature(module: nn.Module, method: str | Callable[..., Any]) -> inspect.Signature | None:
    if isinstance(module, nn.Sequential) and method == "__call__" and module.layers:
        first = module.layers[0]  # which gets all that a Sequential gets
        return _signature(first, method) if isinstance(first, nn.Module) else signature_of(first)
    signature = signature_of(
        getattr(type(module), method) if isinstance(method, str) else method, skip=1
    )
    inner = getattr(
        module, "layer_instance", None
    )  # of a wrapper such as `nn.WeightNorm`, which hands everything on
    if (
        signature is not None
        and isinstance(inner, nn.Module)
        and (handed := _signature(inner, "__call__"))
    ):
        own = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        given = [p for p in handed.parameters.values() if p.name not in signature.parameters]
        return inspect.Signature(sorted([*given, *own], key=lambda p: p.kind))
    return signature


def _by_position(
    signature: inspect.Signature | None, args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if signature is None:
        return args, keywords
    bound = signature.bind(*args, **keywords)
    return bound.args, bound.kwargs


def _decided(module: nn.Module) -> frozenset[str]:
    decided = {flag for flag in MODE_FLAGS if getattr(module, flag, None) is not None}
    if getattr(module, "dropout_rate", None) == 0 and isinstance(
        module, nn.MultiHeadDotProductAttention
    ):
        decided.add("deterministic")  # attention without dropout has no mode
    return frozenset(decided)


def _without_sown(tree: Any) -> Any:
    """The collection without sown values, which are tuples that would grow by an item with every call."""
    if not isinstance(tree, dict):
        return tree
    kept = {name: _without_sown(node) for name, node in tree.items() if not isinstance(node, tuple)}
    return {name: node for name, node in kept.items() if not (isinstance(node, dict) and not node)}


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, meta.AxisMetadata)


def _annotate(leaf: Any) -> Any:
    if not _is_box(leaf):
        return leaf
    return Annotated(leaf.unbox(), leaf.replace_boxed(None), axes=tuple(leaf.get_partition_spec()))


def _box(leaf: Any) -> Any:
    return leaf.note.replace_boxed(leaf.value) if isinstance(leaf, Annotated) else leaf


def _nested(tree: Any) -> Any:
    """Nested dicts, also of a flat one whose names are paths, as arrays lie in an npz or in safetensors."""
    if not isinstance(tree, Mapping) or any(isinstance(inner, Mapping) for inner in tree.values()):
        return tree
    separator = next((mark for mark in "/." if any(mark in str(name) for name in tree)), None)
    return (
        tree
        if separator is None
        else nest({tuple(str(n).split(separator)): array for n, array in tree.items()})
    )


def _functions(module: nn.Module) -> Iterator[Any]:
    """What a module calls, its own submodules and the initializers of its parameters apart."""
    for field in dataclasses.fields(module):
        if field.init and field.name != "parent" and not field.name.endswith("init"):
            for value in jax.tree.leaves(getattr(module, field.name), is_leaf=callable):
                if isinstance(value, nn.Module):
                    yield from _functions(value)
                else:
                    yield value


def _given_fields(module: nn.Module) -> dict[str, Any]:
    """The fields of a module that aren't its class' defaults."""
    given = {}
    for field in dataclasses.fields(module):
        if field.init and field.name != "parent":
            value = getattr(module, field.name)
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            if value is not default and not _equal(value, default):
                given[field.name] = value
    return given


def _equal(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b)
    except (TypeError, ValueError):  # arrays
        return False


def _make(cls: type[nn.Module], fields: dict[str, Any]) -> nn.Module:
    return cls(**fields)
