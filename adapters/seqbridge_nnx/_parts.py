"""The weights of NNX' own modules in the canonical layout."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from flax import nnx

from seqbridge import Part, Weight, explicit
from seqbridge_nnx._structure import Path

At: TypeAlias = Callable[[object], Path]
"""From a variable of a module to its place."""

Shape: TypeAlias = tuple[int, ...]


def _find_changing_classes() -> tuple[type, ...]:
    """Return the modules that change the weights of what is inside at each call.

    Old versions of NNX haven't got them.
    """
    names = ("WeightNorm", "SpectralNorm")
    return tuple(getattr(nnx, name) for name in names if hasattr(nnx, name))


_CHANGING = _find_changing_classes()


def parts(module: nnx.Module, sources: Mapping[Path, nnx.Variable]) -> Iterator[Part]:
    """Yield the parts of a module, in the order in which they are defined.

    Args:
        module: A module, with arrays or with shapes in place of them.
        sources: Its variables by the places of their arrays: one that is shared has one place,
            which needn't be the first in order.
    """
    places = {id(variable): place for place, variable in sources.items()}

    def at(variable: object) -> Path:
        return places[id(variable)]

    for node, changed in _walk_known(module, "", set()):
        part = TABLE[type(node)](node, at)
        if part is not None:
            yield dataclasses.replace(part, refused=part.refused or changed)


def _walk_known(node: Any, changed: str, seen: set[int]) -> Iterator[tuple[nnx.Module, str]]:
    """Yield the modules that are known, and none inside of them.

    A subclass of a known class isn't known: it may do something else.

    Args:
        node: A module, or what it is made of.
        changed: Why the weights inside can't be carried over: by a module around them that changes
            them. It is yielded with each module.
        seen: The `id`s of what was visited.
    """
    if id(node) in seen:
        return
    if type(node) in TABLE:
        seen.add(id(node))
        yield node, changed
        return
    if isinstance(node, _CHANGING):
        changed = f"its weights are changed by a {type(node).__name__} at each call"
    if isinstance(node, Mapping):
        children = list(node.values())
    elif isinstance(node, list | tuple | nnx.List):
        children = list(node)
    elif isinstance(node, nnx.Pytree):
        seen.add(id(node))
        children = [child for name, child in vars(node).items() if not name.startswith("_pytree")]
    else:
        return
    for child in children:
        yield from _walk_known(child, changed, seen)


def _present_weights(module: nnx.Module, at: At, *names: str) -> dict[str, Weight]:
    """Return the weights of these names that the module has, as they are."""
    weights = {}
    for name in names:
        variable = getattr(module, name, None)
        if isinstance(variable, nnx.Variable):
            weights[name] = Weight.at(*at(variable))
    return weights


def _linear_part(module: nnx.Linear | nnx.Einsum, at: At) -> Part:
    return Part("linear", _present_weights(module, at, "kernel", "bias"))


def _linear_general_part(module: nnx.LinearGeneral, at: At) -> Part:
    weights = _present_weights(module, at, "kernel", "bias")
    if len(module.in_features) > 1 or len(module.out_features) > 1:
        rank = len(module.in_features) + len(module.out_features)
        # With nnx.vmap, one layer for each index.
        stack = module.kernel.shape[: module.kernel.ndim - rank]
        kernel_shape = (*stack, -1, math.prod(module.out_features))
        shapes = {"kernel": kernel_shape, "bias": (*stack, -1)}
        for name, weight in weights.items():
            weights[name] = Weight.reshaped(weight.paths[0], shapes[name])
    axes = tuple(module.axis)
    return Part(
        "linear",
        weights,
        {} if axes == (-1,) else {"axis": axes},
        refused="it has a kernel for each of a batch" if module.batch_axis else "",
    )


def _einsum_part(module: nnx.Einsum, at: At) -> Part | None:
    """Return a linear part, if the equation is that of one: `...x,xy->...y`, by any letters."""
    terms, _, out = module.einsum_str.replace("...", ".").partition("->")
    x, kernel = terms.split(",")
    is_product = x[-1:] == kernel[:1] and x[:-1] + kernel[1:] == out
    letters = {*x, *kernel}
    if not is_product or not len(letters) == len(x) + 1 == len(out) + 1:
        return None
    bias_axes: Any = module.bias_shape or kernel[1:]
    return _linear_part(module, at) if len(bias_axes) == 1 else None


def _for_each_axis(value: int | Sequence[int] | None, n: int) -> tuple[int, ...]:
    """Return one number for each axis, where one may stand for all, and None for 1."""
    if value is None or isinstance(value, int):
        return (value or 1,) * n
    return tuple(value)


def _convolution_options(
    module: nnx.Conv | nnx.ConvTranspose, *, transposed: bool
) -> dict[str, Any]:
    window = _for_each_axis(module.kernel_size, 1)
    strides = _for_each_axis(module.strides, len(window))
    dilation = _for_each_axis(module.kernel_dilation, len(window))
    return {
        "strides": strides,
        "padding": explicit(module.padding, window, strides, dilation, transposed=transposed),
        "dilation": dilation,
        "groups": getattr(module, "feature_group_count", 1),
    }


def _refuse_convolution(module: nnx.Conv | nnx.ConvTranspose) -> str:
    """Say why a convolution can't be carried over; nothing if it can."""
    if module.mask is not None:
        return "its kernel is masked"
    dilation = _for_each_axis(getattr(module, "input_dilation", None), 1)
    return "it is dilated at its input" if any(d != 1 for d in dilation) else ""


