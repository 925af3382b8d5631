"""Initial values that depend on the data are those that the library gives for that data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import seqbridge as sb
from helpers import assert_close, assert_same, usual_promotion

X = jax.random.normal(jax.random.key(0), (64, 4)) * 3 + 5


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    with usual_promotion():
        yield


class ActNorm(nn.Module):
    """Normalizes the first batch."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        shift = self.param("shift", lambda key: -x.mean(0))
        scale = self.param("scale", lambda key: 1 / (x.std(0) + 1e-6))
        return (x + shift) * scale


class HaikuActNorm(hk.Module):
    """The same."""

    def __call__(self, x: Any) -> Any:
        shift = hk.get_parameter("shift", x.shape[1:], init=lambda shape, dtype: -x.mean(0))
        scale = hk.get_parameter(
            "scale", x.shape[1:], init=lambda shape, dtype: 1 / (x.std(0) + 1e-6)
        )
        return (x + shift) * scale


def scaled(x: Any) -> Any:
    return jnp.tanh(x / 8)  # far from where it is flat, and rounding is all that is left


NATIVE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "linen": (ActNorm, lambda x: ActNorm().init(jax.random.key(0), x)),
    "haiku": (
        lambda: partial(HaikuActNorm),
        lambda x: hk.transform_with_state(lambda x: HaikuActNorm()(x)).init(jax.random.key(0), x),
    ),
}


@pytest.fixture(params=NATIVE)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


def entry(library: str) -> Any:
    return NATIVE[library][0]()


def native(library: str, x: Any) -> list[Any]:
    return jax.tree.leaves(NATIVE[library][1](x))


def by_call(model: sb.Sequential) -> sb.Sequential:
    model(X)
    return model


def by_init(model: sb.Sequential) -> sb.Sequential:
    variables = model.init(0, X)
    assert not model.built
    model.build(X)
    model.assign(variables)
    return model


def by_compiled_init(model: sb.Sequential) -> sb.Sequential:
    variables = jax.jit(model.init)(jax.random.key(0), X)
    model.build(X)
    model.assign(variables)
    return model


WAYS: dict[str, Callable[[sb.Sequential], sb.Sequential]] = {
    "a first call": by_call,
    "build": lambda model: model.build(X),
    "init": by_init,
    "a compiled init": by_compiled_init,
}


@pytest.mark.parametrize("way", WAYS)
def test_values_are_those_of_the_library(library: str, way: str) -> None:
    model = WAYS[way](sb.Sequential([entry(library)]))
    exact = {} if way != "a compiled init" else {"rtol": 1e-5}
    assert_same(jax.tree.leaves(model[0].native), native(library, X), **exact)
    np.testing.assert_allclose(model(X).std(0), 1.0, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_each_layer_is_fed_by_the_layers_before(library: str, way: str) -> None:
    inner = sb.Sequential([scaled, entry(library)])
    model = WAYS[way](sb.Sequential([entry(library), inner, lambda x: x[:8], entry(library)]))
    x = X
    for layer in (model[0], scaled, model[1][1], lambda x: x[:8], model[3]):
        if isinstance(layer, sb.Layer):
            values = jax.tree.leaves(layer.native)
            for value, expected in zip(values, native(library, x), strict=True):
                assert_close(value, expected, rtol=1e-4, atol=1e-5)
        x = layer(x)


def test_shapes_alone_are_refused(library: str) -> None:
    for make in (
        lambda: sb.Sequential([entry(library)]).build((None, 4)),
        lambda: sb.Sequential([entry(library)]).init(0, (64, 4)),
        lambda: sb.Sequential([sb.Repeat(entry(library), 2)]).build((None, 4)),
    ):
        with pytest.raises(ValueError, match=r"depend on the values of its inputs.*build\(batch\)"):
            make()


def test_what_is_added_later_waits_for_the_next_batch(library: str) -> None:
    model = sb.Sequential([nn.Dense(4)]).build((None, 4))
    model.append(entry(library))
    assert not model.built
    model(X)
    assert_same(jax.tree.leaves(model[1].native), native(library, model[:1](X)))


def test_copies_are_those_of_a_list(library: str) -> None:
    repeated = sb.Sequential([sb.Repeat([scaled, entry(library)], 3)]).build(X)
    x = X
    for i in range(3):
        x = scaled(x)
        values = [variable.value[i] for variable in repeated.vars().values()]
        expected = sb.Sequential([entry(library)]).build(x)
        for value, other in zip(values, expected.vars().values(), strict=True):
            assert_close(value, other.value, rtol=1e-4, atol=1e-5)
        x = expected(x)
    assert_close(repeated(X), x, rtol=1e-4, atol=1e-5)


def test_an_export_has_them(library: str) -> None:
    module = sb.to_linen([scaled, entry(library)])
    variables = module.init(jax.random.key(0), X)
    np.testing.assert_allclose(module.apply(variables, X).std(0), 1.0, rtol=1e-4)
    with_rematerialization = sb.Sequential([sb.remat(entry(library))]).build(X)
    np.testing.assert_allclose(with_rematerialization(X).std(0), 1.0, rtol=1e-4)


def test_a_moving_average_starts_with_the_first_batch() -> None:
    norm = partial(hk.BatchNorm, True, True, 0.9)
    _, state = hk.transform_with_state(lambda x: norm()(x, is_training=True)).init(
        jax.random.key(0), X
    )
    model = sb.Sequential([norm]).build(X)
    assert_same(jax.tree.leaves(model[0].native[1]), jax.tree.leaves(state))
    of_shapes = sb.Sequential([norm]).build((None, 4))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_shapes[0].native[1]))


def test_a_layer_that_takes_one_example_is_made_for_one() -> None:
    dense = sb.Sequential([sb.Layer(keras.layers.Dense(3), per_example=True)])
    with pytest.raises(ValueError, match="min_ndim=2"):  # Keras' own word on one example of (4,)
        dense.build(X)
    rows = jnp.stack([X, X])
    wanted: Any = keras.layers.Dense(3)
    wanted.build((64, 4))
    model = sb.Sequential([sb.Layer(keras.layers.Dense(3), per_example=True)]).build(rows)
    assert model[0].kernel.shape == tuple(wanted.kernel.shape)
    assert model(rows).shape == (2, 64, 3)


def test_a_moving_average_of_one_example_starts_at_zero() -> None:
    norm = sb.Layer(hk.transform_with_state(averaged), per_example=True)
    model = sb.Sequential([norm]).build(X)
    assert all(not np.any(value) for value in model.variables["state"].values())


def averaged(x: Any) -> Any:
    average = hk.ExponentialMovingAverage(0.9)
    average(jnp.ones_like(x) * jax.lax.stop_gradient(0.0 * x))
    return x
