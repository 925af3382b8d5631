"""The README's comparison of other ways to mix libraries with a `Sequential`, case by case."""

from __future__ import annotations

import functools
import sys
from typing import Any

import flax.errors
import flax.linen as nn
import haiku as hk
import haiku.experimental.flax as hkflax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from haiku.experimental import tabulate

import seqbridge as sb
from helpers import run_python

X = jnp.ones((2, 4))
KEY = jax.random.key(0)


# Not every library keeps to the strict one.
pytestmark = pytest.mark.usefixtures("usual_dtype_promotion")


def to_nnx(module: nn.Module) -> Any:
    return bridge.lazy_init(bridge.ToNNX(module, rngs=nnx.Rngs(0)), X)


# Libraries


def test_layers_of_more_than_two_libraries() -> None:
    transform = hk.transform(lambda x: hk.Linear(3)(x))
    with pytest.raises(Exception, match="no attribute"):
        to_nnx(transform)  # pyright: ignore[reportArgumentType]
    model = sb.Sequential([nn.Dense(4), transform, nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.tanh])
    assert model(X).shape == (2, 2)


def test_a_haiku_transform_inside_a_linen_module() -> None:
    class Mixed(nn.Module):
        part: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.part()(x)

    transform = hk.transform(lambda x: hk.Linear(3)(x))
    with pytest.raises(flax.errors.SetAttributeFrozenModuleError):
        Mixed(lambda: hkflax.Module(transform)).init(KEY, X)
    assert Mixed(lambda: sb.to_linen(transform)).init(KEY, X)["params"]


# Keywords


def test_a_keyword_for_one_layer_of_several() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'deterministic'"):
        nn.Sequential([nn.Dense(3), nn.Dropout(0.5)]).init(KEY, X, deterministic=True)
    chain = nnx.Sequential(to_nnx(nn.Dense(3)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="unexpected keyword argument 'deterministic'"):
        chain(X, deterministic=True)
    assert sb.Sequential([nn.Dense(3), nn.Dropout(0.5)])(X, training=False).shape == (2, 3)


# Batch statistics


def test_batch_statistics() -> None:
    module = nn.BatchNorm(use_running_average=False)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        to_nnx(module)(X)
    to_nnx(module)(X, mutable=["batch_stats"])

    def norm(x: jax.Array) -> jax.Array:
        return hk.BatchNorm(True, True, 0.9)(x, is_training=True)

    wrapped = hkflax.Module(hk.transform_with_state(norm))
    variables = wrapped.init(KEY, X)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        wrapped.apply(variables, X)
    wrapped.apply(variables, X, mutable=["state"])

    model = sb.Sequential([nn.BatchNorm(), hk.transform_with_state(norm)])
    model(X, training=True)
    assert float(model[0].mean.value[0]) == pytest.approx(0.01)


# Random numbers


def test_dropout() -> None:
    wrapped = hkflax.Module(hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, x)))
    with pytest.raises(Exception, match="non-None PRNGKey"):
        wrapped.init(KEY, X)

    def lifted(x: jax.Array) -> jax.Array:
        return hkflax.lift(nn.Dropout(0.5, deterministic=False), name="dropout")(x)

    with pytest.raises(flax.errors.InvalidRngError):
        hk.transform_with_state(lifted).init(KEY, X)

    bridged = to_nnx(nn.Dropout(0.5, deterministic=False))
    assert not np.array_equal(
        bridged(X, rngs=nnx.Rngs(dropout=0)), bridged(X, rngs=nnx.Rngs(dropout=1))
    )

    model = sb.Sequential(
        [nn.Dropout(0.5), hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, x))]
    )
    assert not np.array_equal(model(X, training=True), model(X, training=True))


# A list


def test_positions_slices_and_edits() -> None:
    for chain in (
        nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu),
        nn.Sequential([nn.Dense(3), nn.relu]),
    ):
        look: Any = chain
        with pytest.raises(TypeError, match="not subscriptable"):
            look[0]
        with pytest.raises(AttributeError):
            look.append(nnx.relu)
    model = sb.Sequential([nn.Dense(3), nn.relu]).build((2, 4))
    before = model[0].kernel.value
    model.insert(0, nn.LayerNorm())
    assert model[1].kernel.value is before


# A table


def test_a_table_of_a_mixed_model() -> None:
    # In a process of its own: what fails leaves NNX' modules as they mustn't be.
    code = """
import jax.numpy as jnp, flax.linen as nn
from flax import nnx
from flax.nnx import bridge
from haiku.experimental import tabulate
x = jnp.ones((2, 4))
rngs = nnx.Rngs(0)
chain = nnx.Sequential(bridge.ToNNX(nn.Dense(3), rngs=rngs), nnx.Linear(3, 2, rngs=rngs))
bridge.lazy_init(chain, x)
try:
    nnx.tabulate(chain, x)
except TypeError as error:
    print("refused", error)
"""
    run = run_python(code)
    assert run.stdout.startswith("refused")

    def mixed(x: jax.Array) -> jax.Array:
        return hkflax.lift(nn.Dense(2), name="dense")(hk.Linear(3)(x))

    table = tabulate(hk.transform_with_state(mixed))(X)
    assert "LiftingModule" in table
    assert "Dense" not in table
    model = sb.Sequential(
        [functools.partial(hk.Linear, 3), nn.Dense(2), nnx.Linear(2, 2, rngs=nnx.Rngs(0))]
    )
    text = model.summary((2, 4)).text()
    assert all(word in text for word in ("haiku", "Linear(3)", "linen", "Dense(features=2)", "nnx"))


# What must be installed


def test_jax_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    layers: Any = keras.layers
    for layer in (
        layers.FlaxLayer(nn.Dense(3)),
        layers.JaxLayer(
            lambda params, inputs: inputs @ params, lambda rng, inputs: jnp.ones((4, 3))
        ),
    ):
        with pytest.raises(ImportError, match="tensorflow"):
            layer(X)
    assert sb.to_keras(nn.Dense(3))(X).shape == (2, 3)
