"""The weights of Haiku's own modules in the canonical layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import haiku as hk
import jax
import numpy as np

from seqbridge import Part, Weight, explicit

Shape: TypeAlias = tuple[int, ...]

# What Haiku's LSTM adds to its forget gate in code.
_FORGET = 1.0
# A number of updates after which an average is no longer corrected for its start.
_SETTLED = 10**6
_ACTIVATIONS = {"activation": "tanh", "gate_activation": "sigmoid"}


class Seen(NamedTuple):
    """A module at its first call.

    Attributes:
        module: The module.
        x: Its first input.
        decay: The decay of the averages inside, if there are any.
    """

    module: Any
    x: Any
    decay: float | None


class _Recorder:
    """An interceptor of methods that records which modules a transform calls.

    Attributes:
        seen: The modules by their names, in the order of their first calls.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self._decays: dict[str, float | None] = {}  # of averages, by their names
        self._outermost: tuple[set[str], set[str]] | None = None

    def __call__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        context: hk.MethodContext,
    ) -> Any:
        if self._is_in_inner_transform():
            return call(*args, **keywords)
        module = context.module
        if context.method_name == "__init__":
            out = call(*args, **keywords)
            if type(module) is hk.ExponentialMovingAverage:
                self._decays[module.module_name] = args[0] if args else keywords.get("decay")
            return out
        # A tied `hk.Embed` may be asked for nothing but its embeddings.
        if context.method_name in ("__call__", "embeddings"):
            x = args[0] if args else keywords.get("inputs", keywords.get("x"))
            name = module.module_name
            decay = self._decays.get(f"{name}/~/mean_ema")
            self.seen.setdefault(name, Seen(module, x, decay))
        return call(*args, **keywords)

    def _is_in_inner_transform(self) -> bool:
        """Whether a transform inside runs, such as that of `hk.layer_stack`, with its own names."""
        params, state = set(hk.get_params()), set(hk.get_current_state())
        if self._outermost is None:
            self._outermost = params, state
        outer_params, outer_state = self._outermost
        return params != outer_params or not state >= outer_state  # a call may make new state


def parts(run: Callable[[], object]) -> Iterator[Part]:
    """Yield the parts of a transform, in the order in which their modules are called."""
    recorder = _Recorder()
    with hk.intercept_methods(recorder):
        run()
    whole: list[str] = []  # names of modules: what stands inside of them belongs to them
    for name, seen in recorder.seen.items():
        make_part = TABLE.get(type(seen.module))  # not of a subclass, which may do something else
        is_inside = any(name.startswith(f"{outer}/") for outer in whole)
        if make_part is not None and not is_inside:
            whole.append(name)
            yield make_part(seen, name)


def _flat_weight(name: str, weight: str) -> Weight:
    return Weight.reshaped(("params", name, weight), (-1,))


def _linear_part(seen: Seen, name: str) -> Part:
    weights = {"kernel": Weight.at("params", name, "w")}
    if seen.module.with_bias:
        weights["bias"] = Weight.at("params", name, "b")
    return Part("linear", weights)


def _is_channels_first(module: Any) -> bool:
    index = getattr(module, "channel_index", None)
    if index is None:
        index = hk.get_channel_index(module.data_format)
    return index == 1


def _conv_part(seen: Seen, name: str) -> Part:
    module = seen.module
    return _convolution_part(module, name, module.kernel_dilation, module.feature_group_count)


def _depthwise_conv_part(seen: Seen, name: str) -> Part:
    module = seen.module
    features = seen.x.shape[1 if _is_channels_first(module) else -1]
    return _convolution_part(module, name, module.rhs_dilation, features)


def _convolution_part(module: Any, name: str, dilation: tuple[int, ...], groups: int) -> Part:
    weights = {"kernel": Weight.at("params", name, "w")}
    if module.with_bias:
        weights["bias"] = _flat_weight(name, "b")
    options = {
        "strides": tuple(module.stride),
        "padding": explicit(module.padding, module.kernel_shape, module.stride, dilation),
        "dilation": tuple(dilation),
        "groups": groups,
    }
    masked = getattr(module, "mask", None) is not None
    return Part(
        "conv",
        weights,
        options,
        channels_first=_is_channels_first(module),
        refused="its kernel is masked" if masked else "",
    )


