"""Whether a layer draws is asked of each kind of call, and the stream of keys is there before."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqbridge as sb

X = jnp.ones((1, 24))


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Dtypes as Haiku's own dropout mixes them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def perceptron(x: jax.Array, rate: float) -> jax.Array:
    rng = hk.next_rng_key()
    return hk.nets.MLP([24, 24])(x, dropout_rate=rate, rng=rng)


NATIVE = hk.transform(perceptron)


def built() -> sb.Sequential:
    model = sb.Sequential([partial(hk.nets.MLP, [24, 24])]).build((1, 24))
    model(X, dropout_rate=0.0)  # a call that draws nothing
    return model


def native(model: sb.Sequential, key: jax.Array, rate: float) -> jax.Array:
    params, _ = model[0].native
    # A model gives its first layer the call's key, folded with the position.
    return NATIVE.apply(params, jax.random.fold_in(key, 0), X, rate)


def test_a_float_decides_whether_a_layer_draws() -> None:
    model = built()
    first, second = model(X, dropout_rate=0.5), model(X, dropout_rate=0.5)
    assert not jnp.array_equal(first, second)
    for seed in (3, 4):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(model(X, dropout_rate=0.5, rng=key), native(model, key, 0.5))


def by_apply(model: sb.Sequential, key: jax.Array) -> jax.Array:
    return model.apply(model.variables, X, dropout_rate=0.5, rng=key)[0]


def compiled(model: sb.Sequential, key: jax.Array) -> jax.Array:
    return sb.jit(lambda model, key: model(X, dropout_rate=0.5, rng=key))(model, key)


def copied(model: sb.Sequential, key: jax.Array) -> jax.Array:
    return copy.deepcopy(model)(X, dropout_rate=0.5, rng=key)


def repeated(model: sb.Sequential, key: jax.Array) -> jax.Array:
    return model.trace(X, dropout_rate=0.5, rng=key)["[0]"]


@pytest.mark.parametrize("call", [by_apply, compiled, copied, repeated])
def test_so_it_does_in_every_form_of_a_call(
    call: Callable[[sb.Sequential, jax.Array], jax.Array],
) -> None:
    model = built()
    key = jax.random.key(7)
    np.testing.assert_allclose(call(model, key), native(model, key, 0.5), rtol=1e-6)
    assert not jnp.array_equal(call(model, key), call(model, jax.random.key(8)))


class Noise(enum.Enum):
    NONE = 0
    SOME = 1


def positional(x: jax.Array, rate: float, *, rng: Any = None) -> jax.Array:
    return x + rate * jax.random.normal(rng, x.shape) if rate else x


def by_enum(x: jax.Array, noise: Noise = Noise.NONE, *, rng: Any = None) -> jax.Array:
    return x + jax.random.normal(rng, x.shape) if noise is Noise.SOME else x


def by_words(x: jax.Array, parts: tuple[str, ...] = (), *, rng: Any = None) -> jax.Array:
    return x + jax.random.normal(rng, x.shape) if "noise" in parts else x


@pytest.mark.parametrize(
    ("function", "still", "noisy"),
    [
        (positional, lambda model: model(X, 0.0), lambda model, **kw: model(X, 0.5, **kw)),
        (
            by_enum,
            lambda model: model(X, noise=Noise.NONE),
            lambda model, **kw: model(X, noise=Noise.SOME, **kw),
        ),
        (
            by_words,
            lambda model: model(X, parts=("signal",)),
            lambda model, **kw: model(X, parts=("signal", "noise"), **kw),
        ),
    ],
)
def test_every_value_that_is_no_array_counts(
    function: Callable[..., jax.Array],
    still: Callable[[Any], jax.Array],
    noisy: Callable[..., jax.Array],
) -> None:
    model = sb.Sequential([function])
    assert jnp.array_equal(still(model), X)
    assert not jnp.array_equal(noisy(model), noisy(model))
    key = jax.random.key(5)
    noise = noisy(model, rng=key) - X
    drawn = jax.random.normal(jax.random.fold_in(key, 0), X.shape)
    factor = 0.5 if function is positional else 1.0
    np.testing.assert_allclose(noise, factor * drawn, rtol=1e-5)


def test_values_that_cannot_be_hashed_count_too() -> None:
    def noisy(x: jax.Array, *, options: Any = None, rng: Any = None) -> jax.Array:
        return x + jax.random.normal(rng, x.shape) if options.wanted else x

    class Options:
        __hash__ = None  # pyright: ignore[reportAssignmentType]

        def __init__(self, wanted: bool):
            self.wanted = wanted

        def __eq__(self, other: object) -> bool:
            return True

    model = sb.Sequential([noisy])
    assert jnp.array_equal(model(X, options=Options(False)), X)
    drawn = [model(X, options=Options(True)) for _ in range(2)]
    assert not jnp.array_equal(*drawn)


def noise(x: jax.Array, scale: Any = None, *, rng: Any = None) -> jax.Array:
    return x if scale is None else x + scale * jax.random.normal(rng, x.shape)


FIRST_DRAWS: dict[str, Callable[[sb.Sequential], jax.Array]] = {
    "jit": lambda model: sb.jit(lambda model, s: model(X, scale=s))(model, 2.0),
    "jit of vars": lambda model: sb.jit(lambda s: model(X, scale=s), vars=model.vars())(2.0),
    "static in jit": lambda model: sb.jit(lambda model: model(X, scale=2.0))(model),
    "gradient": lambda model: sb.value_and_grad(
        lambda model: ((y := model(X, scale=2.0)).sum(), y), has_aux=True
    )(model)[0][1],
    "vmap": lambda model: sb.vmap(lambda model, x: model(x, scale=2.0))(model, X),
    "scan": lambda model: sb.scan(lambda c, x: (c, model(x, scale=2.0)), 0, X, vars=model)[1],
    "remat": lambda model: sb.remat(lambda model: model(X, scale=2.0))(model),
    "eager": lambda model: model(X, scale=2.0),
}


@pytest.mark.parametrize("draw", FIRST_DRAWS.values(), ids=FIRST_DRAWS)
@pytest.mark.parametrize(
    "entry", [noise, hk.transform(lambda x, scale=None: _haiku_noise(x, scale))]
)
def test_a_layer_may_draw_for_the_first_time_anywhere(
    draw: Callable[[sb.Sequential], jax.Array], entry: Any
) -> None:
    model = sb.Sequential([entry, partial(jnp.multiply, jnp.ones(()))])
    model.build((1, 24))
    first, second = draw(model), draw(model)
    assert not jnp.array_equal(first, X)
    assert not jnp.array_equal(first, second)


def _haiku_noise(x: jax.Array, scale: Any) -> jax.Array:
    return x if scale is None else x + scale * jax.random.normal(hk.next_rng_key(), x.shape)


def test_a_compiled_step_draws_another_mask_at_each_step() -> None:
    model = sb.Sequential([noise, nn.Dense(2)]).build((1, 24))
    optimizer = sb.Optimizer(model, optax.sgd(0.0))

    @sb.jit
    def step(model: Any, optimizer: Any, scale: jax.Array) -> jax.Array:
        loss, grads = sb.value_and_grad(lambda model: model(X, scale=scale).sum())(model)
        optimizer.update(grads)
        return loss

    losses = [float(step(model, optimizer, jnp.float32(2.0))) for _ in range(4)]
    assert len(set(losses)) == 4


def test_a_model_that_cannot_draw_has_no_stream() -> None:
    model = sb.Sequential([partial(jnp.multiply, jnp.ones(())), jnp.tanh]).build((1, 24))
    assert not model.vars().subset("rng")
    assert len(model.vars()) == 1
    drawing = sb.Sequential([nn.Dropout(0.5, deterministic=False)]).build((1, 24))
    assert list(drawing.vars()) == ["(Sequential).rng"]


def for_several(x: jax.Array, key: Any = None) -> jax.Array:
    own, _ = jax.random.split(key)
    return x if x.shape[0] == 1 else x * jax.random.normal(own, x.shape)


@pytest.mark.parametrize("shape", [(None, 3), (1, 3), (4, 3)])
def test_a_function_may_draw_for_batches_of_some_sizes_only(shape: tuple[Any, ...]) -> None:
    model = sb.Sequential([for_several]).build(shape)
    one, several = jnp.ones((1, 3)), jnp.ones((4, 3))
    assert jnp.array_equal(model(one), one)
    assert not jnp.array_equal(model(several), model(several))
    key = jax.random.key(2)
    expected = for_several(several, jax.random.fold_in(key, 0))
    np.testing.assert_allclose(model(several, rng=key), expected, rtol=1e-6)
