"""A layer runs in the mode of the call, whatever its library or its author calls that."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import objax
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("usual_promotion")

X = jax.random.normal(jax.random.key(0), (6, 4))


def test_the_spectral_norm_of_linen_follows_training() -> None:
    norm = nn.SpectralNorm(nn.Dense(3))
    model = sb.Sequential([norm, nn.Dropout(0.5)]).build(X)
    for training in (True, False, True):
        expected, state = norm.apply(
            before := model[0].native, X, update_stats=training, mutable=["batch_stats"]
        )
        assert_close(model[:1](X, training=training), expected)
        assert_same(model[0].native, {**before, **state})
    assert_close(
        model[:1](X, update_stats=False), norm.apply(model[0].native, X, update_stats=False)
    )
    assert_close(sb.freeze(model)(X), norm.apply(model[0].native, X, update_stats=False))


if hasattr(nnx, "SpectralNorm"):  # newer than the oldest NNX that is supported

    def test_the_spectral_norm_of_nnx_follows_training() -> None:
        linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        norm = nnx.SpectralNorm(linear, rngs=nnx.Rngs(1))
        model = sb.Sequential([norm])
        for training in (True, False, True):
            assert_close(model(X, training=training), norm(X, update_stats=training))


class LinenMode(nn.Module):
    @nn.compact
    def __call__(self, x: Any, is_train: bool = False) -> Any:
        return nn.Dense(3)(x) * (2.0 if is_train else 1.0)


class HaikuMode(hk.Module):
    def __call__(self, x: Any, is_train: bool = False) -> Any:
        return hk.Linear(3)(x) * (2.0 if is_train else 1.0)


class NnxMode(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, is_train: bool = False) -> Any:
        return self.linear(x) * (2.0 if is_train else 1.0)


class EqxMode(eqx.Module):
    linear: eqx.nn.Linear = eqx.field(
        default_factory=lambda: eqx.nn.Linear(4, 3, key=jax.random.key(0))
    )

    def __call__(self, x: Any, is_train: bool = False) -> Any:
        return self.linear(x) * (2.0 if is_train else 1.0)


@keras.saving.register_keras_serializable()
class KerasMode(keras.layers.Dense):
    def call(self, x: Any, is_train: bool = False) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        out: Any = super().call(x)
        return out * (2.0 if is_train else 1.0)


class ObjaxMode(objax.nn.Linear):
    def __call__(self, x: Any, is_train: bool = False) -> Any:
        return super().__call__(x) * (2.0 if is_train else 1.0)


W = np.ones((4, 3), "float32")


def function(x: Any, is_train: bool = False) -> Any:
    return x @ W * (2.0 if is_train else 1.0)


def haiku_function(x: Any, is_train: bool = False) -> Any:
    return hk.Linear(3)(x) * (2.0 if is_train else 1.0)


ENTRIES: dict[str, Callable[[], Any]] = {
    "linen": LinenMode,
    "haiku": lambda: partial(HaikuMode),
    "haiku transform": lambda: hk.transform(haiku_function),
    "nnx": NnxMode,
    "equinox": EqxMode,
    "keras": lambda: KerasMode(3),
    "objax": lambda: ObjaxMode(4, 3),
    "function": lambda: function,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_flag_that_a_person_names_follows_training(name: str) -> None:
    layer = sb.Layer(ENTRIES[name](), mode="is_train", name="layer")
    model = sb.Sequential([layer]).build(X)
    once = model(X, training=False)
    assert_close(model(X, training=True), 2 * once)
    assert_close(model(X), once)  # as the default says
    assert_close(model(X, is_train=True), 2 * once)
    assert_close(sb.freeze(model)(X), once)
    assert_close(sb.jit(lambda model: model(X, training=True))(model), 2 * once)
    out, _ = sb.to_pure(model).apply(model.variables, X, training=True)
    assert_close(out, 2 * once)
    module = sb.to_linen(model)
    assert_close(module.apply(module.init(jax.random.key(0), X), X, training=True), 2 * once)
    copies = [copy.deepcopy(model)]
    if name not in ("objax", "nnx"):  # whose variables, or initializers, can't be pickled
        copies.append(pickle.loads(pickle.dumps(model)))
    for other in copies:
        assert_close(other(X, training=True), 2 * once)


def test_the_other_polarity_repeat_and_remat() -> None:
    def scale(x: Any, eval_mode: bool) -> Any:
        return x * 3.0 * (1.0 if eval_mode else 2.0)

    class Scale(nn.Module):
        @nn.compact
        def __call__(self, x: Any, eval_mode: bool) -> Any:
            return scale(x, eval_mode) * self.param("w", nn.initializers.ones, (1, 4))

    def layer() -> sb.Layer:
        return sb.Layer(Scale(), mode={"eval_mode": False})

    entries = [(sb.Layer(scale, mode={"eval_mode": False}), 1), (layer(), 1)]
    for entry, n in (*entries, (sb.remat(layer()), 1), (sb.Repeat(layer(), 2), 2)):
        model = sb.Sequential([entry]).build(X)
        assert_close(model(X, training=True), X * 6.0**n)
        assert_close(model(X, training=False), X * 3.0**n)
        with pytest.raises(TypeError, match="training=True or training=False"):
            model(X)


def test_a_parameter_that_looks_like_a_mode_is_warned_of_once() -> None:
    def warned(x: Any, test: bool = False) -> Any:
        return x

    with pytest.warns(
        UserWarning, match=r"warned has a boolean parameter test.*mode={'test': False}"
    ):
        sb.Sequential([warned])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb.Sequential([partial(warned)])  # not a second time
        sb.Sequential([sb.Layer(function, mode={})])
        sb.Sequential([lambda x, test=1.0: x * test, lambda x, training=False: x])


@pytest.mark.parametrize("name", ENTRIES)
def test_it_is_warned_of_in_each_library(name: str) -> None:
    with pytest.warns(UserWarning, match=r"is_train.*sb.Layer\(entry, mode=\'is_train\'\)"):
        sb.Sequential([ENTRIES[name]()])


def test_what_goes_wrong_says_what_to_write() -> None:
    with pytest.raises(TypeError, match="LinenMode takes no such keyword; did you mean 'is_train'"):
        sb.Layer(LinenMode(), mode="is_training_")
    with pytest.raises(TypeError, match="mode= takes the name of a flag"):
        sb.Layer(LinenMode(), mode=True)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="mode= takes the name of a flag"):
        sb.Layer(LinenMode(), mode={"is_train": "no"})  # pyright: ignore[reportArgumentType]
