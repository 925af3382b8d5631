"""`Summary`: what each layer of a model is, takes and returns, and what it weighs. Nothing is computed for it."""

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
    Variables,
    call_of,
    filled,
    shape_text,
    shapes_text,
    shown,
    table,
    to_html,
)
from seqbridge._layers import Layer, LayerList, flops, walk
from seqbridge._passes.call import traced, unused_key
from seqbridge._passes.forward import traverse
from seqbridge._passes.pure_form import Layouts, built_layouts, check_sizes, layouts_of
from seqbridge._passes.rows import (
    COLUMNS,
    Array,
    Row,
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
)
from seqbridge._state import Keys


@dataclass(frozen=True)
class Summary:
    """A table of the layers of a model. It prints itself, as text, in colours, and as HTML in a notebook.

    Attributes:
        rows: The layers in order; a nested model stands above its own.
        params: How many numbers all parameters hold, each variable counted once.
        trained: How many of them are trained.
        state: How many numbers the state holds.
        size: What parameters and state take, in bytes.
        flops: Floating-point operations of one call; None: those of some layer aren't known. For
            what is None in a shape, 1 is taken.
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
        return filled(COLUMNS, [cells(row) for row in self.rows], 3)

    def _footer(self) -> list[str]:
        from rich.filesize import decimal  # late: nobody needs it but who looks

        frozen = f" ({self.params - self.trained:,} frozen)" if self.params != self.trained else ""
        total = f"total: {self.params:,} parameters{frozen}, {self.state:,} of state, {decimal(self.size)}"
        known = known_flops(self.rows)
        if self.flops is not None or known:
            total += f", {'' if self.flops is not None else 'at least '}{count_text(known)} FLOPs"
        return [total, *([self.remark] if self.remark else [])]


class _Step(NamedTuple):
    """What a layer is given, and returns, in shapes; and its operations."""

    args: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = {}
    out: Any = None
    flops: float | None = None


class _Look:
    """The visitor of a summary: shapes go in and out, and are noted.

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
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        mode: bool | None,
        /,
    ) -> Any:
        layout = self._layouts[layer]
        variables: Variables = layer.current_tree() if layer.built else layout.tree(layout.arrays)
        program, out, _ = traced(layer, variables, args, keywords)
        self.steps.append(_Step(args, keywords, out, flops(program) if self._count else None))
        return out

    def enter(self, model: LayerList, args: tuple[Any, ...], call: Call, /) -> None:
        pass


def summarize(
    model: LayerList, inputs: tuple[Any, ...], call: Call, *, given: bool, count: bool = True
) -> Summary:
    """The summary of a model.

    Args:
        model: The model.
        inputs: Shapes, or arrays; without any, the summary shows what can be told.
        call: The call that is looked at; where it says no mode, it is one in evaluation.
        given: Whether the inputs are the caller's, who wants to know if they don't fit.
        count: Whether operations are counted, which takes some milliseconds a layer.
    """
    layouts: Layouts = built_layouts(model)
    steps: list[_Step] = []
    remark = ""
    if inputs:
        count = count and not has_inner_open_sizes(inputs)
        try:
            with explained(inputs):
                layouts, steps = _look(model, inputs, call, count)
            remark = (
                "FLOPs are those for 1 in place of None" if count and has_open_sizes(inputs) else ""
            )
        except Exception as error:
            if given:
                raise
            notes = [
                note for note in getattr(error, "__notes__", ()) if note.startswith("in layer")
            ]
            said = textwrap.shorten(str(error), 100, placeholder=" ...")
            remark = f"what reaches the layers isn't known: {'; '.join([said, *notes])}"
    else:
        why = (
            "what reaches the layers isn't known:"
            if model.built
            else "not built yet: call model.build(...), or"
        )
        remark = f"{why} give the shapes of the inputs, model.summary((None, 8))"
    made = _Rows(model, layouts, steps, count)
    rows, _ = made.of(model)
    size = sum(array.size * array.dtype.itemsize for _, array, _ in made.seen.values())
    return Summary(
        tuple(rows), **sizes_of(made.seen), size=size, flops=total_flops(rows), remark=remark
    )


