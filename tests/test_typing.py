# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The types of the public API for a checker, and the completions of an interactive shell.

Types are checked by pyright, where an error that is expected and doesn't come is an error. The same
lines run here, too, since a type that doesn't hold at run time is worth less than none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, assert_type, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb


def array(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


X = array(3, 2)
Gradients = dict[str, jax.Array]


def linear(x: jax.Array, w: jax.Array = array(2, 2)) -> jax.Array:  # noqa: B008  an entry with a parameter
    return x @ w


def scaled(x: jax.Array, factor: float = 1.0) -> jax.Array:
    return x * factor


def made() -> sb.Sequential:
    return sb.Sequential({"first": linear, "block": sb.Sequential([linear, scaled])}).build((3, 2))


def loss(model: sb.Sequential, x: jax.Array) -> jax.Array:
    return jnp.square(model(x)).mean()


def loss_and_size(model: sb.Sequential, x: jax.Array) -> tuple[jax.Array, int]:
    return loss(model, x), x.size


# Models


def test_a_model_is_a_list() -> None:
    model = made()
    assert_type(model, sb.Sequential)  # `build` returns what it is called on
    assert_type(model[:1], sb.Sequential)
    more: list[Any] = [scaled]
    assert_type(model[:1] + more, sb.Sequential)
    assert_type(more + model[:1], sb.Sequential)
    assert_type(model.copy() * 2, sb.Sequential)
    assert_type(len(model), int)
    assert_type(model.names, tuple[str | None, ...])
    assert_type(model(X, training=False), Any)
    with pytest.raises(TypeError):
        model(X, training="no")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        model[1.5]  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_the_type_of_an_item_is_what_an_annotation_says() -> None:
    model = made()
    assert_type(model[0], Any)
    layer: sb.Layer = model["first"]
    block: sb.Sequential = model.block
    assert_type(layer.built, bool)
    assert_type(layer.name, str | None)
    assert_type(layer.pure, sb.PureLayer)
    assert_type(layer.vars(), sb.VarCollection)
    assert_type(block[0], Any)


class Named(sb.Sequential):
    pass


def test_a_class_of_models_stays_it() -> None:
    assert_type(Named([linear]).build((3, 2)), Named)
    assert_type(Named([linear])[:1], Named)
    assert type(Named([linear])[:1].build((3, 2))) is Named


def test_the_copies_of_a_layer() -> None:
    repeat = sb.Repeat(linear, 3)
    layer: sb.Layer = repeat
    assert_type(repeat[1].vars()["w"].value, jax.Array)
    assert_type([copy(X) for copy in repeat], list[Any])
    assert_type(sb.Sequential([layer])(X), Any)


# Variables


def test_variables_compute_as_arrays() -> None:
    v = made().vars()["(Sequential).first(linear).w"]
    assert_type(v, sb.Variable)
    for out in (
        assert_type(v.value, jax.Array),
        assert_type(v + 1, jax.Array),
        assert_type(X @ v, jax.Array),
        assert_type(1 - v, jax.Array),
        assert_type(v @ v, jax.Array),
        assert_type(-v, jax.Array),
        assert_type(v[0], jax.Array),
        assert_type(v > 0, jax.Array),
    ):
        assert isinstance(out, jax.Array)
    assert_type(v == v, bool)
    assert_type(v.shape, tuple[int, ...])
    assert_type(v.trainable, bool)
    with pytest.raises(AttributeError):
        v.sum()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    with pytest.raises(AttributeError):
        v.shape = (2,)  # pyright: ignore[reportAttributeAccessIssue]


def test_collections_are_mappings() -> None:
    variables = made().vars()
    mapping: Mapping[str, sb.Variable] = variables
    assert_type(list(mapping), list[str])
    assert_type(variables.get("w"), sb.Variable | None)
    assert_type(variables.subset("params"), sb.VarCollection)
    assert_type(variables.subset(lambda v: v.ndim == 2), sb.VarCollection)
    assert_type(variables.subset(re.compile("w$")) + variables, sb.VarCollection)
    assert_type(variables.tensors(), dict[str, jax.Array])
    with pytest.raises(TypeError):
        variables.subset(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        variables["w"] = array(1)  # pyright: ignore[reportIndexIssue]


# Transforms


def test_jit_keeps_the_signature() -> None:
    model = made()

    @sb.jit
    def bare(model: sb.Sequential, x: jax.Array, *, twice: bool = False) -> jax.Array:
        return model(x) * (2.0 if twice else 1.0)

    @sb.jit(donate=True)
    def with_options(model: sb.Sequential, x: jax.Array, *, twice: bool = False) -> jax.Array:
        return bare(model, x, twice=twice)

    assert_type(bare(model, X, twice=True), jax.Array)
    assert_type(with_options(model, x=X), jax.Array)
    assert_type(bare.__wrapped__(model, X), jax.Array)
    assert_type(bare.lower(model, X), jax.stages.Lowered)
    with pytest.raises(TypeError):
        bare(model)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        with_options(model, X, thrice=True)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        sb.jit(loss, donated=True)  # pyright: ignore[reportCallIssue]


def test_jit_of_a_model_takes_what_the_model_takes() -> None:
    predict = sb.jit(made())
    assert_type(predict(X, training=False, factor=2.0), Any)
    with pytest.raises(TypeError):
        predict(X, training="no")  # pyright: ignore[reportArgumentType]


class Trainer:
    def __init__(self) -> None:
        self.model = made()

    @sb.jit
    def loss(self, x: jax.Array) -> jax.Array:
        return jnp.sin(x)

    @sb.jit(static_argnames=["power"])
    def power(self, x: jax.Array, power: int) -> jax.Array:
        return x**power


def test_jit_of_a_method() -> None:
    trainer = Trainer()
    assert_type(trainer.loss(X), jax.Array)
    assert_type(trainer.power(X, power=2), jax.Array)
    assert_type(Trainer.loss(trainer, X), jax.Array)
    with pytest.raises(TypeError):
        trainer.loss()  # pyright: ignore[reportCallIssue]


def test_gradients() -> None:
    model = made()
    assert_type(sb.value_and_grad(loss)(model, X), tuple[jax.Array, Gradients])
    assert_type(
        sb.value_and_grad(loss_and_size, has_aux=True)(model, X),
        tuple[tuple[jax.Array, int], Gradients],
    )
    assert_type(sb.grad(loss, wrt="params")(model, X), Gradients)
    gradients, size = sb.grad(loss_and_size, has_aux=True)(model, X)
    assert_type(gradients, Gradients)
    assert_type(size, int)
    with pytest.raises(TypeError):
        sb.value_and_grad(loss)(model)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        sb.value_and_grad(loss, has_aux=True)(model, X)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_training_step() -> None:
    class Descent(NamedTuple):
        """A `GradientTransformation` of optax."""

        init: Callable[[Any], Any]
        update: Callable[..., Any]

    def init(params: Gradients) -> tuple[()]:
        return ()

    def update(
        gradients: Gradients, state: tuple[()], params: Gradients
    ) -> tuple[Gradients, tuple[()]]:
        return {name: -0.1 * g for name, g in gradients.items()}, state

    @sb.jit
    def step(model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array) -> jax.Array:
        value, gradients = sb.value_and_grad(loss)(model, x)
        optimizer.update(gradients)
        return value

    model = made()
    optimizer = sb.Optimizer(model, Descent(init, update))
    assert_type(step(model, optimizer, X), jax.Array)
    assert_type(optimizer.vars(), sb.VarCollection)
    with pytest.raises(TypeError):
        sb.Optimizer(loss, optimizer.transformation)  # pyright: ignore[reportArgumentType]


def test_vmap_keeps_the_signature() -> None:
    assert_type(sb.vmap(scaled)(X), jax.Array)
    assert_type(sb.vmap(loss, in_axes=(None, 0))(made(), array(4, 3, 2)), jax.Array)
    with pytest.raises(TypeError):
        sb.vmap(scaled)(size=X)  # pyright: ignore[reportCallIssue]


def test_scan() -> None:
    total = sb.Variable(array(2), kind="state")

    def add(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        total.assign(total + x)
        return carry + x.mean(), {"total": total.value}

    def count(carry: None, x: jax.Array) -> tuple[None, jax.Array]:
        return carry, x

    assert_type(sb.scan(add, array(), X, vars=total), tuple[jax.Array, dict[str, jax.Array]])
    assert_type(sb.scan(add, np.float32(0), np.ones((3, 2), np.float32), vars=total)[0], jax.Array)
    assert_type(sb.scan(count, None, X, vars=total, reverse=True), tuple[None, jax.Array])
    assert_type(
        sb.scan(lambda carry, x: (carry, carry), array(), length=3, vars=total),
        tuple[jax.Array, jax.Array],
    )
    with pytest.raises(TypeError):
        sb.scan(add, {"a": array()}, X, vars=total)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(TypeError):
        sb.scan(add, array(), X, vars=total, backwards=True)  # pyright: ignore[reportCallIssue]


def test_remat_is_a_function_or_a_layer() -> None:
    model = made()
    assert_type(sb.remat(loss, prevent_cse=False)(model, X), jax.Array)
    assert_type(sb.remat(model)(X, training=False), Any)
    layer = sb.remat(functools.partial(linear))
    assert_type(layer, sb.Layer)
    assert_type(sb.remat([linear, scaled]), sb.Layer)
    assert isinstance(layer, sb.Layer)
    with pytest.raises(TypeError):
        sb.remat(loss)(model, X, 3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        sb.remat(loss, concretely=True)(model, X)  # pyright: ignore[reportCallIssue]


def test_what_is_left_open() -> None:
    model = made()
    assert_type(sb.eval_shape(model, X), Any)
    predict = sb.freeze(model, (3, 2))
    assert_type(predict(X), Any)
    assert_type(predict.lower(X), jax.stages.Lowered)
    assert_type(sb.from_native(model, model.variables), sb.Sequential)
    assert_type(sb.to_stax(model), Any)
    init, apply = sb.to_pure(model)
    assert_type(apply(init(0), X), tuple[Any, dict[str, dict[str, Any]]])


# Completion


def completions(x: Any) -> list[str]:
    """Return what IPython offers behind `x["`."""
    return x._ipython_key_completions_()


def test_names_are_completed() -> None:
    model = sb.Sequential(
        {"first": linear, "block": sb.Sequential([sb.Layer(linear, name="inner")])}
    ).build((3, 2))
    assert {"first", "block", "append"} <= set(dir(model))
    assert {"w", "native"} <= set(dir(model.first))
    assert "inner" in dir(model.block)
    assert "w" in dir(sb.Repeat(linear, 2)[0])


def test_keys_are_completed() -> None:
    model = made()
    model.append(scaled)
    assert completions(model) == ["first", "block"]
    assert completions(model.vars()) == list(model.vars())
    assert completions(model["first"]) == ["w"]
    assert completions(sb.Repeat(linear, 2)[0]) == ["w"]
    for holder in (model, model["first"], model.vars()):
        assert all(holder[name] is not None for name in completions(holder))


@pytest.mark.parametrize(
    "function",
    [
        sb.grad, sb.value_and_grad, sb.Optimizer.__init__, sb.VarCollection.subset,
        sb.Checkpoint.restore,
        sb.Sequential.load, sb.Sequential.shard, sb.Layer.__init__,
    ],
)  # fmt: skip
def test_annotations_can_be_evaluated(function: Callable[..., Any]) -> None:
    assert get_type_hints(function)
