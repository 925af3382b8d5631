"""`plot`: a model as a picture."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from seqbridge._files import file_path, replacing
from seqbridge._interface import colour
from seqbridge._model.sequential import Sequential, as_model, summary_of
from seqbridge._passes import Row

# In pixels.
_LAYER_HEIGHT = 46
_ARROW_HEIGHT = 34
_HEAD_HEIGHT = 26  # of a nested model
_INDENT = 14  # of what stands in a nested model
_MARGIN = 12
_LETTER_WIDTH = 7.3

_MOST_LETTERS = 60  # of an entry
_BOLD = "font-weight='bold'"


class Picture:
    """A picture of a model. A notebook shows it; `save` writes it.

    Attributes:
        svg: The picture, as SVG.
    """

    def __init__(self, svg: str):
        self.svg = svg

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write the picture to a file.

        Args:
            path: A name that ends in `.svg`, or in `.png`, for which the extra `plot` must be
                installed.

        Raises:
            ValueError: Another ending.
            ImportError: The renderer for PNG files isn't installed.
        """
        where = file_path(path)
        _, ending = os.path.splitext(where.lower())
        if ending not in (".svg", ".png"):
            raise ValueError(f"a picture is saved as .svg or .png: {where!r} ends otherwise")
        data = self.svg.encode() if ending == ".svg" else _png(self.svg)
        with replacing(where) as temporary, open(temporary, "wb") as file:
            file.write(data)

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return 'a Picture: a notebook shows it, picture.save("model.svg") writes it'


def _png(svg: str) -> bytes:
    try:
        import resvg_py  # late: only PNG files need it
    except ImportError as error:
        error.add_note(
            'PNG files need a renderer: pip install "seqbridge[plot]". SVG files need none'
        )
        raise
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))


def plot(model: Any, /, *inputs: Any, **keywords: Any) -> Picture:
    """Draw the layers in order, each in the colour of its library, with the shapes between them.

    Args:
        model: A model, or a layer.
        *inputs: As for `Sequential.summary`.
        **keywords: As for `Sequential.summary`.

    Raises:
        TypeError, ValueError: What a layer raises for these shapes.

    Examples:
        >>> import jax, tempfile
        >>> model = Sequential([jax.nn.relu, Sequential([jax.nn.gelu])])
        >>> picture = plot(model, (None, 4))
        >>> picture.svg.count("float32[None,4]")
        3
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     picture.save(f"{folder}/model.svg")
    """
    drawn, _ = as_model(model)
    assert isinstance(drawn, Sequential)
    rows = summary_of(drawn, inputs, keywords, count=False).rows
    return Picture(_draw(type(drawn).__name__, rows))


class _Frame(NamedTuple):
    """A nested model whose end isn't drawn yet."""

    depth: int
    top: float


