"""A first layer that takes no inputs: a latent, a learned start token."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import objax
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same

W = jnp.arange(3.0)[None]


class LinenLatent(nn.Module):
    @nn.compact
    def __call__(self) -> Any:
        return self.param("w", lambda key: W)


class NnxLatent(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(W)

    def __call__(self) -> Any:
        return self.w[...]


class EqxLatent(eqx.Module):
    w: jax.Array = eqx.field(default_factory=lambda: W)

    def __call__(self, *, key: Any = None) -> Any:
        return self.w


class HaikuLatent(hk.Module):
    def __call__(self) -> Any:
        return hk.get_parameter("w", (1, 3), init=lambda shape, dtype: W)


class ObjaxLatent(objax.Module):
    def __init__(self) -> None:
        self.w = objax.TrainVar(W)

    def __call__(self) -> Any:
        return self.w.value


def haiku_latent() -> Any:
    return hk.get_parameter("w", (1, 3), init=lambda shape, dtype: W)


LATENTS: dict[str, Callable[[], Any]] = {
    "linen": LinenLatent,
    "nnx": NnxLatent,
    "equinox": EqxLatent,
    "haiku": lambda: partial(HaikuLatent),
    "haiku transform": lambda: hk.transform(haiku_latent),
    "objax": ObjaxLatent,
    "function": lambda: lambda w=W: w,
    "partial": lambda: partial(lambda x: x, W),
}


@pytest.fixture(params=LATENTS)
def latent(request: pytest.FixtureRequest) -> Any:
    return LATENTS[request.param]()


def test_it_is_built_and_called(latent: Any) -> None:
    model = sb.Sequential([latent, nn.Dense(2)]).build()
    dense = model[1]
    expected = W @ dense.kernel.value + dense.bias.value[None]
    assert_close(model(), expected)
    assert_close(sb.Sequential([latent, nn.Dense(2)])(), expected)
    assert_close(model[0](), W)
    assert_close(sb.jit(lambda model: model())(model), expected)
    assert_close(sb.freeze(model)(), expected)
    assert_close(model.apply(model.variables)[0], expected)
    assert len(sb.grad(lambda model: model().sum())(model)) == 3
    assert model.summary().rows[1].outputs == "float32[1,2]"
    for other in (copy.deepcopy(model), model.copy()):
        assert_close(other(), expected)
    model.append(jnp.tanh)
    assert_close(model(), jnp.tanh(expected))


def test_the_pure_form_and_exports(latent: Any) -> None:
    model = sb.Sequential([latent, nn.Dense(2)])
    built = sb.Sequential([latent, nn.Dense(2)]).build()
    variables = built.variables
    if not model[0].built:
        assert_same(model.init(0), variables)
    expected = built()
    init, apply = sb.to_pure(built)
    assert_close(apply(init(0))[0], expected)
    linen = sb.to_linen(built)
    assert_close(linen.apply(linen.init(jax.random.key(0))), expected)
    transform = hk.transform(sb.to_haiku(built))
    assert_close(transform.apply(transform.init(jax.random.key(0)), None), expected)
    assert_close(sb.to_equinox(built)(), expected)
    assert_close(sb.to_nnx(built)(), expected)


def test_a_model_that_needs_inputs_says_so() -> None:
    model = sb.Sequential([nn.Dense(2)])
    with pytest.raises(TypeError, match="a shape or an array is wanted for each input"):
        model.build()
    with pytest.raises(TypeError, match="a shape or an array is wanted for each input"):
        model.init(0)
    assert not model.built
    again = pickle.loads(pickle.dumps(sb.Sequential([LinenLatent(), nn.Dense(2)]).build()))
    assert again().shape == (1, 2)


def test_a_latent_beside_layers_of_keras() -> None:
    model = sb.Sequential([LinenLatent(), keras.layers.Rescaling(2.0)]).build()
    assert_close(model(), 2 * W)
