"""What a call on a mesh costs beyond its program: `sb.jit(mesh=...)` beside a hand-written sharded `jax.jit`.

Both run one step of gradient descent of the same small network, with its variables replicated, and the batch split over
all devices. Timed in turns in one process; what is shown is the ratio of medians, and the collectives of both programs.

    python benchmarks/devices.py --devices 1,8 --rounds 200
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1,8")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--variables", type=int, default=40)
    options = parser.parse_args()
    print(f"{'devices':>8}{'variables':>11}{'by hand, us':>13}{'sb.jit, us':>12}{'ratio':>8}  collectives")
    for devices in options.devices.split(","):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
        arguments = [sys.executable, __file__, devices, str(options.rounds), str(options.variables)]
        subprocess.run(arguments, env={**environment, "SEQBRIDGE_WORKER": "1"}, check=True)


def measure(devices: int, rounds: int, n: int) -> None:
    import flax.linen as nn
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import seqbridge as sb

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    model = sb.Sequential([layer for _ in range(n // 2) for layer in (nn.Dense(16), nn.relu)]).build((None, 16))
    x = np.ones((64, 16), "float32")
    params = jax.device_put([variable.value for variable in model.vars().values()], whole)
    model.shard(mesh)

    def loss_by_hand(params: Any, x: Any) -> Any:
        for bias, kernel in zip(params[::2], params[1::2], strict=True):
            x = jax.nn.relu(x @ kernel + bias)
        return (x**2).mean()

    @jax.jit
    def by_hand(params: Any, x: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_by_hand)(params, x)
        return [p - 0.01 * g for p, g in zip(params, grads, strict=True)], loss

    @sb.jit(mesh=mesh)
    def step(model: Any, x: Any) -> Any:
        loss, grads = sb.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        for name, variable in model.vars().items():
            variable.assign(variable - 0.01 * grads[name])
        return loss

    def run_by_hand() -> Any:
        nonlocal params
        params, loss = by_hand(params, jax.device_put(x, rows))
        return loss

    systems: list[Callable[[], Any]] = [run_by_hand, lambda: step(model, x)]
    times: list[list[float]] = [[], []]
    assert all(abs(float(run_by_hand()) - float(step(model, x))) < 1e-6 for _ in range(3))
    for _ in range(rounds):
        for system, taken in zip(systems, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(system())
            taken.append(time.perf_counter() - start)
    hand, here = (1e6 * statistics.median(taken) for taken in times)
    programs = by_hand.lower(params, jax.device_put(x, rows)), step.lower(model, x)
    traffic = [Counter(re.findall(r"(all-\w+)(?:-start)?\(", str(p.compile().as_text()))) for p in programs]
    assert traffic[0] == traffic[1]
    print(f"{devices:8d}{n:11d}{hand:13.0f}{here:12.0f}{here / hand:8.2f}  {dict(traffic[1])}")


if __name__ == "__main__":
    if "SEQBRIDGE_WORKER" in os.environ:
        measure(*map(int, sys.argv[1:]))
    else:
        main()