def _look(
    model: LayerList, inputs: tuple[Any, ...], call: Call, count: bool
) -> tuple[Layouts, list[_Step]]:
    """The structure of all layers; and of each its inputs, its outputs and its operations."""

    def layouts_at(size: int) -> Layouts:
        return layouts_of(model, specs(inputs, size), call.map(keyword_specs, training=True))

    def steps_at(size: int, count: bool) -> tuple[Layouts, list[_Step]]:
        layouts = layouts_at(size)
        look, shapes = _Look(layouts, count), call.map(keyword_specs, training=bool(call.training))
        traverse(model, specs(inputs, size), shapes, look, Keys(unused_key), plain=False)
        return layouts, look.steps

    layouts, steps = steps_at(1, count)
    if has_open_sizes(inputs):
        if not model.built:
            check_sizes(model, inputs, call.map(keyword_specs, training=True))
        with contextlib.suppress(
            Exception
        ):  # there may be no other size that fits: then 1 is shown
            # A convolution leaves nothing of an image of 1 by 1: larger ones show what depends on
            # the size.
            first = steps if not _vanishes(steps) else steps_at(32, False)[1]
            second = steps_at(2 if first is steps else 64, False)[1]
            for i, (one, two) in enumerate(zip(first, second, strict=True)):
                args, out = jax.tree.map(_opened, (one.args, one.out), (two.args, two.out))
                steps[i] = steps[i]._replace(args=args, out=out)
    return layouts, steps


def _vanishes(steps: Sequence[_Step]) -> bool:
    return any(
        0 in leaf.shape
        for step in steps
        for leaf in jax.tree.leaves(step.out)
        if hasattr(leaf, "shape")
    )


def _opened(one: Any, two: Any) -> Any:
    """A shape with None for the sizes in which the two differ."""
    if not hasattr(one, "shape") or one.shape == two.shape:
        return one
    shape = tuple(a if a == b else None for a, b in zip(one.shape, two.shape, strict=True))
    return types.SimpleNamespace(dtype=one.dtype, shape=shape)  # JAX has none with a None


class _Rows:
    """Makes the rows of a model, and of the models in it, and notes each variable once.

    Args:
        model: The model.
        layouts: The structure of the layers that have one.
        steps: What `_look` has found of each layer, in order; empty: nothing is known.
        count: Whether operations are counted.
    """

    def __init__(self, model: LayerList, layouts: Layouts, steps: Sequence[_Step], count: bool):
        self.seen: dict[Hashable, Array] = {}
        self._layouts = layouts
        self._known = bool(steps)
        self._count = count
        self._rest = iter(steps)
        self._names = (name for name, _ in walk(model))

    def of(self, model: LayerList, depth: int = 0) -> tuple[list[Row], dict[Hashable, Array]]:
        """The rows, and the variables in them."""
        rows, arrays = [], {}
        for i, (name, item) in enumerate(zip(model.names, model, strict=True)):
            place = f"[{i}] {name}" if name else f"[{i}]"
            before = set(self.seen)
            if isinstance(item, Layer):
                row, inside, own = self._of_layer(place, depth, item)
            else:
                inside, own = self.of(item, depth + 1)
                row = Row(
                    place, depth, "", type(item).__name__, flops=total_flops(inside, depth + 1)
                )
                if inside:
                    direct = [below for below in inside if below.depth == depth + 1]
                    row = replace(row, inputs=inside[0].inputs, outputs=direct[-1].outputs)
            if own or item.built or self._known:
                row = replace(row, shared=bool(own) and own.keys() <= before, **sizes_of(own))
            rows += [row, *inside]
            arrays |= own
        return rows, arrays

    def _of_layer(
        self, place: str, depth: int, layer: Layer
    ) -> tuple[Row, list[Row], dict[Hashable, Array]]:
        step = next(self._rest, _Step())
        pure = layer.pure
        row = Row(
            place,
            depth,
            pure.ecosystem,
            pure.text or pure.label,
            flops=step.flops,
            name=next(self._names),
        )
        if self._known:
            row = replace(row, inputs=shapes_text(step.args), outputs=shape_text(step.out))
        own = arrays_of(layer, self._layouts[layer]) if layer in self._layouts else {}
        self.seen.update(own)
        if pure.inside is None:
            return row, [], own
        model, copies = pure.inside
        found = summarize(
            model, step.args, call_of(step.keywords), given=False, count=self._count
        ).rows
        frozen = own and not sizes_of(own)["trained"]
        inside = [
            replace(
                r,
                depth=r.depth + depth + 1,
                copies=max(r.copies, 1) * copies,
                trained=0 if frozen else r.trained,
            )
            for r in found
        ]
        return row, inside, own
