"""`Summary`: what each layer of a model is, takes and returns, and what it weighs. Nothing is computed for it."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from seqbridge._apply import traced, unused_key
from seqbridge._build import has_open_sizes, specs
from seqbridge._dispatch import Call
from seqbridge._flops import flops
from seqbridge._forward import traverse
from seqbridge._functional import Layouts, built_layouts, check_sizes, layouts_of
from seqbridge._keys import Keys
from seqbridge._layer import Layer
from seqbridge._layout import Layout
from seqbridge._names import shape_text, shapes_text
from seqbridge._pure import Variables
from seqbridge._structure import Structure
from seqbridge._table import Column, filled, shown, table, to_html

_COLUMNS = (
    Column("layer"),
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


@dataclass(frozen=True)
class Summary:
    """A table of the layers of a model. It prints itself, as text, in colours, and as HTML in a notebook.

    Attributes:
        rows: The layers in order; a nested model stands above its own.
        params: How many numbers all parameters hold, each variable counted once.
        trained: How many of them are trained.
        state: How many numbers the state holds.
        size: What parameters and state take, in bytes.
        flops: Floating-point operations of one call; None: those of some layer aren't known. For what is None in a
            shape, 1 is taken.
        remark: What stands below the table.
    """

    rows: Sequence[Row]
    params: int
    trained: int
    state: int
    size: int
    flops: float | None
    remark: str = ""

    def __str__(self) -> str:
        return shown(*self._table(), self._footer())

    __repr__ = __str__

    def text(self) -> str:
        """The table as plain text, as wide as it need be."""
        return "\n".join([table(*self._table()), *self._footer()])

    def _repr_html_(self) -> str:
        return to_html(*self._table(), self._footer())

    def _table(self) -> tuple[list[Column], list[list[str]]]:
        return filled(_COLUMNS, [_cells(row) for row in self.rows], 3)

    def _footer(self) -> list[str]:
        from rich.filesize import decimal  # late: nobody needs it but who looks

        frozen = f" ({self.params - self.trained:,} frozen)" if self.params != self.trained else ""
        total = f"total: {self.params:,} parameters{frozen}, {self.state:,} of state, {decimal(self.size)}"
        known = sum(row.flops for row in self.rows if row.ecosystem and row.flops is not None)
        if self.flops is not None or known:
            total += f", {'' if self.flops is not None else 'at least '}{_count(known)} FLOPs"
        return [total, *([self.remark] if self.remark else [])]


def _cells(row: Row) -> list[str]:
    arrow = f"{row.inputs} -> {row.outputs}" if row.inputs or row.outputs else ""
    own = "?" if row.params is None else f"{row.params:,}" if row.params else ""
    part = "" if not row.params else "yes" if row.trained == row.params else "frozen"
    if row.params and row.trained and row.trained < row.params:
        part = f"{row.trained:,}"
    return [
        "  " * row.depth + row.place,
        row.ecosystem,
        row.entry,
        arrow,
        f"{own} shared" if row.shared else own,
        f"{row.state:,}" if row.state else "",
        part,
        "" if row.flops is None else _count(row.flops),
    ]


def _count(number: float) -> str:
    """1,234 or 12.3 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


class _Array(NamedTuple):
    kind: str
    value: Any
    trained: bool


class _Look:
    """The visitor of a summary: shapes go in and out, and are noted.

    Args:
        layouts: The structure of each layer.
        count: Whether operations are counted.
    """

    def __init__(self, layouts: Layouts, count: bool):
        self._layouts = layouts
        self._count = count
        self.steps: list[tuple[tuple[Any, ...], Any, float | None]] = []

    def __call__(
        self, layer: Layer, keys: Keys, args: tuple[Any, ...], keywords: dict[str, Any], mode: bool | None, /
    ) -> Any:
        layout = self._layouts[layer]
        variables: Variables = layer._tree() if layer.built else layout.tree(layout.arrays)
        program, out, _ = traced(layer, variables, args, keywords)
        self.steps.append((args, out, flops(program) if self._count else None))
        return out

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        pass


def summarize(model: Structure, inputs: tuple[Any, ...], call: Call, *, given: bool, count: bool = True) -> Summary:
    """The summary of a model.

    Args:
        model: The model.
        inputs: Shapes, or arrays; without any, the summary shows what can be told.
        call: The call that is looked at; where it says no mode, it is one in evaluation.
        given: Whether the inputs are the caller's, who wants to know if they don't fit.
        count: Whether operations are counted, which takes some milliseconds a layer.
    """
    layouts: Layouts = built_layouts(model)
    steps: list[Any] = []
    remark = ""
    if inputs:
        try:
            layouts, steps = _look(model, inputs, call, count)
            remark = "FLOPs are those for 1 in place of None" if count and has_open_sizes(inputs) else ""
        except Exception as error:
            if given:
                raise
            notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("in layer")]
            said = "; ".join([f"{' '.join(str(error).split()):.100}", *notes])
            remark = f"what reaches the layers isn't known: {said}"
    else:
        why = "what reaches the layers isn't known:" if model.built else "not built yet: call model.build(...), or"
        remark = f"{why} give the shapes of the inputs, model.summary((None, 8))"
    made = _Rows(layouts, steps)
    rows, _ = made.of(model)
    size = sum(array.size * array.dtype.itemsize for _, array, _ in made.seen.values())
    return Summary(tuple(rows), **_sizes(made.seen), size=size, flops=_sum(rows, 0), remark=remark)


