"""What the weights of Keras' own layers are, in the canonical layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from seqbridge import Part, Weight, explicit
from seqbridge_keras._template import Template

Path = tuple[str, ...]
At = Callable[[Any], Path]  # where a variable of the layer stands


def parts(template: Template) -> Iterator[Part]:
    """The parts of a built layer, in the order in which they are defined."""
    places = {
        id(v): place for v, place in zip(template.layer.weights, template.places, strict=True)
    }
    for layer in _walk(template.layer, set()):
        part = TABLE[type(layer)](layer, lambda variable: places.get(id(variable), ()))
        if part is None:
            continue
        used = {path for weight in part.weights.values() for path in weight.paths}
        own = {places[id(v)]: v.name for v in layer.weights}
        if (
            used != own.keys()
        ):  # as with LoRA, where even `layer.kernel` is no variable but what becomes of three
            more = ", ".join(name for place, name in own.items() if place not in used)
            whole = {str(i): Weight.at(*place) for i, place in enumerate(own)}
            refused = (
                part.refused or f"it isn't computed from its usual weights alone, but has {more}"
            )
            part = dataclasses.replace(part, weights=whole, refused=refused)
        yield part


def _walk(layer: keras.Layer, seen: set[int]) -> Iterator[keras.Layer]:
    """The layers that are known; not those inside of them, and not subclasses, which may do something else."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if type(layer) in TABLE:
        yield layer
        return
    for inner in keras.tree.flatten(list(vars(layer).values())):
        if isinstance(inner, keras.Layer):
            yield from _walk(inner, seen)


def _bias(layer: Any, at: At) -> dict[str, Weight]:
    return {"bias": Weight.at(*at(layer.bias))} if layer.use_bias else {}


def _dense(layer: keras.layers.Dense, at: At) -> Part:
    return Part("linear", {"kernel": Weight.at(*at(layer.kernel)), **_bias(layer, at)})


def _einsum_dense(layer: keras.layers.EinsumDense, at: At) -> Part | None:
    """A linear layer, if the equation is that of one: `...x,xy->...y`, by whatever letters."""
    terms, _, out = layer.equation.replace(" ", "").replace("...", ".").partition("->")
    x, _, kernel = terms.partition(",")
    plain = (
        x[-1:] == kernel[:1]
        and x[:-1] + kernel[1:] == out
        and len({*x, *kernel}) == len(x) + 1 == len(out) + 1
    )
    if not plain or layer.bias_axes not in (None, "", kernel[1:]):
        return None
    bias = {} if layer.bias is None else {"bias": Weight.at(*at(layer.bias))}
    return Part("linear", {"kernel": Weight.at(*at(layer.kernel)), **bias})


