"""The cost of a call on a mesh beyond its program.

`sb.jit(mesh=...)` runs beside a hand-written sharded `jax.jit`.

Both run one step of gradient descent of the same small network, with its variables replicated, and
the batch split over all devices. Their losses and the collectives of their programs are the same.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import clock
import flax.linen as nn
import jax
import numpy as np
from clock import Row
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import seqbridge as sb

COUNT = 8  # of virtual devices, which XLA must be told before it starts

_BASELINE = "hand-written, jax.jit"


def devices(quick: bool) -> list[Row]:
    """One device and eight, few variables and many."""
    rows = []
    for n_devices in (1, COUNT):
        for n_variables in (40,) if quick else (40, 200):
            rows += _measured(n_devices, n_variables, 3 if quick else 20)
    return rows


def _measured(n_devices: int, n_variables: int, rounds: int) -> list[Row]:
    axes = (AxisType.Auto,)
    mesh = jax.make_mesh(
        (n_devices,), ("data",), axis_types=axes, devices=jax.devices()[:n_devices]
    )
    x = np.ones((64, 16), "float32")
    model = sb.Sequential(
        [layer for _ in range(n_variables // 2) for layer in (nn.Dense(16), nn.relu)]
    )
    model.build((None, 16))
    params: Any = [variable.value for variable in model.vars().values()]
    model.shard(mesh)

    @sb.jit(mesh=mesh)
    def step(model: Any, x: Any) -> Any:
        loss, grads = sb.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        for name, variable in model.vars().items():
            variable.assign(variable - 0.01 * grads[name])
        return loss

    split, put, params = _by_hand(mesh, params)

    def by_hand() -> Any:
        nonlocal params
        params, loss = split(params, put(x))
        return loss

    calls = {_BASELINE: by_hand, "sb.jit(mesh=mesh)": lambda: step(model, x)}
    for _ in range(3):
        one, other = (float(call()) for call in calls.values())
        np.testing.assert_allclose(one, other, rtol=1e-5)
    programs = split.lower(params, put(x)), step.lower(model, x)
    collectives = [
        Counter(re.findall(r"(all-\w+)(?:-start)?\(", str(p.compile().as_text()))) for p in programs
    ]
    assert collectives[0] == collectives[1], collectives
    column = f"{n_devices} device{'s' if n_devices > 1 else ''}, {n_variables} variables"
    times = clock.interleaved(calls, rounds)
    return clock.rows(
        times, _BASELINE, table="Training step, batch split over the devices", column=column
    )


def _by_hand(mesh: Mesh, params: Any) -> tuple[Any, Any, Any]:
    """The compiled step, what puts a batch in place, and the parameters in place."""

    def loss_fn(params: Any, x: Any) -> Any:
        for bias, kernel in zip(params[::2], params[1::2], strict=True):
            x = jax.nn.relu(x @ kernel + bias)
        return (x**2).mean()

    @jax.jit
    def step(params: Any, x: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, x)
        return [p - 0.01 * g for p, g in zip(params, grads, strict=True)], loss

    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return step, lambda x: jax.device_put(x, rows), jax.device_put(params, whole)
