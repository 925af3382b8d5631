"""The adapter of PyTorch: the layers of a `state_dict`.

PyTorch itself is neither needed nor loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from seqbridge import Untyped
from seqbridge_torch._kinds import make_parts

# Names by which the arrays of PyTorch's modules are known. Those of a weight norm come in an old
# and a new style.
_ARRAY_NAME = re.compile(
    r"""(?:^|\.)(
        weight | bias | running_mean | running_var | num_batches_tracked
        | in_proj_weight | in_proj_bias | [qkv]_proj_weight | bias_[kv]
        | weight_[gv] | parametrizations\.weight\.original[01]
        | (?:weight|bias)_[ih]h (?:_l\d+(?:_reverse)?)?
    )$""",
    re.VERBOSE,
)
_OLD_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
_CELL_NAME = re.compile(r"(.*)_(l\d+(?:_reverse)?)")  # of a layer and a direction of an LSTM or GRU
_WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod)(?=\.|$)")  # of DataParallel and of compile


class Place(NamedTuple):
    """Where a layer stands.

    Attributes:
        module: The name of the module.
        cell: Its layer and direction, if it has several; otherwise empty.
    """

    module: str
    cell: str


def layouts(arrays: Mapping[str, np.ndarray]) -> list[Untyped] | None:
    """Return the layers of a `state_dict`, in order. None: it is none of PyTorch's.

    Args:
        arrays: The `state_dict`, a flat dict of arrays by name.

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
    groups: dict[Place, dict[str, str]] = {}  # of each layer, its keys by the names of its arrays
    for key in arrays:
        found = _ARRAY_NAME.search(key)
        if found is not None:
            name = _OLD_NAMES.get(found[1], found[1])
            place, name = _find_place(key[: found.start()], name, arrays)
            groups.setdefault(place, {})[name] = key
    if all(keys.keys() == {"bias"} for keys in groups.values()):  # which others have, too
        return None
    layers = []
    for name, keys in zip(_name_layers(list(groups)), groups.values(), strict=True):
        paths = tuple((key,) for key in keys.values())
        layers.append(Untyped(name, paths, make_parts(keys, arrays)))
    return layers


def _find_place(module: str, name: str, arrays: Mapping[str, np.ndarray]) -> tuple[Place, str]:
    """Return the layer that an array belongs to, and the name of the array there.

    Args:
        module: The module that the array stands in.
        name: The name of the array.
        arrays: The `state_dict`.
    """
    outer, _, last = module.rpartition(".")
    if last == "out_proj" and _is_attention(outer, arrays):
        return Place(outer, ""), f"out_proj.{name}"
    cell = _CELL_NAME.fullmatch(name)
    if cell is not None:
        return Place(module, cell[2]), cell[1]
    return Place(module, ""), name


def _is_attention(module: str, arrays: Mapping[str, np.ndarray]) -> bool:
    names = ("in_proj_weight", "q_proj_weight")
    return any(_join(module, name) in arrays for name in names)


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _name_layers(places: list[Place]) -> list[str]:
    """Return the names of layers.

    The names of wrappers are left out if they aren't needed to tell layers apart.
    """
    cells = Counter(place.module for place in places if place.cell)
    full = []
    for module, cell in places:
        full.append(_join(module, cell) if cells[module] > 1 else module)
    short = [_WRAPPERS.sub("", name).removeprefix(".") for name in full]
    is_enough = len(set(short)) == len(set(full))
    return [name or "(root)" for name in (short if is_enough else full)]
