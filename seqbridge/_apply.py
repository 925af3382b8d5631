"""One layer's call: for real, or on shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any

import jax

from seqbridge._layer import Layer
from seqbridge._pure import Variables
from seqbridge._stateful import edits


def apply(layer: Layer, variables: Variables, key: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """`(outputs, new_state)`."""
    if not layer.pure.per_example:
        return _apply(layer, variables, key, args, keywords)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(args)}
    if len(sizes) != 1:
        raise ValueError(
            f"a per-example layer takes inputs with one leading axis, the batch; got sizes {sorted(sizes)}"
        )
    keys = None if key is None else jax.random.split(key, sizes.pop())
    try:
        return jax.vmap(lambda k, a: _apply(layer, variables, k, a, keywords), out_axes=(0, None))(keys, args)
    except ValueError as error:
        if "out_axes" in str(error):
            error.add_note("the state of a per-example layer must not depend on the example")
        raise


def _apply(layer: Layer, variables: Variables, key: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    name = layer.pure.key_name
    if name is not None and name not in keywords and name not in layer.parameters.positional[: len(args)]:
        keywords = {**keywords, name: key}
    return layer.pure.apply(variables, key, *args, **keywords)


def evaluate(layer: Layer, variables: Variables, args: tuple[Any, ...], keywords: Mapping[str, Any], mode: Any) -> Any:
    """The shapes of the outputs, computing nothing. Notes whether the layer draws random numbers."""
    leaves, treedef = jax.tree.flatten((variables, args, keywords))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")}

    def call(key: Any, arrays: dict[int, Any]) -> Any:
        variables, args, keywords = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return apply(layer, variables, key, args, keywords)

    shapes = {i: jax.ShapeDtypeStruct(a.shape, a.dtype) for i, a in arrays.items()}
    closed, (out, _) = jax.make_jaxpr(call, return_shape=True)(_key_shape(), shapes)
    key = closed.jaxpr.invars[0]
    drawn = any(v is key for eqn in closed.jaxpr.eqns for v in eqn.invars)
    before = layer._random
    layer._draws[_signature(args, keywords, mode)] = drawn
    if layer._random != before:
        edits.count += 1  # its models show a stream of keys, or none, from now on
    return out


def draws(layer: Layer, variables: Variables, args: tuple[Any, ...], keywords: Mapping[str, Any], mode: Any) -> bool:
    """Whether the call draws random numbers, so that one that doesn't costs no key."""
    if not layer.pure.takes_key:
        return False
    signature = _signature(args, keywords, mode)
    if signature not in layer._draws:
        try:
            evaluate(layer, variables, args, keywords, mode)
        except Exception:  # what can't be traced may draw; what is wrong, the call itself will say
            return True
    return layer._draws[signature]


@functools.cache
def _key_shape() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _signature(args: tuple[Any, ...], keywords: Mapping[str, Any], mode: Any) -> Hashable:
    static = bool, str, int, type(None)
    given = ((k, type(v), v if isinstance(v, static) else None) for k, v in keywords.items())
    return len(args), mode, tuple(sorted(given, key=lambda item: item[0]))
