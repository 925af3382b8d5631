"""Branches and loops that call models and optimizers: what changes is carried, as by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("usual_promotion")

X = jax.random.normal(jax.random.key(0), (6, 4))


def make(seed: int = 0) -> sb.Sequential:
    """A model with statistics and draws, of three libraries."""
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    layers = [partial(hk.Linear, 4), norm, nn.Dropout(0.5), nn.Dense(4)]
    return sb.Sequential(layers, seed=seed).build(X)


def eagerly(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


RUN = pytest.mark.parametrize("run", [eagerly, sb.jit], ids=["eager", "sb.jit"])


@RUN
@pytest.mark.parametrize("chosen", [True, False])
def test_a_branch_that_trains(run: Any, chosen: bool) -> None:
    model, by_hand = make(), make()

    def step(model: sb.Sequential, x: Any, pred: Any) -> Any:
        return sb.cond(pred, lambda m, x: m(x, training=True), lambda m, x: 2 * x, model, x)

    out = run(step)(model, X, jnp.asarray(chosen))
    expected = by_hand(X, training=True) if chosen else 2 * X
    assert_close(out, expected)
    assert_same(model.variables, by_hand.variables, rtol=1e-5, atol=1e-6)


@RUN
@pytest.mark.parametrize("scale", [1.0, np.nan])
def test_a_step_whose_loss_is_not_finite_is_skipped(run: Any, scale: float) -> None:
    model, by_hand = make(), make()
    optimizer, other = (sb.Optimizer(m, optax.sgd(0.1, momentum=0.9)) for m in (model, by_hand))

    def loss_of(model: sb.Sequential, x: Any) -> Any:
        return (model(x, training=True) ** 2).mean()

    def step(model: sb.Sequential, optimizer: sb.Optimizer, x: Any) -> Any:
        loss, grads = sb.value_and_grad(loss_of)(model, x)
        sb.cond(jnp.isfinite(loss), lambda: optimizer.update(grads), lambda: None, vars=optimizer)
        return loss

    loss = run(step)(model, optimizer, scale * X)
    value, grads = sb.value_and_grad(loss_of)(by_hand, scale * X)
    if np.isfinite(value):
        other.update(grads)
    assert_close(loss, value)
    assert_same(model.variables, by_hand.variables, rtol=1e-5, atol=1e-6)
    for name, variable in optimizer.vars().items():
        assert_close(variable.value, other.vars()[name].value, rtol=1e-5, atol=1e-6)


def test_inside_sb_jit_nothing_need_be_named() -> None:
    model, by_hand = make(), make()
    optimizer, other = (sb.Optimizer(m, optax.sgd(0.1)) for m in (model, by_hand))

    def update(model: sb.Sequential, optimizer: sb.Optimizer) -> None:
        optimizer.update(sb.grad(lambda model: (model(X, training=True) ** 2).mean())(model))

    @sb.jit
    def train(model: sb.Sequential, optimizer: sb.Optimizer, n: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            sb.cond(i % 2 == 0, lambda: update(model, optimizer), lambda: None)
            return total + i

        return sb.fori_loop(0, n, body, 0)

    assert int(train(model, optimizer, 5)) == 10
    for _ in range(3):
        update(by_hand, other)
    assert_same(model.variables, by_hand.variables, rtol=1e-4, atol=1e-5)


@RUN
def test_a_switch_over_models(run: Any) -> None:
    models, others = [make(seed) for seed in range(3)], [make(seed) for seed in range(3)]

    def step(models: list[sb.Sequential], index: Any) -> Any:
        branches = [partial(model, training=True) for model in models]
        return sb.switch(index, branches, X, vars=models)

    for index in (1, 2, 7, -3):
        expected = others[min(max(index, 0), 2)](X, training=True)
        assert_close(run(step)(models, jnp.asarray(index)), expected, rtol=1e-4, atol=1e-5)
    for model, other in zip(models, others, strict=True):
        assert_same(model.variables, other.variables, rtol=1e-4, atol=1e-5)


@RUN
@pytest.mark.parametrize("n", [0, 3])
def test_loops_that_train(run: Any, n: int) -> None:
    for_model, while_model, scan_model, by_hand = make(), make(), make(), make()

    def with_for(model: sb.Sequential, n: Any) -> Any:
        return sb.fori_loop(0, n, lambda i, x: model(x, training=True), X, vars=model)

    def with_while(model: sb.Sequential, n: Any) -> Any:
        def body(state: Any) -> Any:
            i, x = state
            return i + 1, model(x, training=True)

        return sb.while_loop(lambda state: state[0] < n, body, (0, X), vars=model)[1]

    def with_scan(model: sb.Sequential) -> Any:
        return sb.scan(lambda x, _: (model(x, training=True), None), X, None, n, vars=model)[0]

    expected = X
    for _ in range(n):
        expected = by_hand(expected, training=True)
    outs = run(with_for)(for_model, n), run(with_while)(while_model, n), run(with_scan)(scan_model)
    for out, model in zip(outs, (for_model, while_model, scan_model), strict=True):
        assert_close(out, expected, rtol=1e-3, atol=1e-4)
        assert_same(model.variables, by_hand.variables, rtol=1e-3, atol=1e-4)


def test_gradients_go_through_branches_and_loops() -> None:
    model = make()
    variables = model.variables

    def loss(model: sb.Sequential) -> Any:
        x = sb.fori_loop(0, 3, lambda i, x: model(x, training=False), X)
        return sb.cond(x.sum() < 0, lambda x: (x**2).sum(), lambda x: x.sum(), x)

    def loss_by_hand(params: Any) -> Any:
        x = X
        for _ in range(3):
            x, _ = model.apply({**variables, "params": params}, x, training=False)
        return jnp.where(x.sum() < 0, (x**2).sum(), x.sum())

    expected = jax.grad(loss_by_hand)(variables["params"])
    assert_same(sb.grad(loss)(model), expected, rtol=1e-4, atol=1e-5)
    assert_same(sb.jit(sb.grad(loss))(model), expected, rtol=1e-4, atol=1e-5)


class Decoder(nn.Module):
    """Attention over what was said before, in a cache."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8, decode=True)
        return x + attention(x, x)


