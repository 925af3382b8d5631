"""Plain functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cases._case import Case


def function(
    name: str,
    entry: Any,
    *inputs: tuple[int, ...],
    by_hand: Callable[..., Any] | None = None,
    **facts: Any,
) -> Case:
    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        return (by_hand or (lambda tree, key, *x: entry(*x, **facts.get("keywords", {}))))(
            tree, key, *inputs
        ), tree

    facts = {"params": 0, **facts}
    initial = facts.pop("initial", {})
    return Case(
        f"function-{name}", lambda: entry, inputs, lambda key, inputs: initial, native, **facts
    )


def _closure(w: jax.Array) -> Callable[..., Any]:
    return lambda x: x @ w


def _noisy(x: jax.Array, rng: Any) -> jax.Array:
    return x + jax.random.normal(rng, x.shape)


_W = jnp.arange(1.0, 7.0).reshape(2, 3)


CASES = [
    function("relu", jax.nn.relu, (6, 3)),
    function("partial", functools.partial(jax.nn.leaky_relu, negative_slope=0.3), (6, 3)),
    function("keyword", lambda x, *, scale: x * scale, (6, 3), keywords={"scale": 3.0}),
    function("ufunc", jnp.add, (6, 3), (6, 3)),
    function(
        "closure",
        _closure(_W),
        (6, 2),
        by_hand=lambda tree, key, x: x @ tree["params"]["w"],
        initial={"params": {"w": _W}},
        params=1,
        refuses=(6, 5),
    ),
    function("random", _noisy, (6, 3), by_hand=lambda tree, key, x: _noisy(x, key), draws=True),
]
