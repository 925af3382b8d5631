"""`sb.freeze`: a model's variables as constants of a compiled function of the inputs."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqbridge as sb
from helpers import assert_close

X = jnp.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]])


def mixed() -> sb.Sequential:
    entries = [
        nn.Dense(4), nn.BatchNorm(), nn.leaky_relu, eqx.nn.Dropout(0.5),
        functools.partial(hk.Linear, 2),
    ]  # fmt: skip
    return sb.Sequential(entries).build((3, 2))


def test_it_computes_what_the_model_computes() -> None:
    model = mixed()
    predict = sb.freeze(model)
    assert_close(predict(X), model(X, training=False))
    assert_close(predict(X, negative_slope=0.3), model(X, training=False, negative_slope=0.3))
    assert_close(predict(X[:1]), model(X[:1], training=False))
    assert_close(
        sb.freeze(model, negative_slope=0.3)(X), model(X, training=False, negative_slope=0.3)
    )
    assert_close(sb.freeze(model[0])(X), model[0](X))
    assert_close(sb.freeze(eqx.nn.Linear(2, 3, key=jax.random.key(0)))(X).shape, (3, 3))
    assert "Dense" in repr(predict)


def test_nothing_but_the_inputs_is_passed() -> None:
    model = mixed()
    lowered = sb.freeze(model).lower(jax.ShapeDtypeStruct((3, 2), jnp.float32))
    assert [info.shape for info in jax.tree.leaves(lowered.args_info)] == [(3, 2)]


def test_shapes_that_are_given_are_compiled_at_once() -> None:
    traces = []
    model = sb.Sequential([nn.Dense(4), lambda x: traces.append(x.shape) or x]).build((3, 2))
    predict = sb.freeze(model, (3, 2))
    traces.clear()
    predict(X)
    assert traces == []
    predict(X[:1])
    assert traces == [(1, 4)]


def test_later_changes_do_not_reach_it() -> None:
    model = mixed()
    predict, before = sb.freeze(model), model(X, training=False)
    optimizer = sb.Optimizer(model, optax.sgd(0.1))

    @functools.partial(sb.jit, donate=True)  # gives the arrays away that were frozen
    def step(model: Any, optimizer: Any, x: Any) -> None:
        optimizer.update(sb.grad(lambda model: (model(x, training=True) ** 2).sum())(model))

    step(model, optimizer, X)
    model.append(nn.relu)
    assert_close(predict(X), before)
    assert_close(predict(X[:1]), before[:1])  # traced only now
    assert not np.allclose(model(X, training=False), before)


def test_it_is_a_function_to_jax() -> None:
    model = mixed()
    predict = sb.freeze(model)
    assert_close(jax.jit(predict)(X), predict(X))
    assert_close(jax.vmap(predict)(jnp.stack([X, 2 * X]))[1], predict(2 * X))
    expected = jax.grad(lambda x: model.apply(model.variables, x, training=False)[0].sum())(X)
    assert_close(jax.grad(lambda x: predict(x).sum())(X), expected)
    assert predict.eval_shape(X).shape == (3, 2)
    assert len(predict.trace(X).jaxpr.eqns)


def test_it_can_be_exported() -> None:
    predict = sb.freeze(mixed(), negative_slope=0.3)
    exported = jax.export.export(predict)(jax.ShapeDtypeStruct((3, 2), jnp.float32))
    assert len(exported.in_avals) == 1
    assert_close(exported.call(X), predict(X))
    (batch,) = jax.export.symbolic_shape("batch")
    any_batch = jax.export.export(predict)(jax.ShapeDtypeStruct((batch, 2), jnp.float32))
    for rows in (X, X[:1]):
        assert_close(any_batch.call(rows), predict(rows))


def test_what_it_refuses_it_explains() -> None:
    with pytest.raises(RuntimeError, match=r"\.build\(shape\)"):
        sb.freeze(sb.Sequential([nn.Dense(2)]))
    with pytest.raises(TypeError, match=r"would change .*BatchNorm\)\.mean.*training=False"):
        sb.freeze(sb.Sequential([nn.BatchNorm()]).build((3, 2)), training=True)(X)
    dropout = sb.freeze(sb.Sequential([nn.Dropout(0.5)]).build((3, 2)), training=True)
    with pytest.raises(TypeError, match="rng=key"):
        dropout(X)
    key = jax.random.key(1)
    assert_close(dropout(X, rng=key), sb.Sequential([nn.Dropout(0.5)])(X, training=True, rng=key))
    with pytest.raises(TypeError, match="a shape or an array is wanted"):
        sb.freeze(mixed(), 3, 2)
    with pytest.raises(TypeError, match="no layer takes the keyword 'slope'"):
        sb.freeze(mixed())(X, slope=2.0)
