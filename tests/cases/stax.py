"""stax, of `jax.example_libraries`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.example_libraries import stax as lib

from cases._case import Case


def _scale() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A layer of the user's own, with a keyword."""

    def init(rng: Any, input_shape: tuple[int, ...]) -> Any:
        return input_shape, {"factor": jnp.ones((1, *input_shape[1:]))}

    def apply(params: Any, inputs: jax.Array, scale: float = 1.0, **kwargs: Any) -> jax.Array:
        return inputs * params["factor"] * scale

    return init, apply


def _branches(mode: str) -> Any:
    branches = lib.parallel(lib.Dense(4), lib.serial(lib.Dense(4), lib.Dropout(0.5, mode)))
    return lib.serial(lib.Dense(5), lib.Relu, lib.FanOut(2), branches, lib.FanInSum)


def stax(name: str, build: Callable[[str], Any], *inputs: tuple[int, ...], **facts: Any) -> Case:
    entry, in_evaluation = build("train"), build("test")
    shape = inputs[0] if len(inputs) == 1 else inputs

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        _, apply = entry if training else in_evaluation
        keywords = facts.get("keywords", {})
        return apply(tree, inputs[0] if len(inputs) == 1 else inputs, rng=key, **keywords), tree

    return Case(
        f"stax-{name}",
        lambda: entry,
        inputs,
        lambda key, inputs: entry[0](key, shape)[1],
        native,
        **facts,
    )


CASES = [
    stax("dense", lambda mode: lib.Dense(4), (6, 3), params=2, refuses=(6, 5), strict=False),
    stax(
        "conv",
        lambda mode: lib.Conv(4, (3, 3)),
        (2, 5, 5, 1),
        params=2,
        refuses=(2, 5, 5, 3),
        strict=False,
    ),
    stax("relu", lambda mode: lib.Relu, (6, 3), params=0),
    stax("dropout", lambda mode: lib.Dropout(0.5, mode), (6, 3), params=0, mode=True, draws=True),
    stax(
        "branches", _branches, (6, 3), params=6, mode=True, draws=True, refuses=(6, 5), strict=False
    ),
    stax(
        "keyword",
        lambda mode: lib.serial(_scale(), lib.Dense(2)),
        (6, 3),
        params=3,
        keywords={"scale": 3.0},
        refuses=(6, 5),
        strict=False,
    ),
    stax("two-inputs", lambda mode: lib.FanInConcat(), (6, 3), (6, 4), params=0, refuses=(5, 3)),
]
