"""The examples of David Berthelot's post "Sequential Tinkering - Part 1" (2020).

They are written for Objax. Here Flax linen and Haiku modules stand in place of Objax layers.
Tables, lengths and numbers are checked against those of the post; the numbers come from the weights
that Objax drew, in `data/objax_golden.npz`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import seqbridge as sb


def show(result: Any, expected: Any) -> None:
    """Prints a result and checks it."""
    print(result)
    if isinstance(expected, str):
        assert str(result) == expected
    else:
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


print("Basics")
model = sb.Sequential(
    [
        nn.Conv(20, (5, 5)),
        nn.relu,
        partial(hk.Conv2D, 64, 5),
        partial(nn.leaky_relu, negative_slope=0.1),
    ]
)
model.build((1, 28, 28, 1))
table = """\
(Sequential)[0](Conv).bias         20 (20,)
(Sequential)[0](Conv).kernel      500 (5, 5, 1, 20)
(Sequential)[2](Conv2D).b          64 (64,)
(Sequential)[2](Conv2D).w       32000 (5, 5, 20, 64)
+Total(4)                       32584"""
show(model.vars(), table)

print("\nBenefits of the list syntax")
show(model[0].bias.value, np.zeros(20))
model[0].bias.assign(model[0].bias.value + 1)
model[2] = nn.Conv(32, (3, 3))
show(model[0].bias.value, np.ones(20))
table = """\
(Sequential)[0](Conv).bias         20 (20,)
(Sequential)[0](Conv).kernel      500 (5, 5, 1, 20)
(Sequential)[2](Conv).bias         32 (32,)
(Sequential)[2](Conv).kernel     5760 (3, 3, 20, 32)
+Total(4)                        6312"""
show(model.vars(), table)
model.append(nn.relu)
model.insert(-1, partial(hk.Conv2D, 8, 3))
show(len(model), 6)
table = """\
(Sequential)[0](Conv).bias         20 (20,)
(Sequential)[0](Conv).kernel      500 (5, 5, 1, 20)
(Sequential)[2](Conv).bias         32 (32,)
(Sequential)[2](Conv).kernel     5760 (3, 3, 20, 32)
(Sequential)[4](Conv2D).b           8 (8,)
(Sequential)[4](Conv2D).w        2304 (3, 3, 32, 8)
+Total(6)                        8624"""
show(model.vars(), table)

print("\nArguments of functions")
with np.load(Path(__file__).parent / "data" / "objax_golden.npz") as file:
    weights = [file[name] for name in ("b1", "w1", "b2", "w2")]
x = jnp.arange(1.0, 6.0).reshape(5, 1)
model = sb.Sequential([
    nn.Dense(20),
    lambda x, negative_slope=0.01: jnp.maximum(x, x * negative_slope),
    partial(hk.Linear, 1),
    nn.leaky_relu,
])  # fmt: skip
model.build(x).vars().assign(weights)
offset_0 = [0.08871414, 0.17742828, 0.26614243, 0.35485655, 0.4435708]
show(model(x).flatten(), offset_0)
show(
    model(x, negative_slope=0.2).flatten(),
    [0.16334192, 0.32668385, 0.49002576, 0.6533677, 0.8167097],
)

print("\nArguments of modules")


class OffsetDense(nn.Module):
    """A linen module that takes `offset`, and looks for `scale` among its other arguments."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, offset: float, **kwargs: Any) -> jax.Array:
        return nn.Dense(self.features)(x) * kwargs.get("scale", 1) + offset


def offset_linear(x: jax.Array, offset: float, **kwargs: Any) -> jax.Array:
    """The same in Haiku."""
    return hk.Linear(1)(x) * kwargs.get("scale", 1) + offset


model = sb.Sequential([OffsetDense(20), nn.leaky_relu, hk.transform(offset_linear), nn.leaky_relu])
model.build(x, offset=0).vars().assign(weights)
offset_1 = [-0.00090197, 0.24507368, 0.31848168, 0.47458148, 0.6344541]
show(model(x, offset=0).flatten(), offset_0)
show(model(x, offset=1).flatten(), offset_1)
show(model(x, offset=1, scale=1).flatten(), offset_1)
show(model(x, offset=1, scale=0).flatten(), np.ones(5))
slope_2 = [-0.01803935, 0.27238262, 0.42335594, 0.64115095, 0.8619946]
show(model(x, offset=1, negative_slope=0.2).flatten(), slope_2)
