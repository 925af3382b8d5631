"""`Summary`: a table of the layers of a model, made without computing anything."""

from __future__ import annotations

import contextlib
import textwrap
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from seqbridge._interface import (
    Call,
    Column,
    Inputs,
    Keywords,
    call_of,
    filled,
    shape_text,
    shapes_text,
    shown,
    table,
    to_html,
)
from seqbridge._layers import FirstPlaces, Layer, LayerList, Place, flops, sharing_keys, walk
from seqbridge._passes.call import as_initialized, traced, unused_key
from seqbridge._passes.forward import traverse
from seqbridge._passes.pure_form import Layouts, built_layouts, check_sizes, layouts_of
from seqbridge._passes.rows import (
    COLUMNS,
    Row,
    SizedArray,
    arrays_of,
    cells,
    count_text,
    known_flops,
    sizes_of,
    total_flops,
)
from seqbridge._passes.specs import (
    explained,
    has_inner_open_sizes,
    has_open_sizes,
    keyword_specs,
    specs,
    starts_without_inputs,
)
from seqbridge._state import Keys


@dataclass(frozen=True)
class Summary:
    """A table of the layers of a model: text, colours in a terminal, HTML in a notebook.

    Attributes:
        rows: The layers in order; a nested model stands above its own.
        params: How many numbers all parameters hold, each variable counted once.
        trained: How many of them are trained.
        state: How many numbers the state holds.
        size: The bytes that parameters and state take.
        flops: Floating-point operations of one call, with 1 for each None in a shape; None: those
            of some layer aren't known.
        remark: A line below the table.
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
        """Return the table as plain text, as wide as it need be."""
        return "\n".join([table(*self._table()), *self._footer()])

    def _repr_html_(self) -> str:
        return to_html(*self._table(), self._footer())

    def _table(self) -> tuple[list[Column], list[list[str]]]:
        return filled(COLUMNS, [cells(row) for row in self.rows], 3)

    def _footer(self) -> list[str]:
        from rich.filesize import decimal  # late: only whoever prints a summary needs it

        frozen = f" ({self.params - self.trained:,} frozen)" if self.params != self.trained else ""
        parts = [
            f"{self.params:,} parameters{frozen}",
            f"{self.state:,} of state",
            decimal(self.size),
        ]
        known = known_flops(self.rows)
        if self.flops is not None:
            parts.append(f"{count_text(known)} FLOPs")
        elif known:
            parts.append(f"at least {count_text(known)} FLOPs")
        total = f"total: {', '.join(parts)}"
        return [total, self.remark] if self.remark else [total]


class _Step(NamedTuple):
    """The call of one layer, in shapes.

    Attributes:
        args: The inputs.
        keywords: The keywords.
        out: The outputs.
        flops: Floating-point operations; None: not known.
    """

    args: Inputs = ()
    keywords: Mapping[str, Any] = {}
    out: Any = None
    flops: float | None = None


class _Observer:
    """The visitor of a summary: notes the shapes that go into each layer and come out of it.

    Args:
        layouts: The structure of each layer.
        count: Whether operations are counted.
    """

    def __init__(self, layouts: Layouts, count: bool):
        self._layouts = layouts
        self._count = count
        self.steps: list[_Step] = []

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: Inputs,
        keywords: Keywords,
        /,
    ) -> Any:
        layout = self._layouts[layer]
        variables = layer.current_tree() if layer.built else layout.tree(layout.arrays)
        program, out, _ = traced(layer, as_initialized(layer, variables), args, keywords)
        self.steps.append(_Step(args, keywords, out, flops(program) if self._count else None))
        return out

    def enter(self, model: LayerList, args: Inputs, call: Call, /) -> None:
        pass


def summarize(
    model: LayerList,
    inputs: Inputs,
    call: Call,
    *,
    given: bool,
    count: bool = True,
    place: Place = (),
) -> Summary:
    """Return the summary of a model.

    Args:
        model: The model.
        inputs: Shapes, or arrays. Empty: the summary says what is known without them.
        call: The rest of the call; without a mode, it is one in evaluation.
        given: Whether the caller gave the inputs, and wants an error if they don't fit.
        count: Whether operations are counted, which takes some milliseconds a layer.
        place: Where the model stands, if a layer runs it.
    """
    layouts: Layouts = built_layouts(model)
    steps: list[_Step] = []
    if inputs or starts_without_inputs(model):
        count = count and not has_inner_open_sizes(inputs)
        try:
            with explained(inputs):
                layouts, steps = _observe(model, inputs, call, count)
        except Exception as error:
            if given:
                raise
            remark = _failure_text(error)
        else:
            counted_for_1 = count and has_open_sizes(inputs)
            remark = "FLOPs are those for 1 in place of None" if counted_for_1 else ""
    else:
        if model.built:
            reason = "what reaches the layers isn't known:"
        else:
            reason = "not built yet: call model.build(...), or"
        remark = f"{reason} give the shapes of the inputs, model.summary((None, 8))"
    maker = _RowMaker(model, layouts, steps, count)
    rows, _ = maker.rows_of(model, place)
    sizes = sizes_of(maker.seen)
    return Summary(
        rows=tuple(rows),
        params=sizes.params,
        trained=sizes.trained,
        state=sizes.state,
        size=sum(array.size * array.dtype.itemsize for _, array, _ in maker.seen.values()),
        flops=total_flops(rows),
        remark=remark,
    )


def _failure_text(error: Exception) -> str:
    """Return a remark for a model whose layers don't take the shapes that it was built for."""
    notes: list[str] = getattr(error, "__notes__", [])
    parts = [textwrap.shorten(str(error), 100, placeholder=" ...")]
    parts += [note for note in notes if note.startswith("in layer")]
    return f"what reaches the layers isn't known: {'; '.join(parts)}"


