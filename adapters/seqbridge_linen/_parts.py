"""The weights of linen's own modules in the canonical layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import numpy as np

from seqbridge import Part, Weight, explicit

Path: TypeAlias = tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]

# Modules that change the weights of those inside whenever they are called.
_CHANGING = (nn.WeightNorm, nn.SpectralNorm)
_CHANGED = "a WeightNorm or a SpectralNorm changes its weights whenever it is called"


class _Recorder:
    """An interceptor of methods that records which modules a module calls.

    Attributes:
        modules: The modules by their paths, in the order of their first calls.
        changed: The paths of those whose weights are changed by a module around them.
    """

    def __init__(self) -> None:
        self.modules: dict[Path, nn.Module] = {}
        self.changed: set[Path] = set()
        self._running: list[nn.Module] = []  # modules that change the weights of those inside

    def __call__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if context.method_name in ("__call__", "attend"):
            self.modules.setdefault(module.path, module)
            if self._running:
                self.changed.add(module.path)
        if type(module) not in _CHANGING or context.method_name != "__call__":
            return call(*args, **keywords)
        self._running.append(module)
        try:
            return call(*args, **keywords)
        finally:
            self._running.pop()


def parts(run: Callable[[], object]) -> Iterator[Part]:
    """Yield the parts of a module, in the order in which it calls them."""
    recorder = _Recorder()
    with nn.intercept_methods(recorder):
        run()
    whole: list[Path] = []  # paths of modules: what stands inside of them belongs to them
    for path, module in recorder.modules.items():
        make_part = TABLE.get(type(module))  # not of a subclass, which may do something else
        is_inside = any(path[: len(outer)] == outer for outer in whole)
        if make_part is None or is_inside:
            continue
        whole.append(path)
        part = make_part(module, path)
        if path in recorder.changed:
            part = dataclasses.replace(part, refused=_CHANGED)
        yield part


def _add_bias(
    module: nn.Dense | nn.DenseGeneral | nn.Conv | nn.ConvTranspose, path: Path, kernel: Weight
) -> dict[str, Weight]:
    """Return the weights of a module that has a kernel and maybe a bias."""
    if not module.use_bias:
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": Weight.reshaped(("params", *path, "bias"), (-1,))}


def _dense_part(module: nn.Dense, path: Path) -> Part:
    return Part("linear", _add_bias(module, path, Weight.at("params", *path, "kernel")))


def _dense_general_part(module: nn.DenseGeneral, path: Path) -> Part:
    axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
    n = len(module.features) if isinstance(module.features, tuple) else 1
    kernel = Weight(  # whose first axes are those of a scan, if it is in one
        (("params", *path, "kernel"),),
        lambda kernel: kernel.reshape(*kernel.shape[:-n], -1),
        lambda canonical, shape: canonical.reshape(shape),
        "reshaped",
    )
    return Part(
        "linear",
        _add_bias(module, path, kernel),
        options={} if axes == (-1,) else {"axis": axes},
        refused="it has a kernel for each of a batch" if module.batch_dims else "",
    )


def _window(module: nn.Conv | nn.ConvTranspose) -> tuple[int, ...]:
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _for_each_axis(value: int | Sequence[int] | None, n: int) -> tuple[int, ...]:
    """Return one number for each axis, where one may stand for all, and None for 1."""
    if value is None or isinstance(value, int):
        return (value or 1,) * n
    return tuple(value)


def _conv_part(module: nn.Conv, path: Path) -> Part:
    return Part(
        "conv",
        _add_bias(module, path, Weight.at("params", *path, "kernel")),
        _convolution_options(module, module.feature_group_count, transposed=False),
        refused=_refuse_convolution(module),
    )


def _conv_transpose_part(module: nn.ConvTranspose, path: Path) -> Part:
    kernel = Weight.at("params", *path, "kernel")
    if module.transpose_kernel:
        kernel = Weight.flipped(("params", *path, "kernel"), len(_window(module)))
    return Part(
        "conv_transpose",
        _add_bias(module, path, kernel),
        _convolution_options(module, 1, transposed=True),
        refused=_refuse_convolution(module),
    )


def _convolution_options(
    module: nn.Conv | nn.ConvTranspose, groups: int, *, transposed: bool
) -> dict[str, Any]:
    window = _window(module)
    strides = _for_each_axis(module.strides, len(window))
    dilation = _for_each_axis(module.kernel_dilation, len(window))
    return {
        "strides": strides,
        "padding": explicit(module.padding, window, strides, dilation, transposed=transposed),
        "dilation": dilation,
        "groups": groups,
    }


def _refuse_convolution(module: nn.Conv | nn.ConvTranspose) -> str:
    """Say why a convolution can't be carried over; nothing if it can."""
    if module.mask is not None:
        return "its kernel is masked"
    if _for_each_axis(getattr(module, "input_dilation", None), 1) != (1,):
        return "it is dilated at its input"
    return ""


def _embedding_part(module: nn.Embed, path: Path) -> Part:
    return Part("embedding", {"embedding": Weight.at("params", *path, "embedding")})


def _scale_and_bias_weights(
    module: nn.BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm, path: Path
) -> dict[str, Weight]:
    weights = {}
    if module.use_scale:
        weights["scale"] = Weight.reshaped(("params", *path, "scale"), (-1,))
    if getattr(module, "use_bias", False):
        weights["bias"] = Weight.reshaped(("params", *path, "bias"), (-1,))
    return weights


