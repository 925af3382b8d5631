"""Haiku."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax

from cases._case import Case


def haiku(
    name: str,
    entry: Any,
    function: Callable[..., Any],
    *inputs: tuple[int, ...],
    mode: bool = False,
    **facts: Any,
) -> Case:
    pair = hk.transform_with_state(function)

    def flags(training: bool) -> dict[str, bool]:
        return {"is_training": training} if mode else {}

    def init(key: Any, inputs: Any) -> Any:
        return pair.init(key, *inputs, **flags(True), **facts.get("keywords", {}))

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        out, state = pair.apply(*tree, key, *inputs, **flags(training), **facts.get("keywords", {}))
        return out, (tree[0], state)

    return Case(f"haiku-{name}", lambda: entry, inputs, init, native, mode=mode, **facts)


def _haiku_block(x: jax.Array, is_training: bool) -> jax.Array:
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(5)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


CASES = [
    haiku(
        "linear",
        functools.partial(hk.Linear, 4),
        lambda x: hk.Linear(4)(x),
        (6, 3),
        params=2,
        refuses=(6, 5),
    ),
    haiku(
        "mlp",
        functools.partial(hk.nets.MLP, [5, 4]),
        lambda x: hk.nets.MLP([5, 4])(x),
        (6, 3),
        params=4,
        refuses=(6, 5),
    ),
    haiku(
        "batch-norm",
        functools.partial(hk.BatchNorm, True, True, 0.9),
        lambda x, is_training: hk.BatchNorm(True, True, 0.9)(x, is_training),
        (6, 3),
        params=2,
        state=True,
        mode=True,
        refuses=(6, 5),
        strict=False,  # the moving average multiplies a float by an int
    ),
    haiku(
        "transform",
        hk.transform(lambda x, y: hk.Linear(4)(x) + y),
        lambda x, y: hk.Linear(4)(x) + y,
        (6, 3),
        (6, 4),
        params=2,
        refuses=(6, 5),
    ),
    haiku(
        "no-apply-rng",
        hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4)(x))),
        lambda x: hk.Linear(4)(x),
        (6, 3),
        params=2,
        refuses=(6, 5),
    ),
    haiku(
        "state",
        hk.transform_with_state(_haiku_block),
        _haiku_block,
        (6, 3),
        params=4,
        state=True,
        mode=True,
        draws=True,
        refuses=(6, 5),
        strict=False,
    ),
]
