"""A library of layers that no one has heard of, with habits of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


class ToyLayer:
    """A layer holds no arrays: `start` makes them, `run` gets them."""

    def start(self, key: Any, width: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        return {}, {}

    def run(
        self, weights: Any, memory: Any, x: jax.Array, *, learning: bool, noise: Any = None
    ) -> Any:
        return x, memory


class Gain(ToyLayer):
    """Multiplies each feature."""

    def __init__(self, spread: float = 1.0):
        self.spread = spread

    def start(self, key: Any, width: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        return {"gain": self.spread * jax.random.normal(key, (1, width))}, {}

    def run(
        self, weights: Any, memory: Any, x: jax.Array, *, learning: bool, noise: Any = None
    ) -> Any:
        return x * weights["gain"], memory


class Center(ToyLayer):
    """Takes away a mean that it remembers, and adds noise while it learns."""

    def start(self, key: Any, width: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        return {"offset": jnp.zeros((1, width))}, {"mean": jnp.zeros((1, width))}

    def run(
        self, weights: Any, memory: Any, x: jax.Array, *, learning: bool, noise: Any = None
    ) -> Any:
        if learning:
            memory = {"mean": 0.9 * memory["mean"] + 0.1 * x.mean(0, keepdims=True)}
            x = x + jax.random.normal(noise, x.shape)
        return x - memory["mean"] + weights["offset"], memory
