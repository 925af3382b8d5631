"""What makes variables makes them at each place; what holds them is shared, and is said to be."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import objax
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax
from sklearn.datasets import load_digits

import seqbridge as sb
from helpers import usual_promotion

X = jax.random.normal(jax.random.key(0), (2, 4))

RECIPES: dict[str, Callable[[], Any]] = {
    "linen": lambda: partial(nn.Dense, 4),
    "nnx": lambda: partial(nnx.Linear, 4, 4),
    "equinox": lambda: partial(eqx.nn.Linear, 4, 4),
    "keras": lambda: partial(keras.layers.Dense, 4),
    "haiku": lambda: partial(hk.Linear, 4),
    "haiku transform": lambda: hk.transform(lambda x: hk.Linear(4)(x)),
    "stax": lambda: stax.Dense(4),
}
OBJECTS: dict[str, Callable[[], Any]] = {
    "linen": lambda: nn.Dense(4),
    "nnx": lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
    "equinox": lambda: eqx.nn.Linear(4, 4, key=jax.random.key(0)),
    "keras": lambda: keras.layers.Dense(4),
    "objax": lambda: objax.nn.Linear(4, 4),
    "a Layer": lambda: sb.Layer(partial(hk.Linear, 4)),
    "a model": lambda: sb.Sequential([partial(hk.Linear, 4)]),
}


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Keras, stax and Haiku's normalization add arrays of other ranks and dtypes."""
    with usual_promotion():
        yield


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Any:
    return RECIPES[request.param]()


@pytest.fixture(params=OBJECTS)
def thing(request: pytest.FixtureRequest) -> Any:
    return OBJECTS[request.param]()


def append(entry: Any) -> sb.Sequential:
    model = sb.Sequential([entry]).build((2, 4))
    model.append(entry)
    return model


def replace(entry: Any) -> sb.Sequential:
    model = sb.Sequential([entry, jnp.tanh]).build((2, 4))
    model[1] = entry
    return model


TWICE: dict[str, Callable[[Any], sb.Sequential]] = {
    "a list": lambda entry: sb.Sequential([entry, entry]),
    "a list in a list": lambda entry: sb.Sequential([entry, sb.Sequential([entry])]),
    "names": lambda entry: sb.Sequential({"a": entry, "b": entry}),
    "append": append,
    "replace": replace,
    "+ a list": lambda entry: sb.Sequential([entry]).__add__([entry]),
    "+ a model": lambda entry: sb.Sequential([entry]) + sb.Sequential([entry]),
    "a copy": lambda entry: copy.deepcopy(sb.Sequential([entry, entry])),
    "an export": lambda entry: sb.Sequential(
        [sb.to_linen(sb.Sequential([entry, entry]).build((2, 4)))]
    ),
    "Repeat": lambda entry: sb.Sequential([sb.Repeat([entry, entry], 3)]),
}


@pytest.mark.parametrize("way", TWICE)
def test_a_recipe_makes_a_layer_at_each_place(recipe: Any, way: str) -> None:
    one = sb.Sequential([recipe]).build((2, 4)).vars().tensors()
    model = TWICE[way](recipe).build((2, 4))
    assert len(model.vars().tensors()) == 2 * len(one)
    if not isinstance(model[0].entry, nn.Module | sb.PureLayer):
        kernels = [v.value for v in model.vars().values() if v.value.ndim == 2]
        assert len(kernels) == 2
        assert not np.allclose(kernels[0], kernels[1])
    assert "shared" not in f"{model!r} {model.vars()!r} {model.summary((2, 4))}"


@pytest.mark.parametrize("way", TWICE)
def test_an_object_is_one_layer(thing: Any, way: str) -> None:
    whole = isinstance(thing, sb.Sequential)
    one = copy.deepcopy(thing) if whole else sb.Sequential([copy.copy(thing)])
    model = TWICE[way](thing).build((2, 4))
    assert len(model.vars().tensors()) == len(one.build((2, 4)).vars().tensors())


def test_a_pickle_keeps_what_is_shared() -> None:
    dense, recipe = nn.Dense(4), partial(hk.Linear, 4)
    model = sb.Sequential([dense, recipe, recipe, dense])
    for _ in range(2):
        again = pickle.loads(pickle.dumps(model))
        assert len(again.build((2, 4)).vars().tensors()) == 6
        model.build((2, 4))


class Coder(nn.Module):
    def setup(self) -> None:
        self.dense = nn.Dense(4)

    def encode(self, x: Any) -> Any:
        return self.dense(x)

    def decode(self, x: Any) -> Any:
        return self.dense(x) + 1