def _conv_part(module: nnx.Conv, at: At) -> Part:
    return Part(
        "conv",
        _present_weights(module, at, "kernel", "bias"),
        _convolution_options(module, transposed=False),
        refused=_refuse_convolution(module),
    )


def _conv_transpose_part(module: nnx.ConvTranspose, at: At) -> Part:
    weights = _present_weights(module, at, "kernel", "bias")
    if module.transpose_kernel:
        space = len(_for_each_axis(module.kernel_size, 1))
        weights["kernel"] = Weight.flipped(at(module.kernel), space)
    return Part(
        "conv_transpose",
        weights,
        _convolution_options(module, transposed=True),
        refused=_refuse_convolution(module),
    )


def _embedding_part(module: nnx.Embed, at: At) -> Part:
    return Part("embedding", _present_weights(module, at, "embedding"))


def _batch_norm_part(module: nnx.BatchNorm, at: At) -> Part:
    weights = _present_weights(module, at, "scale", "bias", "mean", "var")
    options = {"epsilon": module.epsilon, "momentum": module.momentum}
    refused = ""
    if module.axis not in (-1, (-1,)):
        refused = f"its features are along axis {module.axis}"
    return Part("batch_norm", weights, options, refused=refused)


def _group_norm_part(module: nnx.GroupNorm, at: At) -> Part:
    weights = _present_weights(module, at, "scale", "bias")
    options = {"epsilon": module.epsilon, "groups": module.num_groups}
    refused = ""
    if module.reduction_axes is not None:
        refused = f"it normalizes axes {module.reduction_axes}"
    return Part("group_norm", weights, options, refused=refused)


def _norm_part(kind: str, module: nnx.LayerNorm | nnx.RMSNorm, at: At) -> Part:
    refused = ""
    if module.reduction_axes not in (-1, (-1,)) or module.feature_axes not in (-1, (-1,)):
        refused = (
            f"it normalizes axes {module.reduction_axes}, with features along {module.feature_axes}"
        )
    weights = _present_weights(module, at, "scale", "bias")
    return Part(kind, weights, {"epsilon": module.epsilon}, refused=refused)


def _activations(
    module: nnx.LSTMCell | nnx.OptimizedLSTMCell | nnx.GRUCell,
) -> dict[str, object]:
    return {
        "activation": _name_or_itself(module.activation_fn),
        "gate_activation": _name_or_itself(module.gate_fn),
    }


def _name_or_itself(function: object) -> object:
    """Return the name of a function.

    One without a name of its own, such as a lambda, is returned as it is: it is like no other.
    """
    name = getattr(function, "__name__", "<lambda>")
    return function if name == "<lambda>" else name


def _join_gates(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)


def _split_gates(canonical: np.ndarray, *shapes: Shape) -> tuple[np.ndarray, ...]:
    return tuple(np.split(canonical, 4, axis=-1))


