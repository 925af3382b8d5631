"""The same array in two entries is one variable."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import objax
import optax
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same, usual_promotion

W = jax.random.normal(jax.random.key(3), (4, 4))
X = jax.random.normal(jax.random.key(4), (2, 4))


def times(x: Any, w: Any) -> Any:
    return x @ w


def times_transposed(x: Any, w: Any) -> Any:
    return x @ w.T


def closure(w: Any) -> Callable[[Any], Any]:
    return lambda x: x @ w


def default(w: Any) -> Callable[..., Any]:
    return lambda x, w=w: x @ w


class Times:
    """An object that holds an array."""

    def __init__(self, w: Any):
        self.w = w

    def __call__(self, x: Any) -> Any:
        return x @ self.w


class EquinoxTimes(eqx.Module):
    """A module of Equinox that holds an array."""

    w: jax.Array

    def __call__(self, x: Any) -> Any:
        return x @ self.w


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "a partial": lambda w: partial(times, w=w),
    "a closure": closure,
    "a default": default,
    "an object": Times,
    "Equinox": EquinoxTimes,
    "vmap of Equinox": lambda w: jax.vmap(EquinoxTimes(w)),
}


@pytest.fixture(params=HOLDERS)
def holder(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return HOLDERS[request.param]


def make(holder: Callable[[Any], Any]) -> sb.Sequential:
    entries = [holder(W), jnp.tanh, partial(times_transposed, w=W)]
    return sb.Sequential(entries).build((2, 4))


def by_hand(w: Any) -> jax.Array:
    return (jnp.tanh(X @ w) @ w.T).sum()


def loss(model: sb.Sequential) -> jax.Array:
    return model(X).sum()


def test_its_gradient_is_the_sum_of_both(holder: Callable[[Any], Any]) -> None:
    model = make(holder)
    (grad,) = sb.grad(loss)(model).values()
    assert_close(grad, jax.grad(by_hand)(W))
    (grad,) = sb.jit(sb.grad(loss))(model).values()
    assert_close(grad, jax.grad(by_hand)(W))


def test_it_is_trained_as_one(holder: Callable[[Any], Any]) -> None:
    model = make(holder)
    optimizer = sb.Optimizer(model, optax.sgd(0.1))
    w = W
    for _ in range(2):
        optimizer.update(sb.grad(loss)(model))
        w = w - 0.1 * jax.grad(by_hand)(w)
    (variable,) = set(model.vars().values())
    assert_close(variable.value, w)
    assert_close(loss(model), by_hand(w))


def test_it_stays_one(holder: Callable[[Any], Any], tmp_path: Path) -> None:
    model = make(holder)
    model.vars().assign(dict.fromkeys(model.vars(), 2 * W))
    for other in (copy.deepcopy(model), sb.Sequential([model[:1], model[1:]])):
        assert len(set(other.vars().values())) == 1
        assert_close(loss(other), by_hand(2 * W))
    model.save(tmp_path / "model.safetensors")
    loaded = make(holder)
    loaded.load(tmp_path / "model.safetensors")
    assert len(set(loaded.vars().values())) == 1
    assert_close(loss(loaded), by_hand(2 * W))
    (grad,) = jax.grad(lambda params: model.apply({"params": params, "state": {}}, X)[0].sum())(
        model.variables["params"]
    ).values()
    assert_close(grad, jax.grad(by_hand)(2 * W))


@pytest.mark.parametrize("name", ["a partial", "an object", "Equinox"])
def test_it_is_pickled_as_one(name: str) -> None:
    model = pickle.loads(pickle.dumps(make(HOLDERS[name])))
    (grad,) = sb.grad(loss)(model).values()
    assert_close(grad, jax.grad(by_hand)(W))


def test_it_goes_out_as_one(holder: Callable[[Any], Any]) -> None:
    module = sb.to_linen(make(holder))
    variables = module.init(jax.random.key(0), X)
    grads = jax.grad(lambda variables: module.apply(variables, X).sum())(variables)
    (grad,) = jax.tree.leaves(grads)
    assert_close(grad, jax.grad(by_hand)(W))


def test_twice_in_one_module_is_what_it_is_to_its_library() -> None:
    class Twice(eqx.Module):
        first: EquinoxTimes
        second: EquinoxTimes

        def __call__(self, x: Any) -> Any:
            return self.second(jnp.tanh(self.first(x)))

    module = Twice(EquinoxTimes(W), EquinoxTimes(W))
    model = sb.Sequential([module]).build((2, 4))
    grads = sb.grad(loss)(model)
    expected = eqx.filter_grad(lambda module: jax.vmap(module)(X).sum())(module)
    assert_same(list(grads.values()), jax.tree.leaves(expected))


def test_state_of_two_modules_is_two() -> None:
    class Counter(eqx.Module):
        calls: eqx.nn.StateIndex

        def __init__(self, zero: Any):
            self.calls = eqx.nn.StateIndex(zero)

        def __call__(self, x: Any, state: eqx.nn.State) -> tuple[Any, eqx.nn.State]:
            calls = state.get(self.calls) + 1
            return x + calls, state.set(self.calls, calls)

    zero = jnp.zeros(())
    model = sb.Sequential([partial(Counter, zero), partial(Counter, zero)]).build((2, 4))
    assert_close(model(X), X + 2)
    assert len(model.vars()) == 2


def test_another_array_of_the_same_values_is_another_variable() -> None:
    model = sb.Sequential([partial(times, w=W), partial(times, w=W + 0.0), nn.Dense(4)])
    assert len(set(model.build((2, 4)).vars().subset("[0]").values())) == 1
    assert len(set(model.vars().values())) == 4


def kernel_of(module: nnx.Linear) -> Any:
    kernel: Any = module.kernel
    return kernel.get_value() if hasattr(nnx.Variable, "get_value") else kernel.value


def built_keras() -> keras.layers.Layer:
    layer = keras.layers.Dense(4, use_bias=False)
    layer.build((2, 4))
    return layer


WITH_OBJECTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "nnx": (
        lambda: nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0)),
        kernel_of,
    ),
    "objax": (lambda: objax.nn.Linear(4, 4, use_bias=False), lambda module: module.w.value),
    "keras": (built_keras, lambda module: module.kernel.value),
}


@pytest.mark.parametrize("first", ["the module", "the function"])
@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_an_array_behind_a_variable_of_a_library(name: str, first: str) -> None:
    make, array_of = WITH_OBJECTS[name]
    with usual_promotion():
        module = make()
        function = partial(times_transposed, w=array_of(module))
        w = jnp.array(array_of(module))
        entries = [module, function] if first == "the module" else [function, module]
        model = sb.Sequential(entries)
        (grad,) = sb.grad(lambda model: (model(X) ** 2).sum())(model).values()

        def by_hand(w: Any) -> Any:
            out = (X @ w) @ w.T if first == "the module" else (X @ w.T) @ w
            return (out**2).sum()

        assert_close(grad, jax.grad(by_hand)(w), rtol=1e-4, atol=1e-4)
        assert "shared with [0]" in repr(model)


def test_a_clone_of_a_module_is_another() -> None:
    module = nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0))
    clone = nnx.clone(module)
    assert kernel_of(module) is kernel_of(clone)
    assert len(sb.Sequential([module, clone]).vars().tensors()) == 2
    tied = sb.Sequential([module, clone, partial(times_transposed, w=kernel_of(module))])
    assert len(tied.vars().tensors()) == 2
