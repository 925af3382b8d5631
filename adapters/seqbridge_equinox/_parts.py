"""What the weights of Equinox' own modules are, in the canonical layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from seqbridge import Part, Weight, explicit, path_text

Path = tuple[str, ...]

_WRAPPERS = (
    eqx.nn.WeightNorm,
    eqx.nn.SpectralNorm,
)  # which compute the weight of the layer inside anew
_SETTLED = (
    10**6
)  # a number of updates after which statistics are no longer corrected for their start


def parts(module: Any) -> Iterator[Part]:
    """The parts of a module, in the order in which they are defined."""
    known = {*TABLE, *_WRAPPERS}
    found, _ = jax.tree_util.tree_flatten_with_path(
        module, is_leaf=lambda node: type(node) in known
    )
    for path, node in found:
        wrapped = type(node) in _WRAPPERS
        layer, place = (
            (node.layer, (*path_text(path), "layer")) if wrapped else (node, path_text(path))
        )
        if type(layer) in TABLE:  # not a subclass, which may do something else
            part = TABLE[type(layer)](layer, place)
            made = f"its weight is what {type(node).__name__} makes of it"
            unusual = made if wrapped else _unusual(layer, part, len(place))
            yield dataclasses.replace(part, refused=part.refused or unusual)


def _unusual(module: Any, part: Part, depth: int) -> str:
    """What is wrong with the arrays of a module, which anybody may have replaced, or made under a `vmap`."""
    rank = 1 if part.kind.endswith("norm") else 2 + getattr(module, "num_spatial_dims", 0)
    for name, weight in part.weights.items():
        for collection, *path in weight.paths:
            if collection == "params":
                own = path[depth:]
                array = functools.reduce(getattr, own, module)
                if not isinstance(array, jax.Array | jax.ShapeDtypeStruct) or not jnp.issubdtype(
                    array.dtype, jnp.inexact
                ):
                    return f"its {'.'.join(own)} is no array of its own"
                if (
                    name.endswith(("kernel", "recurrent", "embedding", "scale"))
                    and array.ndim != rank
                ):
                    return f"its {'.'.join(own)} is of shape {array.shape}, as if of several layers"
    return ""


def _bias(module: Any, path: Path, has: bool) -> dict[str, Weight]:
    return {"bias": Weight.reshaped(("params", *path, "bias"), (-1,))} if has else {}


def _linear(module: eqx.nn.Linear, path: Path) -> Part:
    kernel = Weight.transposed(("params", *path, "weight"), (1, 0))
    return Part("linear", {"kernel": kernel, **_bias(module, path, module.use_bias)})


def _convolution(kind: str, padding: Callable[[Any], Any]) -> Callable[[Any, Path], Part]:
    def convolution(module: Any, path: Path) -> Part:
        axes = (*range(2, 2 + module.num_spatial_dims), 1, 0)
        kernel = Weight.transposed(("params", *path, "weight"), axes)
        return Part(
            kind,
            {"kernel": kernel, **_bias(module, path, module.use_bias)},
            {
                "strides": tuple(module.stride),
                "padding": padding(module),
                "dilation": tuple(module.dilation),
                "groups": module.groups,
            },
            channels_first=True,
        )

    return convolution


def _padding(module: eqx.nn.Conv) -> Any:
    window, dilation = module.kernel_size, module.dilation
    zeros = explicit(module.padding, window, module.stride, dilation)
    if module.padding_mode == "ZEROS":
        return zeros
    same = explicit(
        "SAME", window, (1,) * len(window), dilation
    )  # what a library means that has a word for it alone
    return module.padding_mode if zeros == same else (module.padding_mode, zeros)


def _padding_transposed(module: eqx.nn.ConvTranspose) -> Any:
    """What is padded around the input, where Equinox says what the convolution in the other direction pads."""
    pairs = []
    for i, (k, s, d) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        reach, more = d * (k - 1), module.output_padding[i]
        if not isinstance(module.padding, str):
            before, after = module.padding[i]
        elif module.padding == "VALID":
            before, after = 0, 0
        else:  # as large as the input times the stride, less `more`
            total = reach + 1 - s + more
            more, total = max(-total, 0), max(total, 0)
            before = (total + (module.padding == "SAME_LOWER")) // 2
            after = total - before
        pairs.append((reach - before, reach - after + more))
    return tuple(pairs) if module.padding_mode == "ZEROS" else (module.padding_mode, tuple(pairs))


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
        tuple(
            ("state", *place)
            for place in ((*path, "batch_state_index", str(i)), (*path, "batch_counter"))
        ),
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
    return Part(
        "group_norm", {**weights, **_bias(module, path, affine)}, options, channels_first=True
    )


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
    **dict.fromkeys(
        (eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d), _convolution("conv", _padding)
    ),
    **dict.fromkeys(
        (
            eqx.nn.ConvTranspose,
            eqx.nn.ConvTranspose1d,
            eqx.nn.ConvTranspose2d,
            eqx.nn.ConvTranspose3d,
        ),
        _convolution("conv_transpose", _padding_transposed),
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