def _conv_transpose_part(seen: Seen, name: str) -> Part:
    module = seen.module
    n = len(module.kernel_shape)
    weights = {"kernel": Weight.transposed(("params", name, "w"), (*range(n), n + 1, n))}
    if module.with_bias:
        weights["bias"] = _flat_weight(name, "b")
    if module.output_shape is None:
        padding = explicit(module.padding, module.kernel_shape, module.stride, transposed=True)
    else:
        # Haiku pads as the size of the input asks for: no numbers are the same for every input.
        padding = f"{module.padding} to {tuple(module.output_shape)}"
    options = {
        "strides": tuple(module.stride),
        "padding": padding,
        "dilation": (1,) * n,
        "groups": 1,
    }
    return Part(
        "conv_transpose",
        weights,
        options,
        channels_first=_is_channels_first(module),
        refused="its kernel is masked" if module.mask is not None else "",
    )


def _scale_and_bias_weights(module: Any, name: str) -> dict[str, Weight]:
    weights = {}
    if module.create_scale:
        weights["scale"] = _flat_weight(name, "scale")
    if getattr(module, "create_offset", False):
        weights["bias"] = _flat_weight(name, "offset")
    return weights


def _average_weight(name: str) -> Weight:
    """Return a moving average, beside which Haiku keeps the sum that it corrects for its start."""

    def read(hidden: np.ndarray, average: np.ndarray, counter: np.ndarray) -> np.ndarray:
        return average.reshape(-1)

    def write(
        canonical: np.ndarray, hidden: Shape, average: Shape, counter: Shape
    ) -> tuple[np.ndarray, np.ndarray, np.int32]:
        return canonical.reshape(hidden), canonical.reshape(average), np.int32(_SETTLED)

    paths = (
        ("state", name, "hidden"),
        ("state", name, "average"),
        ("state", name, "counter"),
    )
    return Weight(paths, read, write, "the debiased average")


def _batch_norm_part(seen: Seen, name: str) -> Part:
    module, n = seen.module, seen.x.ndim
    weights = {
        **_scale_and_bias_weights(module, name),
        "mean": _average_weight(f"{name}/~/mean_ema"),
        "var": _average_weight(f"{name}/~/var_ema"),
    }
    options = {"epsilon": float(module.eps)}
    if seen.decay is not None:
        options["momentum"] = seen.decay
    all_but_features = {*range(n)} - {module.channel_index % n}
    refused = ""
    if module.axis is not None and set(module.axis) != all_but_features:
        refused = f"it normalizes over axes {module.axis}"
    return Part(
        "batch_norm",
        weights,
        options,
        channels_first=_is_channels_first(module),
        refused=refused,
    )


def _norm_part(kind: str, seen: Seen, name: str) -> Part:
    module = seen.module
    refused = ""
    if not (_is_last_axis(module.axis, seen.x) and _is_last_axis(module.param_axis, seen.x)):
        refused = f"it normalizes over {module.axis}, with features along {module.param_axis}"
    weights = _scale_and_bias_weights(module, name)
    return Part(kind, weights, {"epsilon": float(module.eps)}, refused=refused)


def _is_last_axis(axes: int | slice | Sequence[int], x: jax.Array) -> bool:
    """Whether an axis, or a slice or sequence of axes, is the last one of an input alone."""
    if isinstance(axes, slice):
        axes = range(x.ndim)[axes]
    elif isinstance(axes, int):
        axes = [axes]
    return [axis % x.ndim for axis in axes] == [x.ndim - 1]


def _group_norm_part(seen: Seen, name: str) -> Part:
    module = seen.module
    n = seen.x.ndim + 1  # once the groups have an axis of their own
    axes = {axis % n for axis in module.axis}
    usual = {*range(2, n)} if _is_channels_first(module) else {*range(1, n - 2), n - 1}
    return Part(
        "group_norm",
        _scale_and_bias_weights(module, name),
        {"epsilon": float(module.eps), "groups": module.groups},
        channels_first=_is_channels_first(module),
        refused="" if axes == usual else "it normalizes over some axes",
    )


def _embedding_part(seen: Seen, name: str) -> Part:
    return Part("embedding", {"embedding": Weight.at("params", name, "embeddings")})


def _swap_gates(array: np.ndarray) -> np.ndarray:
    """Return gates i, g, f, o from i, f, g, o, or the other way round."""
    i, f, g, o = np.split(array, 4, axis=-1)
    return np.concatenate([i, g, f, o], axis=-1)


