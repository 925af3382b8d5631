"""How long a model takes before it computes anything.

That is imports, building, an edit, and calls that aren't compiled.
"""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import clock
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
from clock import Row
from flax import nnx

import seqbridge as sb

_WIDTH = 16
_X = np.ones((8, _WIDTH), "float32")
_NAMES = ("linen", "Haiku", "NNX", "Equinox")


def startup(quick: bool) -> list[Row]:
    """All of it, with dense layers of 16 units."""
    return [*_builds(quick), *_edits(quick), *_eager(quick), *_imports(quick)]


# Building


def _by_hand(n: int) -> Any:
    keys = jax.random.split(jax.random.key(0), n)
    return [(jax.random.normal(key, (_WIDTH, _WIDTH)) / 4, jnp.zeros(_WIDTH)) for key in keys]


def _linen(n: int) -> Any:
    return nn.Sequential([nn.Dense(_WIDTH) for _ in range(n)]).init(jax.random.key(0), _X)


def _haiku(n: int) -> Any:
    def forward(x: jax.Array) -> jax.Array:
        return hk.Sequential([hk.Linear(_WIDTH) for _ in range(n)])(x)

    return hk.transform(forward).init(jax.random.key(0), jnp.asarray(_X))


def _nnx(n: int) -> Any:
    rngs = nnx.Rngs(0)
    return nnx.state(nnx.Sequential(*[nnx.Linear(_WIDTH, _WIDTH, rngs=rngs) for _ in range(n)]))


def _equinox(n: int) -> Any:
    keys = jax.random.split(jax.random.key(0), n)
    return eqx.nn.Sequential([eqx.nn.Linear(_WIDTH, _WIDTH, key=key) for key in keys])


def _keras(n: int) -> Any:
    model = keras.Sequential([keras.layers.Dense(_WIDTH) for _ in range(n)])
    model.build((None, _WIDTH))
    return [variable.value for variable in model.variables]


def _entries(n: int, library: str) -> list[Any]:
    if library == "NNX":
        rngs = nnx.Rngs(0)
        return [nnx.Linear(_WIDTH, _WIDTH, rngs=rngs) for _ in range(n)]
    if library == "Equinox":
        return [
            eqx.nn.Linear(_WIDTH, _WIDTH, key=key) for key in jax.random.split(jax.random.key(0), n)
        ]
    return [
        nn.Dense(_WIDTH) if library == "linen" else partial(hk.Linear, _WIDTH) for _ in range(n)
    ]


def _sequential(n: int, library: str) -> Any:
    return [
        variable.value for variable in sb.Sequential(_entries(n, library)).build(_X).vars().values()
    ]


_BUILDS: dict[str, Callable[[int], Any]] = {
    "hand-written": _by_hand,
    "linen": _linen,
    "Haiku": _haiku,
    "NNX": _nnx,
    "Equinox": _equinox,
    "Keras": _keras,
    **{
        f"sb.Sequential of {library} entries": partial(_sequential, library=library)
        for library in _NAMES
    },
}


def _builds(quick: bool) -> list[Row]:
    """Time how models are built, large ones once.

    Cold: JAX has compiled nothing, as in a new process. Warm: the second model of its kind.
    """
    rows = []
    for n in (10,) if quick else (10, 100, 1000):
        cold: dict[str, list[float]] = {name: [] for name in _BUILDS}
        warm: dict[str, list[float]] = {name: [] for name in _BUILDS}
        for _ in range(1 if quick or n == 1000 else 3):
            for name in random.sample(list(_BUILDS), len(_BUILDS)):
                jax.clear_caches()
                for times in (cold, warm):
                    gc.collect()
                    begin = time.perf_counter()
                    jax.block_until_ready(jax.tree.leaves(_BUILDS[name](n)))
                    times[name].append(time.perf_counter() - begin)
        for table, times in (("Build, cold", cold), ("Build, warm", warm)):
            rows += clock.rows(times, "hand-written", table=table, column=f"{n} layers")
    return rows


def _edits(quick: bool) -> list[Row]:
    n = 100 if quick else 1000
    model = sb.Sequential(_entries(n, "linen")).build(_X)

    def edit() -> jax.Array:
        model[n // 2] = nn.Dense(_WIDTH)
        return model[n // 2].kernel.value

    def native() -> Any:
        return nn.Dense(_WIDTH).init(jax.random.key(0), _X)["params"]["kernel"]

    calls = {"nn.Dense(16).init, one layer": native, "model[i] = nn.Dense(16)": edit}
    times = clock.interleaved(calls, 3 if quick else 20)
    return clock.rows(
        times, next(iter(calls)), table="Edit of one entry", column=f"{n} entries, linen"
    )


# Calls that aren't compiled


def _native_calls(n: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Layer after layer, with each library's own way to call one."""
    dense, key = nn.Dense(_WIDTH), jax.random.key(0)

    def forward(x: jax.Array) -> jax.Array:
        return hk.Linear(_WIDTH)(x)

    linear = hk.without_apply_rng(hk.transform(forward))
    applies = {
        "linen": [partial(dense.apply, dense.init(key, _X)) for _ in range(n)],
        "Haiku": [partial(linear.apply, linear.init(key, jnp.asarray(_X))) for _ in range(n)],
        "NNX": _entries(n, "NNX"),
        "Equinox": [jax.vmap(layer) for layer in _entries(n, "Equinox")],
    }

    def through(layers: list[Any], x: jax.Array) -> jax.Array:
        for layer in layers:
            x = layer(x)
        return x

    return {library: partial(through, layers) for library, layers in applies.items()}


def _eager(quick: bool) -> list[Row]:
    rows, x = [], jnp.asarray(_X)
    n = 10 if quick else 100
    for library, native in _native_calls(n).items():
        model = sb.Sequential(_entries(n, library)).build(_X)
        calls: Mapping[str, Any] = {
            "native layers in a loop": partial(native, x),
            "model(x)": partial(model, x),
        }
        times = clock.interleaved(calls, 3 if quick else 40)
        rows += clock.rows(
            times, next(iter(calls)), table=f"Call without jit, {n} dense layers", column=library
        )
    return rows


# Imports

_STATEMENTS = (
    "import jax",
    "import flax.linen",
    "from flax import nnx",
    "import haiku",
    "import equinox",
    "import keras",
    "import seqbridge",
)


def _imports(quick: bool) -> list[Row]:
    """Each in a process of its own, less the time of a process that imports nothing."""
    times: dict[str, list[float]] = {statement: [] for statement in ("pass", *_STATEMENTS)}
    for _ in range(1 if quick else 3):
        for statement in random.sample(list(times), len(times)):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            times[statement].append(time.perf_counter() - begin)
    bare = min(times.pop("pass"))
    net = {name: [taken - bare for taken in own] for name, own in times.items()}
    return clock.rows(net, "import jax", table="Import", column="time")
