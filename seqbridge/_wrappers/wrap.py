"""What stands around a layer and runs it: as the neutral form wants it, in terms of the layer inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from seqbridge._export import as_pure_layer
from seqbridge._interface import Annotated, PureLayer, Variables, path_text
from seqbridge._layers import Layer, LayerList
from seqbridge._model import as_model
from seqbridge._passes import apply, key_for
from seqbridge._state import Keys


def as_layer(x: Any) -> Layer:
    """A layer, an entry, or a model as one layer."""
    if isinstance(x, LayerList | list | Mapping):
        x = _told(as_pure_layer(as_model(x)[0]))
    return x if isinstance(x, Layer) else Layer(x)


def _told(pure: PureLayer) -> PureLayer:
    """The same, whose variables say which of them are frozen."""

    def told(variables: Variables) -> Variables:
        frozen = pure.frozen()
        return jax.tree_util.tree_map_with_path(
            lambda path, a: Annotated(a, trainable=False) if path_text(path) in frozen else a,
            variables,
        )

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Variables:
        assert pure.init is not None
        return told(pure.init(key, *inputs, **keywords))

    ready = None if pure.ready is None else told(pure.ready)
    return dataclasses.replace(
        pure, init=init, ready=ready, reduce=pure.reduce and (_again, pure.reduce)
    )


def _again(function: Any, args: tuple[Any, ...]) -> PureLayer:
    return _told(function(*args))


def wrap(layer: Layer) -> PureLayer:
    """The neutral form of a layer that takes a batch, and its key from `apply` alone, whatever its entry takes."""
    pure = layer.pure

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Variables:
        assert pure.init is not None
        if pure.per_example:
            inputs = jax.tree.map(lambda a: a[0], inputs)
        return pure.init(key, *inputs, **keywords)

    signature = pure.signature
    if signature is not None:
        kept = [p for p in signature.parameters.values() if p.name != pure.key_name]
        signature = signature.replace(parameters=kept)
    return dataclasses.replace(
        pure,
        init=pure.init and init,
        apply=lambda variables, key, /, *inputs, **keywords: apply(
            layer, variables, key, inputs, keywords
        ),
        signature=signature,
        key_name=None,
        per_example=False,
        axis_name=None,
        method=None,
        remake=None,
    )


def key_within(
    layer: Layer, key: Any, variables: Variables, inputs: tuple[Any, ...], keywords: Any
) -> Any:
    """The key for the layer, if it draws: else what stands around would seem to draw, and take one from the stream."""
    return (
        None
        if key is None
        else key_for(layer, Keys(lambda: key), variables, inputs, keywords, None)
    )
