# %% [markdown]
# # A trained Haiku model, elsewhere and home again
#
# A network is trained by Haiku and optax alone. Its weights are carried into a model of Flax linen,
# Equinox and functions, which then computes the same. That is fine-tuned to images that the first
# can't read, and its weights go back into Haiku.
#
# `pip install "seqbridge[examples,equinox]"` installs what is needed. This file is a notebook in
# the percent format: Jupyter (with jupytext) and VS Code open it as one, and `python
# port_a_haiku_model.py` runs it as well.

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


def accuracy(logits: jax.Array) -> float:
    return float((logits.argmax(-1) == test_labels).mean())


# %% [markdown]
# ## What there is: a Haiku model
#
# Nothing of seqbridge is in this cell.


# %%
@hk.transform_with_state
def net(x: jax.Array, is_training: bool) -> jax.Array:
    x = hk.Conv2D(32, 3, stride=2)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    return hk.Linear(10)(x.reshape(len(x), -1))


@jax.jit
def step(params: Any, state: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
    def loss_fn(params: Any) -> Any:
        logits, new_state = net.apply(params, state, None, x, is_training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new_state

    grads, state = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = adam.update(grads, opt_state)
    return optax.apply_updates(params, updates), state, opt_state


@jax.jit
def classify(params: Any, state: Any, x: jax.Array) -> jax.Array:
    return net.apply(params, state, None, x, is_training=False)[0]


adam = optax.adam(5e-3)
params, state = jax.jit(partial(net.init, is_training=True))(jax.random.key(0), images[:1])
opt_state = adam.init(params)
rng = np.random.default_rng(0)
for rows in [rows for _ in range(8) for rows in rng.permutation(1400).reshape(-1, 50)]:
    params, state, opt_state = step(
        params, state, opt_state, train_images[rows], train_labels[rows]
    )

logits = classify(params, state, test_images)
trained = accuracy(logits)
assert trained > 0.95
print(f"Haiku: accuracy {trained:.3f}")
jax.tree.map(jnp.shape, params)

# %% [markdown]
# ## Into seqbridge
#
# A transform is an entry like any other, and takes its variables in Haiku's own structure. The
# model then is Haiku's, and computes what Haiku does.

# %%
source = sb.Sequential({"net": net}).build((None, 8, 8, 1))
source.net.load_native((params, state))
assert jnp.allclose(source(test_images, training=False), logits, atol=1e-5)
source.vars()

# %% [markdown]
# ## Into other libraries
#
# The target has the same layers, of other libraries: linen, Equinox and functions.


# %%
def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


target = sb.Sequential({
    "conv": nn.Conv(32, (3, 3), strides=2),
    "norm": nn.BatchNorm(momentum=0.9),
    "relu": jax.nn.relu,
    "flat": flatten,
    "head": partial(eqx.nn.Linear, 4 * 4 * 32, 10),
}).build((None, 8, 8, 1))  # fmt: skip
target

# %% [markdown]
# `dry_run=True` shows the plan and changes nothing: which variable becomes which, and what is done
# on the way. Haiku's matrices are Equinox' transposed, and its statistics of a batch have axes of
# size 1 that linen's haven't.

# %%
drawn = copy.deepcopy(target)
plan = sb.port(source, target, dry_run=True)
assert not sb.diff(drawn, target)
plan

# %% [markdown]
# With `check=` both sides run on an input when the weights are there, and the largest difference of
# their results is printed, and kept in the plan. `sb.diff` shows what has changed in the target:
# every variable, as all were drawn.

# %%
plan = sb.port(source, target, check=test_images)
assert plan.difference is not None
assert plan.difference < 1e-4
assert jnp.allclose(target(test_images, training=False), logits, atol=1e-4)
carried = sb.diff(drawn, target)
assert set(carried.names) == set(target.vars())
carried

# %% [markdown]
# ## Fine-tuned
#
# Of the same digits with light and dark exchanged the network reads hardly any. A short training on
# such images teaches it.


# %%
@sb.jit
def fine_tune(
    model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array, y: jax.Array
) -> jax.Array:
    def loss_fn(model: sb.Sequential) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x, training=True), y).mean()

    loss, grads = sb.value_and_grad(loss_fn)(model)
    optimizer.update(grads)
    return loss


before = copy.deepcopy(target)
unseen = accuracy(target(1 - test_images, training=False))
optimizer = sb.Optimizer(target, optax.adam(5e-3))
for rows in [rows for _ in range(8) for rows in rng.permutation(1400).reshape(-1, 50)]:
    fine_tune(target, optimizer, 1 - train_images[rows], train_labels[rows])
tuned = accuracy(target(1 - test_images, training=False))
print(f"inverted images: accuracy {unseen:.3f} before, {tuned:.3f} after")
assert unseen < 0.2 < 0.9 < tuned
sb.diff(before, target)

# %% [markdown]
# ## Home again
#
# The way back is the same call with the sides changed. `native` gives the variables in Haiku's
# structure, for code that has never heard of seqbridge.

# %%
home = sb.port(target, source, check=1 - test_images)
params, state = source.net.native
logits = classify(params, state, 1 - test_images)
assert jnp.allclose(logits, target(1 - test_images, training=False), atol=1e-4)
assert abs(accuracy(logits) - tuned) < 0.01
print(f"Haiku again: accuracy {accuracy(logits):.3f}")
home
