"""The entries that the conformance suite runs, each with the same entry run by its own library.

An adapter is added to the suite by adding cases here. `native` is how a person runs the entry by hand, without
seqbridge; what it returns is the truth that the layer is held against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp

import seqbridge as sb


@dataclass(frozen=True)
class Case:
    """One entry.

    Args:
        name: `ecosystem-what`.
        make: The entry.
        inputs: Shapes of its inputs, a batch first.
        native_init: `(key, inputs) -> native tree`, by hand.
        native: `(native tree, key, inputs, training) -> (outputs, native tree after the call)`, by hand.
        params: How many parameters there are.
        state: Whether training changes a state.
        mode: Whether training and evaluation differ.
        draws: Whether training draws random numbers.
        keywords: What the entry must be given at every call.
        refuses: The shape of an input that the entry can't take. None: it takes anything.
        strict: Whether the library's own code runs under strict dtype promotion.
    """

    name: str
    make: Callable[[], Any]
    inputs: tuple[tuple[int, ...], ...]
    native_init: Callable[..., Any]
    native: Callable[..., Any]
    params: int
    state: bool = False
    mode: bool = False
    draws: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)
    refuses: tuple[int, ...] | None = None
    strict: bool = True

    @property
    def ecosystem(self) -> str:
        return self.name.partition("-")[0]

    def arrays(self) -> tuple[jax.Array, ...]:
        return tuple(jax.random.normal(jax.random.key(i + 7), shape) for i, shape in enumerate(self.inputs))


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
        return ((*inputs, *flag.values()), keywords) if by_position else (inputs, {**flag, **keywords})

    def init(key: Any, inputs: Any) -> Any:
        args, keywords = given(inputs, True)
        return module.init(key, *args, **keywords, method=method)

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        args, keywords = given(inputs, training)
        kept = {c: v for c, v in tree.items() if c != "losses"}  # fed back, sown values would grow
        mutable = [c for c in tree if c != "params"]
        out, state = module.apply(kept, *args, **keywords, rngs={"dropout": key}, mutable=mutable, method=method)
        return out, {**tree, **state} if training else tree

    return Case(f"linen-{name}", make or (lambda: module), inputs, init, native, **facts)


def haiku(
    name: str, entry: Any, function: Callable[..., Any], *inputs: tuple[int, ...], mode: bool = False, **facts: Any
) -> Case:
    pair = hk.transform_with_state(function)

    def flags(training: bool) -> dict[str, bool]:
        return {"is_training": training} if mode else {}

    def init(key: Any, inputs: Any) -> Any:
        return pair.init(key, *inputs, **flags(True), **facts.get("keywords", {}))

    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        out, state = pair.apply(*tree, key, *inputs, **flags(training), **facts.get("keywords", {}))
        return out, (tree[0], state if training else tree[1])

    return Case(f"haiku-{name}", lambda: entry, inputs, init, native, mode=mode, **facts)


def function(
    name: str, entry: Any, *inputs: tuple[int, ...], by_hand: Callable[..., Any] | None = None, **facts: Any
) -> Case:
    def native(tree: Any, key: Any, inputs: Any, training: bool) -> Any:
        return (by_hand or (lambda tree, key, *x: entry(*x, **facts.get("keywords", {}))))(tree, key, *inputs), tree

    facts = {"params": 0, **facts}
    initial = facts.pop("initial", {})
    return Case(f"function-{name}", lambda: entry, inputs, lambda key, inputs: initial, native, **facts)


def _haiku_block(x: jax.Array, is_training: bool) -> jax.Array:
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(5)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def _closure(w: jax.Array) -> Callable[..., Any]:
    return lambda x: x @ w


def _noisy(x: jax.Array, rng: Any) -> jax.Array:
    return x + jax.random.normal(rng, x.shape)


_W = jnp.arange(1.0, 7.0).reshape(2, 3)

CASES = [
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
    linen("collections", LinenSower(), (6, 4), params=2, state=True, refuses=(6, 5)),
    linen("attention", nn.MultiHeadDotProductAttention(2), (2, 3, 4), (2, 5, 4), params=8, refuses=(2, 3, 6)),
    haiku("linear", functools.partial(hk.Linear, 4), lambda x: hk.Linear(4)(x), (6, 3), params=2, refuses=(6, 5)),
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
