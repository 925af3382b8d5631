"""Keras 3, on its JAX backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import keras as lib

from cases._case import Case
from helpers import usual_promotion

KERNEL: Any = lib.initializers.GlorotUniform(seed=3)


class Block(lib.layers.Layer):
    """Nested, and without the word `training`, which Keras hands down to what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = lib.layers.Dense(5, kernel_initializer=KERNEL)
        self.norm = lib.layers.BatchNormalization()
        self.drop = lib.layers.Dropout(0.4)

    def call(self, x: jax.Array, scale: float = 1.0) -> jax.Array:
        return self.drop(self.norm(self.dense(x))) * scale


def _dense(units: int = 4) -> lib.layers.Dense:
    return lib.layers.Dense(units, kernel_initializer=KERNEL)


def _functional() -> lib.Model:
    with usual_promotion():
        x = lib.Input((3,))
        y = lib.layers.BatchNormalization()(_dense(5)(x))
        return lib.Model(x, lib.layers.Add()([lib.layers.Dropout(0.3)(y), y]))


def _frozen() -> lib.layers.Layer:
    layer = lib.layers.BatchNormalization()
    layer.trainable = False
    return layer


def keras(
    name: str,
    build: Callable[[], Any],
    *inputs: tuple[int, ...],
    entry: Any = None,
    flag: bool = True,
    given: bool = False,
    merged: bool = False,
    **facts: Any,
) -> Case:
    entry = entry or build()
    if given and not entry.built:
        entry.build(*inputs)
    built = entry if given else build()
    if not built.built:
        with usual_promotion():
            tensors = [lib.KerasTensor(shape) for shape in inputs]
            if merged:
                built(tensors)
            else:
                built(*tensors)

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        seeds = [v for v in built.variables if v.name == "seed_generator_state"]
        bits = jax.random.bits(key, (len(seeds), 2), "uint32")
        values = [*zip(built.weights, tree, strict=True), *zip(seeds, bits, strict=True)]
        with lib.StatelessScope(values) as scope:
            keywords = {"training": training} if flag else {}
            given = [list(inputs)] if merged else inputs
            out = built(*given, **keywords, **facts.get("keywords", {}))
        return out, [scope.get_current_value(v) for v in built.weights]

    def init(key: Any, inputs: Any) -> Any:
        return [v.value for v in built.weights]

    return Case(
        f"keras-{name}", lambda: entry, inputs, init, native, given=given, strict=False, **facts
    )


CASES = [
    keras("dense", _dense, (6, 3), params=2, refuses=(6, 5)),
    keras("built", _dense, (6, 3), given=True, params=2, refuses=(6, 5)),
    keras(
        "class",
        _dense,
        (6, 3),
        entry=functools.partial(lib.layers.Dense, 4, kernel_initializer=KERNEL),
        params=2,
        refuses=(6, 5),
    ),
    keras(
        "conv",
        lambda: lib.layers.Conv2D(4, 3, kernel_initializer=KERNEL),
        (2, 5, 5, 1),
        params=2,
        refuses=(2, 5, 5, 3),
    ),
    keras(
        "batch-norm",
        lambda: lib.layers.BatchNormalization(momentum=0.9),
        (6, 3),
        params=2,
        state=True,
        mode=True,
        refuses=(6, 5),
    ),
    keras("dropout", lambda: lib.layers.Dropout(0.5), (6, 3), params=0, mode=True, draws=True),
    keras(
        "block",
        Block,
        (6, 3),
        entry=functools.partial(Block),
        params=4,
        state=True,
        mode=True,
        draws=True,
        keywords={"scale": 2.0},
        refuses=(6, 5),
    ),
    keras(
        "sequential",
        lambda: lib.Sequential(
            [_dense(), lib.layers.BatchNormalization(), lib.layers.ReLU(), _dense(2)]
        ),
        (6, 3),
        params=6,
        state=True,
        mode=True,
        refuses=(6, 5),
    ),
    keras(
        "functional",
        _functional,
        (6, 3),
        given=True,
        params=4,
        state=True,
        mode=True,
        draws=True,
        refuses=(6, 5),
    ),
    keras(
        "merge",
        lambda: lib.layers.Concatenate(),
        (6, 3),
        (6, 2),
        merged=True,
        params=0,
        refuses=(5, 3),
    ),
    keras("activation", lambda: lib.layers.Activation("tanh"), (6, 3), params=0),
    keras(
        "attention",
        lambda: lib.layers.MultiHeadAttention(2, 4, kernel_initializer=KERNEL),
        (2, 3, 4),
        (2, 5, 4),
        params=8,
        refuses=(2, 3, 6),
    ),
    keras(
        "recurrent",
        lambda: lib.layers.GRU(4, kernel_initializer=KERNEL, recurrent_initializer=KERNEL),
        (2, 3, 4),
        params=3,
        refuses=(2, 3, 6),
    ),
]