def _observe(
    model: LayerList, inputs: Inputs, call: Call, count: bool
) -> tuple[Layouts, list[_Step]]:
    """Return the structure of all layers, and the calls of all layers in order."""
    layouts, steps = _observe_at(1, model, inputs, call, count)
    if has_open_sizes(inputs):
        if not model.built:
            check_sizes(model, inputs, call.map(keyword_specs, training=True))
        # Where no other size fits, the shapes with 1 stay.
        with contextlib.suppress(Exception):
            _open_sizes(steps, model, inputs, call)
    return layouts, steps


def _observe_at(
    size: int, model: LayerList, inputs: Inputs, call: Call, count: bool
) -> tuple[Layouts, list[_Step]]:
    """Return the same for one size in place of each None."""
    shapes = specs(inputs, size)
    layouts = layouts_of(model, shapes, call.map(keyword_specs, training=True))
    observer = _Observer(layouts, count)
    in_mode = call.map(keyword_specs, training=bool(call.training))
    traverse(model, shapes, in_mode, observer, Keys(unused_key), check_plain=False)
    return layouts, observer.steps


def _open_sizes(steps: list[_Step], model: LayerList, inputs: Inputs, call: Call) -> None:
    """Put None into the shapes of `steps`, those for 1, wherever they depend on the open sizes."""

    def steps_at(size: int) -> list[_Step]:
        _, observed = _observe_at(size, model, inputs, call, count=False)
        return observed

    if _has_empty_outputs(steps):
        # A convolution leaves nothing of an image of 1 by 1; larger ones show what depends on the
        # size.
        first, second = steps_at(32), steps_at(64)
    else:
        first, second = steps, steps_at(2)
    for i, (one, two) in enumerate(zip(first, second, strict=True)):
        args, out = jax.tree.map(_open_size, (one.args, one.out), (two.args, two.out))
        steps[i] = _Step(args, steps[i].keywords, out, steps[i].flops)


def _has_empty_outputs(steps: Sequence[_Step]) -> bool:
    for step in steps:
        for leaf in jax.tree.leaves(step.out):
            if hasattr(leaf, "shape") and 0 in leaf.shape:
                return True
    return False


