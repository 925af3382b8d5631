# %% [markdown]
# # Embeddings from a classifier
#
# A classifier without its last layer is an embedding: what it makes of two images of the same digit
# lies close together. Here a small one is trained, cut by a slice, and each of its layers is looked
# at by what it returns.
#
# `pip install "seqbridge[examples]"` installs what is needed. This file is a notebook in the
# percent format: Jupyter (with jupytext) and VS Code open it as one, and `python
# embeddings_from_a_classifier.py` runs it as well.

# %%
import html
from dataclasses import dataclass
from functools import partial
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

import seqbridge as sb

digits: Any = load_digits()
images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
labels = jnp.asarray(digits.target)
train, test = train_test_split(
    np.arange(len(labels)), train_size=1400, stratify=digits.target, random_state=0
)
train_images, train_labels, test_images, test_labels = (
    images[train],
    labels[train],
    images[test],
    labels[test],
)

# %% [markdown]
# ## The classifier
#
# Convolutions of Flax NNX, then linear layers of Haiku. Names make the layers easy to find later.


# %%
def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


model = sb.Sequential({
    "conv": partial(nnx.Conv, 1, 16, (3, 3), strides=2),
    "norm": partial(nnx.BatchNorm, 16, momentum=0.9),
    "relu": jax.nn.relu,
    "flat": flatten,
    "drop": partial(nnx.Dropout, 0.2),
    "hidden": partial(hk.Linear, 64),
    "bend": jax.nn.relu,
    "head": partial(hk.Linear, 10),
}).build((None, 8, 8, 1))  # fmt: skip
model.summary()


# %%
@sb.jit
def train_step(
    model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array, y: jax.Array
) -> jax.Array:
    def loss_fn(model: sb.Sequential) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x, training=True), y).mean()

    loss, grads = sb.value_and_grad(loss_fn)(model)
    optimizer.update(grads)
    return loss


@sb.jit
def predict(model: sb.Sequential, x: jax.Array) -> jax.Array:
    return model(x, training=False)


def accuracy(logits: jax.Array) -> float:
    return float((logits.argmax(-1) == test_labels).mean())


optimizer = sb.Optimizer(model, optax.adam(5e-3))
rng = np.random.default_rng(0)
for _ in range(10):
    for rows in rng.permutation(1400).reshape(-1, 50):
        train_step(model, optimizer, train_images[rows], train_labels[rows])
found = accuracy(predict(model, test_images))
print(f"accuracy {found:.3f}")
assert found > 0.95

# %% [markdown]
# ## A slice is a model, and shares its variables
#
# Nothing is copied: the layers of the slice are those of the classifier. What changes in one has
# changed in the other.

# %%
embed = model[:-1]
assert all(layer is own for layer, own in zip(embed, model, strict=False))
assert not sb.diff(model[:-1], embed)

kernel = embed.conv.kernel.value
embed.conv.kernel.assign(jnp.zeros_like(kernel))
assert accuracy(predict(model, test_images)) < 0.2  # the classifier is blind, too
model.conv.kernel.assign(kernel)
assert accuracy(predict(model, test_images)) == found
predict(embed, test_images).shape

# %% [markdown]
# ## What each layer returns
#
# `trace` is a call that returns the outputs of all layers, by name. It works in `sb.jit` like any
# call.


# %%
@sb.jit
def trace(model: sb.Sequential, x: jax.Array) -> Any:
    return model.trace(x, training=False)


outputs = trace(model, test_images)
assert jnp.allclose(outputs["head"], predict(model, test_images), atol=1e-4)
assert jnp.allclose(outputs["bend"], predict(embed, test_images), atol=1e-4)
outputs

# %% [markdown]
# How well does each layer tell the digits apart? An image is given the digit whose mean output,
# over the images of the training, is nearest: once with all numbers, once with the two in which the
# outputs differ most, their first principal components.


