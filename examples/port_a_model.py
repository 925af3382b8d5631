"""A network that was trained in Haiku, in linen and Equinox; and one of PyTorch's files, in linen.

Haiku trains it on handwritten digits. Its weights are carried into a linen module and an Equinox
module of the same architecture, which then classify as well as it does. Then the same for a
`state_dict` in PyTorch's layout, from a safetensors file; where PyTorch is installed, it computes
what linen's results are compared with.
"""

from __future__ import annotations

import tempfile
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

import seqbridge as sb


def data() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Images (batch, 8, 8, 1) and labels, to train and to test."""
    digits: Any = load_digits()
    images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
    labels = jnp.asarray(digits.target)
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def forward(x: jax.Array, is_training: bool) -> jax.Array:
    """The network, in Haiku."""
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(16, 3)(x), is_training))
    x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID")
    x = jax.nn.relu(hk.Conv2D(32, 3)(x))
    x = jax.nn.relu(hk.Linear(64)(x.reshape(x.shape[0], -1)))
    return hk.Linear(10)(x)


class Linen(nn.Module):
    """The network, in linen."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(
            nn.BatchNorm(momentum=0.9, use_running_average=not train)(nn.Conv(16, (3, 3))(x))
        )
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class Equinox(eqx.Module):
    """The network, in Equinox: one image at a time, its channels first."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    second: eqx.nn.Conv2d
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(16, axis_name="batch", momentum=0.9, mode="batch")
        self.second = eqx.nn.Conv2d(16, 32, 3, padding=1, key=keys[1])
        self.hidden = eqx.nn.Linear(32 * 4 * 4, 64, key=keys[2])
        self.out = eqx.nn.Linear(64, 10, key=keys[3])

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.norm(self.first(jnp.moveaxis(x, -1, 0)), state)
        x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(x))
        x = jax.nn.relu(self.second(x))
        return self.out(jax.nn.relu(self.hidden(x.reshape(-1)))), state


def train(images: jax.Array, labels: jax.Array) -> tuple[Any, Any, Any]:
    """Trains in Haiku, without seqbridge."""
    net = hk.transform_with_state(forward)
    params, state = net.init(jax.random.key(0), images[:1], is_training=True)
    optimizer = optax.adam(1e-3)
    opt_state = optimizer.init(params)

    def loss_fn(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        logits, state = net.apply(params, state, None, x, is_training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @jax.jit
    def step(params: Any, state: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads, state = jax.grad(loss_fn, has_aux=True)(params, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), state, opt_state

    rng = np.random.default_rng(0)
    for _ in range(200):
        batch = rng.choice(len(images), 128, replace=False)
        params, state, opt_state = step(params, state, opt_state, images[batch], labels[batch])
    return net, params, state


def accuracy(logits: Any, labels: jax.Array) -> float:
    return float((jnp.argmax(logits, -1) == labels).mean())


def as_state_dict(params: Any, state: Any) -> dict[str, np.ndarray]:
    """Return what PyTorch would have stored of this network.

    Channels are first, and matrices the other way round.
    """

    def conv(name: str) -> np.ndarray:
        return np.ascontiguousarray(np.transpose(params[name]["w"], (3, 2, 0, 1)))

    image = np.reshape(
        params["linear"]["w"], (4, 4, 32, 64)
    )  # what was flattened: height, width, channels
    rows = image.transpose(2, 0, 1, 3).reshape(512, 64)
    arrays = {
        "conv1.weight": conv("conv2_d"),
        "conv1.bias": params["conv2_d"]["b"],
        "bn.weight": np.reshape(params["batch_norm"]["scale"], -1),
        "bn.bias": np.reshape(params["batch_norm"]["offset"], -1),
        "bn.running_mean": np.reshape(state["batch_norm/~/mean_ema"]["average"], -1),
        "bn.running_var": np.reshape(state["batch_norm/~/var_ema"]["average"], -1),
        "bn.num_batches_tracked": np.array(200),
        "conv2.weight": conv("conv2_d_1"),
        "conv2.bias": params["conv2_d_1"]["b"],
        "fc1.weight": np.ascontiguousarray(rows.T),
        "fc1.bias": params["linear"]["b"],
        "fc2.weight": np.ascontiguousarray(np.transpose(params["linear_1"]["w"])),
        "fc2.bias": params["linear_1"]["b"],
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def in_pytorch(state_dict: dict[str, np.ndarray], images: jax.Array) -> Any:
    """What PyTorch computes with these weights; None if it isn't installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    weights = {name: torch.tensor(array) for name, array in state_dict.items()}
    functional = torch.nn.functional
    x = torch.tensor(np.moveaxis(np.asarray(images), -1, 1))
    x = functional.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], padding=1)
    norm = [weights[f"bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    x = functional.max_pool2d(functional.relu(functional.batch_norm(x, *norm)), 2)
    x = functional.relu(
        functional.conv2d(x, weights["conv2.weight"], weights["conv2.bias"], padding=1)
    )
    x = functional.relu(functional.linear(x.flatten(1), weights["fc1.weight"], weights["fc1.bias"]))
    return functional.linear(x, weights["fc2.weight"], weights["fc2.bias"]).numpy()


def main() -> dict[str, float]:
    """Returns the accuracy in each library."""
    images, labels, test_images, test_labels = data()
    net, params, state = train(images, labels)
    logits, _ = net.apply(params, state, None, test_images, is_training=False)
    found = {"haiku": accuracy(logits, test_labels)}

    source = sb.Sequential([net]).build((1, 8, 8, 1))
    source[0].load_native((params, state))
    print("into linen:")
    linen = sb.Sequential([Linen()]).build((1, 8, 8, 1))
    print(sb.port(source, linen, check=test_images))
    variables = linen[0].native  # and on without seqbridge
    found["linen"] = accuracy(Linen().apply(variables, test_images, train=False), test_labels)

    print("into Equinox, whose channels come first:")
    equinox = sb.Sequential([Equinox(jax.random.key(1))])
    sb.port(source, equinox, flatten={"hidden": (32, 4, 4)}, check=test_images)
    module, of_module = equinox[0].native
    classify = jax.vmap(eqx.nn.inference_mode(module), (0, None), axis_name="batch")
    found["equinox"] = accuracy(classify(test_images, of_module)[0], test_labels)

    print("from PyTorch's layout into linen:")
    with tempfile.TemporaryDirectory() as folder:
        state_dict = as_state_dict(params, state)
        save_file(state_dict, f"{folder}/model.safetensors")
        again = sb.Sequential([Linen()], seed=3).build((1, 8, 8, 1))
        expected = in_pytorch(state_dict, test_images)
        print(
            "checked against", "Haiku (PyTorch isn't installed)" if expected is None else "PyTorch"
        )
        expected = logits if expected is None else expected
        sb.port(
            f"{folder}/model.safetensors",
            again,
            flatten={"Dense_0": (32, 4, 4)},
            check=test_images,
            expected=expected,
        )
    found["linen, from a state_dict"] = accuracy(again(test_images, training=False), test_labels)
    for name, value in found.items():
        print(f"{name:<25} accuracy {value:.4f}")
    return found


if __name__ == "__main__":
    results = main()
    if len(set(results.values())) > 1:
        raise SystemExit("the libraries don't agree")
