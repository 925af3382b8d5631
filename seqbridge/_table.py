"""Tables of text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under their headings, as wide as they need be."""
    from rich.box import SIMPLE_HEAD  # late: nobody needs it but who looks
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=True)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None).print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())
