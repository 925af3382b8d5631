"""Whole networks of the libraries as single entries compile to the hand-written program."""

from __future__ import annotations

import collections
import functools
import re
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqbridge as sb

KEY = jax.random.key(2)


class ResidualBlock(nn.Module):
    """As in He et al., 2015."""

    features: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = nn.relu(norm()(nn.Conv(self.features, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        return nn.relu(nn.Conv(self.features, (1, 1))(x) + y)


class DropoutMLP(nn.Module):
    """Two layers with dropout between them."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(4)(x)


def resnet(x: Any, is_training: bool) -> Any:
    return hk.nets.ResNet18(5)(x, is_training)


def mlp(x: Any, is_training: bool) -> Any:
    return hk.nets.MLP([16, 4])(
        x, dropout_rate=0.3 if is_training else None, rng=hk.next_rng_key() if is_training else None
    )


def linen_by_hand(module: nn.Module, tree: Any, key: Any, x: Any, training: bool) -> Any:
    mutable = ["batch_stats"] if training and "batch_stats" in tree else []
    out, state = module.apply(tree, x, train=training, rngs={"dropout": key}, mutable=mutable)
    return out, {**tree, **state}


def haiku_by_hand(pair: Any, tree: Any, key: Any, x: Any, training: bool) -> Any:
    out, state = pair.apply(*tree, key, x, is_training=training)
    return out, (tree[0], state if training else tree[1])


NETWORKS = {
    "linen ResNet block": (ResidualBlock(4), linen_by_hand, (2, 6, 6, 3)),
    "linen MLP": (DropoutMLP(), linen_by_hand, (5, 8)),
    "Haiku ResNet18": (hk.transform_with_state(resnet), haiku_by_hand, (2, 32, 32, 3)),
    "Haiku MLP": (hk.transform_with_state(mlp), haiku_by_hand, (5, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_is_bit_identical(name: str) -> None:
    entry, by_hand, shape = NETWORKS[name]
    with jax.numpy_dtype_promotion("standard"):  # Haiku's moving averages mix ints and floats
        model = sb.Sequential([entry]).build(shape)
        x = jax.random.normal(KEY, shape)
        for training in (True, False):
            out, tree = by_hand(entry, model[0].native, jax.random.fold_in(KEY, 0), x, training)
            np.testing.assert_array_equal(model(x, training=training, rng=KEY), out)
            jax.tree.map(np.testing.assert_array_equal, model[0].native, tree)


# The program


CONV, NORM, DROP = nn.Conv(4, (3, 3)), nn.BatchNorm(), nn.Dropout(0.5)
HEAD = hk.transform(lambda x: hk.Linear(3)(x))
X, LABELS = jax.random.normal(KEY, (4, 5, 5, 1)), jnp.array([0, 1, 2, 0])
SGD = optax.sgd(0.1)


def model() -> sb.Sequential:
    return sb.Sequential(
        [CONV, NORM, nn.relu, lambda x: x.reshape(x.shape[0], -1), DROP, HEAD]
    ).build(X.shape)


def cross_entropy(logits: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def by_hand(params: Any, stats: Any, stream: Any, x: Any) -> Any:
    following, key = jax.random.split(stream)
    x = CONV.apply({"params": params["conv"]}, x)
    x, new = NORM.apply(
        {"params": params["norm"], "batch_stats": stats},
        x,
        use_running_average=False,
        mutable=["batch_stats"],
    )
    x = nn.relu(x).reshape(x.shape[0], -1)
    x = DROP.apply({}, x, deterministic=False, rngs={"dropout": jax.random.fold_in(key, 4)})
    return HEAD.apply(params["head"], None, x), new["batch_stats"], following


def parts(model: sb.Sequential) -> tuple[Any, Any, Any]:
    params = {
        "conv": model[0].native["params"],
        "norm": model[1].native["params"],
        "head": model[5].native[0],
    }
    return params, model[1].native["batch_stats"], model.vars()["(Sequential).rng"].value


def operations(lowered: Any) -> collections.Counter[str]:
    # A key that comes out of a program has a note, `stablehlo.mesh`, which is no operation; its
    # numbers have none.
    return collections.Counter(re.findall(r"stablehlo\.(?!mesh\b)\w+|\bcall @", lowered.as_text()))


def test_the_training_call_is_the_hand_written_program() -> None:
    m = model()
    ours = operations(sb.jit(lambda m, x: m(x, training=True)).lower(m, X))
    assert ours == operations(jax.jit(by_hand).lower(*parts(m), X))
    assert ours["stablehlo.convolution"] == 1


def test_the_gradient_step_is_the_hand_written_program() -> None:
    m = model()
    optimizer = sb.Optimizer(m, SGD)

    def step(m: sb.Sequential, optimizer: sb.Optimizer, x: Any) -> Any:
        value, grads = sb.value_and_grad(lambda m: cross_entropy(m(x, training=True)))(m)
        optimizer.update(grads)
        return value

    def hand_step(params: Any, stats: Any, stream: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, new, following = by_hand(params, stats, stream, x)
            return cross_entropy(logits), (new, following)

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = SGD.update(grads, state, params)
        return value, optax.apply_updates(params, updates), rest, state

    params, stats, stream = parts(m)
    ours = sb.jit(step)
    hand = jax.jit(hand_step)
    arguments = params, stats, stream, SGD.init(params), X
    assert operations(ours.lower(m, optimizer, X)) == operations(hand.lower(*arguments))
    value, params, (stats, _), _ = hand(*arguments)
    np.testing.assert_array_equal(ours(m, optimizer, X), value)
    jax.tree.map(np.testing.assert_array_equal, parts(m)[:2], (params, stats))


def test_inference_takes_no_key_and_returns_no_state() -> None:
    m = model()
    lowered = sb.jit(lambda m, x: m(x, training=False)).lower(m, X)
    text = lowered.as_text()
    assert "threefry" not in text
    assert jax.tree.structure(lowered.out_info) == jax.tree.structure((0, {}))


def test_a_network_learns_in_every_form() -> None:
    """The stateful and the pure loop go the same way."""
    m, twin = model(), model()
    optimizer = sb.Optimizer(m, SGD)
    variables, state, key = twin.variables, SGD.init(twin.variables["params"]), jax.random.key(0)

    @sb.jit
    def step(m: Any, optimizer: Any, rng: Any) -> Any:
        value, grads = sb.value_and_grad(lambda m: cross_entropy(m(X, training=True, rng=rng)))(m)
        optimizer.update(grads)
        return value

    @jax.jit
    def pure_step(variables: Any, state: Any, rng: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, after = twin.apply({**variables, "params": params}, X, training=True, rng=rng)
            return cross_entropy(logits), after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = SGD.update(grads, state, variables["params"])
        return value, {**after, "params": optax.apply_updates(variables["params"], updates)}, state

    values = []
    for i in range(20):
        rng = jax.random.fold_in(key, i)
        values.append(float(step(m, optimizer, rng)))
        value, variables, state = pure_step(variables, state, rng)
        np.testing.assert_allclose(values[-1], value, rtol=1e-4)
    assert np.mean(values[-5:]) < np.mean(values[:5])
    twin.assign(variables)
    np.testing.assert_allclose(twin(X, training=False), m(X, training=False), rtol=1e-3, atol=1e-4)