def _look(model: Structure, inputs: tuple[Any, ...], call: Call, count: bool) -> tuple[Layouts, list[Any]]:
    """The structure of all layers; and of each its inputs, its outputs and its operations."""

    def pass_through(layouts: Layouts, size: int, count: bool) -> list[Any]:
        look, shapes = _Look(layouts, count), call.map(specs, training=bool(call.training))
        traverse(model, specs(inputs, size), shapes, look, Keys(unused_key), plain=False)
        return look.steps

    layouts = layouts_of(model, specs(inputs), call.map(specs, training=True))
    steps = pass_through(layouts, 1, count)
    if has_open_sizes(inputs):
        if not model.built:
            check_sizes(model, inputs, call.map(specs, training=True))
        with contextlib.suppress(Exception):  # there may be no other size that fits: then 1 is shown
            other = layouts if model.built else layouts_of(model, specs(inputs, 2), call.map(specs, training=True))
            for i, (args, out, _) in enumerate(pass_through(other, 2, False)):
                steps[i] = jax.tree.map(_opened, steps[i][:2], (args, out)) + steps[i][2:]
    return layouts, steps


def _opened(one: Any, two: Any) -> Any:
    """A shape with None for the sizes in which the two differ."""
    if not hasattr(one, "shape") or one.shape == two.shape:
        return one
    shape = tuple(a if a == b else None for a, b in zip(one.shape, two.shape, strict=True))
    return types.SimpleNamespace(dtype=one.dtype, shape=shape)


class _Rows:
    """Makes the rows of a model, and of the models in it, and notes each variable once.

    Args:
        layouts: The structure of the layers that have one.
        steps: What `_look` has found of each layer, in order; empty: nothing is known.
    """

    def __init__(self, layouts: Layouts, steps: Sequence[Any]):
        self.seen: dict[Hashable, _Array] = {}
        self._layouts = layouts
        self._known = bool(steps)
        self._rest = iter(steps)

    def of(self, model: Structure, depth: int = 0) -> tuple[list[Row], dict[Hashable, _Array]]:
        """The rows, and the variables in them."""
        rows, arrays = [], {}
        for i, (name, item) in enumerate(zip(model.names, model, strict=True)):
            place, inside = f"[{i}] {name}" if name else f"[{i}]", []
            before = set(self.seen)
            if isinstance(item, Layer):
                row, own = self._of_layer(place, depth, item)
            else:
                inside, own = self.of(item, depth + 1)
                row = Row(place, depth, "", type(item).__name__, flops=_sum(inside, depth + 1))
                if inside:
                    row = replace(row, inputs=inside[0].inputs, outputs=inside[-1].outputs)
            if own or item.built or self._known:
                row = replace(row, shared=bool(own) and own.keys() <= before, **_sizes(own))
            rows += [row, *inside]
            arrays |= own
        return rows, arrays

    def _of_layer(self, place: str, depth: int, layer: Layer) -> tuple[Row, dict[Hashable, _Array]]:
        args, out, operations = next(self._rest, ((), None, None))
        row = Row(place, depth, layer.pure.ecosystem, layer.pure.text or layer.pure.label, flops=operations)
        if self._known:
            row = replace(row, inputs=shapes_text(args), outputs=shape_text(out))
        own = _arrays(layer, self._layouts[layer]) if layer in self._layouts else {}
        self.seen.update(own)
        return row, own


def _sum(rows: Sequence[Row], depth: int) -> float | None:
    counted = [row.flops for row in rows if row.depth == depth]
    return None if None in counted or not counted else sum(filter(None, counted))


def _arrays(layer: Layer, layout: Layout) -> dict[Hashable, _Array]:
    """The variables of a layer, by what makes two the same one."""
    if layer.built:
        return {box: _Array(box.kind, box.value, box.trainable) for box in layer._variables}
    trained = layer._options[2]
    ties = zip(layer._ties(layout), layout.slots, layout.arrays, strict=True)
    return {tie: _Array(slot.kind, array, trained and slot.trainable) for tie, slot, array in ties}


def _sizes(arrays: Mapping[Hashable, _Array]) -> dict[str, int]:
    params = [(array.size, trained) for kind, array, trained in arrays.values() if kind == "params"]
    return {
        "params": sum(n for n, _ in params),
        "trained": sum(n for n, trained in params if trained),
        "state": sum(array.size for kind, array, _ in arrays.values() if kind != "params"),
    }
