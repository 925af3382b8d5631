"""Exported models are trained, saved and loaded by their new library's own means, and come home."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import objax
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state
from jax.example_libraries import optimizers, stax

import seqbridge as sb
import toy_layers
from helpers import usual_promotion

STEPS, RATE = 20, 0.05
X = np.asarray(jax.random.normal(jax.random.key(1), (24, 4)))
Y = np.stack([X.sum(1), X[:, 0] * X[:, 1]], 1)


pytestmark = pytest.mark.usefixtures("usual_promotion")  # which the libraries' own code needs


def linen_only() -> sb.Sequential:
    return sb.Sequential([nn.Dense(8), nn.BatchNorm(momentum=0.9), nn.relu, nn.Dense(2)])


_W = jnp.eye(5) + 0.1


def mixed() -> sb.Sequential:
    objax.random.DEFAULT_GENERATOR.seed(0)  # whatever was drawn before
    return sb.Sequential([
        nn.Dense(8), nn.BatchNorm(momentum=0.9), nn.relu,
        functools.partial(hk.Linear, 6), functools.partial(hk.BatchNorm, True, True, 0.9),
        nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(0)), jnp.tanh,
        functools.partial(eqx.nn.Linear, 6, 5), lambda x, w=_W: x @ w,
        stax.Dense(5), toy_layers.Gain(1.5), objax.nn.Linear(5, 4), keras.layers.Dense(3),
        nn.Dense(2),
    ])  # fmt: skip


def mse(out: Any, y: Any) -> Any:
    return ((out - y) ** 2).mean()


def linen_by_hand(model: sb.Sequential) -> tuple[list[float], Any]:
    """The same layers in Flax' own container, trained by Flax' own loop."""
    variables = {"params": {}, "batch_stats": {}}
    for i in (0, 1, 3):
        for collection, tree in model[i].native.items():
            variables[collection][f"layers_{i}"] = tree
    module = nn.Sequential(
        [nn.Dense(8), nn.BatchNorm(momentum=0.9, use_running_average=False), nn.relu, nn.Dense(2)]
    )
    params, stats = variables["params"], variables["batch_stats"]
    losses = []
    for _ in range(STEPS):

        def loss_fn(params: Any, stats: Any = stats) -> Any:
            out, new = module.apply(
                {"params": params, "batch_stats": stats}, X, mutable=["batch_stats"]
            )
            return mse(out, Y), new["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        losses.append(float(loss))
    home = linen_only().build((None, 4))
    for i in (0, 1, 3):
        trees = {"params": params, "batch_stats": stats}
        home[i].load_native(
            {c: trees[c][f"layers_{i}"] for c in trees if f"layers_{i}" in trees[c]}
        )
    return losses, home.variables


def here(model: sb.Sequential) -> tuple[list[float], Any]:
    @sb.jit
    def step(model: sb.Sequential, optimizer: sb.Optimizer) -> jax.Array:
        loss, grads = sb.value_and_grad(lambda model: mse(model(X, training=True), Y))(model)
        optimizer.update(grads)
        return loss

    optimizer = sb.Optimizer(model, optax.sgd(RATE))
    return [float(step(model, optimizer)) for _ in range(STEPS)], model.variables


class State(train_state.TrainState):
    batch_stats: Any


def in_linen(model: sb.Sequential, folder: Path) -> Any:
    module = sb.to_linen(model)
    variables = module.init(jax.random.key(0), X)
    state = State.create(apply_fn=module.apply, tx=optax.sgd(RATE), **variables)

    @jax.jit
    def step(state: State) -> Any:
        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state.batch_stats}
            out, new = state.apply_fn(variables, X, training=True, mutable=["batch_stats"])
            return mse(out, Y), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=new["batch_stats"]), loss

    losses = []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(loss)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    (folder / "model.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    template = module.init(jax.random.key(1), X)
    loaded = flax.serialization.from_bytes(template, (folder / "model.msgpack").read_bytes())
    return losses, variables, loaded, lambda v: module.apply(v, X, training=False)


def in_nnx(model: sb.Sequential, folder: Path) -> Any:
    module = sb.to_nnx(model)
    optimizer = nnx.Optimizer(module, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(module: Any, optimizer: Any) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda module: mse(module(X), Y))(module)
        optimizer.update(module, grads)
        return loss

    module.train()
    losses = [step(module, optimizer) for _ in range(STEPS)]
    module.eval()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "model", nnx.to_pure_dict(nnx.state(module)))
        checkpointer.wait_until_finished()
        template = jax.tree.map(jnp.zeros_like, nnx.to_pure_dict(nnx.state(sb.to_nnx(model))))
        restored = checkpointer.restore(folder / "model", template)
    loaded = sb.to_nnx(model, training=False)
    nnx.update(loaded, restored)
    return losses, module, loaded, lambda module: module(X)


def in_haiku(model: sb.Sequential, folder: Path) -> Any:
    pair = hk.transform_with_state(sb.to_haiku(model))
    params, state = pair.init(jax.random.key(0), X)
    tx = optax.sgd(RATE)
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, opt_state: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            out, new = pair.apply(params, state, None, X, is_training=True)
            return mse(out, Y), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, after = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), new, after, loss

    losses = []
    for _ in range(STEPS):
        params, state, opt_state, loss = step(params, state, opt_state)
        losses.append(loss)
    (folder / "model.pickle").write_bytes(pickle.dumps((params, state)))
    loaded = pickle.loads((folder / "model.pickle").read_bytes())
    return losses, (params, state), loaded, lambda v: pair.apply(*v, None, X, is_training=False)[0]


def in_equinox(model: sb.Sequential, folder: Path) -> Any:
    def make() -> Any:
        return sb.to_equinox(model, axis_name="batch")

    module, state = eqx.nn.make_with_state(make)()
    tx = optax.sgd(RATE)
    opt_state = tx.init(eqx.filter(module, eqx.is_inexact_array))

    def batched(module: Any, state: Any) -> Any:
        return jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(X, state)

    @eqx.filter_jit
    def step(module: Any, state: Any, opt_state: Any) -> Any:
        def loss_fn(module: Any, state: Any) -> Any:
            out, state = batched(module, state)
            return mse(out, Y), state

        (loss, state), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(module, state)
        updates, opt_state = tx.update(grads, opt_state)
        return eqx.apply_updates(module, updates), state, opt_state, loss

    losses = []
    for _ in range(STEPS):
        module, state, opt_state, loss = step(module, state, opt_state)
        losses.append(loss)
    eqx.tree_serialise_leaves(folder / "model.eqx", (module, state))
    loaded = eqx.tree_deserialise_leaves(folder / "model.eqx", eqx.nn.make_with_state(make)())
    return losses, (module, state), loaded, lambda v: batched(eqx.nn.inference_mode(v[0]), v[1])[0]


def in_keras(model: sb.Sequential, folder: Path) -> Any:
    layer = sb.to_keras(model)
    network = keras.Sequential([layer])
    network.compile(keras.optimizers.SGD(RATE), "mse")
    fit: Any = network.fit
    losses = fit(X, Y, batch_size=len(X), epochs=STEPS, shuffle=False, verbose=0).history["loss"]
    network.save_weights(folder / "model.weights.h5")
    loaded = sb.to_keras(model)
    keras.Sequential([keras.Input((4,)), loaded]).load_weights(folder / "model.weights.h5")
    return losses, layer, loaded, lambda layer: layer(X, training=False)


def in_stax(model: sb.Sequential, folder: Path) -> Any:
    init_fun, apply_fun = sb.to_stax(model)
    shape, params = init_fun(jax.random.key(0), (-1, 4))
    assert shape == (-1, 2)
    start, update, get_params = optimizers.sgd(RATE)
    opt_state = start(params)

    @jax.jit
    def step(i: Any, opt_state: Any) -> Any:
        loss, grads = jax.value_and_grad(
            lambda params: mse(apply_fun(params, X, training=True), Y)
        )(get_params(opt_state))
        return update(i, grads, opt_state), loss

    losses = []
    for i in range(STEPS):
        opt_state, loss = step(i, opt_state)
        losses.append(loss)
    (folder / "model.pickle").write_bytes(
        pickle.dumps(optimizers.unpack_optimizer_state(opt_state))
    )
    packed = optimizers.pack_optimizer_state(pickle.loads((folder / "model.pickle").read_bytes()))
    return (
        losses,
        get_params(opt_state),
        get_params(packed),
        lambda params: apply_fun(params, X, training=False),
    )


def in_pure(model: sb.Sequential, folder: Path) -> Any:
    init, apply = sb.to_pure(model)
    variables = init(jax.random.key(0), X)

    @jax.jit
    def step(variables: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            out, after = apply({**variables, "params": params}, X, training=True)
            return mse(out, Y), after

        (loss, after), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        return {
            **after,
            "params": jax.tree.map(lambda p, g: p - RATE * g, variables["params"], grads),
        }, loss

    losses = []
    for _ in range(STEPS):
        variables, loss = step(variables)
        losses.append(loss)
    for kind, arrays in variables.items():
        np.savez(folder / f"{kind}.npz", **arrays)
    loaded = {kind: dict(np.load(folder / f"{kind}.npz")) for kind in variables}
    return losses, variables, loaded, lambda v: apply(v, X, training=False)[0]


LOOPS = [in_linen, in_nnx, in_haiku, in_equinox, in_keras, in_stax, in_pure]


@pytest.fixture(
    scope="module", params=[(linen_only, linen_by_hand), (mixed, here)], ids=["linen", "mixed"]
)
def source(request: pytest.FixtureRequest) -> Any:
    make, train = request.param
    with usual_promotion():
        model = make().build((None, 4))
        start = model.variables
        losses, expected = train(model)
        model.assign(start)
    assert losses[-1] < 0.6 * losses[0]
    return model, losses, expected


# Keras' own way to save warns.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__.removeprefix("in_"))
def test_training_there_is_training_here(
    source: Any, loop: Callable[..., Any], tmp_path: Path
) -> None:
    model, losses, expected = source
    start = model.variables
    found, values, loaded, evaluate = loop(model, tmp_path)
    np.testing.assert_allclose([float(loss) for loss in found], losses, rtol=2e-4)
    np.testing.assert_array_equal(evaluate(loaded), evaluate(values))
    jax.tree.map(np.testing.assert_array_equal, model.variables, start)  # what went out was a copy
    try:
        sb.from_native(model, values)
        trained = model.variables
        np.testing.assert_allclose(model(X, training=False), evaluate(values), rtol=1e-4, atol=1e-5)
        # stax has no state to hand on.
        parts = ["params"] if loop is in_stax else ["params", "state"]
        for part in parts:
            for name, array in expected[part].items():
                np.testing.assert_allclose(
                    trained[part][name], array, rtol=1e-3, atol=1e-4, err_msg=name
                )
        model.assign(start)
        sb.from_native(model, loaded)
        jax.tree.map(np.testing.assert_array_equal, model.variables, trained)
    finally:
        model.assign(start)
