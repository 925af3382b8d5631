"""What the weights of Haiku's own modules are, in the canonical layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import haiku as hk
import numpy as np

from seqbridge import Part, Weight, explicit

_FORGET = 1.0  # what Haiku's LSTM adds to its forget gate in code
_SETTLED = 10**6  # a number of updates after which an average is no longer corrected for its start


class Seen(NamedTuple):
    """A module at its first call."""

    module: Any
    x: Any
    decay: Any  # of the averages inside


def parts(run: Callable[[], Any]) -> Iterator[Part]:
    """The parts of a transform, in the order in which their modules are called."""
    found: dict[str, Seen] = {}
    decays: dict[str, Any] = {}
    outermost: list[Any] = []

    def look(call: Callable[..., Any], args: Any, keywords: Any, context: hk.MethodContext) -> Any:
        scopes = set(hk.get_params()), set(hk.get_current_state())
        outermost[:] = outermost or [scopes]
        params, state = outermost[0]
        # A transform inside, such as that of hk.layer_stack, has names of its own; state may be new
        # in a call.
        if scopes[0] != params or not scopes[1] >= state:
            return call(*args, **keywords)
        if context.method_name == "__init__":
            out = call(*args, **keywords)
            if type(context.module) is hk.ExponentialMovingAverage:
                decays[context.module.module_name] = keywords.get(
                    "decay", args[0] if args else None
                )
            return out
        if context.method_name in (
            "__call__",
            "embeddings",
        ):  # the latter is all that a tied hk.Embed may be asked for
            name = context.module.module_name
            x = args[0] if args else keywords.get("inputs", keywords.get("x"))
            found.setdefault(name, Seen(context.module, x, decays.get(f"{name}/~/mean_ema")))
        return call(*args, **keywords)

    with hk.intercept_methods(look):
        run()
    whole: list[str] = []  # what stands inside of these belongs to them
    for name, seen in found.items():
        make = TABLE.get(type(seen.module))  # not of a subclass, which may do something else
        if make is not None and not any(name.startswith(f"{outer}/") for outer in whole):
            whole.append(name)
            yield make(seen, name)


def _flat(name: str, weight: str) -> Weight:
    return Weight.reshaped(("params", name, weight), (-1,))


def _linear(seen: Seen, name: str) -> Part:
    bias = {"bias": Weight.at("params", name, "b")} if seen.module.with_bias else {}
    return Part("linear", {"kernel": Weight.at("params", name, "w"), **bias})


def _channels_first(module: Any) -> bool:
    index = getattr(module, "channel_index", None)
    return (hk.get_channel_index(module.data_format) if index is None else index) == 1


def _conv(seen: Seen, name: str) -> Part:
    module = seen.module
    window, strides = module.kernel_shape, module.stride
    depthwise = not hasattr(module, "feature_group_count")
    dilation = module.rhs_dilation if depthwise else module.kernel_dilation
    groups = (
        seen.x.shape[1 if _channels_first(module) else -1]
        if depthwise
        else module.feature_group_count
    )
    return Part(
        "conv",
        {
            "kernel": Weight.at("params", name, "w"),
            **({"bias": _flat(name, "b")} if module.with_bias else {}),
        },
        {
            "strides": tuple(strides),
            "padding": explicit(module.padding, window, strides, dilation),
            "dilation": tuple(dilation),
            "groups": groups,
        },
        channels_first=_channels_first(module),
        refused="its kernel is masked" if getattr(module, "mask", None) is not None else "",
    )


def _conv_transpose(seen: Seen, name: str) -> Part:
    module = seen.module
    # With a size of its output, Haiku pads as the size of the input asks for: no numbers are the
    # same for every input.
    sized = module.output_shape is not None and f"{module.padding} to {tuple(module.output_shape)}"
    bias = {"bias": _flat(name, "b")} if module.with_bias else {}
    n = len(module.kernel_shape)
    return Part(
        "conv_transpose",
        {"kernel": Weight.transposed(("params", name, "w"), (*range(n), n + 1, n)), **bias},
        {
            "strides": tuple(module.stride),
            "padding": sized
            or explicit(module.padding, module.kernel_shape, module.stride, transposed=True),
            "dilation": (1,) * n,
            "groups": 1,
        },
        channels_first=_channels_first(module),
        refused="its kernel is masked" if module.mask is not None else "",
    )


def _scale_and_bias(module: Any, name: str) -> dict[str, Weight]:
    weights = {"scale": _flat(name, "scale")} if module.create_scale else {}
    return weights | (
        {"bias": _flat(name, "offset")} if getattr(module, "create_offset", False) else {}
    )


def _average(name: str) -> Weight:
    """A moving average, which Haiku keeps beside the sum that it corrects for its start."""
    paths = tuple(("state", name, part) for part in ("hidden", "average", "counter"))
    return Weight(
        paths,
        lambda hidden, average, counter: average.reshape(-1),
        lambda c, hidden, average, counter: (
            c.reshape(hidden),
            c.reshape(average),
            np.int32(_SETTLED),
        ),
        "the debiased average",
    )


def _batch_norm(seen: Seen, name: str) -> Part:
    module, n = seen.module, seen.x.ndim
    averages = {"mean": _average(f"{name}/~/mean_ema"), "var": _average(f"{name}/~/var_ema")}
    options = {"epsilon": float(module.eps)} | (
        {} if seen.decay is None else {"momentum": seen.decay}
    )
    usual = module.axis is None or set(module.axis) == {*range(n)} - {module.channel_index % n}
    return Part(
        "batch_norm",
        {**_scale_and_bias(module, name), **averages},
        options,
        channels_first=_channels_first(module),
        refused="" if usual else f"it normalizes over axes {module.axis}",
    )


def _last(axes: Any, x: Any) -> bool:
    """Whether an axis, or what selects some, is the last one."""
    n = x.ndim
    chosen = (
        range(n)[axes] if isinstance(axes, slice) else [axes] if isinstance(axes, int) else axes
    )
    return [axis % n for axis in chosen] == [n - 1]


def _norm(kind: str) -> Callable[[Seen, str], Part]:
    def norm(seen: Seen, name: str) -> Part:
        module = seen.module
        usual = _last(module.axis, seen.x) and _last(module.param_axis, seen.x)
        refused = (
            ""
            if usual
            else f"it normalizes over {module.axis}, with features along {module.param_axis}"
        )
        return Part(
            kind, _scale_and_bias(module, name), {"epsilon": float(module.eps)}, refused=refused
        )

    return norm


def _group_norm(seen: Seen, name: str) -> Part:
    module, n = seen.module, seen.x.ndim
    usual = (
        {*range(2, n + 1)} if _channels_first(module) else {*range(1, n - 1), n}
    )  # once the groups are apart
    return Part(
        "group_norm",
        _scale_and_bias(module, name),
        {"epsilon": float(module.eps), "groups": module.groups},
        channels_first=_channels_first(module),
        refused=""
        if {axis % (n + 1) for axis in module.axis} == usual
        else "it normalizes over some axes",
    )


def _embed(seen: Seen, name: str) -> Part:
    return Part("embedding", {"embedding": Weight.at("params", name, "embeddings")})


_ACTIVATIONS = {"activation": "tanh", "gate_activation": "sigmoid"}


def _swapped(array: np.ndarray) -> np.ndarray:
    """Gates i, g, f, o from i, f, g, o, and back."""
    i, f, g, o = np.split(array, 4, axis=-1)
    return np.concatenate([i, g, f, o], axis=-1)


def _lstm(seen: Seen, name: str) -> Part:
    kernel = Weight(
        (("params", f"{name}/linear", "w"),),
        _swapped,
        lambda c, shape: _swapped(c),
        "gates i, g, f, o as i, f, g, o",
    )
    forget = np.repeat([0.0, _FORGET, 0.0, 0.0], seen.module.hidden_size)
    bias = Weight(
        (("params", f"{name}/linear", "b"),),
        lambda b: _swapped(b) + forget.astype(b.dtype),
        lambda c, shape: _swapped(c - forget.astype(c.dtype)),
        "gates i, g, f, o as i, f, g, o, with the constant of the forget gate",
    )
    return Part("lstm", {"kernel": kernel, "bias": bias}, _ACTIVATIONS)


def _gates(name: str, weight: str) -> Weight:
    def read(array: np.ndarray) -> np.ndarray:
        z, r, n = np.split(array, 3, axis=-1)
        return np.concatenate([r, -z, n], axis=-1)  # 1 - sigmoid(x) is sigmoid(-x)

    def write(c: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        r, z, n = np.split(c, 3, axis=-1)
        return np.concatenate([-z, r, n], axis=-1)

    return Weight((("params", name, weight),), read, write, "gates z, r, n as r, z, n, z negated")


def _gru(seen: Seen, name: str) -> Part:
    bias = _gates(name, "b")
    weights = {
        "kernel": _gates(name, "w_i"),
        "recurrent": _gates(name, "w_h"),
        "bias": Weight(  # with nothing in the place of a bias inside of the reset gate
            bias.paths,
            lambda b: np.concatenate([bias.read(b), np.zeros_like(b[len(b) // 3 * 2 :])]),
            lambda c, shape: bias.write(c[: shape[0]], shape),
            bias.text,
        ),
    }
    return Part("gru", weights, {"reset_after": False, **_ACTIVATIONS})


def _attention(seen: Seen, name: str) -> Part:
    heads = seen.module.num_heads
    weights = {}
    for which in ("query", "key", "value"):
        place = f"{name}/{which}"
        weights[f"{which}_kernel"] = _by_head(place, "w", heads)
        if seen.module.with_bias:
            weights[f"{which}_bias"] = _by_head(place, "b", heads)
    weights["out_kernel"] = Weight(
        (("params", f"{name}/linear", "w"),),
        lambda w: w.reshape(heads, -1, w.shape[-1]),
        lambda c, shape: c.reshape(shape),
        "rows by head",
    )
    if seen.module.with_bias:
        weights["out_bias"] = Weight.at("params", f"{name}/linear", "b")
    return Part("attention", weights, {"heads": heads})


def _by_head(place: str, weight: str, heads: int) -> Weight:
    return Weight(
        (("params", place, weight),),
        lambda w: w.reshape(*w.shape[:-1], heads, -1),
        lambda c, shape: c.reshape(shape),
        "columns by head",
    )


TABLE: Mapping[type, Callable[[Seen, str], Part]] = {
    hk.Linear: _linear,
    **dict.fromkeys((hk.ConvND, hk.Conv1D, hk.Conv2D, hk.Conv3D), _conv),
    **dict.fromkeys((hk.DepthwiseConv1D, hk.DepthwiseConv2D, hk.DepthwiseConv3D), _conv),
    **dict.fromkeys(
        (hk.ConvNDTranspose, hk.Conv1DTranspose, hk.Conv2DTranspose, hk.Conv3DTranspose),
        _conv_transpose,
    ),
    hk.BatchNorm: _batch_norm,
    hk.LayerNorm: _norm("layer_norm"),
    hk.RMSNorm: _norm("rms_norm"),
    hk.GroupNorm: _group_norm,
    hk.Embed: _embed,
    hk.LSTM: _lstm,
    hk.GRU: _gru,
    hk.MultiHeadAttention: _attention,
}
