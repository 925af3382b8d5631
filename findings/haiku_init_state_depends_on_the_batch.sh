#!/usr/bin/env bash
# dm-haiku 0.0.17 (jax 0.10.2): the state that `init` of a BatchNorm returns is no neutral start. Its
# `hidden` and `counter` are zeros, since they are read, with an initializer, before they are set. Its
# `average` is set without having been read, so `init` returns the value that the call set: the
# statistics of the batch that `init` was given. Initial values from `jax.eval_shape`, or from zeros,
# aren't those of an `init` with data, and a network that is evaluated before its first step of training
# normalizes by the batch that happened to be used for `init`.
#
# Seen: counter 0, hidden 0, average 7 after `init` with a batch of sevens; `is_training=False` then
# gives 0 for sevens.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 dm-haiku==0.0.17
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import haiku as hk
import jax
import jax.numpy as jnp


def forward(x, is_training):
    return hk.BatchNorm(True, True, 0.9)(x, is_training=is_training)


network = hk.transform_with_state(forward)
sevens = jnp.full((4, 1), 7.0)
params, state = network.init(jax.random.key(0), sevens, is_training=True)
mean = {name: float(value.squeeze()) for name, value in state["batch_norm/~/mean_ema"].items()}
out, _ = network.apply(params, state, None, sevens, is_training=False)
print(mean, out.ravel())
assert mean == {"counter": 0.0, "hidden": 0.0, "average": 7.0}, mean
assert jnp.allclose(out, 0.0), out
PYTHON
