"""The arrays of PyTorch's modules as layers of some kind, in the canonical layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from seqbridge import Part, Weight

Keys: TypeAlias = Mapping[str, str]
"""From the names of a module's arrays to their keys in the `state_dict`."""

Arrays: TypeAlias = Mapping[str, np.ndarray]
Options: TypeAlias = Mapping[str, Any]

_ACTIVATIONS = {"activation": "tanh", "gate_activation": "sigmoid"}


def make_parts(keys: Keys, arrays: Arrays) -> Callable[[str, Options], Part | None]:
    """Return a function from a kind to the part that a module is if it is of that kind.

    It returns None if the module isn't: the names or the ranks of its arrays don't fit.
    """

    def make_part(name: str, options: Options) -> Part | None:
        kind = KINDS.get(name)
        if kind is None or not kind.fits(keys, arrays):
            return None
        return kind.make(keys, arrays, options)

    return make_part


class Kind(NamedTuple):
    """A kind of module, and how one is recognized.

    Attributes:
        has: The names that it has; several sets: those of one of them.
        may: Those that it may have besides.
        ranks: The ranks that its weights may have.
        make: The function that makes the part.
    """

    has: tuple[set[str], ...]
    may: set[str]
    ranks: tuple[int, ...]
    make: Callable[[Keys, Arrays, Options], Part | None]

    def fits(self, keys: Keys, arrays: Arrays) -> bool:
        """Whether a module with these arrays may be of this kind."""
        names = keys.keys() - {"num_batches_tracked"}
        if not any(has <= names <= has | self.may for has in self.has):
            return False
        for name in names:
            is_weight = "weight" in name and name != "weight_g"
            if is_weight and arrays[keys[name]].ndim not in self.ranks:
                return False
        return True


def _refuse_to_write(*_: object) -> NoReturn:
    raise ValueError("weights are read from a state_dict, and not written into one")


def _make_weight(keys: tuple[str, ...], read: Callable[..., np.ndarray], text: str) -> Weight:
    return Weight(tuple((key,) for key in keys), read, _refuse_to_write, text)


def _make_kernel(keys: Keys, read: Callable[[np.ndarray], np.ndarray], text: str) -> Weight:
    """Return the weight of a module, be it under a weight norm."""
    if "weight_g" not in keys:
        return _make_weight((keys["weight"],), read, text)

    def read_normed(g: np.ndarray, v: np.ndarray) -> np.ndarray:
        return read(_apply_weight_norm(g, v))

    both = (keys["weight_g"], keys["weight_v"])
    return _make_weight(both, read_normed, f"weight norm; {text}")