def _batch_norm_part(module: nn.BatchNorm, path: Path) -> Part:
    weights = _scale_and_bias_weights(module, path)
    weights["mean"] = Weight.at("batch_stats", *path, "mean")
    weights["var"] = Weight.at("batch_stats", *path, "var")
    options = {"epsilon": module.epsilon, "momentum": module.momentum}
    refused = ""
    if module.axis not in (-1, (-1,)):
        refused = f"its features are along axis {module.axis}"
    return Part("batch_norm", weights, options, refused=refused)


def _group_norm_part(module: nn.GroupNorm, path: Path) -> Part:
    options: dict[str, Any] = {"epsilon": module.epsilon}
    if module.num_groups is not None:
        options["groups"] = module.num_groups
    refused = ""
    if module.reduction_axes is not None:
        refused = f"it normalizes axes {module.reduction_axes}"
    return Part("group_norm", _scale_and_bias_weights(module, path), options, refused=refused)


def _norm_part(kind: str, module: nn.LayerNorm | nn.RMSNorm, path: Path) -> Part:
    refused = ""
    if module.reduction_axes not in (-1, (-1,)) or module.feature_axes not in (-1, (-1,)):
        refused = (
            f"it normalizes axes {module.reduction_axes}, with features along {module.feature_axes}"
        )
    weights = _scale_and_bias_weights(module, path)
    return Part(kind, weights, {"epsilon": module.epsilon}, refused=refused)


def _activations(module: nn.LSTMCell | nn.OptimizedLSTMCell | nn.GRUCell) -> dict[str, str]:
    """Return the names of the functions of a cell; those without a name aren't known."""
    functions = {"activation": module.activation_fn, "gate_activation": module.gate_fn}
    names = {}
    for option, function in functions.items():
        name = getattr(function, "__name__", "<lambda>")
        if name != "<lambda>":
            names[option] = name
    return names


def _join_gates(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)


def _gates_weight(path: Path, modules: Sequence[str], array: str) -> Weight:
    """Return the arrays of the gates, each of which has a module of its own, side by side.

    Args:
        path: Where the cell stands.
        modules: The names of these modules.
        array: The name of the array in each of them.
    """
    gates = [name[-1] for name in modules]

    def write(canonical: np.ndarray, *shapes: Shape) -> tuple[np.ndarray, ...]:
        return tuple(np.split(canonical, len(modules), axis=-1))

    paths = tuple(("params", *path, name, array) for name in modules)
    return Weight(paths, _join_gates, write, f"gates {', '.join(gates)} joined")


def _lstm_part(module: nn.LSTMCell | nn.OptimizedLSTMCell, path: Path) -> Part:
    def read(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate([_join_gates(*arrays[:4]), _join_gates(*arrays[4:])])

    def write(canonical: np.ndarray, first: Shape, *shapes: Shape) -> tuple[np.ndarray, ...]:
        x, h = np.split(canonical, [first[0]])
        return (*np.split(x, 4, axis=-1), *np.split(h, 4, axis=-1))

    gates = ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")
    paths = tuple(("params", *path, gate, "kernel") for gate in gates)
    kernel = Weight(paths, read, write, "gates i, f, g, o joined, those of x above those of h")
    bias = _gates_weight(path, gates[4:], "bias")
    return Part("lstm", {"kernel": kernel, "bias": bias}, _activations(module))


def _gru_part(module: nn.GRUCell, path: Path) -> Part:
    bias = Weight(
        tuple(("params", *path, gate, "bias") for gate in ("ir", "iz", "in", "hn")),
        lambda *arrays: np.concatenate(arrays),
        lambda canonical, *shapes: tuple(np.split(canonical, 4)),
        "those of r, z, n and of the recurrent n joined",
    )
    weights = {
        "kernel": _gates_weight(path, ("ir", "iz", "in"), "kernel"),
        "recurrent": _gates_weight(path, ("hr", "hz", "hn"), "kernel"),
        "bias": bias,
    }
    return Part("gru", weights, {"reset_after": True, **_activations(module)})


def _attention_part(module: nn.MultiHeadDotProductAttention, path: Path) -> Part:
    weights = {}
    for name in ("query", "key", "value", "out"):
        weights[f"{name}_kernel"] = Weight.at("params", *path, name, "kernel")
        if module.use_bias:
            weights[f"{name}_bias"] = Weight.at("params", *path, name, "bias")
    refused = ""
    own_function = module.attention_fn is not nn.dot_product_attention
    if module.normalize_qk or module.decode or own_function:
        refused = "it attends in a way of its own (normalize_qk, decode or attention_fn)"
    return Part("attention", weights, {"heads": module.num_heads}, refused=refused)


TABLE: Mapping[type, Callable[[Any, Path], Part]] = {
    nn.Dense: _dense_part,
    nn.DenseGeneral: _dense_general_part,
    nn.Conv: _conv_part,
    nn.ConvTranspose: _conv_transpose_part,
    nn.Embed: _embedding_part,
    nn.BatchNorm: _batch_norm_part,
    nn.LayerNorm: functools.partial(_norm_part, "layer_norm"),
    nn.GroupNorm: _group_norm_part,
    nn.RMSNorm: functools.partial(_norm_part, "rms_norm"),
    nn.LSTMCell: _lstm_part,
    nn.OptimizedLSTMCell: _lstm_part,
    nn.GRUCell: _gru_part,
    nn.MultiHeadDotProductAttention: _attention_part,
}
