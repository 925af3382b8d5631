"""Entries: objects that are one or none, and parameters that hide in functions."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import operator
from typing import Any

import equinox as eqx
import flax.linen
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqbridge as sb
from helpers import equal

X = jnp.arange(1.0, 7.0).reshape(2, 3)
W = jnp.arange(1.0, 7.0).reshape(3, 2)
GLOBAL = jnp.ones((3, 2))
MODULE = nn.Dense(2)
MODULES = {"deep": [nn.Dense(2)]}
MODELS = (sb.Sequential([nn.Dense(2)]),)
AROUND: list[Any] = [jnp.tanh]
AROUND.append(AROUND)


class Space:
    module = nn.Dense(2)


def helper(x: Any) -> Any:
    return MODULE(x) if x is not None else helper(x)


class Affine:
    """A callable object with an array."""

    def __init__(self, w: Any, extra: Any = None):
        self.w = w
        self.options = {"bias": extra, "name": "affine"}

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.options["bias"]

    def doubled(self, x: Any) -> Any:
        return 2 * self(x)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (nn.Dense, r"class Dense.*Dense\(\.\.\.\)"),
        (hk.Linear, r"class Linear.*partial\(hk\.Linear"),
        (Affine, r"class Affine.*Affine\(\.\.\.\)"),
        (3, "no entry"),
        (None, "no entry"),
        ("relu", "no entry"),
        ({"a": 1}, "no entry"),
        (jnp.ones(3), "no entry"),
        (optax.sgd(0.1), "no entry"),
        (nn.Dense(3).bind({"params": {}}), "bound.*load_native"),
        (lambda x: hk.Linear(3)(x), r"uses the class Linear.*transform"),
        (lambda x: nn.Dense(3)(x), "uses the class Dense"),
        (
            lambda x: jax.vmap(eqx.nn.Linear(3, 3, key=jax.random.key(0)))(x),
            "uses the class Linear",
        ),
        (lambda x: flax.linen.Dense(3)(x), "uses the class Dense"),
        ((lambda module: lambda x: module.nn.Linear(3, 3, key=x)(x))(eqx), "uses the class Linear"),
        (hk.transform(hk.Linear), r"partial\(hk\.Linear"),
        (hk.multi_transform(lambda: (lambda x: x, (lambda x: x,))), "multi_transform"),
        (lambda x: (yield x), "generator"),
        (asyncio.sleep, "coroutine"),
    ],
)
@pytest.mark.parametrize(
    "door", ["constructor", "append", "insert", "extend", "item", "slice", "iadd", "layer"]
)
def test_what_is_no_entry_is_refused_at_every_door(entry: Any, words: str, door: str) -> None:
    model = sb.Sequential([operator.neg])
    before = list(model)
    with pytest.raises(TypeError, match=words):  # noqa: PT012
        match door:
            case "constructor":
                sb.Sequential([operator.neg, entry])
            case "append":
                model.append(entry)
            case "insert":
                model.insert(0, entry)
            case "extend":
                model.extend([operator.neg, entry])
            case "item":
                model[0] = entry
            case "slice":
                model[0:1] = [operator.neg, entry]
            case "iadd":
                model += [entry]
            case "layer":
                sb.Layer(entry)
    assert all(a is b for a, b in zip(model, before, strict=True))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (lambda x: MODULE(x), "holds MODULE: .* would be lost"),
        (lambda x: MODULES["deep"][0](x), r"holds MODULES\['deep'\]\[0\]: .* would be lost"),
        (lambda x: MODELS[0](x), r"holds MODELS\[0\], a Sequential: .* would be lost"),
        (lambda x: Space.module(x), r"holds Space\.module: .* would be lost"),
        (lambda x: helper(x), "holds MODULE: .* would be lost"),
    ],
)
@pytest.mark.parametrize("run", ["call", "compiled"])
def test_a_module_among_the_globals_is_refused_when_it_is_used(
    entry: Any, words: str, run: str
) -> None:
    model = sb.Sequential([operator.neg, entry])
    call = model if run == "call" else sb.jit(model)
    with pytest.raises(Exception, match=words):  # the library's own with a note, or a TypeError
        call(X)


def test_a_global_container_of_functions_may_be_used() -> None:
    assert equal(sb.Sequential([lambda x: AROUND[0](x)])(X), jnp.tanh(X))


def test_a_haiku_module_outside_a_transform_gets_haikus_own_error() -> None:
    with pytest.raises(ValueError, match=r"must be initialized inside an `hk\.transform`"):
        sb.Sequential([hk.Linear(3)])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (jax.nn.relu, X),
        (jnp.tanh, jnp.tanh(X)),
        (np.tanh, jnp.tanh(X)),
        (jax.jit(lambda x: x * 2), X * 2),
        (operator.neg, -X),
        (operator.methodcaller("sum"), X.sum()),
        (functools.partial(jnp.sum, axis=0), X.sum(0)),
        (functools.partial(functools.partial(jnp.multiply, 2.0)), 2 * X),
        (jnp.float16, X.astype(jnp.float16)),
        (jax.vmap(lambda row: row[::-1]), X[:, ::-1]),
        (
            functools.partial(nn.Dense, 2, kernel_init=nn.initializers.ones_init()),
            X.sum(1, keepdims=True) * jnp.ones((2, 2)),
        ),
    ],
)
def test_callables_of_every_kind(entry: Any, expected: Any) -> None:
    model = sb.Sequential([entry])
    assert equal(model(X), expected)
    assert equal(sb.jit(model)(X), expected)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (functools.partial(lambda w, x: x @ w, W), ["(<lambda>).0"]),
        (functools.partial(lambda x, w: x @ w, w=W), ["(<lambda>).w"]),
        ((lambda w: lambda x: x @ w)(W), ["(<lambda>).w"]),
        ((lambda p: lambda x: x @ p["w"])({"w": W}), ["(<lambda>).p.w"]),
        (lambda x, w=W: x @ w, ["(<lambda>).w"]),
        (Affine(W, jnp.ones((1, 2))), ["(Affine).options.bias", "(Affine).w"]),
        (Affine(W, jnp.ones((1, 2))).doubled, ["(doubled).options.bias", "(doubled).w"]),
        (jax.vmap((lambda w: lambda row: row @ w)(W)), ["(<lambda>).w"]),
    ],
)
def test_arrays_in_a_function_are_lifted(entry: Any, names: list[str]) -> None:
    model = sb.Sequential([entry])
    natively = entry(X)
    assert [name.partition("[0]")[2] for name in model.vars()] == names
    assert equal(model(X), natively)
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert all(np.abs(g).sum() > 0 for g in grads.values())
    for variable in model.vars().values():
        variable.assign(variable * 0)
    assert equal(model(X), natively * 0)
    assert equal(entry(X), natively)


def test_numpy_arrays_numbers_and_ints_stay_constants() -> None:
    w = np.asarray(W)
    model = sb.Sequential(
        [lambda x: x @ w, functools.partial(jnp.take, indices=jnp.array([0]), axis=1)]
    )
    assert not model.vars()
    assert model(X).shape == (2, 1)


@pytest.mark.parametrize(
    "entry",
    [
        jax.jit((lambda w: lambda x: x @ w)(W)),
        jax.jit(functools.partial(lambda w, x: x @ w, W)),
        (lambda module: lambda x: module(x))(nn.Dense(2, use_bias=False)),
        (lambda f: lambda x: (f, x))(hk.transform(lambda x: x)),
        (lambda model: lambda x: model(x))(sb.Sequential([operator.neg])),
        (lambda v: lambda x: x @ v.value)(sb.Variable(W)),
    ],
)
def test_what_cannot_be_lifted_is_refused(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"lost|hides"):
        sb.Sequential([entry])


def test_arrays_in_objects_of_an_object_are_lifted() -> None:
    class Box:
        def __init__(self) -> None:
            self.array = 2 * W

    class Holder:
        def __init__(self) -> None:
            self.box = Box()

        def __call__(self, x: Any) -> Any:
            return x @ self.box.array

    model = sb.Sequential([Holder()])
    assert equal(model(X), X @ (2 * W))
    assert list(model[0].vars()) == ["box.array"]


def test_partials_and_methods_of_modules_are_the_modules() -> None:
    attention = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5)
    model = sb.Sequential([functools.partial(attention, deterministic=True)]).build((2, 3, 4))
    assert len(model.vars().subset("params")) == 8
    assert model(jnp.ones((2, 3, 4)), training=True).shape == (2, 3, 4)
    method = sb.Sequential([nn.Dense(2).__call__]).build((2, 3))
    assert equal(method(X), X @ method[0].kernel.value)


def test_a_pure_layer_is_an_entry_and_registered_adapters_are_asked() -> None:
    class Scale:
        def __init__(self, start: float):
            self.start = start

    def adapt(entry: Any) -> sb.PureLayer | None:
        if not isinstance(entry, Scale):
            return None
        return sb.PureLayer(
            init=lambda key, /, x: {"params": {"factor": jnp.full(x.shape[-1:], entry.start)}},
            apply=lambda variables, key, /, x: (x * variables["params"]["factor"][None], {}),
            signature=sb.signature_of(lambda x: x),
            label="Scale",
            ecosystem="mine",
            takes_key=False,
        )

    pure = adapt(Scale(2.0))
    assert pure is not None
    assert equal(sb.Sequential([pure])(X), 2 * X)
    with pytest.raises(TypeError, match="no entry"):
        sb.Sequential([Scale(3.0)])
    sb.register(__name__, adapt)
    model = sb.Sequential([Scale(3.0)])
    assert equal(model(X), 3 * X)
    assert model[0].factor.shape == (3,)


def test_layer_options() -> None:
    frozen = sb.Sequential(
        [sb.Layer(nn.Dense(3), name="first", trainable=False), nn.Dense(2)]
    ).build((2, 3))
    grads = sb.grad(lambda model: model(X).sum())(frozen)
    assert frozen.first is frozen[0]
    assert all(name.startswith("(Sequential)[1]") for name in grads)
    one = sb.Sequential([sb.Layer(lambda x, rng: x @ W + jax.random.normal(rng), per_example=True)])
    (a, b), (c, _) = np.asarray(one(X, rng=jax.random.key(0)) - X @ W)
    assert abs(a - b) < 1e-4 < abs(a - c)  # one draw for each example
    with pytest.raises(TypeError, match="has no methods"):
        sb.Layer(jnp.tanh, method="call")
    with pytest.raises(TypeError, match="has no method 'encod'"):
        sb.Layer(nn.Dense(3), method="encod")
    with pytest.raises(TypeError, match="not a Sequential"):
        sb.Layer(frozen)


def test_functions_that_cannot_be_traced_run() -> None:
    model = sb.Sequential([nn.Dense(3), lambda x: x if x.sum() > 0 else -x, nn.Dense(2)])
    assert model(X).shape == (2, 2)
    model.append(lambda x: x if float(x.sum()) > 0 else -x)
    assert model.built
    assert float(model(X).sum()) >= 0
    assert sb.Sequential([lambda x: "text", len])(X) == 4


def test_a_layer_alone() -> None:
    layer = sb.Layer(nn.Dropout(0.5))
    ones = jnp.ones((8, 8))
    assert not equal(layer(ones, training=True), layer(ones, training=True))
    model = sb.Sequential([nn.Dense(3), nn.relu]).build((2, 3))
    assert equal(model[0](X), model[:1](X))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Unknown:
    """A module, as a pytree, of a library that nobody has an adapter for."""

    w: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.w


@pytest.mark.parametrize(
    "make",
    [lambda: functools.partial(Unknown, W), lambda: jax.jit(Unknown(W))],
)
def test_a_module_that_cannot_be_made_again_is_refused_and_never_a_constant(make: Any) -> None:
    with pytest.raises(TypeError, match=r"hides \d+ arrays|there is no adapter"):
        sb.Sequential([make()])


def test_a_sequential_of_the_library_takes_what_its_first_layer_takes() -> None:
    model = sb.Sequential(
        [
            functools.partial(hk.Sequential, [jax.nn.relu]),
            nn.Sequential([nn.relu, nn.Dense(2)]),
            nn.Dropout(0.5),
        ]
    )
    assert model.build((2, 3))(X, training=True).shape == (2, 2)
