"""The weights of Keras' own layers in the canonical layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers

from seqbridge import Part, Weight, explicit
from seqbridge_keras._template import Path, Template

At: TypeAlias = Callable[[object], Path]
"""From a variable of a layer to its place."""

Shape: TypeAlias = tuple[int, ...]


def parts(template: Template) -> Iterator[Part]:
    """Yield the parts of a built layer, in the order in which they are defined."""
    places: dict[int, Path] = {}
    for variable, place in zip(template.layer.weights, template.places, strict=True):
        places[id(variable)] = place

    def at(variable: object) -> Path:
        return places.get(id(variable), ())

    for layer in _walk_known(template.layer, set()):
        part = TABLE[type(layer)](layer, at)
        if part is not None:
            own = {places[id(variable)]: variable.name for variable in layer.weights}
            yield _check_weights(part, own)


def _check_weights(part: Part, own: Mapping[Path, str]) -> Part:
    """Return the part, refused if it hasn't got all weights of its layer.

    It is so with LoRA, where even `layer.kernel` is no variable but what becomes of three.

    Args:
        part: The part.
        own: The names of the layer's weights, by their places.
    """
    used = set()
    for weight in part.weights.values():
        used.update(weight.paths)
    if used == own.keys():
        return part
    more = ", ".join(name for place, name in own.items() if place not in used)
    refused = part.refused or f"it isn't computed from its usual weights alone, but has {more}"
    weights = {str(i): Weight.at(*place) for i, place in enumerate(own)}
    return dataclasses.replace(part, weights=weights, refused=refused)


def _walk_known(layer: keras.Layer, seen: set[int]) -> Iterator[keras.Layer]:
    """Yield the layers that are known, and none inside of them.

    A subclass of a known class isn't known: it may do something else.
    """
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if type(layer) in TABLE:
        yield layer
        return
    for inner in keras.tree.flatten(list(vars(layer).values())):
        if isinstance(inner, keras.Layer):
            yield from _walk_known(inner, seen)


def _bias_weight(layer: Any, at: At) -> dict[str, Weight]:
    return {"bias": Weight.at(*at(layer.bias))} if layer.use_bias else {}


def _dense_part(layer: layers.Dense, at: At) -> Part:
    return Part("linear", {"kernel": Weight.at(*at(layer.kernel)), **_bias_weight(layer, at)})


def _einsum_dense_part(layer: layers.EinsumDense, at: At) -> Part | None:
    """Return a linear part, if the equation is that of one: `...x,xy->...y`, by any letters."""
    terms, _, out = layer.equation.replace(" ", "").replace("...", ".").partition("->")
    x, _, kernel = terms.partition(",")
    is_product = x[-1:] == kernel[:1] and x[:-1] + kernel[1:] == out
    letters = {*x, *kernel}
    if not is_product or not len(letters) == len(x) + 1 == len(out) + 1:
        return None
    if layer.bias_axes not in (None, "", kernel[1:]):
        return None
    weights = {"kernel": Weight.at(*at(layer.kernel))}
    if layer.bias is not None:
        weights["bias"] = Weight.at(*at(layer.bias))
    return Part("linear", weights)


def _convolution_options(layer: Any, groups: int) -> dict[str, Any]:
    window = tuple(layer.kernel_size)
    strides = tuple(layer.strides)
    dilation = tuple(layer.dilation_rate)
    return {
        "strides": strides,
        "padding": explicit(layer.padding, window, strides, dilation),
        "dilation": dilation,
        "groups": groups,
    }


def _is_channels_first(layer: Any) -> bool:
    return layer.data_format == "channels_first"


def _conv_part(layer: layers.Conv1D | layers.Conv2D | layers.Conv3D, at: At) -> Part:
    return Part(
        "conv",
        {"kernel": Weight.at(*at(layer.kernel)), **_bias_weight(layer, at)},
        _convolution_options(layer, layer.groups),
        channels_first=_is_channels_first(layer),
    )


def _depthwise_conv_part(layer: layers.DepthwiseConv1D | layers.DepthwiseConv2D, at: At) -> Part:
    *window, features, _ = layer.kernel.shape
    kernel = Weight.reshaped(at(layer.kernel), (*window, 1, -1))
    return Part(
        "conv",
        {"kernel": kernel, **_bias_weight(layer, at)},
        _convolution_options(layer, features),
        channels_first=_is_channels_first(layer),
    )


def _conv_transpose_part(layer: Any, at: At) -> Part:
    n = len(layer.kernel_size)
    output_padding = layer.output_padding
    if output_padding is None or isinstance(output_padding, int):
        output_padding = [output_padding] * n
    axes = zip(layer.kernel_size, layer.strides, layer.dilation_rate, output_padding, strict=True)
    padding = [_conv_transpose_padding(layer.padding, *axis) for axis in axes]
    return Part(
        "conv_transpose",
        {"kernel": Weight.flipped(at(layer.kernel), n), **_bias_weight(layer, at)},
        {
            "strides": tuple(layer.strides),
            "padding": tuple(padding),
            "dilation": tuple(layer.dilation_rate),
            "groups": 1,
        },
        channels_first=_is_channels_first(layer),
    )


def _conv_transpose_padding(
    padding: str, window: int, stride: int, dilation: int, output_padding: int | None
) -> tuple[int, int]:
    """Return what is padded around the input on one axis.

    Keras' words say how large the output is to be.
    """
    size = (window - 1) * dilation + 1
    if padding == "valid":
        more = max(stride - size, 0) if output_padding is None else output_padding
        return size - 1, size - 1 + more
    more = stride if output_padding is None else size % 2 + output_padding
    total = size + more - 2
    first = min(-(-total // 2), size - 1)
    return first, total - first


def _embedding_part(layer: layers.Embedding, at: At) -> Part:
    return Part("embedding", {"embedding": Weight.at(*at(layer.embeddings))})


def _feature_axes(layer: Any) -> list[int]:
    """Return the axes along which the features are, -1 for the last one if it is known."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not shape:
        return axes
    last = len(shape) - 1
    return [-1 if axis == last else axis for axis in axes]