class Mlp(eqx.Module):
    mlp: eqx.nn.MLP = eqx.field(
        default_factory=lambda: eqx.nn.MLP(8, 8, 16, 1, key=jax.random.key(1))
    )

    def __call__(self, x: Any) -> Any:
        return jax.vmap(self.mlp)(x)


def test_generation_until_an_end_token() -> None:
    length, end, words = 12, 0, 5

    def fresh() -> sb.Sequential:
        layers = [nn.Embed(words, 8), Decoder(), Mlp(), partial(hk.Linear, words)]
        return sb.Sequential(layers, seed=4).build(jnp.zeros((1, length), jnp.int32))

    @sb.jit
    def generate(model: sb.Sequential, first: Any) -> Any:
        def goes_on(state: Any) -> Any:
            step, tokens = state
            return (step < length - 1) & (tokens[step] != end)

        def say(state: Any) -> Any:
            step, tokens = state
            word = model(tokens[step][None, None], training=False)[0, 0].argmax()
            return step + 1, tokens.at[step + 1].set(word)

        tokens = jnp.full(length, -1).at[0].set(first)
        return sb.while_loop(goes_on, say, (0, tokens))

    for first in range(1, words):
        model, by_hand = fresh(), fresh()
        said = [first]
        while len(said) < length and said[-1] != end:
            token = jnp.array([[said[-1]]])
            said.append(int(by_hand(token, training=False)[0, 0].argmax()))
        steps, tokens = generate(model, first)
        assert tokens[: int(steps) + 1].tolist() == said
        assert_same(model.variables, by_hand.variables, rtol=1e-5, atol=1e-5)


