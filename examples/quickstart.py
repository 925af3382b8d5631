"""One list of Flax linen modules, Haiku modules and plain functions that learns to read digits.

It shows how to mix libraries in a model, how to train the model with any optax optimizer, and how
to cut an embedding out of it with a slice. The data are the 1,797 real images of handwritten digits
of scikit-learn's `load_digits`.
"""

from functools import partial

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress, TextColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import seqbridge as sb

EPOCHS, BATCH_SIZE = 25, 64
MIN_ACCURACY, MIN_SAME_DIGIT = 0.97, 0.95


def haiku_block(x: jax.Array, is_training: bool) -> jax.Array:
    x = hk.Conv2D(64, 3, stride=2, with_bias=False)(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    return jax.nn.relu(x)


@sb.jit
def train_step(
    model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array, labels: jax.Array
) -> jax.Array:
    def loss_fn(model: sb.Sequential) -> jax.Array:
        logits = model(x, training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = sb.value_and_grad(loss_fn)(model)
    optimizer.update(grads)
    return loss


@sb.jit
def predict(model: sb.Sequential, x: jax.Array) -> jax.Array:
    return model(x, training=False)


def fit(model: sb.Sequential, images: jax.Array, labels: jax.Array, seed: int) -> None:
    steps = len(images) // BATCH_SIZE
    optimizer = sb.Optimizer(model, optax.adam(optax.cosine_decay_schedule(3e-3, EPOCHS * steps)))
    rng = np.random.default_rng(seed)
    with Progress(
        *Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.4f}")
    ) as progress:
        task = progress.add_task("training", total=EPOCHS * steps, loss=np.nan)
        for _ in range(EPOCHS):
            for batch in np.split(rng.permutation(len(images))[: steps * BATCH_SIZE], steps):
                loss = train_step(model, optimizer, images[batch], labels[batch])
                progress.update(task, advance=1, loss=float(loss))


def main(seed: int = 0) -> None:
    pixels, digits = load_digits(return_X_y=True)
    images, labels = jnp.float32(pixels.reshape(-1, 8, 8, 1) / 16), jnp.int32(digits)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=digits, random_state=seed
    )

    model = sb.Sequential([
        nn.Conv(32, (3, 3), use_bias=False),
        nn.BatchNorm(momentum=0.9),
        nn.relu,
        hk.transform_with_state(haiku_block),
        lambda x: x.reshape(len(x), -1),
        nn.Dropout(0.3),
        partial(hk.Linear, 10),
    ], seed=seed)  # fmt: skip
    model.build((None, 8, 8, 1))
    print(model)
    print(model.vars())

    fit(model, images[train], labels[train], seed)
    accuracy = float(jnp.mean(predict(model, images[test]).argmax(axis=1) == labels[test]))
    print(f"accuracy on {len(test)} held-out images: {accuracy:.4f}")
    assert accuracy >= MIN_ACCURACY

    vectors = predict(model[:-1], images)  # a slice shares its layers with the model
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = jnp.argmax(vectors[test] @ vectors[train].T, axis=1)
    same_digit = float(jnp.mean(labels[train][nearest] == labels[test]))
    print(
        f"held-out images whose nearest training image in the embedding shows the same digit: "
        f"{same_digit:.4f}"
    )
    assert same_digit >= MIN_SAME_DIGIT


if __name__ == "__main__":
    # optax.adam and hk.BatchNorm mix ints with floats, which a JAX that is set to strict promotion
    # refuses.
    with jax.numpy_dtype_promotion("standard"):
        main()
