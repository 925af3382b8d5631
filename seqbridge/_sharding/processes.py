"""Several processes: their parts of a batch, and whether they agree."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seqbridge._sharding.placement import as_auto, batch_sharding


def of_all_processes(array: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, (processes, ...)."""
    if jax.process_count() == 1:
        return array[None]
    from jax.experimental import multihost_utils  # late, since nobody needs it in one process

    return np.asarray(multihost_utils.process_allgather(array))


def check_agreement(said: Mapping[str, Any]) -> None:
    """Raise in every process if they don't all say the same.

    Args:
        said: Statements of this process, by what they are about.

    Raises:
        RuntimeError: They differ in some.
    """
    # A function stands at another address in each.
    texts = [re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for value in said.values()]
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
    given = of_all_processes(np.frombuffer(b"".join(digests), "uint32").reshape(len(said), 2))
    agreed = dict(zip(said, (given == given[:1]).all((0, 2)), strict=True))
    differing = [name for name in said if not agreed[name]]
    if differing:
        shown = "; ".join(f"{name} here: {said[name]!r:.200}" for name in differing)
        raise RuntimeError(
            f"the processes disagree on the {', '.join(differing)} of this call. {shown}"
        )


def feed(
    batch: Any, mesh: Mesh | None = None, *, batch_axis: str | tuple[str, ...] = "data"
) -> Any:
    """Return the global batch, of which each process gives its own rows.

    Processes give the same arrays to `sb.jit(mesh=...)`; this is how they give different rows.

    Args:
        batch: A tree of arrays with the rows of this process: an equal number in each process.
            Where the batch isn't split over processes, each gives all rows.
        mesh: The mesh; by default all devices in one axis, `"data"`.
        batch_axis: The axis of the mesh, or axes, over which the batch is split.

    Returns:
        The tree with global arrays, (rows of all processes, ...).

    Raises:
        ValueError: The processes give different numbers of rows, or their number can't be split
            evenly; something has no rows; the mesh has no such axis.

    Examples:
        >>> import jax, numpy as np
        >>> feed({"x": np.ones((16, 3))}, jax.make_mesh((8,), ("data",)))["x"].shape
        (16, 3)
    """
    if mesh is None:
        mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    mesh = as_auto(mesh)
    sharding, parts = batch_sharding(mesh, batch_axis)
    places = sharding.addressable_devices_indices_map((parts,)).values()
    mine = len({(index[0].start, index[0].stop) for index in places if index})
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if () in shapes:
        raise ValueError(
            "feed takes arrays of rows, and got a number: give numbers to the call itself"
        )
    rows = [shape[0] for shape in shapes]
    given = of_all_processes(np.array(rows))
    if (given != given[:1]).any():
        raise ValueError(f"the processes give different numbers of rows: {given.tolist()}")
    for n in rows:
        if n % mine:
            raise ValueError(
                f"this process gives {n} rows, which can't be split evenly over its {mine} devices"
            )

    def global_array(leaf: Any) -> Any:
        local = np.asarray(leaf)
        shape = (local.shape[0] * parts // mine, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(global_array, batch)
