"""`plot`: a model as a picture."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from typing import Any

from seqbridge._files import file_path, replacing
from seqbridge._interface import colour
from seqbridge._model.sequential import Sequential, as_model, summary_of
from seqbridge._passes import Row

# In pixels: the heights of a layer, of an arrow and of the head of a nested model, how far that is
# indented, and the width of a letter.
_BOX, _ARROW, _HEAD, _INDENT, _LETTER = 46, 34, 26, 14, 7.3
_MOST = 60  # letters of an entry
_BOLD = "font-weight='bold'"


class Picture:
    """A picture of a model. A notebook shows it; `save` writes it.

    Attributes:
        svg: The picture, as SVG.
    """

    def __init__(self, svg: str):
        self.svg = svg

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Writes the picture to a file.

        Args:
            path: A name that ends in `.svg`, or in `.png`, for which the extra `plot` must be
                installed.

        Raises:
            ValueError: Another ending.
            ImportError: What makes a PNG isn't installed.
        """
        where = file_path(path)
        ending = os.path.splitext(where)[1].lower()
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
    """A picture of the layers in order, each in the colour of its library, with the shapes between them.

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
    return Picture(
        _drawn(type(drawn).__name__, summary_of(drawn, inputs, keywords, count=False).rows)
    )


def _drawn(title: str, rows: Sequence[Row]) -> str:
    width = 80 + max(
        [_LETTER * len(text) + 2 * _INDENT * row.depth for row in rows for text in _texts(row)],
        default=0,
    )
    longest = _LETTER * max(
        [len(text) for row in rows for text in (row.inputs, row.outputs)], default=0
    )
    width = max(width, longest + 80)
    behind: list[tuple[int, str]] = []
    shapes: list[str] = []
    nested: list[tuple[int, float]] = []
    y = 12.0
    at, before = min(width / 2, width - longest - 30), ""
    for i, row in enumerate(rows):
        while nested and nested[-1][0] >= row.depth:
            y = _close(nested, behind, width, y)
        x = 12 + _INDENT * row.depth
        inner = i + 1 < len(rows) and rows[i + 1].depth > row.depth
        if (
            i == 0 or rows[i - 1].depth >= row.depth
        ):  # else it is the first in its frame, which has the arrow
            y = _arrow(shapes, at, y, row.inputs or before)
        if inner:
            nested.append((row.depth, y))
            shapes.append(_text(x + 10, y + 18, _texts(row)[0], _BOLD))
            y += _HEAD
            continue
        shapes.append(_box(x, y, width - 2 * x, row))
        y, before = y + _BOX, row.outputs
    while nested:
        y = _close(nested, behind, width, y)
    if rows:
        y = _arrow(shapes, at, y, before)
    frames = "".join(shape for _, shape in sorted(behind))
    layers = sum(bool(row.ecosystem) for row in rows)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{y + 12:.0f}' "
        f"role='img' "
        "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace' font-size='12'>"
        f"<title>{html.escape(title)}: {layers} layers</title>"
        f"<rect width='100%' height='100%' rx='8' fill='white'/>{frames}{''.join(shapes)}</svg>"
    )


def _texts(row: Row) -> tuple[str, str]:
    """The two lines of a layer."""
    entry = row.entry if len(row.entry) <= _MOST else f"{row.entry[: _MOST - 3]}..."
    numbers = [f"{row.params:,} parameters"] if row.params else []
    numbers += [f"{row.state:,} of state"] if row.state else []
    numbers += ["frozen"] if row.params and not row.trained else []
    numbers += ["shared"] if row.shared else []
    return f"{row.place} {entry}", "  ".join([row.ecosystem, *numbers])


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' fill='#222' xml:space='preserve' {more}>{html.escape(text)}</text>"


def _box(x: float, y: float, width: float, row: Row) -> str:
    first, second = _texts(row)
    own = colour(row.ecosystem)
    return (
        f"<g><title>{html.escape(row.entry)}</title><rect x='{x:.0f}' y='{y:.0f}' "
        f"width='{width:.0f}' height='{_BOX}' "
        f"rx='6' fill='{colour(row.ecosystem, 0.94)}' stroke='{own}'/><rect x='{x:.0f}' "
        f"y='{y:.0f}' width='6' "
        f"height='{_BOX}' rx='3' fill='{own}'/>{_text(x + 16, y + 19, first, _BOLD)}"
        f"{_text(x + 16, y + 37, second).replace('#222', own)}</g>"
    )


def _arrow(shapes: list[str], x: float, y: float, text: str) -> float:
    end = y + _ARROW
    shapes.append(
        f"<path d='M{x:.0f} {y + 3:.0f}V{end - 8:.0f}' stroke='#777'/><path d='M{x - 4:.0f} "
        f"{end - 9:.0f}h8l-4 7z' "
        f"fill='#777'/>{_text(x + 10, y + 20, text)}"
    )
    return end


def _close(
    nested: list[tuple[int, float]], behind: list[tuple[int, str]], width: float, y: float
) -> float:
    """Draws the frame of a nested model that ends here."""
    depth, top = nested.pop()
    x = 12 + _INDENT * depth
    behind.append((
        depth,
        f"<rect x='{x}' y='{top:.0f}' width='{width - 2 * x:.0f}' height='{y + 8 - top:.0f}' "
        f"rx='8' fill='#f6f6f6' "
        "stroke='#999' stroke-dasharray='4 3'/>",
    ))  # fmt: skip
    return y + 8