def _norm_part(kind: str, layer: Any, at: At) -> Part:
    names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    if kind == "rms_norm":
        names["scale"] = "scale"
    weights = {}
    for name, attribute in names.items():
        variable = getattr(layer, attribute, None)
        if isinstance(variable, keras.Variable):
            weights[name] = Weight.at(*at(variable))
    options = {"epsilon": layer.epsilon}
    if kind == "batch_norm":
        options["momentum"] = layer.momentum
    if kind == "group_norm":
        options["groups"] = layer.groups
    axes = _feature_axes(layer)
    channels_first = kind in ("batch_norm", "group_norm") and axes == [1]
    refused = ""
    if not channels_first and axes != [-1]:
        refused = f"its features are along axes {axes}"
    elif getattr(layer, "rms_scaling", False):
        refused = "it only scales (rms_scaling)"
    return Part(kind, weights, options, channels_first=channels_first, refused=refused)


def _activations(layer: layers.LSTMCell | layers.GRUCell) -> dict[str, object]:
    return {
        "activation": _name_or_itself(layer.activation),
        "gate_activation": _name_or_itself(layer.recurrent_activation),
    }


def _name_or_itself(function: object) -> object:
    """Return the name of a function.

    One without a name of its own, such as a lambda or a layer, is returned as it is: it is like no
    other.
    """
    name = getattr(function, "__name__", "<lambda>")
    return function if name == "<lambda>" else name


def _lstm_part(layer: layers.LSTMCell, at: At) -> Part:
    kernel = Weight(
        (at(layer.kernel), at(layer.recurrent_kernel)),
        lambda x, h: np.concatenate([x, h]),
        lambda canonical, x, h: tuple(np.split(canonical, [x[0]])),
        "rows of x above those of h",
    )
    return Part("lstm", {"kernel": kernel, **_bias_weight(layer, at)}, _activations(layer))


