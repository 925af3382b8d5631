# %% [markdown]
# # One model of three libraries
#
# A classifier of handwritten digits whose layers come from Flax linen, Haiku and Equinox, with a
# plain function between them. It is looked at, called, edited and trained. The data are the 1,797
# real images of scikit-learn.
#
# `pip install "seqbridge[examples,equinox]"` installs what is needed. This file is a notebook in
# the percent format: Jupyter (with jupytext) and VS Code open it as one, and `python
# mix_three_libraries.py` runs it as well.

# %%
import copy
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import treescope
from sklearn.datasets import load_digits
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
print(f"{len(train_images)} images to train, {len(test_images)} to test, each {images.shape[1:]}")

# %% [markdown]
# ## A list, or names and entries
#
# An entry is what each library gives its own users: a linen module, a Haiku class with its
# arguments in a `partial` (Haiku makes modules inside a transform only), an Equinox class or
# module, a function. No entry says whether it is training: that is decided at each call.


# %%
def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


model = sb.Sequential({
    "conv": nn.Conv(16, (3, 3), use_bias=False),  # Flax linen
    "norm": nn.BatchNorm(momentum=0.9),
    "relu": nn.relu,
    "down": partial(hk.Conv2D, 32, 3, stride=2),  # Haiku
    "bend": jax.nn.silu,
    "flat": flatten,
    "drop": eqx.nn.Dropout(0.3),  # Equinox
    "head": partial(eqx.nn.Linear, 4 * 4 * 32, 10),
})  # fmt: skip
model.summary((None, 8, 8, 1))

# %% [markdown]
# The summary computes nothing and needs no variables: shapes are enough, and `None` may be
# anything. `build`, which makes the variables, runs no layer either. A notebook shows a model by
# its summary.

# %%
model.build((None, 8, 8, 1))
assert model.built
model

# %% [markdown]
# The same as a picture, each layer in the colour of its library. `sb.plot(model).save("model.svg")`
# writes it.

# %%
sb.plot(model)

# %% [markdown]
# And as a tree that unfolds down to every array, by treescope, which Flax brings along.

# %%
if "get_ipython" in globals():  # in a notebook
    treescope.display(model)
else:
    print(treescope.render_to_text(model.norm))

# %% [markdown]
# ## Calls
#
# `training=` reaches every layer that knows a mode, under the name that its library gave it. Batch
# statistics move in training only, and Equinox' dropout, which takes one image at a time, draws a
# mask of its own for each.

# %%
before = model.norm.mean.value
quiet = model(test_images, training=False)
assert jnp.array_equal(quiet, model(test_images, training=False))
assert jnp.array_equal(model.norm.mean.value, before)

noisy = model(test_images, training=True)
assert not jnp.array_equal(noisy, model(test_images, training=True))
assert not jnp.array_equal(model.norm.mean.value, before)
noisy.shape

# %% [markdown]
# ## Edits
#
# It is a list: layers are replaced, inserted and removed, and those that stay keep their weights.
# `sb.diff` says which variables differ from those of a copy that was made before: only those of the
# new layer.

# %%
old = copy.deepcopy(model)
model["bend"] = partial(nn.leaky_relu, negative_slope=0.1)
model.insert(model.names.index("flat"), eqx.nn.LayerNorm((4, 4, 32)))
changes = sb.diff(old, model)
assert {change.what for change in changes} == {"only in the second"}
changes

# %% [markdown]
# ## Training
#
# Models and optimizers are arguments like any other, and what changes in them comes back out of
# `sb.jit`. The optimizer is any of optax.


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
def accuracy(model: sb.Sequential, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(model(x, training=False).argmax(-1) == y)


optimizer = sb.Optimizer(model, optax.adam(3e-3))
rng = np.random.default_rng(0)
for epoch in range(5):
    losses = [
        train_step(model, optimizer, train_images[rows], train_labels[rows])
        for rows in rng.permutation(1400).reshape(-1, 50)
    ]
    found = float(accuracy(model, test_images, test_labels))
    print(f"epoch {epoch}: loss {np.mean(losses):.3f}, accuracy {found:.3f}")

# %% [markdown]
# The copy from before the training still guesses: about one in ten is right.

# %%
found = float(accuracy(model, test_images, test_labels))
assert found > 0.95 > 0.3 > float(accuracy(old, test_images, test_labels))
found
