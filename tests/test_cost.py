"""The work of a call, a build and an edit, counted: no more than needed, however many layers."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest

import seqbridge as sb

X = jnp.ones((4, 3))


class Calls:
    """A count of the runs of some entries' code, which in a trace is what takes the time."""

    def __init__(self) -> None:
        self.n = 0

    def take(self) -> int:
        n, self.n = self.n, 0
        return n


class Count(nn.Module):
    calls: Any
    width: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.n += 1
        return x @ self.param("w", nn.initializers.normal(), (x.shape[-1], self.width))


def entries(n: int) -> tuple[Calls, list[Any]]:
    calls = Calls()
    return calls, [Count(calls) for _ in range(n)]


@pytest.mark.parametrize("n", [3, 60])
def test_building_looks_at_each_entry_twice_and_tracing_once(n: int) -> None:
    calls, layers = entries(n)
    model = sb.Sequential(layers)
    assert calls.take() == 0
    model.build((4, 3))
    assert calls.take() == 2 * n  # its initial values, and the shape of what it returns
    sb.jit(lambda model, x: model(x)).lower(model, X)
    assert calls.take() == n
    sb.jit(lambda model, x: model(x, training=False))(model, X)
    assert calls.take() == n
    sb.jit(sb.grad(lambda model, x: model(x, training=True).sum()))(model, X)
    assert calls.take() == n
    sb.freeze(model, (4, 3))
    assert calls.take() == n
    model(X)
    assert calls.take() == n


def test_an_edit_of_a_long_list_looks_at_what_is_new() -> None:
    calls, layers = entries(60)
    model = sb.Sequential(layers).build((4, 3))
    calls.take()
    model[30] = Count(calls)
    assert calls.take() == 2
    model.append(Count(calls))
    assert calls.take() == 2
    del model[10]
    model.insert(5, jnp.tanh)
    assert calls.take() == 0
    # The next layer gets another shape, which is as far as an edit looks.
    model[0] = Count(calls, 5)
    assert calls.take() <= 3


def test_a_call_reads_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sb.Sequential(
        [nn.Dense(3), nn.BatchNorm(), functools.partial(jnp.multiply, 2.0), jnp.tanh]
    ).build((4, 3))
    model(X, training=True)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a signature is read")

    monkeypatch.setattr(inspect, "signature", refuse)
    monkeypatch.setattr(inspect.Signature, "from_callable", refuse)
    with pytest.raises(AssertionError, match="is read"):
        sb.Sequential([nn.Dense(3)])
    model[2:](X, training=True)


def operations(lowered: Any) -> Counter[str]:
    text = lowered.as_text()
    return Counter(part.split()[0].split("(")[0] for part in text.split("stablehlo.")[1:])


def test_a_program_is_what_a_person_would_write() -> None:
    model = sb.Sequential([nn.Dense(3), nn.relu, functools.partial(hk.Linear, 3)]).build((4, 3))
    optimizer = sb.Optimizer(model, optax.sgd(0.1, momentum=0.9))

    def loss(params: Any, x: Any) -> Any:
        w, b, v, c = params
        return ((nn.relu(x @ w + b.reshape(1, 3)) @ v + jnp.broadcast_to(c, (4, 3))) ** 2).mean()

    def by_hand(params: Any, state: Any, x: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x)
        updates, state = optax.sgd(0.1, momentum=0.9).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def step(model: Any, optimizer: Any, x: Any) -> Any:
        value, grads = sb.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(grads)
        return value

    params = [model[0].kernel.value, model[0].bias.value, model[2].w.value, model[2].b.value]
    theirs = operations(
        jax.jit(by_hand).lower(params, optax.sgd(0.1, momentum=0.9).init(params), X)
    )
    ours = operations(sb.jit(step).lower(model, optimizer, X))
    layout = ("reshape", "broadcast_in_dim", "return")
    assert {k: v for k, v in ours.items() if k not in layout} == {
        k: v for k, v in theirs.items() if k not in layout
    }


def test_only_what_changes_comes_back() -> None:
    model = sb.Sequential([nn.Dense(3), nn.BatchNorm(), nn.Dropout(0.5)]).build((4, 3))

    def returned(**keywords: Any) -> int:
        return len(jax.tree.leaves(sb.jit(model).lower(X, **keywords).out_info))

    assert returned(training=False) == 1  # the outputs
    assert returned(training=True) == 1 + 2 + 1  # and the statistics and the stream of keys