# %%
def nearest_mean(known: np.ndarray, asked: np.ndarray) -> float:
    means = np.stack([known[np.asarray(train_labels) == digit].mean(0) for digit in range(10)])
    distances = np.linalg.norm(asked[:, None] - means, axis=-1)
    return float((distances.argmin(-1) == np.asarray(test_labels)).mean())


def rows_of(x: jax.Array) -> np.ndarray:
    return np.asarray(x).reshape(len(x), -1)


looked_at = {"pixels": (rows_of(train_images), rows_of(test_images))}
of_training = trace(model, train_images)
for name in ("conv", "relu", "hidden", "bend", "head"):
    looked_at[name] = rows_of(of_training[name]), rows_of(outputs[name])

planes = {}
told_apart = {}
for name, (known, asked) in looked_at.items():
    pca = PCA(2, random_state=0).fit(known)
    planes[name] = pca.transform(asked)
    in_two = nearest_mean(pca.transform(known), planes[name])
    told_apart[name] = nearest_mean(known, asked)
    print(f"{name:<8}{asked.shape[1]:>5} numbers: {told_apart[name]:.3f}, 2 numbers: {in_two:.3f}")

# %% [markdown]
# What the convolution returns is told apart hardly better than the pixels are. What the linear
# layers return is, and in the embedding, `bend`, the nearest mean is right about as often as the
# classifier with its trained last layer.

# %%
assert told_apart["bend"] > told_apart["relu"] + 0.02
assert told_apart["bend"] > found - 0.03
(
    f"{told_apart['pixels']:.3f} in the pixels, {told_apart['bend']:.3f} in the embedding, "
    f"{found:.3f} by the classifier"
)

# %% [markdown]
# The images to test in two dimensions, by their pixels and by the embedding.


# %%
@dataclass
class Scatter:
    """Points in the plane with their digits. A notebook shows it."""

    planes: dict[str, np.ndarray]

    def _repr_svg_(self) -> str:
        shapes = []
        for i, (name, points) in enumerate(self.planes.items()):
            low, high = points.min(0), points.max(0)
            at = (points - low) / (high - low) * (400, 340) + (20 + 440 * i, 40)
            shapes.append(
                f"<text x='{20 + 440 * i}' y='20' font-weight='bold'>{html.escape(name)}</text>"
            )
            shapes += [
                f"<text x='{x:.0f}' y='{y:.0f}' fill='hsl({36 * digit}, 80%, "
                f"{35 + 10 * (digit % 2)}%)'>{digit}</text>"
                for (x, y), digit in zip(at, np.asarray(test_labels).tolist(), strict=True)
            ]
        width = 440 * len(self.planes)
        size = f"width='{width}' height='400'"
        font = "font-family='sans-serif' font-size='12'"
        background = "<rect width='100%' height='100%' fill='white'/>"
        picture = background + "".join(shapes)
        return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {font}>{picture}</svg>"


Scatter({"pixels": planes["pixels"], "embedding": planes["bend"]})

# %% [markdown]
# ## Another head
#
# An embedding can be asked what it wasn't trained for: is the digit even? A linear layer learns
# that from the vectors alone, so that nothing else changes. Added to the embedding it is a
# classifier of images again.

# %%
vectors = predict(embed, train_images)
head = sb.Sequential({"parity": partial(hk.Linear, 2)}, seed=1).build(vectors)
optimizer = sb.Optimizer(head, optax.adam(1e-2))
for rows in [rows for _ in range(10) for rows in rng.permutation(1400).reshape(-1, 50)]:
    train_step(head, optimizer, vectors[rows], train_labels[rows] % 2)

parity = embed + head
found_parity = float((predict(parity, test_images).argmax(-1) == test_labels % 2).mean())
print(f"accuracy {found_parity:.3f}")
assert found_parity > 0.9
assert parity.conv is model.conv
assert accuracy(predict(model, test_images)) == found
parity
