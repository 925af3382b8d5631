"""An optimizer's state in the transformation's own structure, and parameters that aren't floats."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import seqbridge as sb
from helpers import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("usual_promotion")

X = jax.random.normal(jax.random.key(0), (6, 4))
Y = jax.random.normal(jax.random.key(1), (6, 2))


def make() -> sb.Sequential:
    return sb.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(2)]).build(X)


def loss(model: sb.Sequential) -> Any:
    return ((model(X) - Y) ** 2).mean()


@sb.jit
def step(model: sb.Sequential, optimizer: sb.Optimizer) -> None:
    optimizer.update(sb.grad(loss)(model))


def by_hand(transformation: Any, n: int) -> tuple[Any, Any]:
    model = make()
    variables = model.variables
    params = variables["params"]
    state = transformation.init(params)

    def loss(params: Any) -> Any:
        out, _ = model.apply({**variables, "params": params}, X)
        return ((out - Y) ** 2).mean()

    for _ in range(n):
        updates, state = transformation.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_schedule_free_is_evaluated_by_its_own_function() -> None:
    transformation = optax.contrib.schedule_free_adamw(0.05, warmup_steps=2)
    model = make()
    optimizer = sb.Optimizer(model, transformation)
    for _ in range(6):
        step(model, optimizer)
    params, state = by_hand(transformation, 6)
    expected = optax.contrib.schedule_free_eval_params(state, params)
    evaluated = optax.contrib.schedule_free_eval_params(optimizer.native, model.variables["params"])
    assert_same(evaluated, expected, rtol=1e-4, atol=1e-5)
    model.assign({"params": evaluated})
    assert_close(loss(model), ((model(X) - Y) ** 2).mean())


CLIPPED = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize("transformation", [optax.adam(0.1), CLIPPED, optax.sgd(0.1)])
def test_the_native_state_goes_out_and_comes_back(transformation: Any) -> None:
    model, other = make(), make()
    optimizer, another = (sb.Optimizer(m, transformation) for m in (model, other))
    for _ in range(3):
        step(model, optimizer)
    params, state = by_hand(transformation, 3)
    assert jax.tree.structure(optimizer.native) == jax.tree.structure(state)
    for got, wanted in zip(jax.tree.leaves(optimizer.native), jax.tree.leaves(state), strict=True):
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    another.load_native(state)
    other.assign({"params": params})
    step(model, optimizer)
    step(other, another)
    assert_same(other.variables, model.variables, rtol=1e-4, atol=1e-5)


def test_a_state_of_another_structure_is_refused() -> None:
    model = make()
    optimizer = sb.Optimizer(model, optax.adam(0.1))
    with pytest.raises(ValueError, match=r"structure|arity|node"):
        optimizer.load_native(optax.sgd(0.1).init(model.variables["params"]))
    wrong = jax.tree.map(lambda a: jnp.zeros((*a.shape, 2), a.dtype), optimizer.native)
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_native(wrong)


class Quantized(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        weights = self.param("q", lambda key: jnp.full((4, 4), 3, jnp.int8))
        scale = self.param("scale", nn.initializers.constant(0.1), (1, 4))
        return x @ weights.astype(jnp.float32) * scale


def test_parameters_that_are_no_floats_have_no_gradient_and_no_update() -> None:
    model = sb.Sequential([Quantized(), nn.Dense(2)]).build(X)
    optimizer = sb.Optimizer(model, optax.adam(0.1))
    grads = sb.grad(loss)(model)
    assert not any(name.endswith(".q") for name in grads)
    before = model.variables["params"]
    step(model, optimizer)
    after = model.variables["params"]
    assert_same(after["(Sequential)[0](Quantized).q"], before["(Sequential)[0](Quantized).q"])
    assert not jnp.array_equal(
        after["(Sequential)[0](Quantized).scale"], before["(Sequential)[0](Quantized).scale"]
    )


def test_an_optimizer_of_a_part_takes_all_gradients() -> None:
    model, other = make(), make()
    part = sb.Optimizer(model, optax.sgd(0.1), wrt=r"\[2\]")
    same = sb.Optimizer(other, optax.sgd(0.1), wrt=r"\[2\]")
    part.update(sb.grad(loss)(model))
    same.update(sb.grad(loss, wrt=r"\[2\]")(other))
    assert_same(model.variables, other.variables)
    with pytest.raises(KeyError, match="unknown: nothing"):
        part.update({**sb.grad(loss)(model), "nothing": jnp.zeros(2)})
    frozen = make()
    frozen[0].trainable = False
    whole, grads = sb.Optimizer(frozen, optax.sgd(0.1)), sb.grad(loss)(make())
    with pytest.raises(KeyError, match="unknown"):
        whole.update(grads)