_SWAPPED = "gates z, r, n as r, z, n"


def _swap_gates(array: np.ndarray, *_: Shape) -> np.ndarray:
    """Return gates z, r, n from r, z, n, or the other way round."""
    first, second, n = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, n], axis=-1)


def _gru_part(layer: layers.GRUCell, at: At) -> Part:
    weights = {
        "kernel": Weight((at(layer.kernel),), _swap_gates, _swap_gates, _SWAPPED),
        "recurrent": Weight((at(layer.recurrent_kernel),), _swap_gates, _swap_gates, _SWAPPED),
    }
    if layer.use_bias:
        weights["bias"] = _gru_bias_weight(at(layer.bias), layer.units)
    return Part("gru", weights, {"reset_after": layer.reset_after, **_activations(layer)})


def _gru_bias_weight(path: Path, units: int) -> Weight:
    """Return the bias: a row for the input alone, or another one for the recurrent part."""
    gates = 2 * units  # where the candidate begins

    def read(bias: np.ndarray) -> np.ndarray:
        x, h = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        x, h = _swap_gates(x), _swap_gates(h)
        return np.concatenate([x[:gates] + h[:gates], x[gates:], h[gates:]])

    def write(canonical: np.ndarray, shape: Shape) -> np.ndarray:
        x = _swap_gates(canonical[: 3 * units])
        if len(shape) == 1:
            return x
        h = np.concatenate([np.zeros_like(canonical[:gates]), canonical[3 * units :]])
        return np.stack([x, h])

    return Weight((path,), read, write, f"{_SWAPPED}, biases of x and h added")


def _attention_part(layer: Any, at: At) -> Part:
    projections = {
        "query": layer.query_dense,
        "key": layer.key_dense,
        "value": layer.value_dense,
        "out": layer.output_dense,
    }
    weights = {}
    for name, projection in projections.items():
        weights[f"{name}_kernel"] = Weight.at(*at(projection.kernel))
        if projection.bias is not None:
            weights[f"{name}_bias"] = Weight.at(*at(projection.bias))
    inputs, _, _ = layer.query_dense.equation.partition(",")
    refused = ""
    if tuple(layer.attention_axes) != (len(inputs) - 2,):
        refused = f"it attends along axes {layer.attention_axes}"
    elif layer.get_config().get("sliding_window") is not None:
        refused = "it attends to a window only (sliding_window)"
    elif len(layer.output_dense.kernel.shape) != 3:
        refused = "its features out have several axes"
    return Part("attention", weights, {"heads": layer.num_heads}, refused=refused)


TABLE: Mapping[type, Callable[[Any, At], Part | None]] = {
    layers.Dense: _dense_part,
    layers.EinsumDense: _einsum_dense_part,
    layers.Conv1D: _conv_part,
    layers.Conv2D: _conv_part,
    layers.Conv3D: _conv_part,
    layers.DepthwiseConv1D: _depthwise_conv_part,
    layers.DepthwiseConv2D: _depthwise_conv_part,
    layers.Conv1DTranspose: _conv_transpose_part,
    layers.Conv2DTranspose: _conv_transpose_part,
    layers.Conv3DTranspose: _conv_transpose_part,
    layers.Embedding: _embedding_part,
    layers.BatchNormalization: functools.partial(_norm_part, "batch_norm"),
    layers.LayerNormalization: functools.partial(_norm_part, "layer_norm"),
    layers.RMSNormalization: functools.partial(_norm_part, "rms_norm"),
    layers.GroupNormalization: functools.partial(_norm_part, "group_norm"),
    layers.LSTMCell: _lstm_part,
    layers.GRUCell: _gru_part,
    layers.MultiHeadAttention: _attention_part,
}
