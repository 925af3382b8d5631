"""What the weights of Equinox' own modules are, in the canonical layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from seqbridge import Part, Weight, explicit, path_text

Path = tuple[str, ...]

_SETTLED = 10**6  # a number of updates after which statistics are no longer corrected for their start


def parts(module: Any) -> Iterator[Part]:
    """The parts of a module, in the order in which they are defined."""
    found, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda node: type(node) in TABLE)
    for path, node in found:
        if type(node) in TABLE:  # not a subclass, which may do something else
            yield TABLE[type(node)](node, path_text(path))


def _bias(module: Any, path: Path, has: bool) -> dict[str, Weight]:
    return {"bias": Weight.reshaped(("params", *path, "bias"), (-1,))} if has else {}


def _linear(module: eqx.nn.Linear, path: Path) -> Part:
    kernel = Weight.transposed(("params", *path, "weight"), (1, 0))
    return Part("linear", {"kernel": kernel, **_bias(module, path, module.use_bias)})


def _conv(module: eqx.nn.Conv, path: Path) -> Part:
    axes = (*range(2, 2 + module.num_spatial_dims), 1, 0)
    return Part(
        "conv",
        {
            "kernel": Weight.transposed(("params", *path, "weight"), axes),
            **_bias(module, path, module.use_bias),
        },
        {
            "strides": tuple(module.stride),
            "padding": explicit(module.padding, module.kernel_size, module.stride, module.dilation),
            "dilation": tuple(module.dilation),
            "groups": module.groups,
        },
        channels_first=True,
        refused=_borders(module),
    )


def _borders(module: Any) -> str:
    return "" if module.padding_mode == "ZEROS" else f"its borders are padded by {module.padding_mode.lower()}"


def _conv_transpose(module: eqx.nn.ConvTranspose, path: Path) -> Part:
    word = isinstance(module.padding, str)
    sides = zip(module.kernel_size, module.dilation, module.padding, module.output_padding, strict=False)
    whole = [] if word else [(d * (k - 1) - p[0], d * (k - 1) - p[1] + more) for k, d, p, more in sides]  # pyright: ignore
    axes = (*range(2, 2 + module.num_spatial_dims), 1, 0)
    return Part(
        "conv_transpose",
        {
            "kernel": Weight.transposed(("params", *path, "weight"), axes),
            **_bias(module, path, module.use_bias),
        },
        {
            "strides": tuple(module.stride),
            "padding": tuple(whole),
            "dilation": tuple(module.dilation),
            "groups": module.groups,
        },
        channels_first=True,
        refused=f"its padding is {module.padding!r}, and not in numbers" if word else _borders(module),
    )


def _embedding(module: eqx.nn.Embedding, path: Path) -> Part:
    return Part("embedding", {"embedding": Weight.at("params", *path, "weight")})


def _statistic(module: eqx.nn.BatchNorm, path: Path, i: int) -> Weight:
    """A mean or a variance, which two modes keep in two ways."""
    if module.mode == "ema":
        places = ((*path, "ema_state_index", str(i)), (*path, "ema_first_time_index"))
        return Weight(
            tuple(("state", *place) for place in places),
            lambda value, first: value,
            lambda c, value, first: (c, np.zeros(first, bool)),
        )
    momentum = module.momentum

    def read(value: np.ndarray, counter: np.ndarray) -> np.ndarray:
        return value / (1 - momentum ** int(counter)) if counter else value

    return Weight(
        tuple(("state", *place) for place in ((*path, "batch_state_index", str(i)), (*path, "batch_counter"))),
        read,
        lambda c, value, counter: (c, np.full(counter, _SETTLED, np.int32)),
        "debiased",
    )


def _batch_norm(module: eqx.nn.BatchNorm, path: Path) -> Part:
    affine = module.channelwise_affine
    weights = {"scale": Weight.at("params", *path, "weight")} if affine else {}
    return Part(
        "batch_norm",
        {
            **weights,
            **_bias(module, path, affine),
            "mean": _statistic(module, path, 0),
            "var": _statistic(module, path, 1),
        },
        {"epsilon": module.eps, "momentum": module.momentum},
        channels_first=True,
    )


def _norm(kind: str) -> Callable[[Any, Path], Part]:
    def norm(module: Any, path: Path) -> Part:
        weights = {"scale": Weight.at("params", *path, "weight")} if module.use_weight else {}
        refused = "" if len(module.shape) == 1 else f"it normalizes over {len(module.shape)} axes"
        bias = _bias(module, path, module.use_bias)
        return Part(kind, {**weights, **bias}, {"epsilon": module.eps}, refused=refused)

    return norm


def _group_norm(module: eqx.nn.GroupNorm, path: Path) -> Part:
    affine = module.channelwise_affine
    weights = {"scale": Weight.at("params", *path, "weight")} if affine else {}
    options = {"epsilon": module.eps, "groups": module.groups}
    return Part("group_norm", {**weights, **_bias(module, path, affine)}, options, channels_first=True)


_ACTIVATIONS = {"activation": "tanh", "gate_activation": "sigmoid"}


def _lstm(module: eqx.nn.LSTMCell, path: Path) -> Part:
    kernel = Weight(
        (("params", *path, "weight_ih"), ("params", *path, "weight_hh")),
        lambda x, h: np.concatenate([x.T, h.T]),
        lambda c, x, h: tuple(part.T for part in np.split(c, [x[1]])),
        "transposed, rows of x above those of h",
    )
    return Part("lstm", {"kernel": kernel, **_bias(module, path, module.use_bias)}, _ACTIVATIONS)


def _gru(module: eqx.nn.GRUCell, path: Path) -> Part:
    weights = {
        "kernel": Weight.transposed(("params", *path, "weight_ih"), (1, 0)),
        "recurrent": Weight.transposed(("params", *path, "weight_hh"), (1, 0)),
    }
    if module.use_bias:
        weights["bias"] = Weight(
            (("params", *path, "bias"), ("params", *path, "bias_n")),
            lambda *arrays: np.concatenate(arrays),
            lambda c, first, _: tuple(np.split(c, first)),
            "joined with that of the recurrent n",
        )
    return Part("gru", weights, {"reset_after": True, **_ACTIVATIONS})


def _attention(module: eqx.nn.MultiheadAttention, path: Path) -> Part:
    heads = module.num_heads
    weights = {}
    for name in ("query", "key", "value"):
        place = ("params", *path, f"{name}_proj")
        weights[f"{name}_kernel"] = Weight(
            ((*place, "weight"),),
            lambda w: w.T.reshape(w.shape[1], heads, -1),
            lambda c, shape: c.reshape(c.shape[0], -1).T,
            "transposed, columns by head",
        )
        if getattr(module, f"use_{name}_bias"):
            weights[f"{name}_bias"] = Weight.reshaped((*place, "bias"), (heads, -1))
    place = ("params", *path, "output_proj")
    weights["out_kernel"] = Weight(
        ((*place, "weight"),),
        lambda w: w.T.reshape(heads, -1, w.shape[0]),
        lambda c, shape: c.reshape(-1, c.shape[-1]).T,
        "transposed, rows by head",
    )
    if module.use_output_bias:
        weights["out_bias"] = Weight.at(*place, "bias")
    return Part("attention", weights, {"heads": heads})


TABLE: Mapping[type, Callable[[Any, Path], Part]] = {
    eqx.nn.Linear: _linear,
    **dict.fromkeys((eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d), _conv),
    **dict.fromkeys(
        (eqx.nn.ConvTranspose, eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d, eqx.nn.ConvTranspose3d),
        _conv_transpose,
    ),
    eqx.nn.Embedding: _embedding,
    eqx.nn.BatchNorm: _batch_norm,
    eqx.nn.LayerNorm: _norm("layer_norm"),
    eqx.nn.RMSNorm: _norm("rms_norm"),
    eqx.nn.GroupNorm: _group_norm,
    eqx.nn.LSTMCell: _lstm,
    eqx.nn.GRUCell: _gru,
    eqx.nn.MultiheadAttention: _attention,
}
