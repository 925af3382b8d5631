"""Tables as plain text, in a terminal, and in a notebook."""

from __future__ import annotations

import colorsys
import html
import io
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Column(NamedTuple):
    """Column of a table.

    Attributes:
        title: Its heading.
        least: How wide it is at least where the terminal is narrow and its cells are broken into
            lines; 0: they aren't broken.
        right: Whether it holds numbers, which are aligned to the right.
        coloured: Whether it holds the names of libraries, each in its colour.
        optional: Whether it may be left out where the terminal is still too narrow.
    """

    title: str
    least: int = 0
    right: bool = False
    coloured: bool = False
    optional: bool = False

    @property
    def justify(self) -> Literal["left", "right"]:
        """The side that its cells are aligned to."""
        return "right" if self.right else "left"


def colour(library: str, lightness: float = 0.34) -> str:
    """Return the colour of a library, `"#rrggbb"`, which never changes; functions are grey."""
    # Of the words tried, these keep the known libraries furthest from each other.
    hue = zlib.crc32(f"hue of {library}".encode()) % 360 / 360
    saturation = 0.0 if library in ("", "function") else 0.65
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def filled(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], always: int
) -> tuple[list[Column], list[list[str]]]:
    """Return the table without its empty columns; the first `always` stay in any case."""
    kept = list(range(min(always, len(columns))))
    for i in range(always, len(columns)):
        if any(row[i] for row in rows):
            kept.append(i)
    return _selected(columns, rows, kept)


def _selected(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int]
) -> tuple[list[Column], list[list[str]]]:
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> str:
    """Return rows under their headings as plain text, as wide as they need be."""
    columns = [Column(column) if isinstance(column, str) else column for column in columns]
    out = io.StringIO()
    _console(file=out, width=10_000, color_system=None).print(_rich_table(columns, rows))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)


def shown(columns: Sequence[Column], rows: Sequence[Sequence[str]], footer: Sequence[str]) -> str:
    """Return the table as stdout shows it best.

    In a terminal, it has colours and is as wide as there is room for; elsewhere, it is plain text.
    """
    if not sys.stdout.isatty():
        return "\n".join([table(columns, rows), *footer])
    console = _console(width=shutil.get_terminal_size().columns)
    kept = _fitting(columns, rows, console.width)
    if kept is None:  # plain text, then: a number that is cut off would be another number
        return "\n".join([table(columns, rows), *footer])
    left_out = [column.title for i, column in enumerate(columns) if i not in kept]
    if left_out:
        titles = ", ".join(left_out)
        note = f"{titles}: left out, as the terminal is narrow; .text() has all"
        footer = [*footer, note]
    with console.capture() as captured:
        console.print(_rich_table(*_selected(columns, rows, kept)))
        for line in footer:
            console.print(line, highlight=False, markup=False)
    return captured.get().rstrip("\n")


def _fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> list[int] | None:
    """Return the columns that there is room for, or None if those that must stay are too wide."""
    needed: list[int] = []
    for i, column in enumerate(columns):
        widest = max([len(column.title), *(len(row[i]) for row in rows)])
        narrowest = min(widest, column.least) if column.least else widest
        needed.append(narrowest + 2)
    kept = list(range(len(columns)))
    for i in reversed(range(len(columns))):
        if columns[i].optional and sum(needed[k] for k in kept) > width:
            kept.remove(i)
    return kept if sum(needed[k] for k in kept) <= width + 2 else None


def _console(**options: Any) -> Console:
    from rich.console import Console  # late: only who prints a table needs it

    # In a notebook, rich would show the table by itself, wherever it was meant to go.
    return Console(force_jupyter=False, **options)


def _rich_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Table:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=Box("    \n" * 2 + " -- \n" + "    \n" * 5, ascii=True),
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        made.add_column(
            column.title, no_wrap=not column.least, justify=column.justify, overflow="fold"
        )
    for row in rows:
        cells: list[Text] = []
        for text, column in zip(row, columns, strict=True):
            style = f"bold {colour(text, 0.6)}" if column.coloured else ""
            cells.append(Text(text, style))
        made.add_row(*cells)
    return made


_CELL_STYLE = "padding: 2px 8px"
_BADGE_STYLE = "color: white; border-radius: 4px; padding: 0 6px"


def to_html(columns: Sequence[Column], rows: Iterable[Sequence[str]], footer: Sequence[str]) -> str:
    """Return the table for a notebook, without scripts, so that it shows wherever it is read."""
    head = "".join(
        f'<th style="{_CELL_STYLE}; text-align: left">{html.escape(column.title)}</th>'
        for column in columns
    )
    body = ""
    for row in rows:
        cells = [_html_cell(text, column) for text, column in zip(row, columns, strict=False)]
        body += f"<tr>{''.join(cells)}</tr>"
    below = "".join(f"<div>{html.escape(line)}</div>" for line in footer)
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"


def _html_cell(text: str, column: Column) -> str:
    content = html.escape(text)
    if column.coloured and text:
        style = f"background: {colour(text)}; {_BADGE_STYLE}"
        content = f'<span style="{style}">{content}</span>'
    space = "normal" if column.least else "pre"
    style = f"{_CELL_STYLE}; text-align: {column.justify}; white-space: {space}"
    return f'<td style="{style}">{content}</td>'