class _Drawing:
    """A picture in the making, from top to bottom.

    Args:
        rows: The rows that it will have.
    """

    def __init__(self, rows: Sequence[Row]):
        longest = max((_shapes_width(row) for row in rows), default=0.0)
        needed = max((_row_width(row) for row in rows), default=0.0)
        self.width = 80 + max(needed, longest)
        self.height = float(_MARGIN)
        self._arrow_x = min(self.width / 2, self.width - longest - 30)
        self._shapes: list[str] = []
        self._open: list[_Frame] = []
        self._frames: list[tuple[int, str]] = []

    def add_arrow(self, text: str) -> None:
        x, y = self._arrow_x, self.height
        end = y + _ARROW_HEIGHT
        self._shapes.append(
            f"<path d='M{x:.0f} {y + 3:.0f}V{end - 8:.0f}' stroke='#777'/>"
            f"<path d='M{x - 4:.0f} {end - 9:.0f}h8l-4 7z' fill='#777'/>"
        )
        self._shapes.append(_text(x + 10, y + 20, text))
        self.height = end

    def add_layer(self, row: Row) -> None:
        x, y = _left(row.depth), self.height
        first, second = _lines(row)
        line_colour, fill = colour(row.ecosystem), colour(row.ecosystem, 0.94)
        self._shapes += [
            f"<g><title>{html.escape(row.entry)}</title>",
            f"<rect x='{x:.0f}' y='{y:.0f}' width='{self.width - 2 * x:.0f}' "
            f"height='{_LAYER_HEIGHT}' rx='6' fill='{fill}' stroke='{line_colour}'/>",
            f"<rect x='{x:.0f}' y='{y:.0f}' width='6' "
            f"height='{_LAYER_HEIGHT}' rx='3' fill='{line_colour}'/>",
            _text(x + 16, y + 19, first, more=_BOLD),
            _text(x + 16, y + 37, second, fill=line_colour),
            "</g>",
        ]
        self.height += _LAYER_HEIGHT

    def open_frame(self, row: Row) -> None:
        title, _ = _lines(row)
        self._open.append(_Frame(row.depth, self.height))
        self._shapes.append(_text(_left(row.depth) + 10, self.height + 18, title, more=_BOLD))
        self.height += _HEAD_HEIGHT

    def close_frames(self, depth: int = 0) -> None:
        """Draw the frames of the nested models that end above a row at this depth."""
        while self._open and self._open[-1].depth >= depth:
            frame = self._open.pop()
            x = _left(frame.depth)
            bottom = self.height + 8
            shape = (
                f"<rect x='{x}' y='{frame.top:.0f}' width='{self.width - 2 * x:.0f}' "
                f"height='{bottom - frame.top:.0f}' rx='8' fill='#f6f6f6' stroke='#999' "
                "stroke-dasharray='4 3'/>"
            )
            self._frames.append((frame.depth, shape))
            self.height = bottom

    def svg(self, title: str) -> str:
        # Outer frames first, and all of them behind the layers.
        frames = "".join(shape for _, shape in sorted(self._frames))
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{self.width:.0f}' "
            f"height='{self.height + _MARGIN:.0f}' role='img' "
            "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace' font-size='12'>"
            f"<title>{html.escape(title)}</title>"
            "<rect width='100%' height='100%' rx='8' fill='white'/>"
            f"{frames}{''.join(self._shapes)}</svg>"
        )


def _draw(name: str, rows: Sequence[Row]) -> str:
    drawing = _Drawing(rows)
    reaching = ""  # the shapes that reach the row
    for i, row in enumerate(rows):
        drawing.close_frames(row.depth)
        first_in_frame = i > 0 and rows[i - 1].depth < row.depth
        if not first_in_frame:  # else the arrow points to the frame
            drawing.add_arrow(row.inputs or reaching)
        has_inner = i + 1 < len(rows) and rows[i + 1].depth > row.depth
        if has_inner:
            drawing.open_frame(row)
        else:
            drawing.add_layer(row)
            reaching = row.outputs
    drawing.close_frames()
    if rows:
        drawing.add_arrow(reaching)
    layers = sum(1 for row in rows if row.ecosystem)
    return drawing.svg(f"{name}: {layers} layers")


def _left(depth: int) -> int:
    return _MARGIN + _INDENT * depth


def _row_width(row: Row) -> float:
    letters = max(len(line) for line in _lines(row))
    return _LETTER_WIDTH * letters + 2 * _INDENT * row.depth


def _shapes_width(row: Row) -> float:
    return _LETTER_WIDTH * max(len(row.inputs), len(row.outputs))


def _lines(row: Row) -> tuple[str, str]:
    """Return the two lines of a layer."""
    entry = row.entry
    if len(entry) > _MOST_LETTERS:
        entry = f"{entry[: _MOST_LETTERS - 3]}..."
    facts = [row.ecosystem]
    if row.params:
        facts.append(f"{row.params:,} parameters")
    if row.state:
        facts.append(f"{row.state:,} of state")
    if row.params and not row.trained:
        facts.append("frozen")
    if row.shared:
        facts.append(row.shared)
    return f"{row.place} {entry}", "  ".join(facts)


def _text(x: float, y: float, text: str, *, more: str = "", fill: str = "#222") -> str:
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' fill='{fill}' xml:space='preserve' {more}>"
        f"{html.escape(text)}</text>"
    )
