"""Edges of transforms, variables and the pure form that people meet."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("usual_promotion")

X = jax.random.normal(jax.random.key(0), (6, 4))


def make() -> sb.Sequential:
    norm = nn.BatchNorm()
    return sb.Sequential([nn.Dense(4), norm, partial(hk.Linear, 2)])


def test_what_is_compiled_may_be_compiled_again() -> None:
    model = make().build(X)
    for call in (sb.jit(sb.jit(model)), sb.jit(sb.jit(sb.jit(model.__call__)))):
        assert_close(call(X, training=False), model(X, training=False))
        before = model[1].mean.value
        call(X, training=True)
        assert not jnp.array_equal(model[1].mean.value, before)
    model = make().build(X)
    step = sb.jit(sb.jit(lambda model, x: model(x, training=True)))
    by_hand = make().build(X)
    assert_close(step(model, X), by_hand(X, training=True))
    assert_same(model.variables, by_hand.variables, rtol=1e-5, atol=1e-6)


def test_options_of_the_compiler_reach_it() -> None:
    model = make().build(X)
    call = sb.jit(lambda model, x: model(x), compiler_options={"xla_no_such_option": True})
    with pytest.raises(Exception, match="xla_no_such_option"):
        call(model[:1], X)
    good = sb.jit(compiler_options={"xla_cpu_enable_fast_min_max": True})(lambda model, x: model(x))
    assert_close(good(model[:1], X), model[:1](X))


def test_the_axis_of_vmap_has_a_name() -> None:
    model = make().build(X)[:1]

    def normed(model: sb.Sequential, x: Any) -> Any:
        y = model(x[None])[0]
        return y / jax.lax.psum(y, "batch")

    mapped = sb.vmap(normed, in_axes=(None, 0), axis_name="batch")
    y = model(X)
    assert_close(mapped(model, X), y / y.sum(0))


@pytest.mark.parametrize(
    ("count", "second"),
    [(3, lambda a, b: a + b), (1, lambda a, b: a + b), (2, lambda a: a), (2, nn.Dense(3))],
)
def test_a_tuple_that_does_not_fit_is_explained(count: int, second: Any) -> None:
    model = sb.Sequential([jnp.tanh, lambda x: (x,) * count, second])
    with pytest.raises(TypeError) as caught:
        model(X)
    notes = " ".join(caught.value.__notes__)
    each = "each value is an input of layer (Sequential)[2]"
    assert f"layer (Sequential)[1] returned a tuple of {count}, and {each}" in notes.replace(
        "layer [", "layer (Sequential)["
    )


@pytest.mark.parametrize("way", ["init", "init in jit", "eval_shape and by hand"])
def test_variables_of_init_build_a_model(way: str) -> None:
    model, built = make(), make().build(X)
    if way == "init":
        variables = model.init(0, X)
    elif way == "init in jit":
        variables = jax.jit(model.init)(jax.random.key(0), X)
    else:
        shapes = jax.eval_shape(lambda: model.init(0, X))
        variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    assert not model.built
    assert_same(variables, built.variables) if "hand" not in way else None

    def loss(params: Any, state: Any) -> Any:
        out, after = model.apply({"params": params, "state": state}, X, training=True)
        return (out**2).sum(), after["state"]

    (_, state), grads = jax.value_and_grad(loss, has_aux=True)(
        variables["params"], variables["state"]
    )
    updates, _ = optax.sgd(0.1).update(grads, optax.sgd(0.1).init(variables["params"]))
    params = optax.apply_updates(variables["params"], updates)
    trained = {"params": params, "state": state}
    model.assign(trained)
    assert model.built
    assert_same(model.variables, trained)
    built.assign(trained)
    assert_close(model(X, training=False), built(X, training=False))
    model.append(nn.Dense(3))  # what reaches the end is known
    assert model(X, training=False).shape == (6, 3)


def test_assign_to_a_model_that_was_never_looked_at() -> None:
    model, other = make(), make()
    variables = other.init(0, X)
    with pytest.raises(RuntimeError, match=r"call model.init\(key, inputs\) or model.build"):
        model.assign(variables)
    with pytest.raises(KeyError, match="missing"):
        other.assign({"params": variables["params"]})
    wrong = {**variables["params"], "(Sequential)[0](Dense).bias": jnp.zeros(9)}
    with pytest.raises(ValueError, match="shape"):
        other.assign({**variables, "params": wrong})
    assert not other.built
    other.append(jnp.tanh)
    other.assign(variables)
    assert other.built


OPERATORS: dict[str, Callable[[Any], Any]] = {
    "+v": operator.pos,
    "~v": operator.invert,
    "divmod": lambda v: divmod(v, 3),
    "rdivmod": lambda v: divmod(17, v),
    "&": lambda v: v & 6,
    "|": lambda v: 8 | v,
    "^": lambda v: v ^ v,
    "<<": lambda v: v << 2,
    "r<<": lambda v: 1 << v,
    ">>": lambda v: v >> 1,
    "r>>": lambda v: 64 >> v,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_integers(name: str) -> None:
    array = jnp.array([1, 5, 12])
    variable = sb.Variable(array, kind="state")
    assert_same(OPERATORS[name](variable), OPERATORS[name](array))


@pytest.mark.parametrize("sign", ["&", "|", "^", "<<", ">>"])
def test_operators_in_place_are_refused(sign: str) -> None:
    names = {"v": sb.Variable(jnp.array([1, 2]), kind="state")}
    with pytest.raises(TypeError, match="leave the variable as it is"):
        exec(f"v {sign}= 1", names)


def test_what_is_no_entry_says_what_to_write() -> None:
    variable = sb.Variable(jnp.ones(4))
    with pytest.raises(TypeError, match=r"a Variable is no entry: .*lambda x, w=variable.value"):
        sb.Sequential([variable])
    with pytest.raises(TypeError, match="a VarCollection is no entry: put the model"):
        sb.Sequential([make().build(X).vars()])


class Linen(nn.Module):
    seq: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.seq(nn.Dense(4)(x))


class Nnx(nnx.Module):
    def __init__(self, seq: Any):
        self.linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.seq = seq

    def __call__(self, x: Any) -> Any:
        return self.seq(self.linear(x))


class Eqx(eqx.Module):
    seq: Any

    def __call__(self, x: Any) -> Any:
        return self.seq(x[None])[0]


@pytest.mark.parametrize(
    "holder", [Linen, Nnx, Eqx, partial(Linen), lambda m: partial(Linen, seq=[m])]
)
@pytest.mark.parametrize("inner", [lambda: make().build(X), make, lambda: sb.Layer(nn.Dense(4))])
def test_a_model_inside_a_module_of_another_library_is_refused(holder: Any, inner: Any) -> None:
    with pytest.raises(TypeError, match=r"holds a (Sequential|Layer): .*sb.to_\w+\(...\)"):
        sb.Sequential([holder(inner())])


@pytest.mark.parametrize("holder", [Linen, Nnx])
def test_the_cure_for_it_works(holder: Any) -> None:
    inner = sb.Sequential([nn.Dense(3)]).build(X)
    export = sb.to_linen if holder is Linen else sb.to_nnx
    model = sb.Sequential([holder(export(inner))]).build(X)
    assert len(model.vars().subset("params")) == 4
    grads = sb.grad(lambda model: model(X, training=False).sum())(model)
    assert all(np.abs(grad).sum() > 0 for grad in grads.values())
