"""What the arrays of one of PyTorch's modules are in the canonical layout, if it is of some kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from seqbridge import Part, Weight

Names: TypeAlias = Mapping[
    str, str
]  # from the name of an array within its module to its whole name
Arrays: TypeAlias = Mapping[str, np.ndarray]
Options: TypeAlias = Mapping[str, Any]


def as_kind(own: Names, arrays: Arrays) -> Callable[[str, Options], Part | None]:
    """What a module is if it is of some kind; None if its names or the ranks of its arrays don't fit."""

    def part(kind: str, options: Options) -> Part | None:
        known = KINDS.get(kind)
        names = own.keys() - {"num_batches_tracked"}
        if known is None or not any(need <= names <= need | known.may for need in known.has):
            return None
        if any(
            arrays[own[name]].ndim not in known.ranks
            for name in names
            if "weight" in name and name != "weight_g"
        ):
            return None
        return known.make(own, arrays, options)

    return part


def _read_only(*_: Any) -> Any:
    raise ValueError("weights are read from a state_dict, and not written into one")


def _weight(keys: tuple[str, ...], read: Callable[..., np.ndarray], text: str) -> Weight:
    return Weight(tuple((key,) for key in keys), read, _read_only, text)


def _normed(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The weight whose lengths along some axes are `g`, and whose directions are those of `v`."""
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    wide = v.astype(np.float64)
    return (g * wide / np.sqrt((wide * wide).sum(axes, keepdims=True))).astype(v.dtype)


def _kernel(own: Names, read: Callable[[np.ndarray], np.ndarray], text: str) -> Weight:
    if "weight_g" in own:
        return _weight(
            (own["weight_g"], own["weight_v"]),
            lambda g, v: read(_normed(g, v)),
            f"weight norm; {text}",
        )
    return _weight((own["weight"],), read, text)


def _main(own: Names, arrays: Arrays) -> np.ndarray:
    return arrays[own["weight" if "weight" in own else "weight_v"]]


def _as_is(own: Names, **names: str) -> dict[str, Weight]:
    return {name: Weight.at(own[of]) for name, of in names.items() if of in own}


def _linear(own: Names, arrays: Arrays, options: Options) -> Part:
    return Part(
        "linear",
        {"kernel": _kernel(own, np.transpose, "transposed (1, 0)"), **_as_is(own, bias="bias")},
    )


def _conv(own: Names, arrays: Arrays, options: Options) -> Part:
    axes = (*range(2, _main(own, arrays).ndim), 1, 0)
    kernel = _kernel(own, lambda w: w.transpose(axes), f"transposed {axes}")
    return Part("conv", {"kernel": kernel, **_as_is(own, bias="bias")}, channels_first=True)


def _conv_transpose(own: Names, arrays: Arrays, options: Options) -> Part:
    groups = options.get("groups", 1)
    space = _main(own, arrays).ndim - 2

    def read(w: np.ndarray) -> np.ndarray:
        """The groups stand in the rows, and belong into the columns."""
        w = np.flip(w, tuple(range(2, w.ndim)))
        split = w.reshape(groups, -1, *w.shape[1:])
        return split.transpose(*range(3, 3 + space), 1, 0, 2).reshape(
            *w.shape[2:], split.shape[1], -1
        )

    text = "flipped, first two axes last" + (", groups moved to the columns" if groups > 1 else "")
    weights = {"kernel": _kernel(own, read, text), **_as_is(own, bias="bias")}
    return Part("conv_transpose", weights, channels_first=True)


def _embedding(own: Names, arrays: Arrays, options: Options) -> Part:
    return Part("embedding", _as_is(own, embedding="weight"))


def _norm(kind: str, said: Options) -> Callable[..., Part]:
    def norm(own: Names, arrays: Arrays, options: Options) -> Part:
        weights = _as_is(own, scale="weight", bias="bias", mean="running_mean", var="running_var")
        return Part(
            kind, weights, said, channels_first=kind in ("batch_norm", "group_norm"), assumed=True
        )

    return norm


_ACTIVATIONS = {"activation": "tanh", "gate_activation": "sigmoid"}


def _gates(own: Names, arrays: Arrays) -> float:
    return arrays[own["weight_ih"]].shape[0] / max(arrays[own["weight_hh"]].shape[1], 1)


def _lstm(own: Names, arrays: Arrays, options: Options) -> Part | None:
    if _gates(own, arrays) != 4:
        return None
    weights = {
        "kernel": _weight(
            (own["weight_ih"], own["weight_hh"]),
            lambda x, h: np.concatenate([x.T, h.T]),
            "transposed, rows of x above those of h",
        )
    }
    if "bias_ih" in own:
        weights["bias"] = _weight((own["bias_ih"], own["bias_hh"]), np.add, "two biases added")
    return Part("lstm", weights, _ACTIVATIONS, assumed=True)


def _gru(own: Names, arrays: Arrays, options: Options) -> Part | None:
    if _gates(own, arrays) != 3:
        return None

    def added(x: np.ndarray, h: np.ndarray) -> np.ndarray:
        n = len(x) // 3 * 2
        return np.concatenate([x[:n] + h[:n], x[n:], h[n:]])

    weights = {
        "kernel": Weight.transposed((own["weight_ih"],), (1, 0)),
        "recurrent": Weight.transposed((own["weight_hh"],), (1, 0)),
    }
    if "bias_ih" in own:
        text = "two biases added, that of the recurrent n joined"
        weights["bias"] = _weight((own["bias_ih"], own["bias_hh"]), added, text)
    return Part("gru", weights, {"reset_after": True, **_ACTIVATIONS}, assumed=True)


def _attention(own: Names, arrays: Arrays, options: Options) -> Part | None:
    heads = options.get("heads")
    if heads is None:
        return None
    weights = {}
    for i, name in enumerate(("query", "key", "value")):
        split = "in_proj_weight" in own

        def third(a: np.ndarray, i: int = i) -> np.ndarray:
            return np.split(a, 3)[i]

        def kernel(w: np.ndarray, pick: Any = third if split else np.asarray) -> np.ndarray:
            return pick(w).T.reshape(w.shape[1], heads, -1)

        key = own["in_proj_weight" if split else f"{name[0]}_proj_weight"]
        text = "transposed, columns by head"
        weights[f"{name}_kernel"] = _weight(
            (key,), kernel, f"third {i + 1} of 3; {text}" if split else text
        )
        if "in_proj_bias" in own:
            weights[f"{name}_bias"] = _weight(
                (own["in_proj_bias"],),
                lambda b, pick=third: pick(b).reshape(heads, -1),
                f"third {i + 1} of 3; by head",
            )
    weights["out_kernel"] = _weight(
        (own["out_proj.weight"],),
        lambda w: w.T.reshape(heads, -1, w.shape[0]),
        "transposed, rows by head",
    )
    weights |= _as_is(own, out_bias="out_proj.bias")
    refused = (
        "it adds a key and a value of its own (add_bias_kv)"
        if {"bias_k", "bias_v"} & own.keys()
        else ""
    )
    return Part("attention", weights, {"heads": heads}, refused=refused)


class _Kind(NamedTuple):
    """How a module of a kind is known.

    Attributes:
        has: The names that it has; several sets: those of one of them.
        may: Those that it may have besides.
        ranks: The ranks that its weights may have.
        make: What makes the part.
    """

    has: tuple[set[str], ...]
    may: set[str]
    ranks: tuple[int, ...]
    make: Callable[[Names, Arrays, Options], Part | None]


_WEIGHT = ({"weight"}, {"weight_g", "weight_v"})
_CELL = ({"weight_ih", "weight_hh"}, {"weight_ih", "weight_hh", "bias_ih", "bias_hh"})
_QKV = (
    {"in_proj_weight", "out_proj.weight"},
    {*(f"{name}_proj_weight" for name in "qkv"), "out_proj.weight"},
)
_BIASES = {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}
# The options are what PyTorch takes if nobody says. Its own momentum is the share of what is new,
# 0.1.
KINDS: Mapping[str, _Kind] = {
    "linear": _Kind(_WEIGHT, {"bias"}, (2,), _linear),
    "conv": _Kind(_WEIGHT, {"bias"}, (3, 4, 5), _conv),
    "conv_transpose": _Kind(_WEIGHT, {"bias"}, (3, 4, 5), _conv_transpose),
    "embedding": _Kind(({"weight"},), set(), (2,), _embedding),
    # Without statistics it would normalize by those of the batch in evaluation, too.
    "batch_norm": _Kind(
        ({"running_mean", "running_var"},),
        {"weight", "bias"},
        (1,),
        _norm("batch_norm", {"epsilon": 1e-5, "momentum": 0.9}),
    ),
    "layer_norm": _Kind(({"weight"},), {"bias"}, (1,), _norm("layer_norm", {"epsilon": 1e-5})),
    "group_norm": _Kind(({"weight", "bias"},), set(), (1,), _norm("group_norm", {"epsilon": 1e-5})),
    "rms_norm": _Kind(({"weight"},), set(), (1,), _norm("rms_norm", {})),
    "lstm": _Kind(_CELL, set(), (2,), _lstm),
    "gru": _Kind(_CELL, set(), (2,), _gru),
    "attention": _Kind(_QKV, _BIASES, (2,), _attention),
}
