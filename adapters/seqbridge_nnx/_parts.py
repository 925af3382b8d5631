"""What the weights of NNX' own modules are, in the canonical layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from seqbridge import Part, Weight, explicit

Path = tuple[str, ...]
At = Callable[[Any], Path]  # where a variable of the module stands

# Modules that change the weights of what is inside of them at each call. Old versions haven't got
# them.
_CHANGING = tuple(
    getattr(nnx, name) for name in ("WeightNorm", "SpectralNorm") if hasattr(nnx, name)
)


def parts(module: nnx.Module, sources: Mapping[Path, Any]) -> Iterator[Part]:
    """The parts of a module, in the order in which they are defined.

    Args:
        module: A module, with arrays or with shapes in place of them.
        sources: Its variables by the places of their arrays: one that is shared has one place,
            which needn't be the first in order.
    """
    places = {id(variable): place for place, variable in sources.items()}
    for node, changing in _walk(module, "", set()):
        part = TABLE[type(node)](node, lambda variable: places[id(variable)])
        if part is not None:
            yield dataclasses.replace(part, refused=part.refused or changing)


def _walk(node: Any, changing: str, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """The modules that are known; not those inside of them, and not subclasses, which may do something else.

    With each comes what is in its way: a module around it that changes its weights.
    """
    if id(node) in seen:
        return
    if type(node) in TABLE:
        seen.add(id(node))
        yield node, changing
        return
    if isinstance(node, _CHANGING):
        changing = f"its weights are changed by a {type(node).__name__} at each call"
    if isinstance(node, Mapping):
        children = node.values()
    elif isinstance(node, list | tuple | nnx.List):
        children = node
    elif isinstance(node, nnx.Pytree):
        seen.add(id(node))
        children = [child for name, child in vars(node).items() if not name.startswith("_pytree")]
    else:
        return
    for child in children:
        yield from _walk(child, changing, seen)


def _given(module: Any, at: At, *names: str) -> dict[str, Weight]:
    """Weights as they are, those that the module has."""
    found = {name: getattr(module, name, None) for name in names}
    return {name: Weight.at(*at(v)) for name, v in found.items() if isinstance(v, nnx.Variable)}


def _linear(module: nnx.Linear, at: At) -> Part:
    return Part("linear", _given(module, at, "kernel", "bias"))


def _linear_general(module: nnx.LinearGeneral, at: At) -> Part:
    own = len(module.in_features) + len(module.out_features)
    stack = module.kernel.shape[
        : module.kernel.ndim - own
    ]  # with nnx.vmap, one layer for each index
    shapes = {"kernel": (*stack, -1, int(np.prod(module.out_features))), "bias": (*stack, -1)}
    weights = _given(module, at, "kernel", "bias")
    if len(module.in_features) > 1 or len(module.out_features) > 1:
        weights = {
            name: Weight.reshaped(weight.paths[0], shapes[name]) for name, weight in weights.items()
        }
    options = {} if tuple(module.axis) == (-1,) else {"axis": tuple(module.axis)}
    refused = "it has a kernel for each of a batch" if module.batch_axis else ""
    return Part("linear", weights, options, refused=refused)


def _einsum(module: nnx.Einsum, at: At) -> Part | None:
    """A linear layer, if the equation is that of one: `...x,xy->...y`, by whatever letters."""
    terms, _, out = module.einsum_str.replace("...", ".").partition("->")
    x, kernel = terms.split(",")
    plain = (
        x[-1:] == kernel[:1]
        and x[:-1] + kernel[1:] == out
        and len({*x, *kernel}) == len(x) + 1 == len(out) + 1
    )
    return _linear(module, at) if plain and len(module.bias_shape or kernel[1:]) == 1 else None  # pyright: ignore


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value or 1,) * n if value is None or isinstance(value, int) else tuple(value)


def _convolution(module: Any, *, transposed: bool) -> dict[str, Any]:
    window = _each(module.kernel_size, 1)
    strides, dilation = (
        _each(module.strides, len(window)),
        _each(module.kernel_dilation, len(window)),
    )
    return {
        "strides": strides,
        "padding": explicit(module.padding, window, strides, dilation, transposed=transposed),
        "dilation": dilation,
        "groups": getattr(module, "feature_group_count", 1),
    }


def _conv_refused(module: Any) -> str:
    if module.mask is not None:
        return "its kernel is masked"
    dilated = any(d != 1 for d in _each(getattr(module, "input_dilation", None), 1))
    return "it is dilated at its input" if dilated else ""


def _conv(module: nnx.Conv, at: At) -> Part:
    weights = _given(module, at, "kernel", "bias")
    return Part(
        "conv", weights, _convolution(module, transposed=False), refused=_conv_refused(module)
    )


def _conv_transpose(module: nnx.ConvTranspose, at: At) -> Part:
    weights = _given(module, at, "kernel", "bias")
    if module.transpose_kernel:
        weights["kernel"] = Weight.flipped(at(module.kernel), len(_each(module.kernel_size, 1)))
    return Part(
        "conv_transpose",
        weights,
        _convolution(module, transposed=True),
        refused=_conv_refused(module),
    )


def _embed(module: nnx.Embed, at: At) -> Part:
    return Part("embedding", _given(module, at, "embedding"))


def _norm(kind: str) -> Callable[[Any, At], Part]:
    def norm(module: Any, at: At) -> Part:
        weights = _given(module, at, "scale", "bias")
        options: dict[str, Any] = {"epsilon": module.epsilon}
        refused = ""
        if kind == "batch_norm":
            weights |= _given(module, at, "mean", "var")
            options["momentum"] = module.momentum
            refused = (
                "" if module.axis in (-1, (-1,)) else f"its features are along axis {module.axis}"
            )
        elif kind == "group_norm":
            options["groups"] = module.num_groups
            refused = (
                ""
                if module.reduction_axes is None
                else f"it normalizes axes {module.reduction_axes}"
            )
        elif module.reduction_axes not in (-1, (-1,)) or module.feature_axes not in (-1, (-1,)):
            refused = f"it normalizes axes {module.reduction_axes}, with features along {module.feature_axes}"
        return Part(kind, weights, options, refused=refused)

    return norm


def _activations(module: Any) -> dict[str, Any]:
    return {"activation": _named(module.activation_fn), "gate_activation": _named(module.gate_fn)}


def _named(function: Any) -> Any:
    """The name of a function; one without a name of its own, such as a lambda, is like no other."""
    name = getattr(function, "__name__", "<lambda>")
    return function if name == "<lambda>" else name


def _lstm(module: nnx.LSTMCell, at: At) -> Part:
    of_x = [module.ii, module.if_, module.ig, module.io]
    of_h = [module.hi, module.hf, module.hg, module.ho]
    kernel = Weight(
        tuple(at(gate.kernel) for gate in (*of_x, *of_h)),
        lambda *arrays: np.concatenate(
            [np.concatenate(half, axis=-1) for half in (arrays[:4], arrays[4:])], axis=-2
        ),
        lambda c, first, *_: tuple(
            gate
            for half in np.split(c, [first[-2]], axis=-2)
            for gate in np.split(half, 4, axis=-1)
        ),
        "gates i, f, g, o joined, those of x above those of h",
    )
    bias = Weight(
        tuple(at(gate.bias) for gate in of_h),
        lambda *arrays: np.concatenate(arrays, axis=-1),
        lambda c, *_: tuple(np.split(c, 4, axis=-1)),
        "gates i, f, g, o joined",
    )
    return Part("lstm", {"kernel": kernel, "bias": bias}, _activations(module))


def _optimized_lstm(module: nnx.OptimizedLSTMCell, at: At) -> Part:
    kernel = Weight(
        (at(module.dense_i.kernel), at(module.dense_h.kernel)),
        lambda x, h: np.concatenate([x, h], axis=-2),
        lambda c, x, h: tuple(np.split(c, [x[-2]], axis=-2)),
        "rows of x above those of h",
    )
    return Part(
        "lstm",
        {"kernel": kernel, "bias": Weight.at(*at(module.dense_h.bias))},
        _activations(module),
    )


def _without_recurrent(c: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    bias, recurrent = np.split(c, shape[-1:], axis=-1)
    if recurrent.any():
        raise ValueError(
            "a GRUCell of NNX has no bias in the recurrent part of its candidate, and this one "
            "isn't 0"
        )
    return bias


def _gru(module: nnx.GRUCell, at: At) -> Part:
    weights = {
        "kernel": Weight.at(*at(module.dense_i.kernel)),
        "recurrent": Weight.at(*at(module.dense_h.kernel)),
        "bias": Weight(
            (at(module.dense_i.bias),),
            lambda b: np.concatenate([b, np.zeros_like(np.split(b, 3, axis=-1)[2])], axis=-1),
            _without_recurrent,
        ),
    }
    return Part("gru", weights, {"reset_after": True, **_activations(module)})


def _attention(module: nnx.MultiHeadAttention, at: At) -> Part:
    weights = {}
    for name in ("query", "key", "value", "out"):
        inner = _given(getattr(module, name), at, "kernel", "bias")
        weights |= {f"{name}_{own}": weight for own, weight in inner.items()}
    for norm in ("query_ln", "key_ln"):
        if getattr(module, norm, None) is not None:  # with `normalize_qk`
            weights[norm] = Weight.at(*at(getattr(module, norm).scale))
    usual = (
        not (module.normalize_qk or module.decode)
        and module.attention_fn is nnx.dot_product_attention
    )
    refused = (
        "" if usual else "it attends in a way of its own (normalize_qk, decode or attention_fn)"
    )
    return Part("attention", weights, {"heads": module.num_heads}, refused=refused)


TABLE: Mapping[type, Callable[[Any, At], Part | None]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Embed: _embed,
    nnx.BatchNorm: _norm("batch_norm"),
    nnx.LayerNorm: _norm("layer_norm"),
    nnx.GroupNorm: _norm("group_norm"),
    nnx.RMSNorm: _norm("rms_norm"),
    nnx.LSTMCell: _lstm,
    nnx.OptimizedLSTMCell: _optimized_lstm,
    nnx.GRUCell: _gru,
    nnx.MultiHeadAttention: _attention,
}
