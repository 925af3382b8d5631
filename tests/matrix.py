"""A pytest plugin: `--matrix FILE` shows what the conformance suite has found, ecosystem by property, and writes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

HEAD = """# What holds for which library

Every adapter is held against its own library, entry by entry, by one suite (`tests/test_conformance.py`). A number
counts the checks that passed. This page is written by

```bash
python -m pytest -q -n 2 tests/test_conformance.py --matrix docs/conformance.md
```

"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="FILE", help="show the conformance suite as a matrix, and write it to FILE")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Reads the outcomes off the reports, so that it doesn't matter which worker ran what."""
    file = config.getoption("--matrix")
    if not file:
        return
    passed, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for outcome, counter in (("passed", passed), ("failed", failed), ("error", failed)):
        for report in terminalreporter.stats.get(outcome, []):
            if "test_conformance.py::" in report.nodeid:
                counter[place(report.nodeid)] += 1
    rows = rows_of(passed, failed)
    Console(width=140).print(_table(rows))
    Path(file).write_text(HEAD + markdown(rows))


def place(test: str) -> tuple[str, str]:
    """Property and ecosystem of a test: `...::test_jit_agrees[linen-dense-True]`."""
    name, _, case = test.rpartition("::")[2].partition("[")
    return name.removeprefix("test_").replace("_", " "), case.partition("-")[0]


def rows_of(passed: Counter[tuple[str, str]], failed: Counter[tuple[str, str]]) -> list[list[str]]:
    """The heading, and a row a property, both in the order of the suite."""
    from cases import CASES  # whose libraries are there when the tests have run, and not when this plugin is loaded

    places = [*passed, *failed]
    suite = (Path(__file__).parent / "test_conformance.py").read_text()
    properties = sorted(
        {prop for prop, _ in places}, key=lambda prop: suite.index(f"def test_{prop.replace(' ', '_')}(")
    )
    ecosystems = [e for e in dict.fromkeys(case.ecosystem for case in CASES) if e in {e for _, e in places}]

    def cell(prop: str, ecosystem: str) -> str:
        where = prop, ecosystem
        return f"✗ {failed[where]}" if failed[where] else f"✓ {passed[where]}"

    return [["", *ecosystems], *([prop, *(cell(prop, e) for e in ecosystems)] for prop in properties)]


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _table(rows: list[list[str]]) -> Table:
    table = Table(title="conformance")
    for column in rows[0]:
        table.add_column(column, no_wrap=bool(column))
    for prop, *cells in rows[1:]:
        table.add_row(prop, *(f"[{'red' if c.startswith('✗') else 'green'}]{c}" for c in cells))
    return table
