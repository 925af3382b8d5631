"""How long it takes until a deep model can run: tracing, lowering and compiling.

It is also shown how a scan over layers helps.

The caches of JAX are cleared before each time, and functions are made anew; so what is timed is the
first call of a process in which everything is imported. Of three times the least counts. That all
programs do the same work is seen in them: they have as many matrix products as the hand-written
one.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from clock import Row
from flax import nnx
from libraries import (
    equinox_call,
    equinox_module,
    equinox_partition,
    haiku,
    haiku_in_linen,
    keras_stateless,
    linen,
    linen_in_nnx,
    nnx_module,
    nnx_split,
    sequential,
)
from nets import Net, Pure, by_hand, mlp
from systems import BASELINE, equinox_step, nnx_step, pure_step, sequential_step

import seqbridge as sb

_SGD = optax.sgd(1e-3)
_LONG = 1000.0  # ms: what compiles for longer is compiled once

Fresh: TypeAlias = Callable[
    [], tuple[Any, tuple[Any, ...]]
]  # a function that JAX hasn't seen, and its arguments
Subject: TypeAlias = Callable[[Net, bool], Fresh]  # of a network, and whether to train it


def depth(quick: bool) -> list[Row]:
    """Time a call and a step of training of a perceptron, layer by layer.

    Also a call of a scan over its layers.
    """
    rows = []
    for layers in (10,) if quick else (10, 100, 1000):
        names = [
            name for name in _UNROLLED if layers < 1000 or "pack" not in name
        ]  # it would compile for a minute
        fresh = {name: _UNROLLED[name](mlp(layers), False) for name in names}
        rows += _measured(fresh, BASELINE, quick, {"table": "Call", "column": f"{layers} layers"})
    for layers in (10,) if quick else (10, 100):
        fresh = {name: subject(mlp(layers), True) for name, subject in _UNROLLED.items()}
        rows += _measured(
            fresh, BASELINE, quick, {"table": "Training step, SGD", "column": f"{layers} layers"}
        )
    for layers in (10,) if quick else (10, 100, 1000):
        fresh = {name: make(layers) for name, make in _SCANNED.items()}
        names = {"table": "Call, layers in a scan", "column": f"{layers} layers"}
        rows += _measured(fresh, next(iter(fresh)), quick, names)
    return rows


def _measured(
    fresh: Mapping[str, Fresh], baseline: str, quick: bool, names: Mapping[str, str]
) -> list[Row]:
    times: dict[str, list[Row]] = {name: [] for name in fresh}
    products = {}
    for i in range(1 if quick else 3):
        for name in random.sample(list(fresh), len(fresh)):
            lowered, row = _lowered(fresh[name])
            if i == 0 or times[name][0]["compile_ms"] < _LONG:
                begin = time.perf_counter()
                lowered.compile()
                row["compile_ms"] = 1e3 * (time.perf_counter() - begin)
            if i == 0:
                products[name] = lowered.as_text().count("dot_general")
            times[name].append(row)
    assert len(set(products.values())) == 1, products
    least = {
        name: {key: min(row[key] for row in own if key in row) for key in own[0]}
        for name, own in times.items()
    }
    for own in least.values():
        own["total_ms"] = own["lowered_ms"] + own["compile_ms"]
    rows = []
    for name, own in least.items():
        native = least.get(_NATIVE.get(name, ""))
        ratios = {
            f"x_{key}": own[f"{key}_ms"] / least[baseline][f"{key}_ms"]
            for key in ("lowered", "total")
        }
        if native:
            ratios["x_native"] = own["lowered_ms"] / native["lowered_ms"]
        rows.append({**names, "system": name, **own, **ratios})
    return rows


def _lowered(fresh: Fresh) -> tuple[Any, Row]:
    jax.clear_caches()
    gc.collect()
    jitted, args = fresh()
    begin = time.perf_counter()
    if not hasattr(jitted, "trace"):
        lowered = jitted.lower(*args)
        return lowered, {"lowered_ms": 1e3 * (time.perf_counter() - begin)}
    traced = jitted.trace(*args)
    between = time.perf_counter()
    lowered = traced.lower()
    end = time.perf_counter()
    milliseconds = {
        "trace_ms": between - begin,
        "lower_ms": end - between,
        "lowered_ms": end - begin,
    }
    return lowered, {key: 1e3 * value for key, value in milliseconds.items()}


def _unseen(function: Callable[..., Any]) -> Any:
    """`jax.jit` of a function that does the same and that JAX hasn't seen."""

    def unseen(*args: Any) -> Any:
        return function(*args)

    return jax.jit(unseen)


# Layer by layer


