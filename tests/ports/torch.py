"""PyTorch, by the weights and results that `tests/data/make_torch_golden.py` has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ports._block import ROWS


@dataclass(frozen=True)
class Golden:
    """A module of PyTorch's.

    Args:
        state: Its `state_dict`.
        x: An input, channels last.
        y: What the module makes of it in evaluation mode, channels last.
    """

    state: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray


def _load() -> dict[str, Golden]:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with np.load(Path(__file__).parents[1] / "data" / "torch_golden.npz") as file:
        for name in file.files:
            row, _, place = name.partition("/")
            arrays.setdefault(row, {})[place] = file[name]
    return {
        row: Golden(
            {p.removeprefix("state/"): a for p, a in own.items() if "/" in p}, own["x"], own["y"]
        )
        for row, own in arrays.items()
    }


_ALL = _load()
# By row of the matrix. The pads of "transposed 2d" are ((1, 2), (1, 2)), since PyTorch has no word
# SAME for it.
GOLDEN = {row: golden for row, golden in _ALL.items() if row in ROWS}
# A whole network for images, and an `nn.TransformerEncoderLayer`.
CNN, ENCODER = _ALL["cnn"], _ALL["encoder"]
# What PyTorch has in more than one way, by name: weight norm, several layers, directions or groups,
# ...
OTHERS = {name: golden for name, golden in _ALL.items() if name not in {*ROWS, "cnn", "encoder"}}
