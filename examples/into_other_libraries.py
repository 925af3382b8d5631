"""Out again: models of many libraries in the training loops of others.

They are those of Flax and NNX, Keras' `fit`, NumPyro, NetKet and diffrax. Each function takes what
seqbridge made and goes on as people there do.

    pip install "seqbridge[consumers]" && python examples/into_other_libraries.py
"""

import os
import warnings
from functools import partial
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
warnings.filterwarnings(
    "ignore", module="netket|numba|plum|beartype|diffrax|equinox|numpyro"
)  # about their own code

import diffrax
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import netket
import numpy as np
import numpyro
import optax
from flax import nnx
from flax.training.train_state import TrainState
from jax.example_libraries import stax
from numpyro import distributions as dist
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO, autoguide
from sklearn.datasets import load_digits

import seqbridge as sb

nk: Any = netket  # these two say less of themselves than a type checker wants to know
DIGITS: Any = load_digits()
IMAGES = np.asarray(DIGITS.images[..., None] / 16, "float32")  # (1797, 8, 8, 1), handwritten digits
LABELS = np.asarray(DIGITS.target, "int32")


def cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def a_haiku_resnet_in_a_flax_training_loop() -> str:
    resnet = partial(
        hk.nets.ResNet,
        blocks_per_group=(1, 1, 1, 1),
        num_classes=10,
        bottleneck=False,
        channels_per_group=(8, 8, 16, 16),
        use_projection=(False, False, True, False),
        initial_conv_config={"output_channels": 8, "kernel_shape": 3, "stride": 1},
        strides=(1, 1, 2, 1),
        bn_config={"decay_rate": 0.9},
    )
    module = sb.to_linen(resnet)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES[:1])
    state = TrainState.create(
        apply_fn=module.apply, params=variables["params"], tx=optax.adam(1e-2)
    )

    @jax.jit
    def train_step(state: TrainState, batch_stats: Any, x: Any, labels: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, new = state.apply_fn(variables, x, training=True, mutable=["batch_stats"])
            return cross_entropy(logits, labels), new["batch_stats"]

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), new, loss

    batch_stats = variables["batch_stats"]
    for i in [*range(0, 1536, 128)] * 3:
        state, batch_stats, _ = train_step(
            state, batch_stats, IMAGES[i : i + 128], LABELS[i : i + 128]
        )
    logits = module.apply(
        {"params": state.params, "batch_stats": batch_stats}, IMAGES[1536:], training=False
    )
    accuracy = float((logits.argmax(-1) == LABELS[1536:]).mean())
    assert accuracy > 0.7
    home = sb.Layer(resnet)  # and the trained values come home
    sb.Sequential([home]).build(IMAGES.shape)
    sb.from_native(home, {"params": state.params, "batch_stats": batch_stats})
    assert np.allclose(home(IMAGES[1536:], training=False), logits, atol=1e-4)
    return f"Haiku's ResNet, trained by Flax in 36 steps: {accuracy:.0%} of unseen digits"


def an_equinox_mlp_in_an_nnx_module() -> str:
    class Classifier(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Linear(64, 32, rngs=rngs)
            self.mlp = sb.to_nnx(partial(eqx.nn.MLP, 32, 10, 64, 1), (None, 32))

        def __call__(self, x: Any) -> jax.Array:
            return self.mlp(self.embed(x))

    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def train_step(model: Any, optimizer: Any, x: Any, labels: Any) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(x), labels))(model)
        optimizer.update(model, grads)
        return loss

    flat = IMAGES.reshape(-1, 64)
    losses = [float(train_step(model, optimizer, flat, LABELS)) for _ in range(50)]
    assert losses[-1] < 0.3 * losses[0]
    return f"an Equinox MLP in an NNX module: loss {losses[0]:.2f} -> {losses[-1]:.2f}"


def a_mixed_model_in_keras_fit() -> str:
    mixed = sb.Sequential(
        [
            nn.Conv(16, (3, 3)),
            nn.BatchNorm(),
            nn.relu,
            stax.Flatten,
            partial(hk.Linear, 32),
            jnp.tanh,
            nn.Dropout(0.2),
        ]
    )
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), sb.to_keras(mixed, seed=0), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    fit: Any = model.fit
    accuracy = fit(IMAGES, LABELS, epochs=3, verbose=0, validation_split=0.1).history[
        "val_accuracy"
    ][-1]
    assert accuracy > 0.8
    return f"linen, stax and Haiku in Keras' fit: {accuracy:.0%} of unseen digits"


