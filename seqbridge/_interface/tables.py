"""Tables: as plain text, in a terminal, and in a notebook."""

from __future__ import annotations

import colorsys
import html
import io
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: Its heading.
        least: How wide it is at least where the terminal is narrow, and it is broken into lines; 0:
            it isn't.
        right: Whether it holds numbers.
        coloured: Whether it holds the names of libraries.
        optional: Whether it may be left out where the terminal is still too narrow.
    """

    title: str
    least: int = 0
    right: bool = False
    coloured: bool = False
    optional: bool = False


def colour(library: str, lightness: float = 0.34) -> str:
    """The colour of a library, `"#rrggbb"`, the same wherever it is shown; functions are grey."""
    # Of the words tried, these keep the libraries that are known furthest from each other.
    hue = zlib.crc32(f"hue of {library}".encode()) % 360 / 360
    saturation = 0.0 if library in ("", "function") else 0.65
    return "#" + "".join(
        f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation)
    )


def filled(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], always: int
) -> tuple[list[Column], list[list[str]]]:
    """The table without the columns that have nothing in them, after the first `always`."""
    kept = [i for i in range(len(columns)) if i < always or any(row[i] for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> str:
    """Rows under their headings, as wide as they need be."""
    columns = [Column(c) if isinstance(c, str) else c for c in columns]
    out = io.StringIO()
    _console(file=out, width=10_000, color_system=None).print(_rich(columns, rows))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def shown(columns: Sequence[Column], rows: Sequence[Sequence[str]], footer: Sequence[str]) -> str:
    """The table for whatever stands at the end of stdout: in colours and as wide as it is, or as plain text."""
    if not sys.stdout.isatty():
        return "\n".join([table(columns, rows), *footer])
    console = _console(width=shutil.get_terminal_size().columns)
    kept = _fitting(columns, rows, console.width)
    if kept is None:  # a number that is cut off would be another number
        return "\n".join([table(columns, rows), *footer])
    if left := [column.title for i, column in enumerate(columns) if i not in kept]:
        footer = [
            *footer,
            f"{', '.join(left)}: left out, as the terminal is narrow; .text() has all",
        ]
    with console.capture() as captured:
        console.print(_rich([columns[i] for i in kept], [[row[i] for i in kept] for row in rows]))
        for line in footer:
            console.print(line, highlight=False, markup=False)
    return captured.get().rstrip("\n")


def _fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> list[int] | None:
    """The columns that there is room for; None: even what may not be left out is too wide."""
    needed = []
    for i, column in enumerate(columns):
        own = max(len(text) for text in (column.title, *(row[i] for row in rows)))
        needed.append(min(own, column.least or own) + 2)
    kept = list(range(len(columns)))
    for i in reversed(range(len(columns))):
        if columns[i].optional and sum(needed[k] for k in kept) > width:
            kept.remove(i)
    return kept if sum(needed[k] for k in kept) <= width + 2 else None


def _console(**options: Any) -> Any:
    from rich.console import Console  # late: nobody needs it but who looks

    # In a notebook rich would show the table by itself, wherever it was to go.
    return Console(force_jupyter=False, **options)


def _rich(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Any:
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
        justify = "right" if column.right else "left"
        made.add_column(column.title, no_wrap=not column.least, justify=justify, overflow="fold")
    for row in rows:
        cells = zip(row, columns, strict=True)
        made.add_row(
            *(
                Text(cell, f"bold {colour(cell, 0.6)}" if col.coloured else "")
                for cell, col in cells
            )
        )
    return made


def to_html(columns: Sequence[Column], rows: Iterable[Sequence[str]], footer: Sequence[str]) -> str:
    """The table for a notebook; it has no scripts, so that it is seen wherever the notebook is."""
    cell = "padding: 2px 8px"

    def data(text: str, column: Column) -> str:
        align = "right" if column.right else "left"
        shown = html.escape(text)
        if column.coloured and text:
            look = f"background: {colour(text)}; color: white; border-radius: 4px; padding: 0 6px"
            shown = f'<span style="{look}">{shown}</span>'
        space = "normal" if column.least else "pre"
        return f'<td style="{cell}; text-align: {align}; white-space: {space}">{shown}</td>'

    head = "".join(
        f'<th style="{cell}; text-align: left">{html.escape(c.title)}</th>' for c in columns
    )
    body = "".join(f"<tr>{''.join(map(data, row, columns))}</tr>" for row in rows)
    below = "".join(f"<div>{html.escape(line)}</div>" for line in footer)
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"
