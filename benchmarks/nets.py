"""The networks that every system runs, their first values, and how they are written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOMENTUM, EPSILON = 0.9, 1e-5  # of the batch statistics, in every library


class Net(NamedTuple):
    """A chain of dense layers with relu between them, or of blocks.

    A block is dense, batch norm, relu, dropout.

    Attributes:
        widths: The sizes of the input and of what each dense layer returns.
        blocks: Whether it is made of blocks.
        rate: How much the blocks drop.
    """

    widths: tuple[int, ...]
    blocks: bool = False
    rate: float = 0.0

    def layers(
        self,
        dense: Callable[..., Any],
        relu: Any,
        norm: Callable[..., Any],
        drop: Callable[..., Any],
    ) -> list[Any]:
        """Return the layers in order, each made by its library's own function.

        These take `(n_in, n_out)`, `(n,)` and `(rate,)`.
        """
        made: list[Any] = []
        for i, (n_in, n_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            if self.blocks:
                made += [dense(n_in, n_out), norm(n_out), relu, drop(self.rate)]
            else:
                made += [relu, dense(n_in, n_out)] if i else [dense(n_in, n_out)]
        return made

    def kernels(self) -> list[np.ndarray]:
        """Return kernels that are the same for all libraries.

        They are near the identity, so that nothing vanishes: tiny numbers take longer than others.
        """
        normal = np.random.default_rng(0).normal
        shapes = list(zip(self.widths, self.widths[1:], strict=False))
        return [
            np.asarray(
                np.eye(*shape) + normal(0, 0.5 / (len(shapes) * shape[0]) ** 0.5, shape), "float32"
            )
            for shape in shapes
        ]

    def batch(self, n: int) -> jax.Array:
        """Inputs."""
        return jnp.asarray(np.random.default_rng(1).normal(size=(n, self.widths[0])), "float32")

    @property
    def key(self) -> jax.Array | None:
        """What dropout masks are drawn from."""
        return jax.random.key(0) if self.blocks else None


def mlp(layers: int) -> Net:
    """A multi-layer perceptron, with twice as many variables as layers."""
    return Net((16,) * (layers + 1))


def loss_of(outputs: jax.Array) -> jax.Array:
    """Return the mean squared distance from one.

    From zero, it would let the values fade away as the clock runs.
    """
    return jnp.mean((outputs - 1) ** 2)


# Trees of any library


def by_path(tree: Any) -> list[tuple[str, Any]]:
    """The leaves in the order of the layers: `layer_10` comes after `layer_2`."""
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return sorted(
        leaves, key=lambda pair: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", pair[0])]
    )


def with_kernels(tree: Any, net: Net) -> Any:
    """Return a copy, in arrays of its own, with the network's kernels for the matrices.

    Biases start from zero anyway.
    """
    matrices = [
        path for path, leaf in by_path(tree) if min(jnp.shape(leaf)) > 1 and jnp.ndim(leaf) == 2
    ]
    new = dict(zip(matrices, net.kernels(), strict=True))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.array(new.get(jax.tree_util.keystr(path), leaf)), tree
    )


def first_mean(tree: Any) -> np.ndarray:
    """Return the running mean of the first block, if any.

    Some libraries keep a correction beside it, which is left out.
    """
    leaves = [leaf for path, leaf in by_path(tree) if "average" not in path]
    return next(
        (np.ravel(leaf) for leaf in leaves if leaf.size > 1 and leaf.dtype == jnp.float32),
        np.zeros(0),
    )


# By hand


class Pure(NamedTuple):
    """A model as a pure function.

    Attributes:
        apply: From params, state, a key and inputs to outputs and new state.
        params: What is trained.
        state: What changes beside it.
    """

    apply: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
    params: Any
    state: Any


def by_hand(net: Net) -> Pure:
    """Flat lists of arrays."""
    n = len(net.widths) - 1
    zeros, ones = (
        [make(width, "float32") for width in net.widths[1:]] for make in (jnp.zeros, jnp.ones)
    )
    dense = [array for pair in zip(net.kernels(), zeros, strict=True) for array in pair]
    if not net.blocks:
        return Pure(_mlp, jax.tree.map(jnp.array, dense), [])
    norms = [array for pair in zip(ones, zeros, strict=True) for array in pair]  # scale, offset
    state = [array for pair in zip(zeros, ones, strict=True) for array in pair]  # mean, variance

    def apply(params: Any, state: Any, key: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        keys = jax.random.split(key, n) if net.rate else [key] * n
        new = []
        for i in range(n):
            kernel, bias, scale, offset = (
                *params[2 * i : 2 * i + 2],
                *params[2 * (n + i) : 2 * (n + i + 1)],
            )
            x = x @ kernel + bias
            mean = x.mean(0)
            variance = jnp.maximum((x * x).mean(0) - mean * mean, 0)
            averages = zip(state[2 * i : 2 * i + 2], (mean, variance), strict=True)
            new += [MOMENTUM * old + (1 - MOMENTUM) * now for old, now in averages]
            x = jax.nn.relu((x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + offset)
            if net.rate:
                x = jnp.where(
                    jax.random.bernoulli(keys[i], 1 - net.rate, x.shape), x / (1 - net.rate), 0
                )
        return x, new

    return Pure(apply, jax.tree.map(jnp.array, dense + norms), jax.tree.map(jnp.array, state))


def _mlp(params: Any, state: Any, key: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    for i in range(0, len(params), 2):
        x = (jax.nn.relu(x) if i else x) @ params[i] + params[i + 1]
    return x, state