def a_mixed_model_in_numpyro() -> str:
    x = np.linspace(-1, 1, 60, dtype="float32")[:, None]
    y = np.sin(3 * x) + np.random.default_rng(0).normal(0, 0.1, x.shape).astype("float32")
    net = sb.to_linen(
        [nn.Dense(16), jnp.tanh, partial(eqx.nn.Linear, 16, 8), jnp.tanh, partial(hk.Linear, 1)]
    )

    def model(x: Any, y: Any) -> None:
        mean = flax_module("net", net, input_shape=x.shape)(x)
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, noise).to_event(2), obs=y)

    svi = SVI(model, autoguide.AutoNormal(model), optax.adam(1e-2), Trace_ELBO())
    result = svi.run(jax.random.key(0), 600, x, y, progress_bar=False)
    noise = float(jnp.exp(result.params["noise_auto_loc"]))
    assert 0.05 < noise < 0.2
    return f"linen, Equinox and Haiku in NumPyro: noise of {noise:.2f}, where it was 0.1"


def a_mixed_model_in_netket() -> str:
    chain = nk.graph.Chain(8)
    spins = nk.hilbert.Spin(0.5, chain.n_nodes)
    hamiltonian = nk.operator.Ising(spins, chain, h=1.0)
    ansatz = sb.to_linen(
        [
            nn.Dense(12),
            jnp.tanh,
            partial(eqx.nn.Linear, 12, 6),
            jnp.tanh,
            partial(hk.Linear, 1),
            lambda x: x[..., 0],
        ]
    )
    state = nk.vqs.MCState(
        nk.sampler.MetropolisLocal(spins, n_chains=16), ansatz, n_samples=512, seed=0
    )
    nk.driver.VMC_SR(hamiltonian, optax.sgd(0.05), diag_shift=0.01, variational_state=state).run(
        60, show_progress=False
    )
    energy, exact = state.expect(hamiltonian).mean.real, nk.exact.lanczos_ed(hamiltonian)[0]
    assert abs(energy - exact) < 0.05
    found = f"a ground state of energy {energy:.2f}, exactly {exact:.2f}"
    return f"linen, Equinox and Haiku in NetKet: {found}"


def a_mixed_model_in_diffrax() -> str:
    field = sb.to_equinox([nn.Dense(32), jnp.tanh, partial(hk.Linear, 2)], (None, 2))
    times = jnp.linspace(0.0, 3.0, 20)
    start = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # (batch, 2)
    decay = jnp.exp(-0.3 * times)[:, None, None]
    turn = jnp.stack(
        [
            jnp.stack([jnp.cos(times), -jnp.sin(times)], -1),
            jnp.stack([jnp.sin(times), jnp.cos(times)], -1),
        ],
        -1,
    )
    spiral = decay * jnp.einsum("bi,tij->tbj", start, turn)
    optimizer = optax.adam(1e-2)

    @eqx.filter_value_and_grad
    def loss_fn(field: Any) -> jax.Array:
        term = diffrax.ODETerm(lambda t, y, args: field(y))
        save = diffrax.SaveAt(ts=times)
        path: Any = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 3.0, 0.1, start, saveat=save).ys
        return ((path - spiral) ** 2).mean()

    @eqx.filter_jit
    def train_step(field: Any, state: Any) -> Any:
        loss, grads = loss_fn(field)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(field, updates), state, loss

    state, losses = optimizer.init(eqx.filter(field, eqx.is_inexact_array)), []
    for _ in range(200):
        field, state, loss = train_step(field, state)
        losses.append(float(loss))
    assert losses[-1] < 0.05 * losses[0]
    return f"linen and Haiku as a vector field of diffrax: loss {losses[0]:.3f} -> {losses[-1]:.5f}"


def main() -> None:
    for show in (
        a_haiku_resnet_in_a_flax_training_loop,
        an_equinox_mlp_in_an_nnx_module,
        a_mixed_model_in_keras_fit,
        a_mixed_model_in_numpyro,
        a_mixed_model_in_netket,
        a_mixed_model_in_diffrax,
    ):
        print(show())


if __name__ == "__main__":
    main()
