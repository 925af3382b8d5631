"""`Row`: what a summary says of one layer, and how it is written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from seqbridge._interface import Column
from seqbridge._layers import Layer, Layout

COLUMNS = (
    Column("layer", least=14),
    Column("library", coloured=True),
    Column("entry", least=20),
    Column("input -> output", least=24),
    Column("params", right=True),
    Column("state", right=True, optional=True),
    Column("trained", right=True, optional=True),
    Column("FLOPs", right=True, optional=True),
)


@dataclass(frozen=True)
class Row:
    """One layer, or one nested model, which stands above its layers.

    Attributes:
        place: Its position, and its name if it has one: `"[0]"`, `"[3] conv"`.
        depth: In how many models it is nested; 0: it stands in the model itself.
        ecosystem: The library of the entry; empty for a nested model.
        entry: What was given.
        inputs: The dtype and shape of what it takes; empty: not known.
        outputs: Likewise of what it returns.
        params: How many numbers its parameters hold; None: it isn't built, and not known.
        state: How many numbers its state holds.
        trained: How many numbers of its parameters are trained.
        flops: Floating-point operations of one call; None: not known.
        shared: Whether all of its variables stand in a row above, too.
        name: Where its variables' names start, `"(Sequential).conv(Conv)"`, as in
            `Sequential.trace`.
        copies: Where a layer runs others in turn, as `Repeat` does, these stand below it, each with
            how often it does; what they say is of one run. 0: the layer stands in a model itself.
    """

    place: str
    depth: int
    ecosystem: str
    entry: str
    inputs: str = ""
    outputs: str = ""
    params: int | None = None
    state: int | None = None
    trained: int | None = None
    flops: float | None = None
    shared: bool = False
    name: str = ""
    copies: int = 0


def cells(row: Row) -> list[str]:
    """What stands in the columns."""
    arrow = f"{row.inputs} -> {row.outputs}" if row.inputs or row.outputs else ""
    own = "?" if row.params is None else f"{row.params:,}" if row.params else ""
    part = "" if not row.params else "yes" if row.trained == row.params else "frozen"
    if row.params and row.trained and row.trained < row.params:
        part = f"{row.trained:,}"
    return [
        "  " * row.depth + (f"{row.copies} x " if row.copies > 1 else "") + row.place,
        row.ecosystem,
        row.entry,
        arrow,
        f"{own} shared" if row.shared else own,
        f"{row.state:,}" if row.state else "",
        part,
        "" if row.flops is None else count_text(row.flops),
    ]


def count_text(number: float) -> str:
    """1,234 or 12.3 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


class Array(NamedTuple):
    kind: str
    value: Any
    trained: bool


def total_flops(rows: Iterable[Row], depth: int = 0) -> float | None:
    """Those of a model whose layers stand at this depth; None: those of some layer aren't known."""
    counted = [row.flops for row in rows if row.depth == depth]
    return None if None in counted or not counted else sum(filter(None, counted))


def known_flops(rows: Iterable[Row]) -> float:
    return sum(
        row.flops for row in rows if row.ecosystem and not row.copies and row.flops is not None
    )


def arrays_of(layer: Layer, layout: Layout) -> dict[Hashable, Array]:
    """The variables of a layer, by what makes two the same one."""
    if layer.built:
        return {box: Array(box.kind, box.value, box.trainable) for box in layer.own_variables()}
    trained = layer.entry_options.trainable
    ties = zip(layer.ties(layout), layout.slots, layout.arrays, strict=True)
    return {tie: Array(slot.kind, array, trained and slot.trainable) for tie, slot, array in ties}


def sizes_of(arrays: Mapping[Hashable, Array]) -> dict[str, int]:
    params = [(array.size, trained) for kind, array, trained in arrays.values() if kind == "params"]
    return {
        "params": sum(n for n, _ in params),
        "trained": sum(n for n, trained in params if trained),
        "state": sum(array.size for kind, array, _ in arrays.values() if kind != "params"),
    }
