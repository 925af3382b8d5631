"""Fixtures of several test files: `pytestmark = pytest.mark.usefixtures("usual_promotion")`."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

import helpers


@pytest.fixture
def usual_promotion() -> Iterator[None]:
    """JAX's own default promotion of dtypes and ranks, which several libraries' code needs."""
    with helpers.usual_promotion():
        yield


@pytest.fixture
def usual_dtype_promotion() -> Iterator[None]:
    """JAX's own default promotion of dtypes alone; ranks stay strict."""
    with jax.numpy_dtype_promotion("standard"):
        yield
