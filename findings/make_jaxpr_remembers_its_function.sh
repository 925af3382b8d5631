#!/usr/bin/env bash
# jax 0.10.2: `jax.make_jaxpr(f)` and `jax.eval_shape(f, ...)` don't run `f` again for shapes that
# they have met. The trace is kept by the function object, shared by both, so that a dict or a global
# that `f` reads and that has changed since isn't seen: a look at a function shows a program that it
# isn't any more. `functools.partial(f)` is another function object, and is traced.
#
# Seen: the second jaxpr still multiplies by 2.0 after the dict says 5.0, that of the partial by 5.0,
# and `f` has run twice for four looks.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import functools

import jax
import jax.numpy as jnp

runs = []
settings = {"scale": 2.0}


def scaled(x):
    runs.append(x)
    return x * settings["scale"]


x = jnp.ones(3)
first = str(jax.make_jaxpr(scaled)(x))
settings["scale"] = 5.0
again = str(jax.make_jaxpr(scaled)(x))
fresh = str(jax.make_jaxpr(functools.partial(scaled))(x))
jax.eval_shape(scaled, x)
print(again, fresh, f"{len(runs)} runs", sep="\n")
assert "2.0" in first and again == first, again
assert "5.0" in fresh, fresh
assert len(runs) == 2, len(runs)
PYTHON
