"""Exported models do what their source's own library does: every source, every target."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import seqbridge as sb
from cases import CASES, Case
from helpers import assert_same, usual_promotion
from targets import TARGETS, Target

KEY = jax.random.key(5)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest, case: Case) -> Iterator[Target]:
    strict = case.strict and request.param != "keras"
    with contextlib.nullcontext() if strict else usual_promotion():
        yield TARGETS[request.param]


def zeros(case: Case) -> sb.Sequential:
    """The same model with other values, to take those that come back."""
    model = case.model()
    model.assign(jax.tree.map(jnp.zeros_like, model.variables))
    return model


def test_outputs_and_state_are_those_of_the_source(case: Case, target: Target) -> None:
    model = case.model()
    before = model.variables
    made = target.make(model)
    tree = target.start(made, case.arrays(), case.keywords)
    key = jax.random.fold_in(target.key(KEY), 0)  # the layer stands at position 0
    for training in (True, False):
        out, after = target.run(
            made, tree, key=KEY, inputs=case.arrays(), training=training, keywords=case.keywords
        )
        expected, native_after = case.native(model[0].native, key, case.arrays(), training)
        assert_same(out, expected)
        home = zeros(case)
        assert sb.from_native(home, after) is home
        assert_same(home[0].native, native_after)
    assert_same(model.variables, before)  # what went out is a copy


def test_gradients_are_those_of_the_source(case: Case, target: Target) -> None:
    if not case.params:
        return
    model = case.model()
    native = model[0].native
    leaves, treedef = jax.tree.flatten(native)
    floats = {
        i: x
        for i, x in enumerate(leaves)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
    }
    key = jax.random.fold_in(target.key(KEY), 0)

    def loss(floats: Any) -> jax.Array:
        tree = jax.tree.unflatten(treedef, [floats.get(i, leaf) for i, leaf in enumerate(leaves)])
        return case.native(tree, key, case.arrays(), True)[0].sum()

    expected = jax.grad(loss)(floats)
    by_hand, home = zeros(case), zeros(case)
    by_hand[0].load_native(
        jax.tree.unflatten(treedef, [expected.get(i, leaf) for i, leaf in enumerate(leaves)])
    )
    made = target.make(model)
    tree = target.start(made, case.arrays(), case.keywords)
    sb.from_native(home, target.grads(made, tree, KEY, case.arrays(), case.keywords))
    assert_same(home.variables["params"], by_hand.variables["params"], rtol=1e-5, atol=1e-6)


def test_values_go_out_and_come_back_bit_by_bit(case: Case, target: Target) -> None:
    model, home = case.model(), zeros(case)
    tree = target.start(target.make(model), case.arrays(), case.keywords)
    sb.from_native(home, tree)
    assert_same(home.variables, model.variables)


def _counting(taking: Any) -> sb.PureLayer:
    def init(key: Any, x: Any, **keywords: Any) -> Any:
        return {"state": {"n": jnp.zeros(())}}

    def apply(variables: Any, key: Any, x: Any, **keywords: Any) -> Any:
        call = inspect.signature(taking).bind(x, **keywords)
        call.apply_defaults()
        flags = {name: value for name, value in call.arguments.items() if name != "x"}
        training = any(value is sb.MODE_FLAGS[name] for name, value in flags.items())
        return x, {"state": {"n": variables["state"]["n"] + float(training)}}

    return sb.PureLayer(
        init=init, apply=apply, signature=sb.signature_of(taking), label="counter", ecosystem="test"
    )


@pytest.mark.parametrize(
    ("taking", "moves"),
    [
        (lambda x, *, train=True: x, True),
        (lambda x, *, train=False: x, False),
        (lambda x, *, deterministic=True: x, False),
        (lambda x, *, deterministic=False: x, True),
        (lambda x, *, train=True, deterministic=True: x, True),
        (lambda x, *, train, deterministic=True: x, None),
    ],
)
def test_a_mode_that_layers_have_by_default_they_have_there(
    taking: Any, moves: bool | None
) -> None:
    """And where a flag has none, it must be said."""
    module = sb.to_linen(sb.Sequential([_counting(taking)]).build((2, 3)))
    x = jnp.ones((2, 3))
    variables = module.init(jax.random.key(0), x, training=False)
    if moves is None:
        with pytest.raises(TypeError, match="pass training=True or training=False"):
            module.apply(variables, x, mutable=True)
        return
    _, after = module.apply(variables, x, mutable=True)
    assert float(sum(jax.tree.leaves(after))) == float(moves)
