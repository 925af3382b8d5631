"""Layers of one example: keywords that are mapped with the inputs, and more axes than the batch."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb
from helpers import assert_close

X = jax.random.normal(jax.random.key(0), (3, 5, 4))
MASK = jnp.arange(5)[None] < jnp.array([[2], [3], [5]])


class Block(eqx.Module):
    """One sequence, and a mask of its own."""

    linear: eqx.nn.Linear = eqx.field(
        default_factory=lambda: eqx.nn.Linear(4, 4, key=jax.random.key(0))
    )

    def __call__(self, x: Any, mask: Any) -> Any:
        return jnp.where(mask[..., None], jax.vmap(self.linear)(x), 0.0)


@pytest.mark.parametrize("size", [3, 5])
def test_a_keyword_of_each_example_is_mapped(size: int) -> None:
    x, mask = jnp.ones((size, 5, 4)), jnp.ones((size, 5), bool).at[0, 2:].set(False)
    block = Block()
    expected = jax.vmap(block)(x, mask)
    model = sb.Sequential([sb.Layer(block, batched=("mask",))])
    model.build((size, 5, 4), mask=jax.ShapeDtypeStruct((size, 5), bool))
    assert_close(model(x, mask=mask), expected)
    assert_close(sb.jit(lambda model: model(x, mask=mask))(model), expected)
    assert_close(model.apply(model.variables, x, mask=mask)[0], expected)
    assert_close(sb.to_pure(model).apply(model.variables, x, mask=mask)[0], expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(x, mask=mask), expected)
    for entry in (
        sb.remat(sb.Layer(block, batched="mask")),
        sb.Repeat(sb.Layer(block, batched="mask"), 1),
    ):
        assert_close(sb.Sequential([entry])(x, mask=mask), expected)


def test_a_keyword_that_looks_like_a_batch_and_is_not_mapped_is_an_error() -> None:
    model = sb.Sequential([nn.Dense(4), Block()])
    for x, mask in ((X, MASK), (jnp.ones((4, 4, 4)), jnp.ones((4, 4), bool))):
        with pytest.raises(TypeError, match=r"mask is as long as the batch.*batched=\('mask',\)"):
            model(x, mask=mask)
    same = sb.Sequential([sb.Layer(Block(), batched=())])
    square = jnp.ones((5, 5, 4))
    expected = jax.vmap(Block(), in_axes=(0, None))(square, MASK[0])
    assert_close(same(square, mask=MASK[0]), expected)
    assert_close(
        sb.Sequential([Block()])(X, mask=MASK[0]), jax.vmap(Block(), (0, None))(X, MASK[0])
    )


@pytest.mark.parametrize(
    "make",
    [lambda: eqx.nn.Linear(4, 2, key=jax.random.key(1)), lambda: partial(eqx.nn.Linear, 4, 2)],
)
def test_two_axes(make: Any) -> None:
    model = sb.Sequential([sb.Layer(make(), per_example=2)]).build((3, 5, 4))
    weight, bias = model[0].weight.value, model[0].bias.value
    assert_close(model(X), X @ weight.T + bias[None, None])
    assert_close(sb.jit(lambda model: model(X))(model), X @ weight.T + bias[None, None])
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert_close(grads["(Sequential)[0](Linear).bias"], jnp.full(2, 15.0))
    twice = sb.Sequential([sb.Repeat(sb.Layer(partial(eqx.nn.Linear, 4, 4), per_example=2), 2)])
    assert twice.build((3, 5, 4))(X).shape == X.shape


def test_each_example_of_two_axes_draws_its_own() -> None:
    model = sb.Sequential([sb.Layer(eqx.nn.Dropout(0.5), per_example=2)])
    ones = jnp.ones((4, 6, 8))
    out = model(ones, training=True, rng=jax.random.key(0))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), (4, 6))
    dropout = eqx.nn.Dropout(0.5)
    assert_close(out, jax.vmap(jax.vmap(lambda x, key: dropout(x, key=key)))(ones, keys))
    assert len(np.unique(np.asarray(out).reshape(24, 8), axis=0)) > 12


def test_what_goes_wrong_says_what_to_write() -> None:
    with pytest.raises(ValueError, match="takes inputs with 2 leading axes"):
        sb.Sequential([sb.Layer(eqx.nn.Lambda(jnp.tanh), per_example=2)])(jnp.ones(3))
    with pytest.raises(TypeError, match="per_example= is True, False, or the number"):
        sb.Layer(Block(), per_example="2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"batched='maks': Block takes no such keyword; did you"):
        sb.Layer(Block(), batched="maks")
    with pytest.raises(TypeError) as caught:
        sb.Sequential([eqx.nn.Linear(4, 4, key=jax.random.key(0))])(X)
    assert "sb.Layer(entry, per_example=2)" in " ".join(caught.value.__notes__)
