"""A library whose adapter is a package of its own, found by its entry point."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import toy_layers as lib
from cases._case import Case


def toy(name: str, entry: lib.ToyLayer, *inputs: tuple[int, ...], **facts: Any) -> Case:
    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        weights, memory = tree
        out, after = entry.run(weights, memory, jnp.asarray(*inputs), learning=training, noise=key)
        return out, (weights, after)

    return Case(
        f"toy-{name}",
        lambda: entry,
        inputs,
        lambda key, inputs: entry.start(key, inputs[0].shape[-1]),
        native,
        **facts,
    )


CASES = [
    toy("gain", lib.Gain(2.0), (6, 3), params=1, refuses=(6, 5)),
    toy(
        "center", lib.Center(), (6, 3), params=1, state=True, mode=True, draws=True, refuses=(6, 5)
    ),
]
