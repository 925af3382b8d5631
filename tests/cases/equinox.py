"""Equinox."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from cases._case import Case


class Block(eqx.Module):
    """Nested, with a state, a dropout, functions and a number; it always wants a key."""

    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    act: Callable[[jax.Array], jax.Array]
    scale: float

    def __init__(self, key: Any):
        self.linear = eqx.nn.Linear(3, 5, key=key)
        self.norm = eqx.nn.BatchNorm(5, "batch", mode="batch")
        self.drop = eqx.nn.Dropout(0.4)
        self.act = jax.nn.relu
        self.scale = 2.0

    def __call__(
        self, x: jax.Array, state: eqx.nn.State, *, key: Any
    ) -> tuple[jax.Array, eqx.nn.State]:
        first, second = jax.random.split(key)
        x, state = self.norm(self.drop(self.linear(x), key=first), state)
        return self.drop(self.act(x) * self.scale, key=second), state


class Tied(eqx.Module):
    """Two layers with one weight, by `eqx.nn.Shared`."""

    shared: eqx.nn.Shared

    def __init__(self, key: Any):
        pair = eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 4, key=key)
        self.shared = eqx.nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.shared()
        return second(first(x))


def equinox(
    name: str,
    build: Callable[[Any], Any],
    *inputs: tuple[int, ...],
    lazy: Any = None,
    mapped: bool = False,
    keyed: bool = True,
    **facts: Any,
) -> Case:
    entry = build(jax.random.key(1))
    stateful = facts.get("state", False)

    def tree_of(made: Any) -> Any:
        pair = eqx.nn.make_with_state(lambda: made)()
        return pair if stateful else pair[0]

    def init(key: Any, inputs: Any) -> Any:
        return tree_of(build(key) if lazy else entry)

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        module, state = tree if stateful else (tree, None)
        module = eqx.nn.inference_mode(module, not training)
        if mapped:
            return module(*inputs), tree
        if not keyed:
            return jax.vmap(module)(*inputs), tree
        keys = jax.random.split(key, len(inputs[0]))
        if not stateful:
            return jax.vmap(lambda key, *x: module(*x, key=key))(keys, *inputs), tree
        call = jax.vmap(
            lambda key, *x: module(*x, state=state, key=key), out_axes=(0, None), axis_name="batch"
        )
        out, state = call(keys, *inputs)
        return out, (tree[0], state)

    return Case(
        f"equinox-{name}", lambda: lazy or entry, inputs, init, native, given=lazy is None, **facts
    )


def _stack(key: Any) -> eqx.nn.Sequential:
    layers = [
        eqx.nn.Linear(3, 4, key=key),
        eqx.nn.Lambda(jnp.tanh),
        eqx.nn.BatchNorm(4, "batch", mode="ema"),
    ]
    return eqx.nn.Sequential([*layers, eqx.nn.Dropout(0.5)])


CASES = [
    equinox("linear", lambda key: eqx.nn.Linear(3, 4, key=key), (6, 3), params=2, refuses=(6, 5)),
    equinox("square", lambda key: eqx.nn.Linear(4, 4, key=key), (4, 4), params=2, refuses=(4, 5)),
    equinox(
        "class",
        lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key),
        (6, 3),
        lazy=functools.partial(eqx.nn.MLP, 3, 2, 4, 1),
        params=4,
        refuses=(6, 5),
    ),
    equinox(
        "conv",
        lambda key: eqx.nn.Conv2d(1, 4, 3, key=key),
        (2, 1, 5, 5),
        params=2,
        refuses=(2, 3, 5, 5),
    ),
    equinox(
        "batch-norm",
        lambda key: eqx.nn.BatchNorm(3, "batch", mode="batch", momentum=0.9),
        (6, 3),
        params=2,
        state=True,
        mode=True,
        strict=False,  # the running average is divided by a power of an int
    ),
    equinox("dropout", lambda key: eqx.nn.Dropout(0.5), (6, 3), params=0, mode=True, draws=True),
    equinox(
        "block",
        Block,
        (6, 3),
        params=4,
        state=True,
        mode=True,
        draws=True,
        refuses=(6, 5),
        strict=False,
    ),
    equinox(
        "sequential", _stack, (6, 3), params=4, state=True, mode=True, draws=True, refuses=(6, 5)
    ),
    equinox("shared", Tied, (6, 4), keyed=False, params=3, refuses=(6, 5)),
    equinox(
        "class-constant",
        lambda key: eqx.nn.BatchNorm(3, "batch", mode="batch"),
        (6, 3),
        lazy=functools.partial(eqx.nn.BatchNorm, 3, "batch", mode="batch"),
        params=2,
        state=True,
        mode=True,
        strict=False,
    ),
    equinox("prelu", lambda key: eqx.nn.PReLU(0.3), (6, 3), keyed=False, params=1),
    equinox(
        "attention",
        lambda key: eqx.nn.MultiheadAttention(2, 4, key=key),
        (2, 3, 4),
        (2, 5, 4),
        (2, 5, 4),
        params=4,
        refuses=(2, 3, 6),
    ),
    equinox(
        "filter-vmap",
        lambda key: eqx.filter_vmap(eqx.nn.Linear(3, 4, key=key)),
        (6, 3),
        mapped=True,
        params=2,
        refuses=(6, 5),
    ),
]