def _open_size(one: Any, two: Any) -> Any:
    """Return a shape with None for the sizes in which the two differ."""
    if not hasattr(one, "shape") or one.shape == two.shape:
        return one
    shape = tuple(a if a == b else None for a, b in zip(one.shape, two.shape, strict=True))
    return types.SimpleNamespace(dtype=one.dtype, shape=shape)  # a shape of JAX holds no None


class _RowMaker:
    """Makes the rows of a model, and of the models in it, and notes each variable once.

    Args:
        model: The model.
        layouts: The structure of the layers that have one.
        steps: The calls of all layers, in order; empty: nothing is known.
        count: Whether operations are counted.
    """

    def __init__(self, model: LayerList, layouts: Layouts, steps: Sequence[_Step], count: bool):
        self.seen: dict[Hashable, SizedArray] = {}
        self._places = FirstPlaces()
        self._layouts = layouts
        self._known = bool(steps)
        self._count = count
        self._steps = iter(steps)
        self._names = (name for name, _ in walk(model))

    def rows_of(
        self, model: LayerList, place: Place, depth: int = 0
    ) -> tuple[list[Row], dict[Hashable, SizedArray]]:
        """Return the rows of a model's items, and the arrays of all variables in them."""
        rows: list[Row] = []
        arrays: dict[Hashable, SizedArray] = {}
        for i, (child, item) in enumerate(model.named_children()):
            here = (*place, child)
            name = model.names[i]
            label = f"[{i}] {name}" if name else f"[{i}]"
            if isinstance(item, Layer):
                own = arrays_of(item, self._layouts[item]) if item in self._layouts else {}
                self.seen.update(own)
                shared = self._places.add(here, own.keys() or sharing_keys(item))
                row, below = self._layer_rows(label, here, depth, item, own)
            else:
                below, own = self.rows_of(item, here, depth + 1)
                shared = self._places.add_model(here, item, own) if own else ""
                row = _model_row(label, depth, item, below)
            row = replace(row, shared=shared)
            if own or item.built or self._known:
                params, trained, state = sizes_of(own)
                row = replace(row, params=params, trained=trained, state=state)
            rows += [row, *below]
            arrays |= own
        return rows, arrays

    def _layer_rows(
        self,
        label: str,
        place: Place,
        depth: int,
        layer: Layer,
        own: dict[Hashable, SizedArray],
    ) -> tuple[Row, list[Row]]:
        """Return the row of a layer, and the rows of the model that it runs, if it runs one."""
        step = next(self._steps, _Step())
        pure = layer.pure
        row = Row(
            place=label,
            depth=depth,
            ecosystem=pure.ecosystem,
            entry=pure.text or pure.label,
            flops=step.flops,
            name=next(self._names),
        )
        if self._known:
            row = replace(row, inputs=shapes_text(step.args), outputs=shape_text(step.out))
        if pure.inside is None:
            return row, []
        model, copies = pure.inside
        inner_call = call_of(step.keywords)
        inner = summarize(model, step.args, inner_call, given=False, count=self._count, place=place)
        frozen = bool(own) and not sizes_of(own).trained
        below: list[Row] = []
        for inner_row in inner.rows:
            below.append(
                replace(
                    inner_row,
                    depth=inner_row.depth + depth + 1,
                    copies=max(inner_row.copies, 1) * copies,
                    trained=0 if frozen else inner_row.trained,
                )
            )
        return row, below


def _model_row(place: str, depth: int, model: LayerList, below: Sequence[Row]) -> Row:
    """Return the row of a nested model, from the rows below it."""
    row = Row(
        place=place,
        depth=depth,
        ecosystem="",
        entry=type(model).__name__,
        flops=total_flops(below, depth + 1),
    )
    if not below:
        return row
    direct = [inner for inner in below if inner.depth == depth + 1]
    return replace(row, inputs=below[0].inputs, outputs=direct[-1].outputs)
