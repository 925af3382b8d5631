"""The weights of Equinox' own modules in the canonical layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from seqbridge import Part, Weight, explicit, path_text
from seqbridge_equinox._structure import Path

Shape: TypeAlias = tuple[int, ...]

# Modules that compute the weight of the layer inside anew.
_WRAPPERS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)
# A number of updates after which statistics are no longer corrected for their start.
_SETTLED = 10**6
_ACTIVATIONS = {"activation": "tanh", "gate_activation": "sigmoid"}


def parts(module: eqx.Module) -> Iterator[Part]:
    """Yield the parts of a module, in the order in which they are defined."""
    known = {*TABLE, *_WRAPPERS}
    found = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda node: type(node) in known)
    for path, node in found:
        wrapped = type(node) in _WRAPPERS
        layer = node.layer if wrapped else node
        place = (*path_text(path), "layer") if wrapped else path_text(path)
        make_part = TABLE.get(type(layer))  # not of a subclass, which may do something else
        if make_part is None:
            continue
        part = make_part(layer, place)
        if wrapped:
            unusual = f"its weight is what {type(node).__name__} makes of it"
        else:
            unusual = _find_unusual_array(layer, part, len(place))
        yield dataclasses.replace(part, refused=part.refused or unusual)


def _find_unusual_array(module: eqx.Module, part: Part, depth: int) -> str:
    """Say what is wrong with an array that was replaced, or made under a `vmap`.

    Args:
        module: The module.
        part: The part that it is.
        depth: How long the path of the module is, with which those of its arrays begin.

    Returns:
        The reason why the part can't be carried over; empty if there is none.
    """
    rank = 1 if part.kind.endswith("norm") else 2 + getattr(module, "num_spatial_dims", 0)
    for name, weight in part.weights.items():
        has_full_rank = name.endswith(("kernel", "recurrent", "embedding", "scale"))
        for collection, *path in weight.paths:
            if collection != "params":
                continue
            own = path[depth:]
            array: Any = functools.reduce(getattr, own, module)
            if not _is_trained(array):
                return f"its {'.'.join(own)} is no array of its own"
            if has_full_rank and array.ndim != rank:
                return f"its {'.'.join(own)} is of shape {array.shape}, as if of several layers"
    return ""


def _is_trained(array: object) -> bool:
    is_array = isinstance(array, jax.Array | jax.ShapeDtypeStruct)
    return is_array and jnp.issubdtype(array.dtype, jnp.inexact)


def _scale_weight(path: Path, present: bool) -> dict[str, Weight]:
    return {"scale": Weight.at("params", *path, "weight")} if present else {}


def _bias_weight(path: Path, present: bool) -> dict[str, Weight]:
    return {"bias": Weight.reshaped(("params", *path, "bias"), (-1,))} if present else {}


def _linear_part(module: eqx.nn.Linear, path: Path) -> Part:
    kernel = Weight.transposed(("params", *path, "weight"), (1, 0))
    return Part("linear", {"kernel": kernel, **_bias_weight(path, module.use_bias)})


def _conv_part(module: eqx.nn.Conv, path: Path) -> Part:
    return _convolution_part("conv", module, path, _conv_padding(module))


def _conv_transpose_part(module: eqx.nn.ConvTranspose, path: Path) -> Part:
    return _convolution_part("conv_transpose", module, path, _conv_transpose_padding(module))


def _convolution_part(
    kind: str, module: eqx.nn.Conv | eqx.nn.ConvTranspose, path: Path, padding: object
) -> Part:
    axes = (*range(2, 2 + module.num_spatial_dims), 1, 0)
    kernel = Weight.transposed(("params", *path, "weight"), axes)
    options = {
        "strides": tuple(module.stride),
        "padding": padding,
        "dilation": tuple(module.dilation),
        "groups": module.groups,
    }
    weights = {"kernel": kernel, **_bias_weight(path, module.use_bias)}
    return Part(kind, weights, options, channels_first=True)


def _conv_padding(module: eqx.nn.Conv) -> object:
    window, dilation = module.kernel_size, module.dilation
    zeros = explicit(module.padding, window, module.stride, dilation)
    if module.padding_mode == "ZEROS":
        return zeros
    # A library that has a word for the mode alone pads as much as "SAME" does.
    same = explicit("SAME", window, (1,) * len(window), dilation)
    return module.padding_mode if zeros == same else (module.padding_mode, zeros)


def _conv_transpose_padding(module: eqx.nn.ConvTranspose) -> object:
    """Return what is padded around the input.

    Equinox says what the convolution in the other direction pads.
    """
    pairs = []
    axes = zip(
        module.kernel_size, module.stride, module.dilation, module.output_padding, strict=True
    )
    for i, (size, stride, dilation, output_padding) in enumerate(axes):
        reach = dilation * (size - 1)
        more = output_padding
        if not isinstance(module.padding, str):
            before, after = module.padding[i]
        elif module.padding == "VALID":
            before, after = 0, 0
        else:  # as large as the input times the stride, less `more`
            total = reach + 1 - stride + more
            more = max(-total, 0)
            total = max(total, 0)
            before = (total + (module.padding == "SAME_LOWER")) // 2
            after = total - before
        pairs.append((reach - before, reach - after + more))
    return tuple(pairs) if module.padding_mode == "ZEROS" else (module.padding_mode, tuple(pairs))


def _embedding_part(module: eqx.nn.Embedding, path: Path) -> Part:
    return Part("embedding", {"embedding": Weight.at("params", *path, "weight")})


def _batch_norm_part(module: eqx.nn.BatchNorm, path: Path) -> Part:
    affine = module.channelwise_affine
    weights = {
        **_scale_weight(path, affine),
        **_bias_weight(path, affine),
        "mean": _statistic_weight(module, path, "0"),
        "var": _statistic_weight(module, path, "1"),
    }
    options = {"epsilon": module.eps, "momentum": module.momentum}
    return Part("batch_norm", weights, options, channels_first=True)


def _statistic_weight(module: eqx.nn.BatchNorm, path: Path, index: str) -> Weight:
    """Return a mean or a variance, which the two modes of a `BatchNorm` keep in two ways."""
    if module.mode == "ema":
        return _ema_weight(path, index)
    return _debiased_weight(path, index, module.momentum)


def _ema_weight(path: Path, index: str) -> Weight:
    paths = (
        ("state", *path, "ema_state_index", index),
        ("state", *path, "ema_first_time_index"),
    )

    def read(value: np.ndarray, first_time: np.ndarray) -> np.ndarray:
        return value

    def write(canonical: np.ndarray, value: Shape, first_time: Shape) -> tuple[np.ndarray, ...]:
        return canonical, np.zeros(first_time, bool)

    return Weight(paths, read, write)


def _debiased_weight(path: Path, index: str, momentum: float) -> Weight:
    paths = (
        ("state", *path, "batch_state_index", index),
        ("state", *path, "batch_counter"),
    )

    def read(value: np.ndarray, counter: np.ndarray) -> np.ndarray:
        return value / (1 - momentum ** int(counter)) if counter else value

    def write(canonical: np.ndarray, value: Shape, counter: Shape) -> tuple[np.ndarray, ...]:
        return canonical, np.full(counter, _SETTLED, np.int32)

    return Weight(paths, read, write, "debiased")


def _norm_part(kind: str, module: eqx.nn.LayerNorm | eqx.nn.RMSNorm, path: Path) -> Part:
    weights = {**_scale_weight(path, module.use_weight), **_bias_weight(path, module.use_bias)}
    axes = len(module.shape)
    refused = "" if axes == 1 else f"it normalizes over {axes} axes"
    return Part(kind, weights, {"epsilon": module.eps}, refused=refused)


def _group_norm_part(module: eqx.nn.GroupNorm, path: Path) -> Part:
    affine = module.channelwise_affine
    weights = {**_scale_weight(path, affine), **_bias_weight(path, affine)}
    options = {"epsilon": module.eps, "groups": module.groups}
    return Part("group_norm", weights, options, channels_first=True)


def _lstm_part(module: eqx.nn.LSTMCell, path: Path) -> Part:
    def read(x: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([x.T, h.T])

    def write(canonical: np.ndarray, x: Shape, h: Shape) -> tuple[np.ndarray, ...]:
        rows_of_x, rows_of_h = np.split(canonical, [x[1]])
        return rows_of_x.T, rows_of_h.T

    paths = (("params", *path, "weight_ih"), ("params", *path, "weight_hh"))
    kernel = Weight(paths, read, write, "transposed, rows of x above those of h")
    weights = {"kernel": kernel, **_bias_weight(path, module.use_bias)}
    return Part("lstm", weights, _ACTIVATIONS)


def _gru_part(module: eqx.nn.GRUCell, path: Path) -> Part:
    def read(bias: np.ndarray, bias_n: np.ndarray) -> np.ndarray:
        return np.concatenate([bias, bias_n])

    def write(canonical: np.ndarray, bias: Shape, bias_n: Shape) -> tuple[np.ndarray, ...]:
        return tuple(np.split(canonical, bias))

    weights = {
        "kernel": Weight.transposed(("params", *path, "weight_ih"), (1, 0)),
        "recurrent": Weight.transposed(("params", *path, "weight_hh"), (1, 0)),
    }
    if module.use_bias:
        paths = (("params", *path, "bias"), ("params", *path, "bias_n"))
        weights["bias"] = Weight(paths, read, write, "joined with that of the recurrent n")
    return Part("gru", weights, {"reset_after": True, **_ACTIVATIONS})


def _attention_part(module: eqx.nn.MultiheadAttention, path: Path) -> Part:
    heads = module.num_heads
    weights = {}
    for name in ("query", "key", "value"):
        projection = ("params", *path, f"{name}_proj")
        weights[f"{name}_kernel"] = _input_projection_weight(projection, heads)
        if getattr(module, f"use_{name}_bias"):
            weights[f"{name}_bias"] = Weight.reshaped((*projection, "bias"), (heads, -1))
    projection = ("params", *path, "output_proj")
    weights["out_kernel"] = _output_projection_weight(projection, heads)
    if module.use_output_bias:
        weights["out_bias"] = Weight.at(*projection, "bias")
    return Part("attention", weights, {"heads": heads})


def _input_projection_weight(projection: Path, heads: int) -> Weight:
    def read(weight: np.ndarray) -> np.ndarray:
        return weight.T.reshape(weight.shape[1], heads, -1)

    def write(canonical: np.ndarray, weight: Shape) -> np.ndarray:
        return canonical.reshape(canonical.shape[0], -1).T

    return Weight(((*projection, "weight"),), read, write, "transposed, columns by head")


def _output_projection_weight(projection: Path, heads: int) -> Weight:
    def read(weight: np.ndarray) -> np.ndarray:
        return weight.T.reshape(heads, -1, weight.shape[0])

    def write(canonical: np.ndarray, weight: Shape) -> np.ndarray:
        return canonical.reshape(-1, canonical.shape[-1]).T

    return Weight(((*projection, "weight"),), read, write, "transposed, rows by head")


TABLE: Mapping[type, Callable[[Any, Path], Part]] = {
    eqx.nn.Linear: _linear_part,
    eqx.nn.Conv: _conv_part,
    eqx.nn.Conv1d: _conv_part,
    eqx.nn.Conv2d: _conv_part,
    eqx.nn.Conv3d: _conv_part,
    eqx.nn.ConvTranspose: _conv_transpose_part,
    eqx.nn.ConvTranspose1d: _conv_transpose_part,
    eqx.nn.ConvTranspose2d: _conv_transpose_part,
    eqx.nn.ConvTranspose3d: _conv_transpose_part,
    eqx.nn.Embedding: _embedding_part,
    eqx.nn.BatchNorm: _batch_norm_part,
    eqx.nn.LayerNorm: functools.partial(_norm_part, "layer_norm"),
    eqx.nn.RMSNorm: functools.partial(_norm_part, "rms_norm"),
    eqx.nn.GroupNorm: _group_norm_part,
    eqx.nn.LSTMCell: _lstm_part,
    eqx.nn.GRUCell: _gru_part,
    eqx.nn.MultiheadAttention: _attention_part,
}
