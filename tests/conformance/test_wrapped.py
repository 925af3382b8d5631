"""What wraps a function or a module takes what that takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import objax
import pytest

import seqbridge as sb
from helpers import assert_close

pytestmark = pytest.mark.usefixtures("usual_promotion")

X = jnp.ones((1, 2))


def noise(x: Any, training: bool = False) -> Any:
    return x * 2 if training else x


def must(x: Any, training: bool) -> Any:
    return x * 2 if training else x


class Mode(objax.Module):
    def __call__(self, x: Any, training: bool = False) -> Any:
        return x * 2 if training else x


class Offset(objax.Module):
    def __call__(self, x: Any, offset: Any = 0.0) -> Any:
        return x + offset


OBJAX: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "function": (lambda: noise, {"training": True}),
    "without a default": (lambda: must, {"training": True}),
    "partial": (lambda: functools.partial(noise), {"training": True}),
    "module": (Mode, {"training": True}),
    "Function": (lambda: objax.Function(noise, objax.VarCollection()), {"training": True}),
    "ForceArgs": (lambda: objax.ForceArgs(Mode(), training=True), {}),
    "Jit": (lambda: objax.Jit(Offset()), {"offset": 1.0}),
    "Jit of a function": (
        lambda: objax.Jit(lambda x, offset=0.0: x + offset, objax.VarCollection()),
        {"offset": 1.0},
    ),
    "Sequential": (lambda: objax.nn.Sequential([noise]), {"training": True}),
    "two": (
        lambda: objax.nn.Sequential([Mode(), objax.nn.Sequential([noise, Offset()])]),
        {"training": True},
    ),
}


@pytest.mark.parametrize("name", OBJAX)
def test_in_a_sequential_of_objax(name: str) -> None:
    make, keywords = OBJAX[name]
    inner = objax.nn.Sequential([make()])
    expected = inner(X, **keywords)
    assert_close(sb.Sequential([inner])(X, **keywords), expected)
    assert_close(sb.Sequential([objax.nn.Sequential([inner])])(X, **keywords), expected)
    assert_close(sb.Sequential(inner)(X, **keywords), expected)
    assert_close(sb.jit(lambda model: model(X, **keywords))(sb.Sequential([inner])), expected)


@pytest.mark.parametrize("name", OBJAX)
def test_as_an_entry(name: str) -> None:
    make, keywords = OBJAX[name]
    assert_close(sb.Sequential([make()])(X, **keywords), make()(X, **keywords))


class LinenScale(nn.Module):
    @nn.compact
    def __call__(self, x: Any, scale: Any = 1.0, training: bool = False) -> Any:
        return nn.Dense(2)(x) * scale * (2.0 if training else 1.0)


class EqxScale(eqx.Module):
    w: jax.Array = eqx.field(default_factory=lambda: jnp.full((2,), 3.0))

    @eqx.filter_jit
    def __call__(self, x: Any, scale: Any = 1.0, training: bool = False) -> Any:
        return x * self.w * scale * (2.0 if training else 1.0)


def haiku_scale(x: Any, scale: Any = 1.0, training: bool = False) -> Any:
    return hk.Linear(2)(x) * scale * (2.0 if training else 1.0)


WRAPPED: dict[str, Callable[[], Any]] = {
    "nn.jit": lambda: nn.jit(LinenScale, static_argnums=(3,))(),
    "filter_jit": EqxScale,
    "filter_jit of a function": lambda: eqx.filter_jit(
        lambda x, scale=1.0, training=False: x * scale * (2.0 if training else 1.0)
    ),
    "hk.to_module": lambda: hk.transform(
        lambda x, scale=1.0, training=False: hk.to_module(haiku_scale)()(x, scale, training)
    ),
    "jax.jit": lambda: jax.jit(
        lambda x, scale=1.0, training=False: x * scale * (2.0 if training else 1.0),
        static_argnames="training",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_of_other_libraries(name: str) -> None:
    model = sb.Sequential([WRAPPED[name]()]).build(X)
    once = model(X)
    assert_close(model(X, scale=3.0), 3 * once)
    assert_close(model(X, training=True), 2 * once)
    assert_close(model(X, scale=3.0, training=True), 6 * once)


def test_a_flag_that_is_static_by_its_position() -> None:
    model = sb.Sequential([nn.remat(LinenScale, static_argnums=(3,))()]).build(X, training=False)
    once = model(X, training=False)
    assert_close(model(X, training=True), 2 * once)
    assert_close(model(X, scale=3.0, training=True), 6 * once)


def test_modules_of_objax_show_their_arguments() -> None:
    model = sb.Sequential([objax.nn.Linear(3, 4), objax.nn.Dropout(0.4), Mode()])
    shown = repr(model).splitlines()
    assert shown[1].startswith("  [0] objax Linear(nin=3, nout=4")
    assert shown[2] == "  [1] objax Dropout(keep=0.4)"
    assert shown[3] == "  [2] objax Mode()"