def _apply_weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the array whose lengths along some axes are `g`, and whose directions those of `v`."""
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    wide = v.astype(np.float64)
    return (g * wide / np.sqrt((wide * wide).sum(axes, keepdims=True))).astype(v.dtype)


def _rank(keys: Keys, arrays: Arrays) -> int:
    return arrays[keys["weight" if "weight" in keys else "weight_v"]].ndim


def _present_weights(keys: Keys, **names: str) -> dict[str, Weight]:
    """Return the weights that the module has, as they are: `bias="bias"` names its own array."""
    return {name: Weight.at(keys[own]) for name, own in names.items() if own in keys}


def _linear_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    kernel = _make_kernel(keys, np.transpose, "transposed (1, 0)")
    return Part("linear", {"kernel": kernel, **_present_weights(keys, bias="bias")})


def _conv_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    axes = (*range(2, _rank(keys, arrays)), 1, 0)
    kernel = _make_kernel(keys, lambda weight: weight.transpose(axes), f"transposed {axes}")
    weights = {"kernel": kernel, **_present_weights(keys, bias="bias")}
    return Part("conv", weights, channels_first=True)


def _conv_transpose_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    groups = options.get("groups", 1)
    space = _rank(keys, arrays) - 2

    def read(weight: np.ndarray) -> np.ndarray:
        flipped = np.flip(weight, tuple(range(2, weight.ndim)))
        # The groups stand in the rows, and belong into the columns.
        split = flipped.reshape(groups, -1, *flipped.shape[1:])
        moved = split.transpose(*range(3, 3 + space), 1, 0, 2)
        return moved.reshape(*flipped.shape[2:], split.shape[1], -1)

    text = "flipped, first two axes last"
    if groups > 1:
        text += ", groups moved to the columns"
    kernel = _make_kernel(keys, read, text)
    weights = {"kernel": kernel, **_present_weights(keys, bias="bias")}
    return Part("conv_transpose", weights, channels_first=True)


def _embedding_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    return Part("embedding", _present_weights(keys, embedding="weight"))


def _batch_norm_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    weights = _present_weights(
        keys, scale="weight", bias="bias", mean="running_mean", var="running_var"
    )
    # Its own momentum is the share of what is new, 0.1.
    defaults = {"epsilon": 1e-5, "momentum": 0.9}
    return Part("batch_norm", weights, defaults, channels_first=True, assumed=True)


def _layer_norm_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    weights = _present_weights(keys, scale="weight", bias="bias")
    return Part("layer_norm", weights, {"epsilon": 1e-5}, assumed=True)


def _group_norm_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    weights = _present_weights(keys, scale="weight", bias="bias")
    return Part("group_norm", weights, {"epsilon": 1e-5}, channels_first=True, assumed=True)


def _rms_norm_part(keys: Keys, arrays: Arrays, options: Options) -> Part:
    return Part("rms_norm", _present_weights(keys, scale="weight"), assumed=True)


def _count_gates(keys: Keys, arrays: Arrays) -> float:
    rows = arrays[keys["weight_ih"]].shape[0]
    hidden = arrays[keys["weight_hh"]].shape[1]
    return rows / max(hidden, 1)


def _lstm_part(keys: Keys, arrays: Arrays, options: Options) -> Part | None:
    if _count_gates(keys, arrays) != 4:
        return None
    kernel = _make_weight(
        (keys["weight_ih"], keys["weight_hh"]),
        lambda x, h: np.concatenate([x.T, h.T]),
        "transposed, rows of x above those of h",
    )
    weights = {"kernel": kernel}
    if "bias_ih" in keys:
        biases = (keys["bias_ih"], keys["bias_hh"])
        weights["bias"] = _make_weight(biases, np.add, "two biases added")
    return Part("lstm", weights, _ACTIVATIONS, assumed=True)


def _gru_part(keys: Keys, arrays: Arrays, options: Options) -> Part | None:
    if _count_gates(keys, arrays) != 3:
        return None
    weights = {
        "kernel": Weight.transposed((keys["weight_ih"],), (1, 0)),
        "recurrent": Weight.transposed((keys["weight_hh"],), (1, 0)),
    }
    if "bias_ih" in keys:
        biases = (keys["bias_ih"], keys["bias_hh"])
        text = "two biases added, that of the recurrent n joined"
        weights["bias"] = _make_weight(biases, _add_gru_biases, text)
    return Part("gru", weights, {"reset_after": True, **_ACTIVATIONS}, assumed=True)


def _add_gru_biases(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    gates = len(x) // 3 * 2  # where the candidate begins
    return np.concatenate([x[:gates] + h[:gates], x[gates:], h[gates:]])


def _attention_part(keys: Keys, arrays: Arrays, options: Options) -> Part | None:
    heads = options.get("heads")
    if heads is None:
        return None
    weights = {}
    for i, name in enumerate(("query", "key", "value")):
        weights[f"{name}_kernel"] = _input_projection_weight(keys, i, heads)
        if "in_proj_bias" in keys:
            weights[f"{name}_bias"] = _input_bias_weight(keys, i, heads)
    weights["out_kernel"] = _make_weight(
        (keys["out_proj.weight"],),
        lambda weight: weight.T.reshape(heads, -1, weight.shape[0]),
        "transposed, rows by head",
    )
    weights |= _present_weights(keys, out_bias="out_proj.bias")
    adds_bias = "bias_k" in keys or "bias_v" in keys
    return Part(
        "attention",
        weights,
        {"heads": heads},
        refused="it adds a key and a value of its own (add_bias_kv)" if adds_bias else "",
    )


def _input_projection_weight(keys: Keys, i: int, heads: int) -> Weight:
    """Return the kernel of query, key or value, which may be a third of one array for all."""
    in_one = "in_proj_weight" in keys

    def read(weight: np.ndarray) -> np.ndarray:
        own = np.split(weight, 3)[i] if in_one else weight
        return own.T.reshape(weight.shape[1], heads, -1)

    text = "transposed, columns by head"
    if in_one:
        return _make_weight((keys["in_proj_weight"],), read, f"third {i + 1} of 3; {text}")
    return _make_weight((keys[f"{'qkv'[i]}_proj_weight"],), read, text)


def _input_bias_weight(keys: Keys, i: int, heads: int) -> Weight:
    def read(bias: np.ndarray) -> np.ndarray:
        return np.split(bias, 3)[i].reshape(heads, -1)

    return _make_weight((keys["in_proj_bias"],), read, f"third {i + 1} of 3; by head")


_WEIGHT = ({"weight"}, {"weight_g", "weight_v"})
_CELL = ({"weight_ih", "weight_hh"}, {"weight_ih", "weight_hh", "bias_ih", "bias_hh"})
_PROJECTIONS = (
    {"in_proj_weight", "out_proj.weight"},
    {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
)
_PROJECTION_BIASES = {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}
# The options of their parts are what PyTorch takes if nobody says.
KINDS: Mapping[str, Kind] = {
    "linear": Kind(_WEIGHT, {"bias"}, (2,), _linear_part),
    "conv": Kind(_WEIGHT, {"bias"}, (3, 4, 5), _conv_part),
    "conv_transpose": Kind(_WEIGHT, {"bias"}, (3, 4, 5), _conv_transpose_part),
    "embedding": Kind(({"weight"},), set(), (2,), _embedding_part),
    # Without statistics it would normalize by those of the batch in evaluation, too.
    "batch_norm": Kind(
        ({"running_mean", "running_var"},), {"weight", "bias"}, (1,), _batch_norm_part
    ),
    "layer_norm": Kind(({"weight"},), {"bias"}, (1,), _layer_norm_part),
    "group_norm": Kind(({"weight", "bias"},), set(), (1,), _group_norm_part),
    "rms_norm": Kind(({"weight"},), set(), (1,), _rms_norm_part),
    "lstm": Kind(_CELL, set(), (2,), _lstm_part),
    "gru": Kind(_CELL, set(), (2,), _gru_part),
    "attention": Kind(_PROJECTIONS, _PROJECTION_BIASES, (2,), _attention_part),
}
