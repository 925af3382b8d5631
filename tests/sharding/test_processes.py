"""Several processes, started here on the loopback address."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

WORKER = """
import os, sys
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["XLA_FLAGS"], os.environ["NPROC"] = "--xla_force_host_platform_device_count=4", "16"
import jax
address = f"127.0.0.1:{port}"
jax.distributed.initialize(address, 2, rank, coordinator_bind_address=address)
import flax.linen as nn
import numpy as np
import seqbridge as sb
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((8,), ("data",))
model = sb.Sequential([nn.Dense(8), nn.BatchNorm(), nn.Dropout(0.5)]).build((None, 4))
model.shard(mesh, {"kernel": P(None, "data")})
rows = np.arange(64.0, dtype="float32").reshape(16, 4)
mine = rows[8 * rank : 8 * rank + 8]
total = sb.jit(lambda x: x.sum(), mesh=mesh)
assert float(total(sb.feed(mine))) == float(total(rows)) == rows.sum()

def raises(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)

raises(
    ValueError,
    "the processes give different numbers of rows: [[8], [4]]",
    lambda: sb.feed(mine[: 8 - 4 * rank]),
)
raises(
    ValueError,
    "this process gives 3 rows, which can't be split evenly over its 4",
    lambda: sb.feed(mine[:3]),
)

checked = {"mesh": mesh, "check_processes": True}
call = sb.jit(lambda model, x, training: model(x, training=training), **checked)
same = sb.jit(lambda x, function: function(x), static_argnames=["function"], **checked)
same(rows, function=lambda x: 2 * x)  # a function is the same in both, at whatever address
raises(
    RuntimeError,
    "disagree on the random keys",
    lambda: same(jax.random.key(rank), function=abs),
)
before = [v.value for v in model.vars().values()]
raises(
    RuntimeError,
    "disagree on the values that aren't arrays",
    lambda: call(model, rows, training=rank == 0),
)
raises(
    RuntimeError,
    "disagree on the shapes",
    lambda: call(model, rows[: 16 - 8 * rank], training=True),
)
assert all(v.value is array for v, array in zip(model.vars().values(), before))
call(model, sb.feed(mine), training=True)

raises(
    RuntimeError,
    "is spread over several processes: save it by sb.Checkpoint",
    lambda: model.save(folder + "/one"),
)
with sb.Checkpoint(folder + "/two", model=model) as checkpoint:
    checkpoint.save(0)
"""

READER = """
import hashlib, os, sys
devices, folder = int(sys.argv[1]), sys.argv[2]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
os.environ["NPROC"] = "16"
import flax.linen as nn
import jax
import numpy as np
import seqbridge as sb
from jax.sharding import PartitionSpec as P

model = sb.Sequential([nn.Dense(8), nn.BatchNorm(), nn.Dropout(0.5)], seed=9).build((None, 4))
model.shard(jax.make_mesh((devices,), ("data",)), {"kernel": P("data")})
with sb.Checkpoint(folder + "/two", model=model) as checkpoint:
    assert checkpoint.restore() == 0
assert tuple(model[0].kernel.value.sharding.spec) == ("data",)
arrays = [np.asarray(a).tobytes() for part in model.variables.values() for a in part.values()]
print(hashlib.sha256(b"".join(arrays)).hexdigest())
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_feed_agree_and_save_what_others_restore(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [start(WORKER, rank, port, tmp_path) for rank in range(2)]
    for worker in workers:
        said, _ = worker.communicate(timeout=200)
        assert worker.returncode == 0, said
    found = set()
    for devices in (4, 1):
        reader = start(READER, devices, tmp_path)
        said, _ = reader.communicate(timeout=100)
        assert reader.returncode == 0, said
        found.add(said.splitlines()[-1])
    assert len(found) == 1
