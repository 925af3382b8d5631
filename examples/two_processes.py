"""One training on one device, on eight, and in two processes of four.

The losses are the same, to the last digits.

The model's code knows of no device. The processes are started here, on the loopback address, as
they would be on two machines; each feeds its own half of the rows.

    pip install "seqbridge[layers]" && python examples/two_processes.py
"""

import functools
import json
import os
import socket
import subprocess
import sys
from typing import Any


def main() -> None:
    rows = {"1 device": run(1, 1), "8 devices": run(1, 8), "2 processes, 4 devices each": run(2, 4)}
    steps = [0, 1, 5, 10, 19]
    print(
        f"{'loss in step':30}"
        + "".join(f"{step:>12}" for step in steps)
        + f"{'mean':>12}{'dropped':>10}"
    )
    for name, found in rows.items():
        losses = "".join(f"{found['losses'][step]:12.7f}" for step in steps)
        print(f"{name:30}{losses}{found['mean']:12.7f}{found['dropped']:10d}")
    first, *others = rows.values()
    for other in others:
        assert max(abs(a - b) for a, b in zip(first["losses"], other["losses"], strict=True)) < 1e-5
        assert abs(first["mean"] - other["mean"]) < 1e-5
        assert first["dropped"] == other["dropped"]
    assert first["losses"][-1] < first["losses"][0]


def run(processes: int, devices: int) -> dict[str, Any]:
    """Trains in that many processes, and returns what the first one says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(processes), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [worker.communicate(timeout=300)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    return json.loads(said[0].splitlines()[-1])


def work(rank: int, processes: int, port: str) -> None:
    import jax

    if processes > 1:
        address = f"127.0.0.1:{port}"
        # Without the address to bind, JAX listens on all interfaces.
        jax.distributed.initialize(address, processes, rank, coordinator_bind_address=address)
    import equinox as eqx
    import flax.linen as nn
    import haiku as hk
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    import seqbridge as sb

    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    model = sb.Sequential(
        [
            nn.Conv(8, (3, 3), use_bias=False),
            nn.BatchNorm(momentum=0.9),
            nn.relu,
            lambda x: x.reshape(x.shape[0], -1),
            functools.partial(hk.Linear, 16, with_bias=False),
            functools.partial(hk.BatchNorm, True, True, 0.9),
            nn.Dropout(0.5),
            functools.partial(nn.leaky_relu, negative_slope=0.1),
            lambda x: x,
            functools.partial(eqx.nn.Linear, 16, 8),
            functools.partial(nnx.Linear, 8, 4),
        ]
    )
    model.build((1, 6, 6, 1)).shard(mesh)
    optimizer = sb.Optimizer(model, optax.sgd(0.05))

    @sb.jit(mesh=mesh)
    def train_step(
        model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array, labels: jax.Array
    ) -> jax.Array:
        def loss_fn(model: sb.Sequential) -> jax.Array:
            logits = model(x, training=True, negative_slope=0.2)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = sb.value_and_grad(loss_fn)(model)
        optimizer.update(grads)
        return loss

    @sb.jit(mesh=mesh)
    def zeros(model: sb.Sequential, x: jax.Array) -> jax.Array:
        return (model[:7](x, training=True, rng=jax.random.key(7)) == 0).sum()

    images = np.asarray(jax.random.normal(jax.random.key(0), (32, 6, 6, 1)))
    mine = slice(rank * 32 // processes, (rank + 1) * 32 // processes)
    x, labels = sb.feed((images[mine], (np.arange(32) % 4)[mine]), mesh)
    losses = [float(train_step(model, optimizer, x, labels)) for _ in range(20)]
    found = {
        "losses": losses,
        "mean": float(jnp.sum(model[1]["mean"].value)),
        "dropped": int(zeros(model, x)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main()
