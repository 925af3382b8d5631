"""Layers of all ecosystems in one list: one mode, one stream of keys, edits and shared weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
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

import seqbridge as sb
import toy_layers

X = jax.random.normal(jax.random.key(0), (6, 4))


pytestmark = pytest.mark.usefixtures("usual_promotion")  # which the libraries' own code needs


def _haiku_norm(x: jax.Array, is_training: bool) -> jax.Array:
    return hk.BatchNorm(True, True, 0.9)(x, is_training)


def everything() -> sb.Sequential:
    key = jax.random.key(1)
    return sb.Sequential([
        nn.Dense(8), nn.BatchNorm(), nn.relu, nn.Dropout(0.2),
        functools.partial(hk.Linear, 8), hk.transform_with_state(_haiku_norm),
        nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(1)),
        functools.partial(nnx.Linear, 8, 8),
        eqx.nn.Linear(8, 8, key=key), eqx.nn.BatchNorm(8, "batch", mode="batch"),
        eqx.nn.Dropout(0.2), jnp.tanh,
        stax.Dense(8), stax.Dropout(0.8),
        keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.2),
        objax.nn.Linear(8, 8), objax.nn.BatchNorm0D(8),
        functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
        toy_layers.Gain(), toy_layers.Center(), jax.vmap(eqx.nn.Linear(8, 3, key=key)),
    ])  # fmt: skip


def test_one_list_of_everything() -> None:
    model = everything().build(X.shape)
    ecosystems = {layer.pure.ecosystem for layer in model}
    assert ecosystems == {
        "linen",
        "haiku",
        "nnx",
        "equinox",
        "stax",
        "keras",
        "objax",
        "toy",
        "function",
    }
    assert len(model) >= 17
    table = str(model.vars())
    assert all(name in table for name in model.vars())

    grads = sb.grad(lambda model: (model(X, training=True) ** 2).sum())(model)
    assert grads.keys() == model.variables["params"].keys()
    with_parameters = {i for i, layer in enumerate(model) if layer.vars().subset("params")}
    moved = {
        int(name.partition("[")[2].partition("]")[0])
        for name, g in grads.items()
        if np.abs(g).sum() > 0
    }
    assert moved == with_parameters
    assert len(with_parameters) >= 14


def test_one_mode_one_stream_of_keys_and_state_in_training_only() -> None:
    model = everything().build(X.shape)
    with pytest.raises(
        TypeError, match=r"pass training=True or training=False: .*linen.*nnx.*equinox.*keras"
    ):
        model(X)
    before = model.variables
    first, second = model(X, training=False), model(X, training=False)
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, model.variables, before)
    assert float(jnp.abs(model(X, training=True) - model(X, training=True)).max()) > 0
    after = model.variables
    jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
    assert after["state"].keys() == before["state"].keys()
    assert all(
        (np.asarray(after["state"][n]) != np.asarray(v)).any() for n, v in before["state"].items()
    )
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        copy.deepcopy(model)(X, training=True, rng=key),
        copy.deepcopy(model)(X, training=True, rng=key),
    )


def test_the_ways_to_run_it_agree() -> None:
    model, key = everything().build(X.shape), jax.random.key(4)
    variables, twin = model.variables, copy.deepcopy(model)
    for training in (True, False):
        step = sb.jit(lambda model, x, training: model(x, training=training, rng=key))
        expected = model(X, training=training, rng=key)
        np.testing.assert_allclose(step(twin, X, training), expected, rtol=2e-5, atol=2e-5)
        with jax.no_tracing():
            step(twin, X, training)
        pure = jax.jit(
            lambda v, x, training=training: model.apply(v, x, training=training, rng=key)
        )
        out, variables_after = pure(variables, X)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
        if training:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
                variables_after,
                model.variables,
            )
            twin.assign(model.variables)
            variables = model.variables
    stacked = jnp.stack([X, 2 * X])
    rows = sb.vmap(lambda model, x: model(x, training=False))(model, stacked)
    np.testing.assert_allclose(
        rows, jnp.stack([model(x, training=False) for x in stacked]), rtol=2e-5, atol=2e-5
    )


def test_it_trains() -> None:
    model = everything().build(X.shape)
    optimizer = sb.Optimizer(model, optax.adam(1e-2))

    @sb.jit
    def step(model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array) -> jax.Array:
        loss, grads = sb.value_and_grad(
            lambda model: ((model(x, training=True) - 1.0) ** 2).mean()
        )(model)
        optimizer.update(grads)
        return loss

    losses = [float(step(model, optimizer, X)) for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


ENTRIES: dict[str, Callable[[], Any]] = {
    "linen": lambda: nn.Dense(4),
    "haiku": lambda: functools.partial(hk.Linear, 4),
    "nnx": lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
    "nnx class": lambda: functools.partial(nnx.Linear, 4, 4),
    "equinox": lambda: eqx.nn.Linear(4, 4, key=jax.random.key(0)),
    "equinox scalar": lambda: eqx.nn.PReLU(),
    "equinox class": lambda: functools.partial(eqx.nn.Linear, 4, 4),
    "stax": lambda: stax.Dense(4),
    "keras": lambda: keras.layers.Dense(4),
    "keras built": lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]),
    "objax": lambda: objax.nn.Linear(4, 4),
    "toy": lambda: toy_layers.Gain(),
    "function": lambda: (lambda w: lambda x: x @ w)(jnp.eye(4)),
}


@pytest.mark.parametrize("make", ENTRIES.values(), ids=ENTRIES)
def test_weights_of_a_layer_are_shared_across_positions(make: Callable[[], Any]) -> None:
    entry = sb.Layer(make())
    model = sb.Sequential([entry, jnp.tanh, sb.Sequential({"again": entry})]).build(X.shape)
    model.append(entry)
    once = sb.Sequential([make()]).build(X.shape)
    boxes = {v for v in model.vars().values() if v.kind == "params"}
    assert len(boxes) == len(once.vars().subset("params"))
    assert model[0] is model[2].again is model[3]
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert len(grads) == len(boxes)
    for box in boxes:
        box.assign(jnp.zeros(box.shape))
    negative = -jnp.abs(X)  # what a slope of zero makes zero, too
    assert float(jnp.abs(model(negative)).max()) == 0
    model[0], other = make(), model[2].again
    assert model[0] is not other
    assert model[3] is other


@pytest.mark.parametrize("old", ENTRIES.values(), ids=ENTRIES)
def test_any_layer_can_take_the_place_of_any_other(old: Callable[[], Any]) -> None:
    for new in ENTRIES.values():
        model = sb.Sequential([nn.Dense(4), old(), jnp.tanh, nn.Dense(2)]).build(X.shape)
        first, last = model[0].kernel.value, model[3].kernel.value
        model[1] = new()
        model.insert(2, old())
        assert model.built
        assert model[0].kernel.value is first
        assert model[4].kernel.value is last
        labels = [name.partition("[")[2].partition(".")[0] for name in model.vars()]
        assert sorted(set(labels), key=labels.index) == [
            f"{i}]({layer.pure.label})"
            for i, layer in enumerate(model)
            if layer.vars().subset("params")
        ]
        assert model(X).shape == (6, 2)


def test_a_parameter_that_modules_share_is_one_variable() -> None:
    embed = nnx.Embed(5, 4, rngs=nnx.Rngs(0))

    class Decoder(nnx.Module):
        def __init__(self) -> None:
            self.embed = embed

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.embed.attend(x)

    model = sb.Sequential([embed, jnp.tanh, Decoder(), embed.attend])
    assert len(set(model.vars().values())) == 1
    grads = sb.grad(lambda model: model[:3](jnp.array([0, 1])).sum())(model)
    assert list(grads) == ["(Sequential)[0](Embed).embedding"]
    dense = keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), dense])
    model = sb.Sequential([dense, jnp.tanh, inner])
    assert len(set(model.vars().values())) == 2
    both = sb.Sequential([sb.Sequential([embed]), sb.Sequential([Decoder()])])
    assert len(set(both.vars().values())) == 1
    for module in (eqx.nn.Linear(4, 4, key=jax.random.key(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(0))):
        model = sb.Sequential(
            [module, jax.vmap(module), functools.partial(lambda m, x: jax.vmap(m)(x), module)]
        )
        model.append(module.__call__)
        assert len(set(model.vars().values())) == 2


@pytest.mark.parametrize(("changed", "layers"), [((), 1), ((0,), 1), ((1,), 2), ((0, 1), 2)])
def test_layers_of_one_module_are_one_unless_both_have_values_of_their_own(
    changed: Any, layers: int
) -> None:
    module = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    models = [sb.Sequential([module]).build(X.shape) for _ in range(2)]
    for i in changed:
        models[i][0].kernel.assign(models[i][0].kernel + 1 + i)
    both = sb.Sequential(models)
    assert len({both[0][0], both[1][0]}) == layers


def test_of_two_layers_that_share_a_parameter_the_one_that_was_there_keeps_its_variable() -> None:
    embed = nnx.Embed(5, 4, rngs=nnx.Rngs(0))
    model, other = (
        sb.Sequential([embed]).build(jnp.array([0])),
        sb.Sequential([embed.attend]).build(X),
    )
    variable, joined = model[0].embedding, next(iter(other.vars().values()))
    model.insert(0, other[0])
    assert set(model.vars().values()) == {variable}
    del model[0]
    variable.assign(variable + 1)
    joined.assign(joined - 1)
    model.append(embed.attend)
    # A layer that comes without a value of its own takes that one.
    assert set(model.vars().values()) == {variable}
    again = sb.Sequential([embed.attend]).build(X)
    first, second = next(iter(again.vars().values())), variable
    first.assign(first - 1)
    # Each has a value of its own.
    assert set(sb.Sequential([again, model]).vars().values()) == {first, second}


def test_the_users_objects_are_not_changed() -> None:
    linear, norm = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    dense, box = keras.layers.Dense(4), objax.nn.BatchNorm0D(4)
    before = linear.kernel[...], norm.mean[...], box.running_mean.value
    model = sb.Sequential([linear, norm, dense, box, nnx.Dropout(0.5, rngs=nnx.Rngs(0))]).build(
        X.shape
    )
    sb.jit(lambda model: model(X, training=True))(model)
    model[0].kernel.assign(model[0].kernel + 1)
    after = linear.kernel[...], norm.mean[...], box.running_mean.value
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert not dense.built
    assert not dense.weights
    assert norm.use_running_average is False


@pytest.mark.parametrize(
    "entry",
    [
        nn.Dropout(0.5, deterministic=True),
        nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0)),
        nnx.Sequential(nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0))),
        eqx.nn.Dropout(0.5, inference=True),
        eqx.nn.Sequential([eqx.nn.Dropout(0.5, inference=True)]),
        stax.Dropout(0.5, mode="test"),
        functools.partial(keras.layers.Dropout(0.5), training=False),
        functools.partial(objax.nn.Dropout(0.5), training=False),
        sb.Sequential([functools.partial(eqx.nn.Dropout(0.5), inference=True)]),
    ],
)
def test_a_mode_that_is_set_stays(entry: Any) -> None:
    model = sb.Sequential([entry])
    np.testing.assert_array_equal(model(X, training=True), X)
    np.testing.assert_array_equal(model(X), X)


def test_single_layers_can_be_addressed_whatever_they_call_their_mode() -> None:
    model = sb.Sequential({
        "a": nnx.Dropout(0.5), "b": eqx.nn.Sequential([eqx.nn.Dropout(0.5)]),
        "c": keras.layers.Dropout(0.5),
        "d": objax.nn.Dropout(0.5), "e": stax.Dropout(0.5),
    })  # fmt: skip
    off = {name: {"training": False} for name in model.names}
    np.testing.assert_array_equal(model(X, training=True, per_layer=off), X)
    for name in model.names:
        on = {k: v for k, v in off.items() if k != name}
        assert bool((model(X, training=True, per_layer=on) != X).any()), name


def test_a_key_is_not_a_key() -> None:
    attention = keras.layers.MultiHeadAttention(1, 4)
    model = sb.Sequential([eqx.nn.Dropout(0.5), lambda x: (x[None], x[None]), attention])
    model(X, training=True, key=X[None])
    with pytest.raises(TypeError, match="no layer takes the keyword 'key'; did you mean 'rng'"):
        model[:1](X, training=True, key=jax.random.key(0))


def test_per_example_can_be_turned_off() -> None:
    linear = eqx.nn.Linear(4, 4, key=jax.random.key(0))
    square = X[:4]
    each = sb.Sequential([linear])(square)
    np.testing.assert_allclose(each, jax.vmap(linear)(square), rtol=1e-6)
    np.testing.assert_array_equal(
        sb.Sequential([sb.Layer(linear, per_example=False)])(square[0]), linear(square[0])
    )
    with pytest.raises(ValueError, match="one leading axis"):
        sb.Sequential([linear])(jnp.ones(()))
    masks = sb.Sequential([eqx.nn.Dropout(0.5)])(jnp.ones((8, 16)), training=True)
    assert len({tuple(row) for row in np.asarray(masks).tolist()}) > 1


def test_new_values_are_drawn_where_that_is_possible() -> None:
    model = sb.Sequential(
        [functools.partial(nnx.Linear, 4, 4), functools.partial(eqx.nn.Linear, 4, 4)]
    )
    one, two = model.init(1, X), model.init(2, X)
    assert all(
        bool((one["params"][n] != two["params"][n]).any()) for n in one["params"] if "bias" not in n
    )
    model = sb.Sequential([nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nn.Dense(4), eqx.nn.PReLU()])
    with pytest.warns(UserWarning, match=r"init keeps .*\[0\]\(Linear\), .*\[2\]\(PReLU\)"):
        model.init(1, X)
    assert model[0].built
    assert not model[1].built


def test_values_drawn_by_keras_follow_the_seed() -> None:
    def kernel(seed: int, position: int = 0) -> np.ndarray:
        model = sb.Sequential([jnp.tanh] * position + [keras.layers.Dense(4)], seed=seed).build(
            X.shape
        )
        return np.asarray(model[-1].kernel.value)

    np.testing.assert_array_equal(kernel(1), kernel(1))
    assert (kernel(1) != kernel(2)).any()
    assert (kernel(1) != kernel(1, position=1)).any()
    model = sb.Sequential([keras.layers.Dense(4)])
    with pytest.raises(RuntimeError, match=r"outside of JAX transforms.*model\.init"):
        jax.jit(lambda key: model.init(key, X))(jax.random.key(0))


def test_frozen_layers_of_keras_stay_frozen() -> None:
    inner = keras.layers.Dense(4)
    inner.trainable = False
    model = sb.Sequential(
        [keras.Sequential([inner, keras.layers.Dense(4, name="head")]), keras.layers.Dense(2)]
    )
    model.build(X.shape)
    assert {n for n, v in model.vars().items() if not v.trainable} == {
        "(Sequential)[0](Sequential).dense.bias", "(Sequential)[0](Sequential).dense.kernel"
    }  # fmt: skip
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert "(Sequential)[0](Sequential).head.kernel" in grads
    assert "(Sequential)[0](Sequential).dense.kernel" not in grads
    assert inner.trainable is False


def test_names_of_keras_do_not_depend_on_what_was_made_before() -> None:
    def names() -> list[str]:
        inner = keras.Sequential(
            [keras.layers.Dense(4), keras.layers.Dense(4), keras.layers.Dense(4, name="out_3")]
        )
        return list(sb.Sequential([keras.layers.Dense(4), inner]).build(X.shape).vars())

    first = names()
    assert names() == first
    assert "(Sequential)[1](Sequential).dense_1.kernel" in first
    assert "(Sequential)[1](Sequential).out_3.kernel" in first


def test_native_trees_go_back_to_their_library() -> None:
    linear, dense = nnx.Linear(4, 4, rngs=nnx.Rngs(3)), keras.layers.Dense(4)
    module, norm = (
        eqx.nn.Linear(4, 4, key=jax.random.key(3)),
        eqx.nn.BatchNorm(4, "b", mode="batch"),
    )
    model = sb.Sequential([linear, dense, module, norm, objax.nn.Linear(4, 4)]).build(X.shape)
    model(X, training=True)
    model[0].kernel.assign(model[0].kernel + 1)
    nnx.update(linear, model[0].native)
    np.testing.assert_array_equal(linear(X), model[:1](X))
    dense.build(X.shape)
    dense.set_weights(model[1].native)
    np.testing.assert_allclose(dense(X), model[1:2](X), rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(model[2].native)(X), model[2:3](X))
    made, state = model[3].native
    out, _ = jax.vmap(
        eqx.nn.inference_mode(made), in_axes=(0, None), out_axes=(0, None), axis_name="b"
    )(X, state)
    np.testing.assert_allclose(out, model[3:4](X, training=False), rtol=1e-6)
    assert "State(" in repr(state)
    fresh = sb.Sequential(
        [nnx.Linear(4, 4, rngs=nnx.Rngs(9)), keras.layers.Dense(4), module, norm]
    ).build(X.shape)
    fresh[0].load_native(linear)
    fresh[1].load_native(dense)
    fresh[3].load_native((made, state))
    np.testing.assert_allclose(
        fresh(X, training=False), model[:4](X, training=False), rtol=1e-5, atol=1e-6
    )


def test_a_state_that_was_taken_out_is_asked_for() -> None:
    norm, _ = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="batch")
    with pytest.raises(TypeError, match=r"taken out by make_with_state.*load_native"):
        sb.Sequential([norm])
    with pytest.raises(TypeError, match="several axes, a, b"):
        sb.Sequential([eqx.nn.Sequential([eqx.nn.BatchNorm(4, n, mode="batch") for n in "ab"])])


def test_kinds_of_variables_of_ones_own() -> None:
    class Count(nnx.Variable):
        pass

    class Adapter(nnx.Param):
        pass

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.scale, self.count = Adapter(jnp.ones((1, 4))), Count(jnp.zeros(()))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.count[...] = self.count[...] + 1
            return x * self.scale[...]

    model = sb.Sequential([Net()])
    model(X, training=True)
    assert float(model[0].count.value) == 1
    assert (model[0].scale.kind, model[0].count.kind) == ("params", "state")
    native = model[0].native
    assert isinstance(native["count"], Count)
    assert isinstance(native["scale"], Adapter)

    class Lazy(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            self.cache = nnx.Variable(x)
            return x

    with pytest.raises(ValueError, match="the call made the variable cache"):
        sb.Sequential([Lazy()])(X, training=True)


def test_pairs_of_functions_that_are_no_layers() -> None:
    assert [layer.pure.ecosystem for layer in sb.Sequential((jnp.tanh, jnp.sin))] == [
        "function"
    ] * 2
    assert [layer.pure.ecosystem for layer in sb.Sequential(stax.Dense(4))] == ["stax"]
    model = sb.Sequential([stax.Dense(4)])
    for pair in (
        optax.sgd(0.1),
        tuple(optax.sgd(0.1)),
        (jnp.tanh, jnp.sin),
        tuple(hk.transform(lambda x: x)),
    ):
        with pytest.raises(TypeError, match="no entry"):
            model.append(pair)
    for edit in (model.extend, model.__iadd__, lambda pair: model.__setitem__(slice(0, 1), pair)):
        with pytest.raises(TypeError, match="this tuple is one entry"):
            edit(stax.Dense(4))
    assert len(model) == 1


def test_errors_of_a_layer_that_cannot_be_copied() -> None:
    class Block(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    with pytest.raises(TypeError, match=r"give partial\(Block"):
        sb.Sequential([Block()])
    built = Block()
    built(X)
    for entry in (built, functools.partial(Block)):
        assert sb.Sequential([entry]).build(X.shape)(X).shape == (6, 3)
    for cls in (nnx.Linear, eqx.nn.Linear, keras.layers.Dense, objax.nn.Linear):
        with pytest.raises(TypeError, match=r"got the class"):
            sb.Sequential([cls])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (lambda: keras.Input((4,)), r"leave it out.*model\.build"),
        (lambda: keras.layers.InputLayer((4,)), r"leave it out.*model\.build"),
        (lambda: keras.layers.LSTM(3, stateful=True), "is stateful"),
        (lambda: keras.layers.Dense(3).call, "give the layer itself"),
        (lambda: sb.Sequential([jnp.tanh]).__call__, "put the Sequential into the list itself"),
        (lambda: jax.jit(lambda x: x).lower(X).compile(), "compiled ahead of time"),
    ],
)
def test_what_is_refused_says_what_to_do(entry: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        sb.Sequential([entry()])


def test_mistakes_of_an_adapter_are_named() -> None:
    class Mine:
        pass

    def adapt(entry: Any) -> sb.PureLayer | None:
        return sb.PureLayer(
            init=lambda key, /, x: {"w": jnp.ones(())} if flat else {"params": {"w": jnp.ones(())}},
            apply=lambda variables, key, /, x: x,  # pyright: ignore[reportArgumentType]
            signature=sb.signature_of(lambda x: x),
            label="Mine",
            ecosystem="mine",
        )

    sb.register(Mine, adapt)
    flat = True
    with pytest.raises(
        TypeError, match="adapter of mine gives variables that stand in no collection"
    ):
        sb.Sequential([Mine()])(X)
    flat = False
    with pytest.raises(
        TypeError, match=r"apply of the adapter of mine must return \(outputs, new_state\)"
    ):
        sb.Sequential([Mine()])(X)
    with pytest.raises(TypeError, match="register takes the name of a module, or a class"):
        sb.register(3, adapt)  # pyright: ignore[reportArgumentType]


def test_an_error_in_a_mapped_layer_says_how_it_was_mapped() -> None:
    embedding = eqx.nn.Embedding(5, 4, key=jax.random.key(0))
    tokens = jnp.ones((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="scalar") as error:
        sb.Sequential([embedding])(tokens)
    assert any("per_example=2" in note for note in error.value.__notes__)
    assert sb.Sequential([sb.Layer(embedding, per_example=2)])(tokens).shape == (2, 3, 4)
    assert sb.Sequential([jax.vmap(jax.vmap(embedding))])(tokens).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="None, not -1"):
        sb.Sequential([nn.Dense(3)]).build((-1, 4))


def test_weights_that_numpy_holds_are_variables_where_the_library_trains_them() -> None:
    module = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    of_numpy = jax.tree.map(lambda leaf: np.array(leaf) if eqx.is_array(leaf) else leaf, module)
    x = jnp.ones((2, 3))
    model = sb.Sequential([of_numpy]).build((2, 3))
    np.testing.assert_array_equal(model(x), jax.vmap(module)(x))
    grads = sb.grad(lambda model: model(x).sum())(model)
    wanted = eqx.filter_grad(lambda module: jax.vmap(module)(x).sum())(of_numpy)
    assert len(grads) == len(jax.tree.leaves(wanted)) == 4
    np.testing.assert_allclose(
        grads["(Sequential)[0](MLP).layers.0.weight"], wanted.layers[0].weight, rtol=1e-6
    )


def test_a_list_of_objax_goes_on_in_the_name_of_its_layer() -> None:
    model = sb.Sequential([objax.nn.Sequential([objax.nn.Linear(3, 2)])])
    assert list(model.vars()) == [f"(Sequential)[0](Sequential)[0](Linear).{name}" for name in "bw"]