def _pure(make: Callable[[Net], Pure]) -> Subject:
    def subject(net: Net, train: bool) -> Fresh:
        apply, params, state = make(net)
        x = net.batch(8)
        if train:
            carry = (params, state, _SGD.init(params), net.key)
            return lambda: (jax.jit(pure_step(apply, _SGD)), (carry, x))
        return lambda: (_unseen(lambda params, x: apply(params, state, None, x)[0]), (params, x))

    return subject


def _nnx(make: Callable[[Net], Any]) -> Subject:
    def subject(net: Net, train: bool) -> Fresh:
        module, x = make(net), net.batch(8)
        if train:
            optimizer = nnx.Optimizer(module, _SGD, wrt=nnx.Param)
            return lambda: (nnx_step(), (module, optimizer, x))
        return lambda: (nnx.jit(lambda module, x: module(x)), (module, x))

    return subject


def _equinox(net: Net, train: bool) -> Fresh:
    (module, state), x = equinox_module(net), net.batch(8)
    if train:
        carry = (module, state, _SGD.init(eqx.filter(module, eqx.is_inexact_array)), net.key)
        return lambda: (equinox_step(_SGD), (carry, x))
    return lambda: (
        eqx.filter_jit(lambda module, x: equinox_call(module, state, None, x)[0]),
        (module, x),
    )


def _sequential(library: str, **options: Any) -> Subject:
    def subject(net: Net, train: bool) -> Fresh:
        model, x = sequential(net, library), net.batch(8)
        if train:
            optimizer = sb.Optimizer(model, _SGD)
            return lambda: (sequential_step(net, **options), (model, optimizer, x))
        return lambda: (sb.jit(lambda model, x: model(x), **options), (model, x))

    return subject


_UNROLLED: dict[str, Subject] = {
    BASELINE: _pure(by_hand),
    "linen apply, jax.jit": _pure(linen),
    "Haiku apply, jax.jit": _pure(haiku),
    "Haiku in linen (hk.experimental.flax), jax.jit": _pure(haiku_in_linen),
    "nnx.jit": _nnx(nnx_module),
    "nnx split and merge, jax.jit": _pure(nnx_split),
    "linen in NNX (bridge.ToNNX), nnx.jit": _nnx(linen_in_nnx),
    "eqx.filter_jit": _equinox,
    "eqx.partition, jax.jit": _pure(equinox_partition),
    "Keras stateless_call, jax.jit": _pure(keras_stateless),
    "sb.jit of linen entries": _sequential("linen"),
    "sb.jit of Haiku entries": _sequential("haiku"),
    "sb.jit of NNX entries": _sequential("nnx"),
    "sb.jit(pack=True) of linen entries": _sequential("linen", pack=True),
}
_NATIVE = {
    "sb.jit of linen entries": "linen apply, jax.jit",
    "sb.jit of Haiku entries": "Haiku apply, jax.jit",
    "sb.jit of NNX entries": "nnx.jit",
    "sb.jit(pack=True) of linen entries": "linen apply, jax.jit",
    "sb.Repeat of a linen entry": "linen nn.scan",
}


# In a scan


def _scan_by_hand(n: int) -> Fresh:
    net = mlp(n)
    kernels, x = jnp.stack([jnp.asarray(kernel) for kernel in net.kernels()]), net.batch(8)
    params = kernels, jnp.zeros(kernels.shape[::2])

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(
            lambda x, layer: (jax.nn.relu(x @ layer[0] + layer[1]), None), x, params
        )[0]

    return lambda: (_unseen(apply), (params, x))


def _scan_linen(n: int) -> Fresh:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> Any:
            return nn.relu(nn.Dense(16)(x)), None

    layers: Any = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=n
    )()
    x = mlp(1).batch(8)
    params = layers.init(jax.random.key(0), x, None)
    return lambda: (_unseen(lambda params, x: layers.apply(params, x, None)[0]), (params, x))


def _scan_haiku(n: int) -> Fresh:
    def forward(x: jax.Array) -> Any:
        return hk.layer_stack(n)(lambda x: jax.nn.relu(hk.Linear(16)(x)))(x)

    init, apply = hk.without_apply_rng(hk.transform(forward))
    x = mlp(1).batch(8)
    params = init(jax.random.key(0), x)
    return lambda: (_unseen(apply), (params, x))


def _scan_sequential(n: int) -> Fresh:
    x = mlp(1).batch(8)
    model = sb.Sequential([sb.Repeat(nn.Sequential([nn.Dense(16), nn.relu]), n)]).build(x)
    return lambda: (sb.jit(lambda model, x: model(x)), (model, x))


_SCANNED: dict[str, Callable[[int], Fresh]] = {
    "hand-written lax.scan": _scan_by_hand,
    "linen nn.scan": _scan_linen,
    "Haiku layer_stack": _scan_haiku,
    "sb.Repeat of a linen entry": _scan_sequential,
}