@pytest.mark.parametrize(
    "way",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m,
        lambda m: [sb.to_linen(m)],
    ],
    ids=["deepcopy", "pickle", "the model", "an export"],
)
def test_methods_of_one_module_share(way: Callable[[Any], Any]) -> None:
    coder = Coder()
    pairs = [
        [sb.Layer(coder, method="encode"), sb.Layer(coder, method="decode")],
        [coder.encode, coder.decode],
        [partial(coder.encode), sb.Layer(coder, method="decode")],
        [coder.encode, sb.remat(sb.Layer(coder, method="decode"))],
    ]
    for pair in pairs:
        model = sb.Sequential(way(sb.Sequential(pair))).build((2, 4))
        assert len(model.vars().tensors()) == 2


def test_a_rematerialized_layer_shares_with_the_layer() -> None:
    for layer in (nn.Dense(4), sb.Layer(partial(hk.Linear, 4))):
        model = sb.Sequential([layer, sb.remat(layer)]).build((2, 4))
        assert len(model.vars().tensors()) == 2


def test_sharing_is_said_at_every_depth() -> None:
    dense, linear = nn.Dense(4), nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    block = sb.Sequential({"act": nn.relu, "proj": dense})
    entries = [dense, jnp.tanh, jnp.tanh, dense, block, linear, nnx.Sequential(linear, nnx.relu)]
    model = sb.Sequential([*entries, sb.Sequential([block]), sb.Repeat([linear, linear], 2)])
    expected = {
        "[3]": "shared with [0]",
        "[4].proj": "shared with [0]",
        "[6]": "shared with [5]",
        "[7][0].proj": "shared with [0]",
    }
    rows: dict[str, str] = {}
    for _ in range(2):
        lines = repr(model).splitlines()
        said = [line.strip() for line in lines if "shared" in line]
        assert said == [
            "[3] linen Dense(features=4) shared with [0]",
            "[1] proj: linen Dense(features=4) shared with [0]",
            "[6] nnx Sequential() shared with [5]",
            "[1] proj: linen Dense(features=4) shared with [0]",
            "[8] seqbridge Repeat(Sequential(Linear, Linear shared with [0]), 2)",
        ]
        rows = {row.name: row.shared for row in model.summary((2, 4)).rows if row.shared}
        model.build((2, 4))
    for place, text in expected.items():
        assert any(
            re.sub(r"\(.*?\)", "", name) == place and row == text for name, row in rows.items()
        ), place
    assert "shared with [8][0]" in rows.values()
    picture = sb.plot(model)._repr_svg_()
    assert "shared with [0]" in picture
    assert "shared with [8][0]" in picture
    table = repr(model.vars())
    assert "(Sequential)[7](Sequential)[0](Sequential).proj(Dense).bias" in table
    assert table.count("shared with [0]") == 6
    assert table.count("shared with [5]") == 2


def test_a_part_that_is_shared_is_said_to_be() -> None:
    linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    pair = nnx.Sequential(linear, nnx.Linear(4, 4, rngs=nnx.Rngs(1)))
    model = sb.Sequential({"first": linear, "pair": pair, "again": pair})
    assert "[1] pair: nnx Sequential() partly shared with first\n" in repr(model)
    assert "[2] again: nnx Sequential() shared with first, pair\n" in repr(model)
    assert repr(model.vars()).count("shared with pair") == 2


class Residual(nn.Module):
    body: nn.Module

    @nn.compact
    def __call__(self, x: Any, training: bool) -> Any:
        return nn.relu(x + self.body(x, training=training))


def test_a_resnet_whose_norm_is_a_recipe_learns() -> None:
    conv = partial(hk.Conv2D, 16, 3, with_bias=False)
    norm = partial(hk.BatchNorm, True, True, 0.9)

    def block() -> nn.Module:
        return Residual(sb.to_linen(sb.Sequential([conv, norm, nn.relu, conv, norm])))

    model = sb.Sequential(
        [conv, norm, nn.relu, block(), block(), lambda x: x.mean((1, 2)), nn.Dense(10)], seed=1
    ).build((None, 8, 8, 1))
    assert len(model.vars().subset("state").tensors()) == 5 * 6  # five norms, two averages each

    pixels, digits = load_digits(return_X_y=True)
    images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(digits)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1440], order[1440:]
    optimizer = sb.Optimizer(model, optax.adam(3e-3))

    @sb.jit
    def step(model: sb.Sequential, optimizer: sb.Optimizer, x: Any, y: Any) -> Any:
        def loss(model: sb.Sequential) -> Any:
            logits = model(x, training=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = sb.value_and_grad(loss)(model)
        optimizer.update(grads)
        return value

    for epoch in range(12):
        for batch in np.random.default_rng(epoch).permutation(train).reshape(-1, 72):
            step(model, optimizer, images[batch], labels[batch])
    predicted = sb.jit(lambda model, x: model(x, training=False).argmax(-1))(model, images[test])
    assert float((predicted == labels[test]).mean()) >= 0.97
