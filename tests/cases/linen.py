"""Flax linen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import seqbridge as sb
from cases._case import Case


class LinenBlock(nn.Module):
    """Nested, in compact form, with batch statistics and dropout."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


class LinenCoder(nn.Module):
    """In setup form, with two methods and a shared submodule."""

    def setup(self) -> None:
        self.inner = nn.Dense(4)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(self.inner(x))

    def encode(self, x: jax.Array, scale: float = 2.0) -> jax.Array:
        return self.inner(x) * scale


class LinenSower(nn.Module):
    """With a partitioned parameter, a sown value and a counter."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.Dense(3, kernel_init=kernel)(x)
        self.sow("losses", "norm", (x * x).sum())
        count = self.variable("counts", "calls", lambda: jnp.zeros(()))
        if not self.is_initializing():
            count.value = count.value + 1
        return x


def linen(
    name: str,
    module: nn.Module,
    *inputs: tuple[int, ...],
    flags: Callable[[bool], dict[str, bool]] = lambda training: {},
    method: str | None = None,
    by_position: bool = False,
    make: Callable[[], Any] | None = None,
    **facts: Any,
) -> Case:
    def given(inputs: Any, training: bool) -> tuple[Any, dict[str, Any]]:
        flag = flags(training)
        keywords = facts.get("keywords", {})
        return (
            ((*inputs, *flag.values()), keywords) if by_position else (inputs, {**flag, **keywords})
        )

    def init(key: Any, inputs: Any) -> Any:
        args, keywords = given(inputs, True)
        return module.init(key, *args, **keywords, method=method)

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        args, keywords = given(inputs, training)
        kept = {c: v for c, v in tree.items() if c != "losses"}  # fed back, sown values would grow
        mutable = [c for c in tree if c != "params"]
        out, state = module.apply(
            kept, *args, **keywords, rngs={"dropout": key}, mutable=mutable, method=method
        )
        return out, {**tree, **state}

    return Case(f"linen-{name}", make or (lambda: module), inputs, init, native, **facts)


class LinenScalar(nn.Module):
    """With a parameter that no number is drawn for."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", lambda key: jnp.array(2.0))


CASES = [
    linen("scalar", LinenScalar(), (6, 3), params=1),
    linen("weight-norm", nn.WeightNorm(nn.Dense(4)), (6, 3), params=3, refuses=(6, 5)),
    linen("dense", nn.Dense(4), (6, 3), params=2, refuses=(6, 5)),
    linen("conv", nn.Conv(4, (3, 3)), (2, 5, 5, 1), params=2, refuses=(2, 5, 5, 3)),
    linen(
        "batch-norm",
        nn.BatchNorm(momentum=0.9),
        (6, 3),
        flags=lambda training: {"use_running_average": not training},
        params=2,
        state=True,
        mode=True,
        refuses=(6, 5),
    ),
    linen(
        "dropout",
        nn.Dropout(0.5),
        (6, 3),
        flags=lambda training: {"deterministic": not training},
        params=0,
        mode=True,
        draws=True,
    ),
    linen(
        "block",
        LinenBlock(),
        (6, 3),
        flags=lambda training: {"train": training},
        params=4,
        state=True,
        mode=True,
        draws=True,
        refuses=(6, 5),
    ),
    linen(
        "remat",
        nn.remat(LinenBlock, static_argnums=(2,))(),
        (6, 3),
        by_position=True,
        flags=lambda training: {"train": training},
        params=4,
        state=True,
        mode=True,
        draws=True,
        leaks=True,
        refuses=(6, 5),
    ),
    linen("shared", LinenCoder(), (6, 4), params=2, refuses=(6, 5)),
    linen(
        "method",
        LinenCoder(),
        (6, 4),
        method="encode",
        make=lambda: sb.Layer(LinenCoder(), method="encode"),
        params=2,
        keywords={"scale": 3.0},
        refuses=(6, 5),
    ),
    linen(
        "collections",
        LinenSower(),
        (6, 4),
        params=2,
        state=True,
        moves=True,
        refuses=(6, 5),
    ),
    linen(
        "attention",
        nn.MultiHeadDotProductAttention(2),
        (2, 3, 4),
        (2, 5, 4),
        params=8,
        refuses=(2, 3, 6),
    ),
]