def _lstm_part(seen: Seen, name: str) -> Part:
    kernel = Weight(
        (("params", f"{name}/linear", "w"),),
        _swap_gates,
        lambda canonical, shape: _swap_gates(canonical),
        "gates i, g, f, o as i, f, g, o",
    )
    forget = np.repeat([0.0, _FORGET, 0.0, 0.0], seen.module.hidden_size)
    bias = Weight(
        (("params", f"{name}/linear", "b"),),
        lambda bias: _swap_gates(bias) + forget.astype(bias.dtype),
        lambda canonical, shape: _swap_gates(canonical - forget.astype(canonical.dtype)),
        "gates i, g, f, o as i, f, g, o, with the constant of the forget gate",
    )
    return Part("lstm", {"kernel": kernel, "bias": bias}, _ACTIVATIONS)


def _gru_part(seen: Seen, name: str) -> Part:
    weights = {
        "kernel": _gru_gates_weight(name, "w_i"),
        "recurrent": _gru_gates_weight(name, "w_h"),
        "bias": _gru_bias_weight(name),
    }
    return Part("gru", weights, {"reset_after": False, **_ACTIVATIONS})


def _gru_gates_weight(name: str, weight: str) -> Weight:
    def read(array: np.ndarray) -> np.ndarray:
        z, r, n = np.split(array, 3, axis=-1)
        return np.concatenate([r, -z, n], axis=-1)  # 1 - sigmoid(x) is sigmoid(-x)

    def write(canonical: np.ndarray, shape: Shape) -> np.ndarray:
        r, z, n = np.split(canonical, 3, axis=-1)
        return np.concatenate([-z, r, n], axis=-1)

    return Weight((("params", name, weight),), read, write, "gates z, r, n as r, z, n, z negated")


def _gru_bias_weight(name: str) -> Weight:
    """Return the bias, with zeros in place of one inside of the reset gate."""
    gates = _gru_gates_weight(name, "b")

    def read(bias: np.ndarray) -> np.ndarray:
        n = np.split(bias, 3)[2]
        return np.concatenate([gates.read(bias), np.zeros_like(n)])

    def write(canonical: np.ndarray, shape: Shape) -> np.ndarray:
        return gates.write(canonical[: shape[0]], shape)

    return Weight(gates.paths, read, write, gates.text)


def _attention_part(seen: Seen, name: str) -> Part:
    module = seen.module
    weights = {}
    for which in ("query", "key", "value"):
        projection = f"{name}/{which}"
        weights[f"{which}_kernel"] = _by_head_weight(projection, "w", module.num_heads)
        if module.with_bias:
            weights[f"{which}_bias"] = _by_head_weight(projection, "b", module.num_heads)
    weights["out_kernel"] = Weight(
        (("params", f"{name}/linear", "w"),),
        lambda w: w.reshape(module.num_heads, -1, w.shape[-1]),
        lambda canonical, shape: canonical.reshape(shape),
        "rows by head",
    )
    if module.with_bias:
        weights["out_bias"] = Weight.at("params", f"{name}/linear", "b")
    return Part("attention", weights, {"heads": module.num_heads})


def _by_head_weight(projection: str, weight: str, heads: int) -> Weight:
    return Weight(
        (("params", projection, weight),),
        lambda w: w.reshape(*w.shape[:-1], heads, -1),
        lambda canonical, shape: canonical.reshape(shape),
        "columns by head",
    )


TABLE: Mapping[type, Callable[[Seen, str], Part]] = {
    hk.Linear: _linear_part,
    hk.ConvND: _conv_part,
    hk.Conv1D: _conv_part,
    hk.Conv2D: _conv_part,
    hk.Conv3D: _conv_part,
    hk.DepthwiseConv1D: _depthwise_conv_part,
    hk.DepthwiseConv2D: _depthwise_conv_part,
    hk.DepthwiseConv3D: _depthwise_conv_part,
    hk.ConvNDTranspose: _conv_transpose_part,
    hk.Conv1DTranspose: _conv_transpose_part,
    hk.Conv2DTranspose: _conv_transpose_part,
    hk.Conv3DTranspose: _conv_transpose_part,
    hk.BatchNorm: _batch_norm_part,
    hk.LayerNorm: functools.partial(_norm_part, "layer_norm"),
    hk.RMSNorm: functools.partial(_norm_part, "rms_norm"),
    hk.GroupNorm: _group_norm_part,
    hk.Embed: _embedding_part,
    hk.LSTM: _lstm_part,
    hk.GRU: _gru_part,
    hk.MultiHeadAttention: _attention_part,
}
