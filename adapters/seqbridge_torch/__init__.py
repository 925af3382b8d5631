"""The adapter of PyTorch: what the arrays of a `state_dict` are. PyTorch itself is neither needed nor loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from seqbridge import Untyped
from seqbridge_torch._kinds import as_kind

# Names by which the arrays of PyTorch's modules are known. Those of a weight norm come in an old
# and a new style.
_NAMES = re.compile(
    r"(?:^|\.)(weight|bias|running_mean|running_var|num_batches_tracked|in_proj_weight|in_proj_bias|[qkv]_proj_weight"
    r"|bias_[kv]|weight_[gv]|parametrizations\.weight\.original[01]|(?:weight|bias)_[ih]h(?:_l\d+(?:_reverse)?)?)$"
)
_NORMED = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
_WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod)(?=\.|$)")  # of DataParallel and of compile
_ATTENTION = ("in_proj_weight", "q_proj_weight")


def layouts(arrays: Mapping[str, np.ndarray]) -> list[Untyped] | None:
    """The layers of a `state_dict`, a flat dict of arrays by name, in order; None: it's none of PyTorch's.

    Examples:
        >>> import numpy as np
        >>> found = layouts({"module.fc.weight": np.ones((2, 3)), "module.fc.bias": np.ones(2)})
        >>> [layer.name for layer in found], found[0].paths
        (['fc'], (('module.fc.weight',), ('module.fc.bias',)))
        >>> found[0].as_kind("linear", {}).weights["kernel"].text
        'transposed (1, 0)'
        >>> layouts({"fc.kernel": np.ones((3, 2)), "fc.bias": np.ones(2)}) is None
        True
    """
    groups: dict[
        tuple[str, str], dict[str, str]
    ] = {}  # by module, and layer and direction if it has several
    for key in arrays:
        found = _NAMES.search(key)
        if found is None:
            continue
        place, name, cell = key[: found.start()], _NORMED.get(found[1], found[1]), ""
        outer, _, last = place.rpartition(".")
        if last == "out_proj" and any(_within(outer, one) in arrays for one in _ATTENTION):
            place, name = outer, f"out_proj.{name}"  # the last layer of an attention
        elif numbered := re.fullmatch(r"(.*)_(l\d+(?:_reverse)?)", name):
            name, cell = numbered[1], numbered[2]
        groups.setdefault((place, cell), {})[name] = key
    if all(own.keys() == {"bias"} for own in groups.values()):  # which others have, too
        return None
    return [
        Untyped(name, tuple((key,) for key in own.values()), as_kind(own, arrays))
        for name, own in zip(_shown(list(groups)), groups.values(), strict=True)
    ]


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _shown(places: list[tuple[str, str]]) -> list[str]:
    """What layers are called, without the names of wrappers if these aren't needed to tell them apart."""
    cells = Counter(place for place, cell in places if cell)
    full = [_within(place, cell) if cells[place] > 1 else place for place, cell in places]
    short = [_WRAPPERS.sub("", name).removeprefix(".") for name in full]
    return [name or "(root)" for name in (short if len(set(short)) == len(set(full)) else full)]
