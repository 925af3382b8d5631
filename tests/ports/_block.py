"""A block of the port matrix, and the rows of the matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import seqbridge as sb

# The rows, and the shape of each one's input, channels last. Sizes are such that a transposition
# that is forgotten has the same shape: as many features go out of a layer as come in.
ROWS: dict[str, tuple[int, ...]] = {
    "linear": (3, 5),  # 5 features
    "linear without bias": (3, 5),
    "conv 1d": (2, 9, 4),  # 4 features, window 3, stride 1, SAME
    "conv 2d": (2, 8, 7, 4),  # 4 features, window (3, 3), strides 2, VALID
    "conv 2d in groups": (2, 8, 7, 4),  # the same, 2 groups
    "conv 2d dilated": (2, 8, 7, 4),  # window (3, 3), stride 1, dilation 2, VALID
    "conv 3d": (2, 5, 4, 6, 3),  # 3 features, window (3, 3, 3), stride 1, SAME
    # 2 features for each one that comes in, window (3, 3), stride 1, VALID
    "depthwise": (2, 8, 7, 4),
    # 4 features, window 3, stride 2, VALID (no padding in PyTorch's terms)
    "transposed 1d": (2, 5, 4),
    # 4 features, window (3, 3), strides 2, SAME where the library has the word
    "transposed 2d": (2, 5, 4, 4),
    "embedding": (2, 6),  # integers below 7; 5 features
    "batch norm": (2, 5, 4, 6),  # epsilon 1e-5, momentum 0.9 (what is kept)
    "layer norm": (3, 5),  # epsilon 1e-5
    "group norm": (2, 5, 4, 6),  # 3 groups, epsilon 1e-5
    "rms norm": (3, 5),  # epsilon 1e-5
    "lstm": (2, 6, 4),  # 4 features, a sequence of 6
    "gru": (2, 6, 4),  # the library's own default kind
    "attention": (2, 5, 8),  # 2 heads of 4, with biases, one input that is query, key and value
}


@dataclass(frozen=True)
class Block:
    """One row of the matrix in one library.

    Args:
        row: Its name in `ROWS`.
        make: The entry, for float64.
        run: `(native tree, x) -> y`, by the library itself, in evaluation mode; x and y with
            channels last.
        build: What the model is built with, if it isn't the row's own shape (channels first, say),
            in float64.
        exact: Whether the library computes in float64 throughout if it is asked to.
    """

    row: str
    make: Callable[[], Any]
    run: Callable[[Any, jax.Array], jax.Array]
    build: tuple[int, ...] = ()
    exact: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def model(self, seed: int = 0) -> sb.Sequential:
        """A model of this block alone, with values that are nothing special."""
        x = example(self.row)
        shape = self.build or x.shape
        model = sb.Sequential([sb.Layer(self.make(), **self.options)], seed=seed)
        model.build(jax.ShapeDtypeStruct(shape, x.dtype))
        rng = np.random.default_rng(seed)
        for variable in model.vars().subset("params").values():
            # In float32, which every layer can hold.
            drawn = rng.normal(size=variable.shape).astype(np.float32) * 0.5
            variable.assign(jnp.asarray(drawn, variable.dtype))
        state = [
            v
            for v in model.vars().subset("state").values()
            if jnp.issubdtype(v.dtype, jnp.floating)
        ]
        # Whatever statistics there are come about as they do in training.
        for _ in range(3 if state else 0):
            model(jnp.asarray(rng.normal(size=shape) * 2 + 1, state[0].dtype), training=True)
        for variable in state:  # some libraries keep statistics in float32 whatever is asked for
            variable.assign(variable.value.astype(jnp.float32).astype(variable.dtype))
        return model


def example(row: str) -> jax.Array:
    rng = np.random.default_rng(7)
    shape = ROWS[row]
    return jnp.asarray(rng.integers(0, 7, shape) if row == "embedding" else rng.normal(size=shape))
