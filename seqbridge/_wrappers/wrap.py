"""The base of all wrappers: a layer as a `PureLayer` that takes a batch and one key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from seqbridge._export import as_pure_layer
from seqbridge._interface import Annotated, Inputs, Keywords, PureLayer, Variables, path_text
from seqbridge._layers import Layer, LayerList
from seqbridge._model import as_model
from seqbridge._passes import apply, key_for
from seqbridge._state import Keys


def as_layer(x: Any) -> Layer:
    """Return a layer, an entry, or a model as one layer."""
    if isinstance(x, Layer):
        return x
    if isinstance(x, LayerList | list | Mapping):
        model, _ = as_model(x)
        return Layer(_annotate_frozen(as_pure_layer(model)))
    return Layer(x)


def _annotate_frozen(pure: PureLayer) -> PureLayer:
    """Return the layer with a note at each of its variables that is frozen."""

    def annotate(variables: Variables) -> Variables:
        frozen = pure.frozen()

        def annotate_leaf(path: tuple[Any, ...], array: Any) -> Any:
            return Annotated(array, trainable=False) if path_text(path) in frozen else array

        return jax.tree_util.tree_map_with_path(annotate_leaf, variables)

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Variables:
        assert pure.init is not None
        return annotate(pure.init(key, *inputs, **keywords))

    return dataclasses.replace(
        pure,
        init=init,
        ready=None if pure.ready is None else annotate(pure.ready),
        reduce=None if pure.reduce is None else (_unpickle, pure.reduce),
    )


def _unpickle(function: Callable[..., PureLayer], args: Inputs) -> PureLayer:
    return _annotate_frozen(function(*args))


def wrap(layer: Layer) -> PureLayer:
    """Return a layer as a `PureLayer` that takes a batch, and its key from `apply` alone."""
    pure = layer.pure

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Variables:
        assert pure.init is not None
        if pure.per_example:
            first = (0,) * int(pure.per_example)
            inputs = jax.tree.map(lambda array: array[first], inputs)
            for name in keywords.keys() & set(pure.batched or ()):
                keywords[name] = jax.tree.map(lambda array: array[first], keywords[name])
        return pure.init(key, *inputs, **keywords)

    def run(
        variables: Variables, key: Any, /, *inputs: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        return apply(layer, variables, key, inputs, keywords)

    signature = pure.signature
    if signature is not None:
        kept = [p for p in signature.parameters.values() if p.name != pure.key_name]
        signature = signature.replace(parameters=kept)
    return dataclasses.replace(
        pure,
        init=None if pure.init is None else init,
        apply=run,
        signature=signature,
        key_name=None,
        per_example=False,
        batched=None,
        axis_name=None,
        method=None,
        remake=None,
    )


def key_within(
    layer: Layer,
    key: Any,
    variables: Variables,
    inputs: Inputs,
    keywords: Keywords,
) -> Any:
    """Return the key for a layer that draws, or None.

    A wrapper that used the key of a layer that draws nothing would itself seem to draw, and would
    take a key from the model's stream.
    """
    if key is None:
        return None
    return key_for(layer, Keys(lambda: key), variables, inputs, keywords)
