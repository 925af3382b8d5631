"""Long random lives of a model, beside a plain one: a list of functions and dicts of NumPy arrays.

`test_list_properties.py` goes through the list's own operations, and `test_pack.py` holds packed
steps against unpacked ones. Here everything is mixed: edits, calls, compiled and donated steps,
gradients, values that come and go.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import seqbridge as sb
from helpers import mean_square, train_step

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
RATE, MOMENTUM, EPSILON = 0.125, 0.5, 1e-5


def double(x: Any, factor: float = 2.0) -> Any:
    return x * factor


def entries() -> list[Any]:
    """Fresh ones, all from three features to three."""
    return [
        nn.Dense(3),
        partial(hk.Linear, 3),
        nn.BatchNorm(momentum=MOMENTUM, epsilon=EPSILON),
        partial(jnp.multiply, jnp.array([[1.0, 2.0, -1.0]])),
        eqx.nn.Linear(3, 3, key=jax.random.key(3)),
        sb.Sequential([nn.Dense(3), double]),
        double,
    ]


KINDS = st.integers(0, len(entries()) - 1)
NORM, NESTED, DOUBLE = 2, 5, 6


class Plain:
    """One layer in NumPy: what it computes, and its arrays by name."""

    def __init__(self, kind: int, arrays: dict[str, np.ndarray]):
        self.kind, self.arrays = kind, arrays

    def run(self, x: np.ndarray, training: bool) -> np.ndarray:
        arrays = list(self.arrays.values())
        if self.kind == DOUBLE:
            return 2 * x
        if self.kind == NORM:
            bias, scale, mean, var = arrays
            now = (x.mean(0), x.var(0)) if training else (mean, var)
            if training:
                mean[:], var[:] = (
                    MOMENTUM * old + (1 - MOMENTUM) * new
                    for old, new in zip((mean, var), now, strict=True)
                )
            return (x - now[0]) / np.sqrt(now[1] + EPSILON) * scale + bias
        if len(arrays) == 1:
            return x * arrays[0]
        bias, weight = sorted(arrays, key=np.ndim)
        return (x @ (weight.T if self.kind == 4 else weight) + bias) * (
            2 if self.kind == NESTED else 1
        )


OPTIONS = [{}, {"pack": True}, {"donate": True}, {"pack": True, "donate": True}]
CALLS = [
    sb.jit(lambda model, x, training: model(x, training=training), **options) for options in OPTIONS
]
STEPS = [sb.jit(train_step, **options) for options in OPTIONS]
LOSSES = sb.jit(lambda model, x: sb.value_and_grad(mean_square)(model, x))
HOWS = st.integers(-1, len(OPTIONS) - 1)  # -1: eagerly


class Life(RuleBasedStateMachine):
    """The model, and `plain`, which is told of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="seqbridge-machine-")
        self.files: list[tuple[list[int], list[np.ndarray]]] = []
        self.pool = entries()
        self.plain: list[Plain] = []
        self.speeds: dict[tuple[Plain, str], np.ndarray] = {}  # the optimizer's state

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(kinds=st.lists(KINDS, min_size=1, max_size=3), shared=st.booleans())
    def start(self, kinds: list[int], shared: bool) -> None:
        kinds = [*kinds, kinds[0]] if shared else kinds
        self.model = sb.Sequential([self.pool[kind] for kind in kinds], seed=1).build(X.shape)
        self.note(kinds)
        self.optimizer = sb.Optimizer(self.model, optax.sgd(RATE, momentum=MOMENTUM))

    # Between the two

    def note(self, kinds: list[int]) -> None:
        """Make the plain list one of these kinds; new layers bring their first values, made odd."""
        known = dict(zip(self.items, self.plain, strict=True)) if self.plain else {}
        self.items = list(self.model)
        self.plain = []
        for kind, item in zip(kinds, self.items, strict=True):
            if item not in known:
                new = {name: np.array(v.value) for name, v in self.boxes(item).items()}
                for n, (name, array) in enumerate(new.items()):
                    array[:] = np.linspace(
                        0.25, 0.75 + n / 4, array.size, dtype=array.dtype
                    ).reshape(array.shape)
                    self.boxes(item)[name].assign(array)
                known[item] = Plain(kind, new)
            self.plain.append(known[item])

    @staticmethod
    def boxes(item: Any) -> dict[str, sb.Variable]:
        return dict(item.vars()) if isinstance(item, sb.Layer) else dict(item[0].vars())

    def distinct(self) -> dict[Any, Plain]:
        return dict(zip(self.items, self.plain, strict=True))

    def follow(self, model: sb.Sequential, optimizer: sb.Optimizer) -> None:
        """Goes on with a copy, whose layers stand where those of the original stood."""
        kinds = self.kinds
        self.model, self.optimizer, self.items = model, optimizer, list(model)
        self.pool = entries()  # what stands in a copy is no entry of the pool
        for kind, item in zip(kinds, self.items, strict=True):
            self.pool[kind] = item

    @property
    def kinds(self) -> list[int]:
        return [plain.kind for plain in self.plain]

    def run(self, x: np.ndarray, training: bool) -> np.ndarray:
        for plain in self.plain:
            x = plain.run(x, training)
        return x

    # Edits

    @precondition(lambda self: len(self.plain) < 5)
    @rule(kind=KINDS, at=st.integers(0, 5))
    def insert(self, kind: int, at: int) -> None:
        kinds = self.kinds
        self.model.insert(at, self.pool[kind])
        kinds.insert(at, kind)
        self.note(kinds)

    @precondition(lambda self: len(self.plain) > 1)
    @rule(at=st.integers(0, 5))
    def delete(self, at: int) -> None:
        kinds = self.kinds
        del kinds[at % len(kinds)]
        del self.model[at % len(self.model)]
        self.note(kinds)

    @rule(at=st.integers(0, 5), kind=KINDS)
    def replace(self, at: int, kind: int) -> None:
        kinds = self.kinds
        kinds[at % len(kinds)] = kind
        self.model[at % len(self.model)] = self.pool[kind]
        self.note(kinds)

    @rule()
    def reverse(self) -> None:
        kinds = self.kinds[::-1]
        self.model.reverse()
        self.note(kinds)

    @rule()
    def build_again(self) -> None:
        self.model.build((None, 3))

    # Calls and steps

    @rule(how=HOWS, training=st.booleans())
    def call(self, how: int, training: bool) -> None:
        run = CALLS[how] if how >= 0 else lambda model, x, training: model(x, training=training)
        out = run(self.model, jnp.array(X), training)
        np.testing.assert_allclose(out, self.run(X, training), rtol=2e-3, atol=2e-3)

    @rule(how=HOWS)
    def step(self, how: int) -> None:
        """Check that each variable moves by its own gradient; gradients are checked elsewhere."""
        moving = {
            (plain, name): box
            for item, plain in self.distinct().items()
            for name, box in self.boxes(item).items()
            if box.trainable
        }
        if not moving:
            return
        grads = sb.grad(mean_square)(copy.deepcopy(self.model), jnp.array(X))
        value = (STEPS[how] if how >= 0 else train_step)(self.model, self.optimizer, jnp.array(X))
        np.testing.assert_allclose(value, (self.run(X, True) ** 2).mean(), rtol=2e-3, atol=2e-3)
        self.speeds = {  # those of layers that stayed
            key: MOMENTUM * self.speeds.get(key, np.float32(0)) + np.asarray(grads[box.name])
            for key, box in moving.items()
        }
        for (plain, name), speed in self.speeds.items():
            plain.arrays[name][:] -= RATE * speed
        self.tame()

    @rule()
    def gradients(self) -> None:
        if any(box.trainable for item in self.items for box in self.boxes(item).values()):
            value, _ = LOSSES(self.model, jnp.array(X))
            np.testing.assert_allclose(value, (self.run(X, True) ** 2).mean(), rtol=2e-3, atol=2e-3)

    def tame(self) -> None:
        """Compares, and then keeps values where float32 tells them apart."""
        self.every_value_is_that_of_the_plain_model()
        for item, plain in self.distinct().items():
            for name, box in self.boxes(item).items():
                plain.arrays[name][:] = np.clip(
                    np.asarray(box.value), 0.125 if name == "var" else -2.0, 2.0
                )
                box.assign(plain.arrays[name])

    # Values

    @rule(n=st.integers(0, 20), factor=st.sampled_from([0.5, 0.75, 1.25]))
    def assign(self, n: int, factor: float) -> None:
        cells = [(item, name) for item, plain in self.distinct().items() for name in plain.arrays]
        if cells:
            item, name = cells[n % len(cells)]
            self.boxes(item)[name].assign(self.boxes(item)[name] * factor)
            self.distinct()[item].arrays[name][:] *= np.float32(factor)

    @rule(n=st.integers(0, 20))
    def freeze(self, n: int) -> None:
        boxes = [
            box for item in self.items for box in self.boxes(item).values() if box.kind == "params"
        ]
        if boxes:
            boxes[n % len(boxes)].trainable = not boxes[n % len(boxes)].trainable

    @rule()
    def pure(self) -> None:
        variables = jax.tree.map(lambda a: a + 0.25, self.model.variables)
        self.model.assign(variables)
        for plain in self.distinct().values():
            for array in plain.arrays.values():
                array[:] += np.float32(0.25)

    @rule()
    def save(self) -> None:
        self.model.save(Path(self.folder.name) / str(len(self.files)))
        arrays = [a.copy() for plain in self.plain for a in plain.arrays.values()]
        self.files.append((self.kinds, arrays))

    @precondition(lambda self: bool(self.files))
    @rule(n=st.integers(0, 5))
    def load(self, n: int) -> None:
        n %= len(self.files)
        kinds, arrays = self.files[n]
        own = [a for plain in self.plain for a in plain.arrays.values()]
        shared = [i for i, a in enumerate(self.items) if a in self.items[:i]]
        if kinds != self.kinds or shared != [i for i, a in enumerate(kinds) if a in kinds[:i]]:
            return
        self.model.load(Path(self.folder.name) / str(n))
        for mine, stored in zip(own, arrays, strict=True):
            mine[:] = stored

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copied(self, how: str) -> None:
        if how == "deepcopy":
            self.follow(*copy.deepcopy((self.model, self.optimizer)))
        else:  # optax' transformations can't be pickled
            model = pickle.loads(pickle.dumps(self.model))
            self.follow(model, sb.Optimizer(model, optax.sgd(RATE, momentum=MOMENTUM)))
            self.speeds = {}

    # What always holds

    @invariant()
    def every_value_is_that_of_the_plain_model(self) -> None:
        for item, plain in zip(self.items, self.plain, strict=True):
            assert list(self.boxes(item)) == list(plain.arrays)
            for name, box in self.boxes(item).items():
                np.testing.assert_allclose(
                    box.value, plain.arrays[name], rtol=2e-3, atol=2e-3, err_msg=box.name
                )

    @invariant()
    def the_list_is_the_plain_one(self) -> None:
        assert list(self.model) == self.items
        assert self.model.built
        assert len({id(item) for item in self.items}) == len({id(plain) for plain in self.plain})
        trained = {
            name
            for name, v in self.model.vars().tensors().items()
            if self.model.vars()[name].trainable
        }
        assert len(trained) == sum(
            v.trainable for v in {v for i in self.items for v in self.boxes(i).values()}
        )


def test_the_life_of_a_model_is_that_of_a_plain_one() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15,
            stateful_step_count=14,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            phases=(Phase.generate,),  # to shrink and to explain takes minutes
        ),
    )
