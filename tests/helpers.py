"""Helpers that several test files share."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqbridge as sb

MUCH = 2**28  # more than what an honest refusal takes


def layer_of(entry: Any) -> sb.Layer:
    """Return the layer of an entry, built for 4 features."""
    return sb.Sequential([entry]).build((2, 4))[0]


def values(layer: sb.Layer) -> list[Any]:
    return [np.array(variable.value) for variable in layer.vars().values()]


def refused(
    layer: sb.Layer, path: Path, match: str | None, error: Any = sb.WeightsError, **options: Any
) -> None:
    """Check that a layer loads nothing from a file, allocates little, and stays as it was."""
    before = values(layer)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match) as caught:
            layer.load_native(path, **options)
        assert tracemalloc.get_traced_memory()[1] < MUCH
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(layer), strict=True))
