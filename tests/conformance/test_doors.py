"""An object that can't be called is refused at the door, with the cure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close

X = jnp.ones((2, 4))
W = jnp.arange(4.0)


class EquinoxDensity(eqx.Module):
    w: jax.Array = eqx.field(default_factory=lambda: W)

    def log_prob(self, x: Any) -> Any:
        return x * self.w

    def sample(self, x: Any) -> Any:
        return x + self.w


class NnxDensity(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(W)

    def log_prob(self, x: Any) -> Any:
        return x * self.w[...][None]

    def sample(self, x: Any) -> Any:
        return x + self.w[...][None]


class LinenDensity(nn.Module):
    def setup(self) -> None:
        self.w = self.param("w", lambda key: W)

    def log_prob(self, x: Any) -> Any:
        return x * self.w[None]

    def sample(self, x: Any) -> Any:
        return x + self.w[None]


class HaikuDensity(hk.Module):
    def log_prob(self, x: Any) -> Any:
        return x * hk.get_parameter("w", (4,), init=lambda shape, dtype: W)[None]

    def sample(self, x: Any) -> Any:
        return x + 1.0


ENTRIES: dict[str, Callable[[], Any]] = {
    "equinox": EquinoxDensity,
    "a class of equinox": lambda: partial(EquinoxDensity),
    "nnx": NnxDensity,
    "a class of nnx": lambda: partial(NnxDensity),
    "linen": LinenDensity,
    "a class of linen": lambda: partial(LinenDensity),
    "a class of haiku": lambda: partial(HaikuDensity),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "a list": lambda entry: sb.Sequential([entry]),
    "a list in a list": lambda entry: sb.Sequential([sb.Sequential([jnp.tanh, entry])]),
    "an edit": lambda entry: sb.Sequential([jnp.tanh]).append(entry),
    "a layer": sb.Layer,
    "Repeat": lambda entry: sb.Repeat(entry, 2),
    "remat": sb.remat,
    "an export": sb.to_linen,
    "a port": lambda entry: sb.port(entry, sb.Sequential([jnp.tanh])),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ENTRIES)
def test_it_is_refused_with_its_methods(name: str, place: str) -> None:
    with pytest.raises(
        TypeError,
        match=r"Density can't be called: choose a method, "
        r"sb.Layer\(entry, method='log_prob'\) \(or 'sample'\)",
    ):
        PLACES[place](ENTRIES[name]())


@pytest.mark.parametrize("name", ENTRIES)
def test_the_cure_works(name: str) -> None:
    model = sb.Sequential([sb.Layer(ENTRIES[name](), method="log_prob")]).build((2, 4))
    assert_close(model(X), X * W[None])
    assert len(model.vars()) == 1


class KerasDensity(keras.layers.Layer):
    def log_prob(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [KerasDensity, lambda: partial(KerasDensity)])
def test_a_layer_of_keras_must_have_a_call(make: Callable[[], Any], place: str) -> None:
    with pytest.raises(TypeError, match=r"KerasDensity can't be called: Keras .* call\(\)"):
        PLACES[place](make())


class OnlySetup(nn.Module):
    def setup(self) -> None:
        self.w = self.param("w", lambda key: W)


class OnlyValues(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(W)


class OnlyFields(eqx.Module):
    w: jax.Array
    activation: Callable[[Any], Any] = jax.nn.relu


@pytest.mark.parametrize(
    "make", [OnlySetup, OnlyValues, lambda: OnlyFields(W)], ids=["linen", "nnx", "equinox"]
)
def test_methods_of_the_library_are_no_cure(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"^Only\w+ can't be called\n"):
        sb.Sequential([make()])


class Sampled(EquinoxDensity):
    @eqx.filter_jit
    def mode(self, x: Any) -> Any:
        return x


def test_inherited_and_compiled_methods_are_named() -> None:
    with pytest.raises(TypeError, match=r"method='mode'\) \(or 'log_prob', 'sample'\)"):
        sb.Sequential([Sampled()])


def test_the_name_of_the_call_is_no_way_around() -> None:
    with pytest.raises(TypeError, match="EquinoxDensity can't be called"):
        sb.Layer(EquinoxDensity(), method="__call__")


def test_an_adapter_of_the_same_package_hides_no_methods() -> None:
    sb.register(f"{__name__.partition('.')[0]}.layers", lambda entry: None)
    with pytest.raises(TypeError, match="method='log_prob'"):
        sb.Sequential([EquinoxDensity()])
