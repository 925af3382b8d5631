"""Objax, and modules of the same make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import objax as lib

from cases._case import Case


class Box:
    """A box as a person would write it."""

    def __init__(self, value: jax.Array):
        self.value = value

    def assign(self, value: jax.Array) -> None:
        self.value = value


class Affine:
    """A module as a person would write it."""

    def __init__(self) -> None:
        self.w, self.b = Box(jnp.ones((3, 4))), Box(jnp.zeros((1, 4)))

    def vars(self) -> dict[str, Box]:
        return {"w": self.w, "b": self.b}

    def __call__(self, x: jax.Array, scale: float = 1.0) -> jax.Array:
        return (x @ self.w.value + self.b.value) * scale


def objax(
    name: str, entry: Any, *inputs: tuple[int, ...], mode: bool = False, **facts: Any
) -> Case:
    boxes: dict[str, Any] = dict(entry.vars())

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        before = {n: box.value for n, box in boxes.items()}
        keys = [n for n, box in boxes.items() if isinstance(box, lib.RandomState)]
        given = {
            n: jax.random.bits(jax.random.fold_in(key, i), (2,), "uint32")
            for i, n in enumerate(keys)
        }
        try:
            for n, value in {**before, **tree, **given}.items():
                _put(boxes[n], value)
            out = entry(
                *inputs, **({"training": training} if mode else {}), **facts.get("keywords", {})
            )
            return out, {n: boxes[n].value for n in tree}
        finally:
            for n, value in before.items():
                _put(boxes[n], value)

    def init(key: Any, inputs: Any) -> Any:
        return {n: box.value for n, box in boxes.items() if not isinstance(box, lib.RandomState)}

    return Case(
        f"objax-{name}", lambda: entry, inputs, init, native, mode=mode, given=True, **facts
    )


def _put(box: Any, value: Any) -> None:
    if isinstance(box, Box):
        box.assign(value)
    else:
        box.assign(value, check=False)  # which fails on today's JAX


def _stack() -> Callable[..., Any]:
    layers = [lib.nn.Linear(3, 5), lib.nn.BatchNorm0D(5), lib.functional.relu, lib.nn.Dropout(0.5)]
    return lib.nn.Sequential([*layers, lib.nn.Linear(5, 2)])


CASES = [
    objax("linear", lib.nn.Linear(3, 4), (6, 3), params=2, refuses=(6, 5), strict=False),
    objax(
        "conv", lib.nn.Conv2D(1, 4, 3), (2, 1, 5, 5), params=2, refuses=(2, 3, 5, 5), strict=False
    ),
    objax(
        "batch-norm", lib.nn.BatchNorm0D(3), (6, 3), params=2, state=True, mode=True, refuses=(6, 5)
    ),
    objax("dropout", lib.nn.Dropout(0.5), (6, 3), params=0, mode=True, draws=True),
    objax(
        "sequential",
        _stack(),
        (6, 3),
        params=6,
        state=True,
        mode=True,
        draws=True,
        refuses=(6, 5),
        strict=False,
    ),
    objax("own", Affine(), (6, 3), params=2, keywords={"scale": 3.0}, refuses=(6, 5)),
]
