"""`Row`: one layer in a summary, and its text in the columns of the table."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax

from seqbridge._interface import Column, Kind
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
        entry: The text of the entry.
        inputs: The dtypes and shapes of its inputs; empty: not known.
        outputs: Likewise of its outputs.
        params: How many numbers its parameters hold; None: it isn't built, and not known.
        state: How many numbers its state holds.
        trained: How many numbers of its parameters are trained.
        flops: Floating-point operations of one call; None: not known.
        shared: Which row above has its variables, too: `"shared with [0]"`, or `"partly shared with
            [0]"`; empty: none.
        name: The beginning of its variables' names, `"(Sequential).conv(Conv)"`, as in
            `Sequential.trace`.
        copies: How often the layer above runs this one, as `Repeat` does; the row is about one run.
            0: the layer stands in a model itself.
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
    shared: str = ""
    name: str = ""
    copies: int = 0


def cells(row: Row) -> list[str]:
    """Return the texts of the columns."""
    repeated = f"{row.copies} x " if row.copies > 1 else ""
    return [
        "  " * row.depth + repeated + row.place,
        row.ecosystem,
        f"{row.entry} {row.shared}".rstrip(),
        f"{row.inputs} -> {row.outputs}" if row.inputs or row.outputs else "",
        _params_text(row),
        f"{row.state:,}" if row.state else "",
        _trained_text(row),
        "" if row.flops is None else count_text(row.flops),
    ]


def _params_text(row: Row) -> str:
    if row.params is None:
        return "?"
    return f"{row.params:,}" if row.params else ""


def _trained_text(row: Row) -> str:
    if not row.params:
        return ""
    if row.trained == row.params:
        return "yes"
    return f"{row.trained:,}" if row.trained else "frozen"


def count_text(number: float) -> str:
    """Return a number of operations, as `"1,234"` or `"12.3 M"`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def total_flops(rows: Iterable[Row], depth: int = 0) -> float | None:
    """Return the sum over the rows at this depth; None: there are none, or one isn't known."""
    total: float | None = None
    for row in rows:
        if row.depth != depth:
            continue
        if row.flops is None:
            return None
        total = row.flops + (total or 0)
    return total


def known_flops(rows: Iterable[Row]) -> float:
    """Return the sum over the layers that stand in a model, as far as it is known."""
    total = 0.0
    for row in rows:
        if row.ecosystem and not row.copies and row.flops is not None:
            total += row.flops
    return total


class SizedArray(NamedTuple):
    """The array of a variable, or its shape where the layer isn't built."""

    kind: Kind
    array: jax.Array | jax.ShapeDtypeStruct
    trained: bool


class Sizes(NamedTuple):
    """Counts of the numbers that variables hold."""

    params: int
    trained: int
    state: int


def arrays_of(layer: Layer, layout: Layout) -> dict[Hashable, SizedArray]:
    """Return the arrays of a layer, by keys that are equal for a variable of several layers."""
    arrays: dict[Hashable, SizedArray] = {}
    if layer.built:
        for variable in layer.own_variables():
            arrays[variable] = SizedArray(variable.kind, variable.value, variable.trainable)
        return arrays
    trained = layer.entry_options.trainable
    for tie, slot, array in zip(
        layer.variable_ties(layout), layout.slots, layout.arrays, strict=True
    ):
        arrays[tie] = SizedArray(slot.kind, array, trained and slot.trainable)
    return arrays


def sizes_of(arrays: Mapping[Hashable, SizedArray]) -> Sizes:
    params = trained = state = 0
    for kind, array, is_trained in arrays.values():
        if kind != "params":
            state += array.size
        else:
            params += array.size
            trained += array.size if is_trained else 0
    return Sizes(params, trained, state)
