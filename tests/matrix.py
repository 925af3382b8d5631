"""A pytest plugin: `--matrix FILE` shows what the suites have found, and writes it.

One table of `test_conformance.py`, property by ecosystem, and one of `test_export.py`, source by
target. `--ports FILE` does so for `test_port.py`: a row is a kind of layer and where it comes from,
a column where it goes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parent
IN = """# What holds for which library

Every adapter is held against its own library, entry by entry, by one suite
(`tests/test_conformance.py`). A number counts the checks that passed. This page is written by

```bash
python -m pytest -q -n 2 tests/test_conformance.py tests/export/test_export.py --dist=load \\
    --matrix docs/conformance.md
```

"""
OUT = """
# What goes where

Entries of every library go out into every other (`tests/export/test_export.py`): outputs, state,
gradients and values are those of the entry in its own library, and values come home bit by bit. A
row is where an entry comes from, a column where it goes.

"""


PORTS = """# What can be ported

Each cell is the largest difference between what the two libraries compute by themselves in float64,
with the weights of the one carried into the other. None is above 1e-9, but where a library keeps
float32 inside whatever it is told: the statistics of linen and NNX, norms, recurrent layers and
attention of Keras, attention of NNX. A letter: it is refused, for the reason below. This page is
written by

```bash
python -m pytest -q -n 2 tests/port/test_port.py --dist=load --ports docs/ports.md
```

"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix", metavar="FILE", help="show the suites as matrices, and write them to FILE"
    )
    parser.addoption(
        "--ports", metavar="FILE", help="show what can be ported, and write it to FILE"
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Read the outcomes off the reports, so that it doesn't matter which worker ran what."""
    if ports_file := config.getoption("--ports"):
        rows, reasons = ports(terminalreporter.stats)
        Console(width=140).print(_table(rows))
        Path(ports_file).write_text(
            PORTS + markdown(rows) + "\n" + "".join(f"{line}  \n" for line in reasons)
        )
    file = config.getoption("--matrix")
    if not file:
        return
    tests = [
        (report.nodeid, passed)
        for outcome, passed in (("passed", True), ("failed", False), ("error", False))
        for report in terminalreporter.stats.get(outcome, [])
    ]
    tables = [(IN, properties(tests)), (OUT, ways(tests))]
    for _, rows in tables:
        Console(width=140).print(_table(rows))
    Path(file).write_text("".join(head + markdown(rows) for head, rows in tables))


def properties(tests: list[tuple[str, bool]]) -> list[list[str]]:
    """Property by ecosystem: `...::test_jit_agrees[linen-dense-True]`."""
    order = re.findall(r"def test_(\w+)\(", (TESTS / "test_conformance.py").read_text())
    found = _places(r"test_conformance\.py::test_(\w+)\[(\w+)", tests)
    rows = _rows(found, order, _ecosystems())
    return [[row[0].replace("_", " "), *row[1:]] for row in rows]


def ways(tests: list[tuple[str, bool]]) -> list[list[str]]:
    """Source by target: `...::test_gradients_are_those_of_the_source[linen-dense-haiku]`."""
    from targets import TARGETS

    found = _places(r"test_export\.py::\w+\[(\w+)-.*-(\w+)\]", tests)
    (_, *heading), *rows = _rows(found, _ecosystems(), list(TARGETS))
    return [
        ["", *(f"to {target}" for target in heading)],
        *([f"from {row[0]}", *row[1:]] for row in rows),
    ]


def ports(stats: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """A row for each kind of layer and source, and the reasons for what is refused."""
    from ports import LIBRARIES, ROWS

    cells: dict[tuple[str, str, str], str] = {}
    letters: dict[str, str] = {}
    for outcome in ("passed", "failed"):
        for report in stats.get(outcome, []):
            match = re.search(r"computes_the_same_in_another\[(.*)-(\w+)-(\w+)\]", report.nodeid)
            said = dict(report.user_properties)
            if match is None:
                continue
            if outcome == "failed":
                cell = "✗"
            elif "refused" in said:
                cell = letters.setdefault(said["refused"], chr(ord("a") + len(letters)))
            else:
                cell = f"{said['difference']:.0e}" if said["difference"] else "0"
            cells[match[1], match[2], match[3]] = cell
    sources = [*LIBRARIES, "torch"]
    rows = [
        [row, source, *(cells.get((row, source, target), "") for target in LIBRARIES)]
        for row in ROWS
        for source in sources
        if any((row, source, target) in cells for target in LIBRARIES)
    ]
    return [["", "from", *(f"to {t}" for t in LIBRARIES)], *rows], [
        f"{v}: {k}" for k, v in sorted(letters.items(), key=lambda i: i[1])
    ]


def _ecosystems() -> list[str]:
    # Not at the top: one of the libraries is installed after this plugin is loaded.
    from cases import CASES

    return list(dict.fromkeys(case.ecosystem for case in CASES))


def _places(pattern: str, tests: list[tuple[str, bool]]) -> list[tuple[tuple[str, str], bool]]:
    """Return the row and the column of each test that a pattern finds, and whether it passed."""
    found: list[tuple[tuple[str, str], bool]] = []
    for test, passed in tests:
        match = re.search(pattern, test)
        if match is not None:
            found.append(((match[1], match[2]), passed))
    return found


def _rows(
    found: list[tuple[tuple[str, str], bool]], rows: list[str], columns: list[str]
) -> list[list[str]]:
    """Return the heading and a row for each name: counts of what passed, or else of what failed."""
    passed = Counter(place for place, good in found if good)
    failed = Counter(place for place, good in found if not good)

    def cell(row: str, column: str) -> str:
        place = row, column
        if failed[place]:
            return f"✗ {failed[place]}"
        return f"✓ {passed[place]}" if passed[place] else ""

    return [["", *columns], *([row, *(cell(row, column) for column in columns)] for row in rows)]


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _table(rows: list[list[str]]) -> Table:
    table = Table()
    for column in rows[0]:
        table.add_column(column, no_wrap=bool(column))
    for name, *cells in rows[1:]:
        table.add_row(name, *(f"[{'red' if c.startswith('✗') else 'green'}]{c}" for c in cells))
    return table
