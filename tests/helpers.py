"""Helpers that several test files share."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb

MUCH = 2**28  # more than what an honest refusal takes


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """JAX's own default promotion of dtypes and ranks, which several libraries' code needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Comparisons


def equal(a: Any, b: Any) -> bool:
    """Return whether two arrays have the same shape and values."""
    return bool(jnp.array_equal(a, b))


def assert_same(a: Any, b: Any, **tolerance: Any) -> None:
    """Check two trees: structure, shapes, dtypes, and values bit by bit or to a tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # A function or a number, which some libraries keep among the arrays.
        if not hasattr(x, "dtype"):
            assert x is y or x == y
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


def assert_close(a: Any, b: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Check two trees of numbers, up to the rounding of float32."""
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


def as_numpy(array: Any) -> np.ndarray:
    """Return a copy of an array in NumPy; of PRNG keys, their data."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.array(array)


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Return all that tells arrays apart: dtype, shape and bytes."""
    numbers = as_numpy(array)
    return str(array.dtype), numbers.shape, numbers.tobytes()


def values_of(holder: Any) -> list[np.ndarray]:
    """Return copies of the values of all variables of a model, a layer or an optimizer."""
    return [as_numpy(variable.value) for variable in holder.vars().values()]


# Models


def scale(x: Any, factor: float = 1.0) -> Any:
    return x * factor


def linear(features: int, label: str = "linear") -> sb.PureLayer:
    """Return a small layer that belongs to no library and has no zero among its initial values."""

    def init(key: Any, x: Any) -> Any:
        w = jax.random.uniform(key, (x.shape[-1], features), minval=0.5)
        return {"params": {"w": w, "b": jnp.linspace(1.0, 2.0, features)}}

    def apply(variables: Any, key: Any, x: Any) -> Any:
        params = variables["params"]
        return x @ params["w"] + params["b"][None], {}

    signature = sb.signature_of(lambda x: x)
    return sb.PureLayer(init=init, apply=apply, signature=signature, label=label, ecosystem="test")


def predict(model: Any, x: Any) -> Any:
    return model(x, training=False)


def mean_square(model: Any, x: Any) -> Any:
    """A loss: the mean of the squared outputs in training."""
    return (model(x, training=True) ** 2).mean()


def train_step(model: Any, optimizer: sb.Optimizer, x: Any) -> Any:
    """Take one step of training, and return the loss before it."""
    loss, grads = sb.value_and_grad(mean_square)(model, x)
    optimizer.update(grads)
    return loss


# Files


def layer_of(entry: Any) -> sb.Layer:
    """Return the layer of an entry, built for 4 features."""
    return sb.Sequential([entry]).build((2, 4))[0]


def refused(
    layer: sb.Layer,
    path: Path,
    match: str | None = None,
    error: type[Exception] | tuple[type[Exception], ...] = sb.WeightsError,
    **options: Any,
) -> None:
    """Check that a layer loads nothing from a file, allocates little, and stays as it was."""
    before = values_of(layer)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match) as caught:
            layer.load_native(path, **options)
        assert tracemalloc.get_traced_memory()[1] < MUCH
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert_same(before, values_of(layer))


# Processes


def run_python(
    code: str, *args: object, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own to its end, whatever its exit status."""
    command = [sys.executable, "-c", code, *(str(arg) for arg in args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
