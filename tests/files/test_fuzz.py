"""A few hundred damaged and hostile files for every reader, always the same; `fuzz.py` has more."""

from __future__ import annotations

from pathlib import Path

import fuzz

# Of folders, each of which takes a tenth of a second, fewer.
MOST = dict.fromkeys(fuzz.NAMES, 50) | {"orbax": 8, "checkpoint": 8}


def test_every_reader_gives_arrays_or_says_what_is_wrong(tmp_path: Path) -> None:
    counts = fuzz.fuzz(MOST, 1000, 0, tmp_path)
    assert [about.read_text() for about in tmp_path.glob("*/about.txt")] == []
    assert {name: sum(count.values()) for name, count in counts.items()} == MOST
    assert all(count.get("refused") for count in counts.values())
