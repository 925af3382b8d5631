"""`sb.jit(pack=True)`: small variables travel in a few arrays, and read as they did before."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import seqbridge as sb
from helpers import assert_close, predict, train_step, values_of

X = jnp.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0], [0.5, 2.0]])


def mixed() -> sb.Sequential:
    entries = [
        nn.Dense(4), nn.BatchNorm(momentum=0.5), nn.relu, nn.Dropout(0.5),
        functools.partial(hk.Linear, 3), functools.partial(nnx.BatchNorm, 3),
        functools.partial(jnp.multiply, jnp.array([[1.0, 2.0, 3.0]])),
    ]  # fmt: skip
    return sb.Sequential(entries, seed=1).build((4, 2))


def pairs() -> list[tuple[sb.Sequential, sb.Optimizer]]:
    models = mixed(), mixed()
    return [(model, sb.Optimizer(model, optax.sgd(1e-2, momentum=0.5))) for model in models]


def arrays_passed(step: Any, *args: Any) -> int:
    return len(jax.tree.leaves(step.lower(*args).args_info))


def values(*holders: Any) -> list[np.ndarray]:
    """Return copies of the values of the variables of all holders."""
    return [array for holder in holders for array in values_of(holder)]


@pytest.mark.parametrize("donate", [False, True])
def test_training_is_the_same_and_passes_few_arrays(donate: bool) -> None:
    (model, optimizer), (other, its) = pairs()
    packed, plain = sb.jit(train_step, pack=True, donate=donate), sb.jit(train_step, donate=donate)
    for _ in range(4):
        assert_close(packed(model, optimizer, X), plain(other, its, X))
        assert_close(values(model, optimizer), values(other, its))
    # parameters, statistics, the stream of keys, moments, the batch
    assert arrays_passed(packed, model, optimizer, X) == 5
    assert arrays_passed(plain, other, its, X) == len(model.vars()) + len(optimizer.vars()) + 1
    # A call that doesn't ask for it takes the packed arrays, too.
    assert_close(sb.jit(predict)(model, X), sb.jit(predict)(other, X))
    assert arrays_passed(sb.jit(predict), model, X) == 4


def test_the_program_computes_the_same() -> None:
    def operations(step: Any, model: Any) -> set[str]:
        text = step.lower(model, X).as_text()
        return {
            line.split("stablehlo.")[1].split(" ")[0]
            for line in text.splitlines()
            if "stablehlo." in line
        }

    packed = operations(sb.jit(predict, pack=True), mixed())
    assert packed - operations(sb.jit(predict), mixed()) <= {"slice", "reshape"}
    assert "concatenate" not in packed  # nothing changes


def test_a_packed_variable_is_read_and_assigned_like_any_other() -> None:
    (model, optimizer), (other, its) = pairs()
    packed, plain = sb.jit(train_step, pack=True, donate=True), sb.jit(train_step)
    packed(model, optimizer, X)
    plain(other, its, X)
    held = model[0].kernel.value
    for m in (model, other):
        m[0].kernel.assign(m[0].kernel * 2)
        m[4].w.value = jnp.ones((4, 3))
    assert_close(model[0].kernel.value, 2 * held)
    assert_close(packed(model, optimizer, X), plain(other, its, X))
    assert not held.is_deleted()  # the array that was read isn't the one that was donated
    assert_close(values(model, optimizer), values(other, its))
    assert str(model.vars()) == str(other.vars())
    assert model[0].kernel.name == "(Sequential)[0](Dense).kernel"
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 4\)"):
        model[0].kernel.assign(jnp.ones(3))
    with pytest.raises(TypeError, match="takes an array"):
        model[0].kernel.assign("no array")
    assert_close(values(model), values(other))


def test_large_and_odd_variables_keep_their_own_arrays() -> None:
    model = sb.Sequential([nn.Dense(10_000)]).build((4, 2))
    step = sb.jit(lambda model, x: model(x), pack=True)
    step(model, X)
    # One is large, and the other alone; the input; and the keys, since it isn't known that a Dense
    # never draws.
    assert arrays_passed(step, model, X) == 4
    one = sb.Sequential([nn.Dense(2, use_bias=False)]).build((4, 2))
    assert arrays_passed(sb.jit(predict, pack=True), one, X) == 3


def test_saving_copying_and_loading(tmp_path: Path) -> None:
    (model, optimizer), (other, its) = pairs()
    packed, plain = sb.jit(train_step, pack=True, donate=True), sb.jit(train_step)
    packed(model, optimizer, X)
    plain(other, its, X)
    model.save(tmp_path / "model.safetensors")
    twin, its_twin = copy.deepcopy((model, optimizer))
    at_copy = jax.tree.map(np.asarray, values(other, its))
    weights = mixed().build((4, 2))
    weights.load(tmp_path / "model.safetensors")
    assert_close(values(weights), values(other))
    packed(model, optimizer, X)
    plain(other, its, X)
    assert_close(values(twin, its_twin), at_copy)
    packed(twin, its_twin, X)
    assert_close(values(twin, its_twin), values(other, its))
    model.load(tmp_path / "model.safetensors")
    assert_close(values(model), values(weights))
    model.assign(other.variables)
    assert_close(model.variables, other.variables)
    plain_copy = pickle.loads(pickle.dumps(sb.Sequential([nn.Dense(2)]).build((4, 2))))
    sb.jit(predict, pack=True)(plain_copy, X)
    assert_close(pickle.loads(pickle.dumps(plain_copy)).variables, plain_copy.variables)


def test_a_program_that_fails_changes_nothing() -> None:
    model = mixed()

    def train(model: Any, x: Any, fail: bool = False) -> Any:
        out = model(x, training=True)
        return {}[0] if fail else out

    step = sb.jit(train, pack=True, donate=True)
    step(model, X)
    before = values(model)
    with pytest.raises(KeyError):
        step(model, X, fail=True)
    assert_close(values(model), before)


def test_models_that_share_layers_settle() -> None:
    encoder = sb.Sequential([nn.Dense(4), nn.relu, nn.Dense(4)]).build((4, 2))
    first, second = (sb.Sequential([*encoder, nn.Dense(n)]) for n in (2, 3))
    for model in (first, second):
        model.build((4, 2))
    step = sb.jit(lambda model, x: model(x), pack=True)
    for model in (encoder, first, second, first, encoder):
        step(model, X)
    with jax.no_tracing():
        for model in (encoder, first, second):
            step(model, X)
    encoder[0].kernel.assign(encoder[0].kernel * 2)
    for model in (encoder, first, second):
        assert_close(step(model, X), model(X))


def test_edits_repack_and_dead_variables_go() -> None:
    (model, optimizer), (other, its) = pairs()
    packed, plain = sb.jit(train_step, pack=True, donate=True), sb.jit(train_step)
    for i in range(2):
        assert_close(packed(model, optimizer, X), plain(other, its, X))
        for m in (model, other):
            m[4] = functools.partial(hk.Linear, 3)
            m.append(nn.Dense(i + 1))
    packed(model, optimizer, X)
    plain(other, its, X)
    assert_close(values(model, optimizer), values(other, its))
    assert arrays_passed(packed, model, optimizer, X) == 5


def test_inside_other_transforms_and_other_programs() -> None:
    model, other = mixed(), mixed()
    inner = sb.jit(lambda model, x: model(x, training=True).sum(), pack=True, donate=True)
    inner(model, X)
    inner(other, X)
    outer = sb.jit(lambda model, x: sb.value_and_grad(lambda model: inner(model, x))(model))
    expected = sb.value_and_grad(lambda model: model(X, training=True).sum())(other)
    assert_close(outer(model, X), expected)
    assert_close(values(model), values(other))
    assert_close(jax.jit(lambda x: model(x, training=False))(X), predict(other, X))
    with pytest.raises(RuntimeError, match=r"sb\.jit"):
        jax.jit(lambda x: model(x, training=True))(X)
    with pytest.raises(RuntimeError, match=r"sb\.jit"):
        jax.jit(lambda x: inner(model, x))(X)
    assert_close(values(model), values(other))


def test_a_first_call_inside_another_program() -> None:
    model, other = mixed(), mixed()
    inner = sb.jit(lambda model, x: model(x, training=True).sum(), pack=True)
    outer = sb.jit(lambda model, x: inner(model, x))
    assert_close(outer(model, X), other(X, training=True).sum())
    assert_close(inner(model, X), other(X, training=True).sum())
    assert_close(values(model), values(other))
    assert arrays_passed(inner, model, X) == 4


def test_on_a_mesh() -> None:
    (model, optimizer), (other, its) = pairs()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = sb.jit(train_step, pack=True)
    spread, plain = sb.jit(train_step, mesh=mesh, pack=True, donate=True), sb.jit(train_step)
    assert_close(local(model, optimizer, X), plain(other, its, X))  # packed on one device first
    for _ in range(2):
        assert_close(spread(model, optimizer, X), plain(other, its, X))
        chex.assert_trees_all_close(
            values(model, optimizer), values(other, its), rtol=1e-4, atol=1e-5
        )
    assert arrays_passed(spread, model, optimizer, X) == 5
    model.shard(mesh, {r"Dense.*kernel": PartitionSpec(None, "data")})
    for _ in range(2):
        assert_close(spread(model, optimizer, X), plain(other, its, X))
        chex.assert_trees_all_close(
            values(model, optimizer), values(other, its), rtol=1e-4, atol=1e-5
        )
    assert model[0].kernel.value.sharding.spec == PartitionSpec(None, "data")


def test_a_pack_keeps_no_model_alive() -> None:
    model = mixed()
    step = sb.jit(predict, pack=True)
    step(model, X)
    gc.collect()
    gc.disable()
    try:
        dead = weakref.ref(model[0].kernel)
        del model
        step(mixed(), X[:2])
        gc.collect()
        assert dead() is None
    finally:
        gc.enable()


STEPS = (
    "step",
    "assign",
    "freeze",
    "append",
    "replace",
    "pop",
    "load",
    "predict",
    "encode",
    "copy",
)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8), st.integers(0, 3))
def test_whatever_happens_it_is_the_unpacked_model(steps: list[str], position: int) -> None:
    both = pairs()
    training = sb.jit(train_step, pack=True), sb.jit(train_step)
    calling = sb.jit(predict, pack=True), sb.jit(predict)
    saved = both[1][0].variables["params"]
    for n, step in enumerate(steps):
        results = []
        for i, (model, optimizer) in enumerate(both):
            if step == "step":
                results.append(training[i](model, optimizer, X))
            elif step == "predict":
                results.append(calling[i](model, X))
            elif step == "encode":
                results.append(calling[i](model[: 1 + position], X))
            elif step == "assign":
                box = list(model.vars().subset("params").values())[position]
                box.assign(box * 0.5 + n)
            elif step == "freeze":
                model[0].kernel.trainable = not model[0].kernel.trainable
            elif step == "append":
                model.append(nn.Dense(3))
            elif step == "replace":
                model[0] = nn.Dense(4)
            elif step == "pop" and len(model) > 7:
                model.pop()
            elif step == "load" and saved.keys() == model.variables["params"].keys():
                model.assign({"params": saved})
            elif step == "copy":
                both[i] = copy.deepcopy((model, optimizer))
        if results:
            assert_close(*results)
        assert_close(*(values(*pair) for pair in both))
        assert list(both[0][1].vars()) == list(both[1][1].vars())
