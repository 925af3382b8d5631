"""The adapter of Flax linen: any `flax.linen.Module`, unbound, becomes a layer."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta, unfreeze

from seqbridge import MODE_FLAGS, Annotated, PureLayer, Variables, call_text, nest, signature_of
from seqbridge_linen._export import export as export
from seqbridge_linen._files import read_msgpack as read_msgpack
from seqbridge_linen._parts import parts

Method: TypeAlias = str | Callable[..., Any]
"""The name of a method, or a function that takes the module first."""


def adapt(entry: Any) -> PureLayer | None:
    """Return the `PureLayer` of a linen module, or of `partial(Module, ...)`.

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
        # Made in a method of another module, as linen's modules are.
        module = module.clone(parent=None, name=None)
    if module.scope is not None:
        raise TypeError(
            f"this {name} is bound to variables: give the unbound module, {name}(...), and hand "
            "over the variables by model[i].load_native(variables)"
        )
    if module.parent is not None:
        raise TypeError(
            f"this {name} belongs to a {type(module.parent).__name__}: give that, or a module of "
            "its own"
        )
    return _make_layer(module, "__call__")


def _make_layer(module: nn.Module, method: Method) -> PureLayer:
    """Return the `PureLayer` that calls a module by one of its methods.

    Raises:
        TypeError: The module has no such method.
    """
    name = type(module).__name__
    if isinstance(method, str) and not callable(getattr(type(module), method, None)):
        raise TypeError(f"{name} has no method {method!r}")
    signature = _call_signature(module, method)

    def call(bound: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if signature is not None:
            # By position as far as it goes: `nn.remat` takes its static arguments by position only.
            arguments = signature.bind(*args, **keywords)
            _fill_gaps(arguments)
            args, keywords = arguments.args, arguments.kwargs
        if isinstance(method, str):
            return getattr(bound, method)(*args, **keywords)
        return method(bound, *args, **keywords)

    def init(key: jax.Array, /, *args: Any, **keywords: Any) -> Variables:
        variables = jax.tree.map(
            _unbox, unfreeze(module.init(key, args, keywords, method=call)), is_leaf=_is_box
        )
        return {name: _empty_sown(tree) for name, tree in variables.items()}

    def apply(
        variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        given = {}
        for collection, tree in variables.items():
            kept = _drop_sown(tree)
            if kept:
                given[collection] = kept
        mutable = [collection for collection in variables if collection != "params"]
        out, state = module.apply(given, args, keywords, method=call, rngs=key, mutable=mutable)
        return out, meta.unbox(unfreeze(state))

    def to_native(variables: Variables) -> Variables:
        return jax.tree.map(_box, variables, is_leaf=_is_annotated)

    def from_native(tree: Any) -> Variables:
        return meta.unbox(unfreeze(_nest_paths(tree)))

    fields = _given_fields(module)
    return PureLayer(
        init=init,
        apply=apply,
        signature=signature,
        label=name,
        ecosystem="linen",
        text=call_text(name, (), fields),
        mode_flags={"update_stats": True},  # of `nn.SpectralNorm`
        decided=_decided_flags(module),
        makes_state=True,
        to_native=to_native,
        from_native=from_native,
        method=lambda other: _make_layer(module, other),
        held=tuple(_given_functions(module)),
        reduce=(_rebuild_module, (type(module), fields)),
        parts=parts,
    )


def _has_variables(module: nn.Module) -> bool:
    return module.scope is not None and any(module.variables.values())


def _call_signature(module: nn.Module, method: Method) -> inspect.Signature | None:
    """Return what a call takes. None: it isn't known."""
    if isinstance(module, nn.Sequential) and method == "__call__" and module.layers:
        first = module.layers[0]  # which gets all that a Sequential gets
        return (
            _call_signature(first, method) if isinstance(first, nn.Module) else signature_of(first)
        )
    function = getattr(type(module), method) if isinstance(method, str) else method
    signature = signature_of(function, skip=1)
    # Of a wrapper such as `nn.WeightNorm`, which hands everything on.
    inner = getattr(module, "layer_instance", None)
    if signature is None or not isinstance(inner, nn.Module):
        return signature
    handed_on = _call_signature(inner, "__call__")
    if handed_on is None:
        return signature
    parameters = [p for p in handed_on.parameters.values() if p.name not in signature.parameters]
    parameters += [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    return inspect.Signature(sorted(parameters, key=lambda p: p.kind))


def _fill_gaps(arguments: inspect.BoundArguments) -> None:
    """Give their defaults to parameters before one that was given, so that it can be positional."""
    gaps: list[inspect.Parameter] = []
    for parameter in arguments.signature.parameters.values():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            continue
        if parameter.name not in arguments.arguments:
            gaps.append(parameter)
        else:
            arguments.arguments.update({gap.name: gap.default for gap in gaps})
            gaps = []


def _decided_flags(module: nn.Module) -> frozenset[str]:
    """Return the mode flags that the module has set for itself."""
    decided = {flag for flag in MODE_FLAGS if getattr(module, flag, None) is not None}
    if isinstance(module, nn.MultiHeadDotProductAttention) and module.dropout_rate == 0:
        decided.add("deterministic")  # attention without dropout has no mode
    return frozenset(decided)


def _drop_sown(tree: Any) -> Any:
    """Return a collection without sown values and what is empty without them.

    Sown values are tuples that would grow by an item with every call.
    """
    if not isinstance(tree, dict):
        return tree
    kept = {}
    for name, node in tree.items():
        if isinstance(node, tuple):
            continue
        rest = _drop_sown(node)
        if not isinstance(rest, dict) or rest:
            kept[name] = rest
    return kept


def _empty_sown(tree: Any) -> Any:
    """Return a collection with zeros for sown values, which are those of a call to come."""
    if isinstance(tree, tuple):
        return jax.tree.map(jnp.zeros_like, tree)
    if isinstance(tree, dict):
        return {name: _empty_sown(node) for name, node in tree.items()}
    return tree


def _is_box(leaf: object) -> bool:
    return isinstance(leaf, meta.AxisMetadata)


def _is_annotated(leaf: object) -> bool:
    return isinstance(leaf, Annotated)


def _unbox(leaf: Any) -> Any:
    """Return an array with what Flax says of its axes as a note."""
    if not _is_box(leaf):
        return leaf
    return Annotated(leaf.unbox(), leaf.replace_boxed(None), axes=tuple(leaf.get_partition_spec()))


def _box(leaf: Any) -> Any:
    return leaf.note.replace_boxed(leaf.value) if isinstance(leaf, Annotated) else leaf


def _nest_paths(tree: Any) -> Any:
    """Nest a flat dict whose names are paths, as arrays lie in an npz or in safetensors.

    Any other tree is returned as it is.
    """
    if not isinstance(tree, Mapping) or any(isinstance(inner, Mapping) for inner in tree.values()):
        return tree
    for separator in "/.":
        if any(separator in str(name) for name in tree):
            return nest({tuple(str(name).split(separator)): leaf for name, leaf in tree.items()})
    return tree


def _given_functions(module: nn.Module) -> Iterator[object]:
    """Yield what a module calls, apart from its submodules and initializers of parameters."""
    for field in dataclasses.fields(module):
        if not field.init or field.name == "parent" or field.name.endswith("init"):
            continue
        for value in jax.tree.leaves(getattr(module, field.name), is_leaf=callable):
            if isinstance(value, nn.Module):
                yield from _given_functions(value)
            else:
                yield value


def _given_fields(module: nn.Module) -> dict[str, Any]:
    """Return the fields of a module that aren't its class' defaults."""
    given = {}
    for field in dataclasses.fields(module):
        if not field.init or field.name == "parent":
            continue
        value = getattr(module, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value is not default and not _is_equal(value, default):
            given[field.name] = value
    return given


def _is_equal(a: object, b: object) -> bool:
    try:
        return type(a) is type(b) and bool(a == b)
    except (TypeError, ValueError):  # arrays
        return False


def _rebuild_module(cls: type[nn.Module], fields: dict[str, object]) -> nn.Module:
    return cls(**fields)