def test_a_generator_and_a_discriminator_in_one_program() -> None:
    def losses(generator: Any, discriminator: Any, noise: Any) -> tuple[Any, Any]:
        fake = discriminator(generator(noise))
        return -fake.mean(), fake.mean() - discriminator(X).mean()

    models = make(1), make(2)
    optimizers = [sb.Optimizer(model, optax.sgd(0.1)) for model in models]
    noise = jax.random.normal(jax.random.key(9), X.shape)

    @sb.jit
    def step(generator: Any, discriminator: Any, optimizers: Any) -> Any:
        def train(model: Any) -> Any:
            return partial(model, training=True, rng=jax.random.key(3))

        def generated(generator: Any) -> Any:  # closes over the other model, whose state moves
            return losses(train(generator), train(discriminator), noise)[0]

        def judged(discriminator: Any) -> Any:
            return losses(train(generator), train(discriminator), noise)[1]

        first, grads = sb.value_and_grad(generated)(generator)
        optimizers[0].update(grads)
        second, grads = sb.value_and_grad(judged)(discriminator)
        optimizers[1].update(grads)
        return first, second

    variables = [model.variables for model in models]
    got = step(*models, optimizers)

    def run(i: int, params: Any, both: Any) -> Any:
        both = [*both]
        both[i] = {**both[i], "params": params}

        def model(j: int) -> Callable[[Any], Any]:
            def call(x: Any) -> Any:
                out, both[j] = models[j].apply(both[j], x, training=True, rng=jax.random.key(3))
                return out

            return call

        value = losses(model(0), model(1), noise)[i]
        return value, both

    expected = []
    for i in (0, 1):
        (value, after), grads = jax.value_and_grad(partial(run, i), has_aux=True)(
            variables[i]["params"], variables
        )
        expected.append(value)
        variables = after
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables[i]["params"], grads)
        variables[i] = {**variables[i], "params": params}
    assert_close(jnp.stack(got), jnp.stack(expected), rtol=1e-4, atol=1e-5)
    for model, values in zip(models, variables, strict=True):
        assert_same(model.variables, values, rtol=1e-4, atol=1e-5)


def test_what_goes_wrong_says_what_to_write() -> None:
    model = make()
    with pytest.raises(
        RuntimeError, match=r"inside sb.cond, which doesn't know of it.*sb.cond\(fn, vars"
    ):
        sb.cond(True, lambda: model(X, training=True), lambda: X)
    with pytest.raises(
        RuntimeError, match=r"condition of sb.while_loop changes .*mean.*in the body"
    ):
        sb.while_loop(lambda x: model(x, training=True).sum() < 0, lambda x: x, X, vars=model)
    with pytest.raises(
        TypeError, match=r"sb.fori_loop carries arrays: name the Sequential in vars="
    ):
        sb.fori_loop(0, 2, lambda i, m: m, model)
    with pytest.raises(TypeError, match=r"sb.cond decides by one boolean, not by float32\[6\]"):
        sb.cond(X[:, 0], lambda: X, lambda: X)
    for ours, call in {
        "cond": lambda x: jax.lax.cond(True, lambda x: model(x, training=True), lambda x: x, x),
        "switch": lambda x: jax.lax.switch(0, [lambda x: model(x, training=True)] * 2, x),
        "fori_loop": lambda x: jax.lax.fori_loop(0, 2, lambda _, x: model(x, training=True), x),
        "while_loop": lambda x: jax.lax.while_loop(
            lambda x: x.sum() < 0, lambda x: model(x, training=True), x
        ),
        "scan": lambda x: jax.lax.map(lambda x: model(x[None], training=True)[0], x),
        "grad": jax.grad(lambda x: model(x, training=True).sum()),
        "value_and_grad": jax.value_and_grad(lambda x: model(x, training=True).sum()),
        "vmap": jax.vmap(lambda x: model(x[None], training=True)),
        "jit": jax.jit(lambda x: model(x, training=True)),
        "remat": jax.checkpoint(lambda x: model(x, training=True)),
    }.items():
        for run in (call, sb.jit(call, vars=model)):
            with pytest.raises(
                RuntimeError, match=rf"is assigned inside jax\..*Use sb.{ours} in its"
            ):
                run(X)
    assert_same(model.variables, make().variables)
