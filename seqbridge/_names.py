"""Names that don't match, and the nearest ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, names: Iterable[Any]) -> str:
    """`"; did you mean 'bias'?"`, or nothing if nothing is near."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_names(what: str, got: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises a `KeyError` that lists the names that are missing and those that nothing has, each with the nearest."""
    got, wanted = list(got), list(wanted)
    missing = [n for n in wanted if n not in set(got)]
    unknown = [n for n in got if n not in set(wanted)]
    if missing or unknown:
        lines = [f"missing: {n}" for n in missing] + [f"unknown: {n}{nearest(n, wanted)}" for n in unknown]
        more = f"; and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise KeyError(f"{what}: the names don't match: " + "; ".join(lines[:12]) + more)


def plain(name: str) -> str:
    """A name without those of classes, which may be others and mean the same.

    Examples:
        >>> plain("(Sequential)[0](Dense).kernel")
        '[0].kernel'
    """
    return re.sub(r"\([^()]*\)", "", name)