def _options(layer: Any, groups: int) -> dict[str, Any]:
    window, strides, dilation = (
        tuple(v) for v in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    return {
        "strides": strides,
        "padding": explicit(layer.padding, window, strides, dilation),
        "dilation": dilation,
        "groups": groups,
    }


def _channels_first(layer: Any) -> bool:
    return layer.data_format == "channels_first"


def _conv(layer: Any, at: At) -> Part:
    return Part(
        "conv",
        {"kernel": Weight.at(*at(layer.kernel)), **_bias(layer, at)},
        _options(layer, layer.groups),
        channels_first=_channels_first(layer),
    )


def _depthwise(layer: Any, at: At) -> Part:
    *window, features, _ = layer.kernel.shape
    return Part(
        "conv",
        {"kernel": Weight.reshaped(at(layer.kernel), (*window, 1, -1)), **_bias(layer, at)},
        _options(layer, features),
        channels_first=_channels_first(layer),
    )


def _conv_transpose(layer: Any, at: At) -> Part:
    n = len(layer.kernel_size)
    more = layer.output_padding
    more = [more] * n if more is None or isinstance(more, int) else more
    sides = zip(layer.kernel_size, layer.strides, layer.dilation_rate, more, strict=True)
    return Part(
        "conv_transpose",
        {"kernel": Weight.flipped(at(layer.kernel), len(layer.kernel_size)), **_bias(layer, at)},
        {
            "strides": tuple(layer.strides),
            "padding": tuple(_side(layer.padding, *side) for side in sides),
            "dilation": tuple(layer.dilation_rate),
            "groups": 1,
        },
        channels_first=_channels_first(layer),
    )


def _side(
    padding: str, window: int, stride: int, dilation: int, more: int | None
) -> tuple[int, int]:
    """What Keras makes of its words on one axis: it says how large the output is to be."""
    size = (window - 1) * dilation + 1
    if padding == "valid":
        return size - 1, size - 1 + (max(stride - size, 0) if more is None else more)
    total = stride + size - 2 if more is None else size + size % 2 - 2 + more
    first = min(-(-total // 2), size - 1)
    return first, total - first


def _embedding(layer: keras.layers.Embedding, at: At) -> Part:
    return Part("embedding", {"embedding": Weight.at(*at(layer.embeddings))})


def _axes(layer: Any) -> list[int]:
    """The axes along which the features are, from the end if they are at the end."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    shape = (layer.get_build_config() or {}).get("input_shape")
    n = len(shape) if shape else 0
    return [-1 if axis == n - 1 else axis for axis in axes] if n else axes


def _norm(kind: str) -> Callable[[Any, At], Part]:
    names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    names |= {"scale": "scale"} if kind == "rms_norm" else {}

    def norm(layer: Any, at: At) -> Part:
        found = {name: getattr(layer, own, None) for name, own in names.items()}
        weights = {
            name: Weight.at(*at(v)) for name, v in found.items() if isinstance(v, keras.Variable)
        }
        options = {"epsilon": layer.epsilon}
        options |= {"momentum": layer.momentum} if kind == "batch_norm" else {}
        options |= {"groups": layer.groups} if kind == "group_norm" else {}
        axes = _axes(layer)
        first = kind in ("batch_norm", "group_norm") and axes == [1]
        refused = "" if first or axes == [-1] else f"its features are along axes {axes}"
        refused = refused or (
            "it only scales (rms_scaling)" if getattr(layer, "rms_scaling", False) else ""
        )
        return Part(kind, weights, options, channels_first=first, refused=refused)

    return norm


def _activations(layer: Any) -> dict[str, Any]:
    return {
        "activation": _named(layer.activation),
        "gate_activation": _named(layer.recurrent_activation),
    }


def _named(function: Any) -> Any:
    """The name of a function; what has no name of its own, such as a lambda or a layer, is like no other."""
    name = getattr(function, "__name__", "<lambda>")
    return function if name == "<lambda>" else name


def _lstm(layer: Any, at: At) -> Part:
    kernel = Weight(
        (at(layer.kernel), at(layer.recurrent_kernel)),
        lambda x, h: np.concatenate([x, h]),
        lambda c, x, h: tuple(np.split(c, [x[0]])),
        "rows of x above those of h",
    )
    return Part("lstm", {"kernel": kernel, **_bias(layer, at)}, _activations(layer))


def _swapped(array: np.ndarray, *_: Any) -> np.ndarray:
    """Gates z, r, n from r, z, n, and back."""
    first, second, n = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, n], axis=-1)


def _gru(layer: Any, at: At) -> Part:
    text = "gates z, r, n as r, z, n"
    weights = {
        "kernel": Weight((at(layer.kernel),), _swapped, _swapped, text),
        "recurrent": Weight((at(layer.recurrent_kernel),), _swapped, _swapped, text),
    }
    if layer.use_bias:
        size = layer.units

        def read(b: np.ndarray) -> np.ndarray:
            x, h = b if b.ndim == 2 else (b, np.zeros_like(b))
            x, h = _swapped(x), _swapped(h)
            return np.concatenate([x[: 2 * size] + h[: 2 * size], x[2 * size :], h[2 * size :]])

        def write(c: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
            x = _swapped(c[: 3 * size])
            if len(shape) == 1:
                return x
            return np.stack([x, np.concatenate([np.zeros_like(c[: 2 * size]), c[3 * size :]])])

        weights["bias"] = Weight((at(layer.bias),), read, write, f"{text}, biases of x and h added")
    return Part("gru", weights, {"reset_after": layer.reset_after, **_activations(layer)})


def _attention(layer: Any, at: At) -> Part:
    weights = {}
    for name, inner in (
        ("query", layer.query_dense),
        ("key", layer.key_dense),
        ("value", layer.value_dense),
        ("out", layer.output_dense),
    ):
        weights[f"{name}_kernel"] = Weight.at(*at(inner.kernel))
        if inner.bias is not None:
            weights[f"{name}_bias"] = Weight.at(*at(inner.bias))
    refused = ""
    inputs, _, _ = layer.query_dense.equation.partition(",")
    if tuple(layer.attention_axes) != (len(inputs) - 2,):
        refused = f"it attends along axes {layer.attention_axes}"
    elif layer.get_config().get("sliding_window") is not None:
        refused = "it attends to a window only (sliding_window)"
    elif len(layer.output_dense.kernel.shape) != 3:
        refused = "its features out have several axes"
    return Part("attention", weights, {"heads": layer.num_heads}, refused=refused)


_layers = keras.layers
TABLE: Mapping[type, Callable[[Any, At], Part | None]] = {
    _layers.Dense: _dense,
    _layers.EinsumDense: _einsum_dense,
    **dict.fromkeys((_layers.Conv1D, _layers.Conv2D, _layers.Conv3D), _conv),
    **dict.fromkeys((_layers.DepthwiseConv1D, _layers.DepthwiseConv2D), _depthwise),
    **dict.fromkeys(
        (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose), _conv_transpose
    ),
    _layers.Embedding: _embedding,
    _layers.BatchNormalization: _norm("batch_norm"),
    _layers.LayerNormalization: _norm("layer_norm"),
    _layers.RMSNormalization: _norm("rms_norm"),
    _layers.GroupNormalization: _norm("group_norm"),
    _layers.LSTMCell: _lstm,
    _layers.GRUCell: _gru,
    _layers.MultiHeadAttention: _attention,
}
