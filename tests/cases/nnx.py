"""Flax NNX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import seqbridge as sb
from cases._case import Case


class Count(nnx.Variable):
    """A kind of variable of the user's own."""


class Block(nnx.Module):
    """Nested, with a list, dropouts of one stream, a counting variable and a counting int."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 5, rngs=rngs), jnp.tanh, nnx.Linear(5, 5, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.drops = nnx.List([nnx.Dropout(0.3, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)])
        self.steps = Count(jnp.zeros(()))
        self.calls = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls += 1
        self.steps[...] = self.steps[...] + 1
        for layer in self.layers:
            x = layer(x)
        return self.drops[1](self.norm(self.drops[0](x)))


class Tied(nnx.Module):
    """With one parameter at two places, and two methods."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.second.kernel = self.first.kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x))

    def encode(self, x: jax.Array, scale: float = 2.0) -> jax.Array:
        return self(x) * scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Line:
    """A pytree of the user's own, with names in place of keys."""

    slope: jax.Array
    shift: jax.Array


class OfADataclass(nnx.Module):
    """With one parameter that is a pytree of two arrays."""

    def __init__(self, rngs: nnx.Rngs):
        self.line = nnx.Param(Line(rngs.params.normal((1, 3)), rngs.params.normal((1, 3))))

    def __call__(self, x: jax.Array) -> jax.Array:
        line: Any = self.line  # which hands its attributes on
        return x * line.slope + line.shift


def nnx_case(
    name: str,
    build: Callable[[nnx.Rngs], nnx.Module],
    *inputs: tuple[int, ...],
    lazy: Any = None,
    method: str = "__call__",
    rngs: bool = False,
    given: bool | None = None,
    **facts: Any,
) -> Case:
    entry = build(nnx.Rngs(1))

    def init(key: Any, inputs: Any) -> Any:
        return nnx.state(build(nnx.Rngs(key)) if lazy else entry, nnx.Not(nnx.RngState))

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        module = nnx.clone(entry)
        nnx.update(module, tree)
        if training:
            module.train()
        else:
            module.eval()
        streams = nnx.state(module, nnx.RngState)
        leaves, treedef = jax.tree.flatten(streams)  # a count and a key of each stream
        fresh = [x for n in range(len(leaves) // 2) for x in (jnp.uint32(n << 16), key)]
        nnx.update(module, jax.tree.unflatten(treedef, fresh))
        keywords = {**facts.get("keywords", {}), **({"rngs": nnx.Rngs(key)} if rngs else {})}
        out = getattr(module, method)(*inputs, **keywords)
        return out, nnx.state(module, nnx.Not(nnx.RngState))

    def make() -> Any:
        return lazy or (entry if method == "__call__" else sb.Layer(entry, method=method))

    return Case(
        f"nnx-{name}",
        make,
        inputs,
        init,
        native,
        given=lazy is None if given is None else given,
        **facts,
    )


CASES = [
    nnx_case("linear", lambda rngs: nnx.Linear(3, 4, rngs=rngs), (6, 3), params=2, refuses=(6, 5)),
    nnx_case("dataclass", OfADataclass, (6, 3), params=2),
    nnx_case(
        "class",
        lambda rngs: nnx.Linear(3, 4, rngs=rngs),
        (6, 3),
        lazy=functools.partial(nnx.Linear, 3, 4),
        params=2,
        refuses=(6, 5),
    ),
    nnx_case(
        "class-with-rngs",
        lambda rngs: nnx.Linear(3, 4, rngs=nnx.Rngs(7)),
        (6, 3),
        lazy=functools.partial(nnx.Linear, 3, 4, rngs=nnx.Rngs(7)),
        given=True,
        params=2,
        refuses=(6, 5),
    ),
    nnx_case(
        "conv",
        lambda rngs: nnx.Conv(1, 4, (3, 3), rngs=rngs),
        (2, 5, 5, 1),
        params=2,
        refuses=(2, 5, 5, 3),
    ),
    nnx_case(
        "batch-norm",
        lambda rngs: nnx.BatchNorm(3, momentum=0.9, rngs=rngs),
        (6, 3),
        params=2,
        state=True,
        mode=True,
        refuses=(6, 5),
    ),
    nnx_case(
        "dropout", lambda rngs: nnx.Dropout(0.5), (6, 3), rngs=True, params=0, mode=True, draws=True
    ),
    nnx_case(
        "block",
        Block,
        (6, 3),
        params=6,
        state=True,
        moves=True,
        mode=True,
        draws=True,
        refuses=(6, 5),
    ),
    nnx_case("shared", Tied, (6, 4), params=3, refuses=(6, 5)),
    nnx_case(
        "method", Tied, (6, 4), method="encode", params=3, keywords={"scale": 3.0}, refuses=(6, 5)
    ),
    nnx_case(
        "attention",
        lambda rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
        (2, 3, 4),
        (2, 5, 4),
        params=8,
        refuses=(2, 3, 6),
    ),
]