def _lstm_part(module: nnx.LSTMCell, at: At) -> Part:
    def read(*arrays: np.ndarray) -> np.ndarray:
        x, h = _join_gates(*arrays[:4]), _join_gates(*arrays[4:])
        return np.concatenate([x, h], axis=-2)

    def write(canonical: np.ndarray, first: Shape, *shapes: Shape) -> tuple[np.ndarray, ...]:
        x, h = np.split(canonical, [first[-2]], axis=-2)
        return _split_gates(x) + _split_gates(h)

    of_x = [module.ii, module.if_, module.ig, module.io]
    of_h = [module.hi, module.hf, module.hg, module.ho]
    kernels = tuple(at(gate.kernel) for gate in (*of_x, *of_h))
    biases = tuple(at(gate.bias) for gate in of_h)
    text = "gates i, f, g, o joined"
    weights = {
        "kernel": Weight(kernels, read, write, f"{text}, those of x above those of h"),
        "bias": Weight(biases, _join_gates, _split_gates, text),
    }
    return Part("lstm", weights, _activations(module))


def _optimized_lstm_part(module: nnx.OptimizedLSTMCell, at: At) -> Part:
    kernel = Weight(
        (at(module.dense_i.kernel), at(module.dense_h.kernel)),
        lambda x, h: np.concatenate([x, h], axis=-2),
        lambda canonical, x, h: tuple(np.split(canonical, [x[-2]], axis=-2)),
        "rows of x above those of h",
    )
    weights = {"kernel": kernel, "bias": Weight.at(*at(module.dense_h.bias))}
    return Part("lstm", weights, _activations(module))


def _gru_part(module: nnx.GRUCell, at: At) -> Part:
    weights = {
        "kernel": Weight.at(*at(module.dense_i.kernel)),
        "recurrent": Weight.at(*at(module.dense_h.kernel)),
        "bias": Weight((at(module.dense_i.bias),), _add_recurrent_bias, _drop_recurrent_bias),
    }
    return Part("gru", weights, {"reset_after": True, **_activations(module)})


def _add_recurrent_bias(bias: np.ndarray) -> np.ndarray:
    """Return the bias with zeros for the recurrent part of the candidate, which has none."""
    _, _, n = np.split(bias, 3, axis=-1)
    return np.concatenate([bias, np.zeros_like(n)], axis=-1)


def _drop_recurrent_bias(canonical: np.ndarray, shape: Shape) -> np.ndarray:
    bias, recurrent = np.split(canonical, shape[-1:], axis=-1)
    if recurrent.any():
        raise ValueError(
            "a GRUCell of NNX has no bias in the recurrent part of its candidate, and this one "
            "isn't 0"
        )
    return bias


def _attention_part(module: nnx.MultiHeadAttention, at: At) -> Part:
    weights = {}
    for name in ("query", "key", "value", "out"):
        inner = _present_weights(getattr(module, name), at, "kernel", "bias")
        for own, weight in inner.items():
            weights[f"{name}_{own}"] = weight
    for name in ("query_ln", "key_ln"):
        norm = getattr(module, name, None)
        if norm is not None:  # with `normalize_qk`
            weights[name] = Weight.at(*at(norm.scale))
    refused = ""
    own_function = module.attention_fn is not nnx.dot_product_attention
    if module.normalize_qk or module.decode or own_function:
        refused = "it attends in a way of its own (normalize_qk, decode or attention_fn)"
    return Part("attention", weights, {"heads": module.num_heads}, refused=refused)


TABLE: Mapping[type, Callable[[Any, At], Part | None]] = {
    nnx.Linear: _linear_part,
    nnx.LinearGeneral: _linear_general_part,
    nnx.Einsum: _einsum_part,
    nnx.Conv: _conv_part,
    nnx.ConvTranspose: _conv_transpose_part,
    nnx.Embed: _embedding_part,
    nnx.BatchNorm: _batch_norm_part,
    nnx.LayerNorm: functools.partial(_norm_part, "layer_norm"),
    nnx.GroupNorm: _group_norm_part,
    nnx.RMSNorm: functools.partial(_norm_part, "rms_norm"),
    nnx.LSTMCell: _lstm_part,
    nnx.OptimizedLSTMCell: _optimized_lstm_part,
    nnx.GRUCell: _gru_part,
    nnx.MultiHeadAttention: _attention_part,
}
