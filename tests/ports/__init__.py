"""The blocks of all libraries, and what can't be carried."""

from __future__ import annotations

from ports import equinox, haiku, keras, linen, nnx
from ports._block import ROWS as ROWS
from ports._block import Block as Block
from ports._block import example as example

LIBRARIES: dict[str, dict[str, Block]] = {
    module.__name__.rpartition(".")[2]: {block.row: block for block in module.BLOCKS}
    for module in (haiku, linen, nnx, equinox, keras)
}
_GATE = "the reset gate of one is applied before the matrix product, that of the other after it"
_NO_BIAS = "no bias in the recurrent part of its candidate"
_AFTER = ("linen", "nnx", "equinox", "keras", "torch")
# By row, source and target: why it is refused.
REFUSED: dict[tuple[str, str, str], str] = {
    **{("gru", "haiku", other): _GATE for other in _AFTER},
    **{("gru", other, "haiku"): _GATE for other in _AFTER},
    **{("gru", other, "nnx"): _NO_BIAS for other in ("linen", "equinox", "keras", "torch")},
}
