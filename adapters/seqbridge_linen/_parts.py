"""What the weights of linen's own modules are, in the canonical layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from seqbridge import Part, Weight, explicit

Path = tuple[str, ...]

_CHANGING = (nn.WeightNorm, nn.SpectralNorm)
_WRAPPED = "a WeightNorm or a SpectralNorm changes its weights whenever it is called"


def parts(run: Callable[[], Any]) -> Iterator[Part]:
    """The parts of a module, in the order in which it calls them."""
    found: dict[Path, nn.Module] = {}
    changing: list[
        nn.Module
    ] = []  # the modules that are running and change the weights of those inside
    changed: set[Path] = set()

    def look(
        call: Callable[..., Any], args: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if context.method_name in ("__call__", "attend"):
            found.setdefault(module.path, module)
            if changing:
                changed.add(module.path)
        if type(module) not in _CHANGING or context.method_name != "__call__":
            return call(*args, **keywords)
        changing.append(module)
        try:
            return call(*args, **keywords)
        finally:
            changing.pop()

    with nn.intercept_methods(look):
        run()
    whole: list[Path] = []  # what stands inside of these belongs to them
    for path, module in found.items():
        make = TABLE.get(type(module))  # not of a subclass, which may do something else
        if make is not None and not any(path[: len(outer)] == outer for outer in whole):
            whole.append(path)
            part = make(module, path)
            yield dataclasses.replace(part, refused=_WRAPPED) if path in changed else part


def _kernel_and_bias(module: Any, path: Path, kernel: Weight) -> dict[str, Weight]:
    bias = {"bias": Weight.reshaped(("params", *path, "bias"), (-1,))} if module.use_bias else {}
    return {"kernel": kernel, **bias}


def _dense(module: nn.Dense, path: Path) -> Part:
    return Part("linear", _kernel_and_bias(module, path, Weight.at("params", *path, "kernel")))


def _dense_general(module: nn.DenseGeneral, path: Path) -> Part:
    axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
    features = module.features if isinstance(module.features, tuple) else (module.features,)
    n = len(features)
    kernel = Weight(  # whose first axes are those of a scan, if it is in one
        (("params", *path, "kernel"),),
        lambda a: a.reshape(*a.shape[:-n], -1),
        lambda c, shape: c.reshape(shape),
        Weight.reshaped((), ()).text,
    )
    return Part(
        "linear",
        _kernel_and_bias(module, path, kernel),
        refused="it has a kernel for each of a batch" if module.batch_dims else "",
        options={} if axes == (-1,) else {"axis": axes},
    )


def _window(module: Any) -> tuple[int, ...]:
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _each(value: Any, window: tuple[int, ...]) -> tuple[int, ...]:
    return (value or 1,) * len(window) if value is None or isinstance(value, int) else tuple(value)


def _conv(module: nn.Conv, path: Path) -> Part:
    window = _window(module)
    strides, dilation = _each(module.strides, window), _each(module.kernel_dilation, window)
    return Part(
        "conv",
        _kernel_and_bias(module, path, Weight.at("params", *path, "kernel")),
        {
            "strides": strides,
            "padding": explicit(module.padding, window, strides, dilation),
            "dilation": dilation,
            "groups": module.feature_group_count,
        },
        refused=_conv_refused(module),
    )


def _conv_refused(module: Any) -> str:
    if module.mask is not None:
        return "its kernel is masked"
    return (
        "it is dilated at its input"
        if _each(getattr(module, "input_dilation", None), (1,)) != (1,)
        else ""
    )


def _conv_transpose(module: nn.ConvTranspose, path: Path) -> Part:
    window = _window(module)
    strides, dilation = _each(module.strides, window), _each(module.kernel_dilation, window)
    where = ("params", *path, "kernel")
    return Part(
        "conv_transpose",
        _kernel_and_bias(
            module,
            path,
            Weight.flipped(where, len(window)) if module.transpose_kernel else Weight.at(*where),
        ),
        {
            "strides": strides,
            "padding": explicit(module.padding, window, strides, dilation, transposed=True),
            "dilation": dilation,
            "groups": 1,
        },
        refused=_conv_refused(module),
    )


def _embed(module: nn.Embed, path: Path) -> Part:
    return Part("embedding", {"embedding": Weight.at("params", *path, "embedding")})


def _norm(kind: str) -> Callable[[Any, Path], Part]:
    def norm(module: Any, path: Path) -> Part:
        weights = {}
        if module.use_scale:
            weights["scale"] = Weight.reshaped(("params", *path, "scale"), (-1,))
        if getattr(module, "use_bias", False):
            weights["bias"] = Weight.reshaped(("params", *path, "bias"), (-1,))
        options: dict[str, Any] = {"epsilon": module.epsilon}
        refused = ""
        if kind == "batch_norm":
            weights |= {name: Weight.at("batch_stats", *path, name) for name in ("mean", "var")}
            options["momentum"] = module.momentum
            refused = (
                "" if module.axis in (-1, (-1,)) else f"its features are along axis {module.axis}"
            )
        elif kind == "group_norm":
            options |= {} if module.num_groups is None else {"groups": module.num_groups}
            refused = (
                ""
                if module.reduction_axes is None
                else f"it normalizes axes {module.reduction_axes}"
            )
        elif module.reduction_axes not in (-1, (-1,)) or module.feature_axes not in (-1, (-1,)):
            refused = f"it normalizes axes {module.reduction_axes}, with features along {module.feature_axes}"
        return Part(kind, weights, options, refused=refused)

    return norm


def _gates(path: Path, names: str, of: str, weight: str) -> Weight:
    """The weights of the gates, which stand in a module each, side by side."""
    paths = tuple(("params", *path, f"{of}{gate}", weight) for gate in names)
    n = len(names)
    return Weight(
        paths,
        lambda *arrays: np.concatenate(arrays, axis=-1),
        lambda c, *shapes: tuple(np.split(c, n, axis=-1)),
        f"gates {', '.join(names)} joined",
    )


def _activations(module: Any) -> dict[str, Any]:
    found = {"activation": module.activation_fn, "gate_activation": module.gate_fn}
    names = {
        option: getattr(function, "__name__", "<lambda>") for option, function in found.items()
    }
    return {option: name for option, name in names.items() if name != "<lambda>"}


def _lstm(module: Any, path: Path) -> Part:
    places = [("params", *path, f"{of}{gate}", "kernel") for of in "ih" for gate in "ifgo"]
    kernel = Weight(
        tuple(places),
        lambda *arrays: np.concatenate(
            [np.concatenate(half, axis=-1) for half in (arrays[:4], arrays[4:])]
        ),
        lambda c, first, *_: tuple(
            g for half in np.split(c, [first[0]]) for g in np.split(half, 4, axis=-1)
        ),
        "gates i, f, g, o joined, those of x above those of h",
    )
    return Part(
        "lstm", {"kernel": kernel, "bias": _gates(path, "ifgo", "h", "bias")}, _activations(module)
    )


def _gru(module: nn.GRUCell, path: Path) -> Part:
    weights = {
        "kernel": _gates(path, "rzn", "i", "kernel"),
        "recurrent": _gates(path, "rzn", "h", "kernel"),
        "bias": Weight(
            tuple(("params", *path, gate, "bias") for gate in ("ir", "iz", "in", "hn")),
            lambda *arrays: np.concatenate(arrays),
            lambda c, *_: tuple(np.split(c, 4)),
            "those of r, z, n and of the recurrent n joined",
        ),
    }
    return Part("gru", weights, {"reset_after": True, **_activations(module)})


def _attention(module: nn.MultiHeadDotProductAttention, path: Path) -> Part:
    weights = {}
    for name, own in (("query", "query"), ("key", "key"), ("value", "value"), ("out", "out")):
        weights[f"{name}_kernel"] = Weight.at("params", *path, own, "kernel")
        if module.use_bias:
            weights[f"{name}_bias"] = Weight.at("params", *path, own, "bias")
    usual = (
        not (module.normalize_qk or module.decode)
        and module.attention_fn is nn.dot_product_attention
    )
    return Part(
        "attention",
        weights,
        {"heads": module.num_heads},
        refused=""
        if usual
        else "it attends in a way of its own (normalize_qk, decode or attention_fn)",
    )


TABLE: Mapping[type, Callable[[Any, Path], Part]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _dense_general,
    nn.Conv: _conv,
    nn.ConvTranspose: _conv_transpose,
    nn.Embed: _embed,
    nn.BatchNorm: _norm("batch_norm"),
    nn.LayerNorm: _norm("layer_norm"),
    nn.GroupNorm: _norm("group_norm"),
    nn.RMSNorm: _norm("rms_norm"),
    nn.LSTMCell: _lstm,
    nn.OptimizedLSTMCell: _lstm,
    nn.GRUCell: _gru,
    nn.MultiHeadDotProductAttention: _attention,
}
