"""`sb.Repeat` does what a list of so many layers does, in a program of constant size."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import helpers
import seqbridge as sb
from cases import CASES, Case

N = 3
X = jax.random.normal(jax.random.key(2), (4, 8))


def assert_close(a: Any, b: Any, *, rtol: float = 2e-5, atol: float = 1e-5) -> None:
    helpers.assert_close(a, b, rtol=rtol, atol=atol)


def block() -> sb.Sequential:
    return sb.Sequential([
        nn.Dense(8), nn.BatchNorm(), nn.relu, eqx.nn.Dropout(0.4), functools.partial(hk.Linear, 8),
        functools.partial(nnx.BatchNorm, 8),
    ])  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Dense(8),
        lambda: nn.BatchNorm(momentum=0.5),
        lambda: nn.Dropout(0.5),
        lambda: functools.partial(hk.Linear, 8),
        lambda: functools.partial(nnx.Linear, 8, 8),
        lambda: functools.partial(nnx.BatchNorm, 8),
        lambda: functools.partial(eqx.nn.Linear, 8, 8),
        lambda: eqx.nn.Dropout(0.5),
        lambda: jnp.tanh,
        block,
    ],
)
def test_it_is_a_list_of_so_many_layers(make: Callable[[], Any]) -> None:
    repeated = sb.Sequential([sb.Repeat(make(), N)]).build((None, 8))
    listed = sb.Sequential([sb.Sequential([make() for _ in range(N)])]).build((None, 8))
    assert len(repeated.vars().subset("params")) * N == len(listed.vars().subset("params"))

    def compare() -> None:
        for i, one in enumerate(listed[0]):
            if isinstance(one, sb.Layer):
                assert_close(repeated[0][i].native, one.native)

    compare()  # initial values
    step = sb.jit(
        lambda model, x: sb.value_and_grad(
            lambda model: model(x, training=True).sum(), wrt="params"
        )(model)
    )
    for _ in range(2):
        assert_close(
            repeated(X, training=True), listed(X, training=True)
        )  # random numbers and states as well
        compare()
        if repeated.vars().subset("params"):
            assert_close(step(repeated, X)[0], step(listed, X)[0])
    before = repeated.variables
    assert_close(repeated(X, training=False), listed(X, training=False))
    assert_close(repeated.variables, before)
    assert_close(sb.freeze(repeated)(X), listed(X, training=False))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_adapters_entries_can_be_repeated(case: Case) -> None:
    with contextlib.nullcontext() if case.strict else helpers.usual_promotion():
        key = jax.random.key(5)
        own = jax.random.fold_in(key, 0)
        single = sb.Sequential([case.make()]).build(*case.inputs, **case.keywords)
        out, _ = case.native(single[0].native, own, case.arrays(), False)
        model = sb.Sequential([sb.Repeat(case.make(), 2)])
        if [getattr(out, "shape", None)] != [*case.inputs]:
            with pytest.raises(TypeError, match="a repeated layer must return what it takes"):
                model(*case.arrays(), training=False, rng=key, **case.keywords)
            return
        model.build(*case.inputs, **case.keywords)
        for variable in model.vars().subset("params").values():
            variable.assign(variable + 0.1)
        trees = [model[0][i].native for i in range(2)]
        for training in (False, True):
            (expected,), after = case.arrays(), []
            for i, tree in enumerate(trees):  # each by its own library
                expected, new = case.native(tree, jax.random.fold_in(own, i), (expected,), training)
                after.append(new)
            assert_close(
                model(*case.arrays(), training=training, rng=key, **case.keywords), expected
            )
            for i in range(2):
                arrays = [
                    [a for a in jax.tree.leaves(t) if hasattr(a, "dtype")]
                    for t in (model[0][i].native, after[i])
                ]
                assert_close(*arrays)


def test_an_entry_that_has_values_gives_them_to_each_copy() -> None:
    module = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    built = sb.Sequential([nn.Dense(8), nn.relu]).build((None, 8))
    for entry, expected in ((module, module), (built, built), (built[0], built[0])):
        model = sb.Sequential([sb.Repeat(entry, 2)])
        assert_close(model(X), expected(expected(X)))
        variable = next(iter(model.vars().values()))
        variable.assign(variable * 0)
        assert_close(built(X), sb.Sequential(list(built))(X))
    assert float(jnp.abs(module.kernel[...]).sum()) > 0


def test_a_copy_is_read_written_loaded_and_called() -> None:
    model = sb.Sequential([nn.Dense(8), sb.Repeat(block(), 4, name="deep")]).build((None, 8))
    deep = model.deep
    assert isinstance(deep, sb.Repeat)
    assert (len(deep), deep.n, len(list(deep))) == (4, 4, 4)
    assert deep.Dense_0.kernel.shape == (4, 8, 8)
    kernel = deep[1].Dense_0.kernel
    assert list(deep[1].vars()) == list(deep.vars())
    assert (kernel.shape, kernel.name) == ((8, 8), "(Sequential).deep(Repeat).Dense_0.kernel[1]")
    others = deep["Dense_0.kernel"].value[jnp.array([0, 2, 3])]
    kernel.assign(kernel + 1)
    kernel.value = kernel * 2
    assert_close(deep[1]["Dense_0"].kernel.value, deep.Dense_0.kernel.value[1])
    assert_close(deep.Dense_0.kernel.value[jnp.array([0, 2, 3])], others)
    deep[3].load_native(deep[1].native)
    assert_close(deep[-1].native, deep[1].native)
    hidden = model[0](X)
    for copy_ in deep:
        hidden = copy_(hidden, training=False)
    assert_close(hidden, model(X, training=False))
    mean = deep[2].BatchNorm_1.mean.value
    deep[2](X, training=True)
    assert not np.allclose(deep[2].BatchNorm_1.mean.value, mean)
    assert_close(deep[0].BatchNorm_1.mean.value, jnp.zeros(8))
    with pytest.raises(ValueError, match=r"kernel\[1\] has shape \(8, 8\)"):
        kernel.assign(jnp.ones(3))
    with pytest.raises(AttributeError, match=r"\.assign"):
        deep[1].Dense_0 = 1
    with pytest.raises(AttributeError, match="Dense_0"):
        _ = deep[1].Dense_1
    with pytest.raises(IndexError, match="there are 4"):
        _ = deep[4]
    with pytest.raises(TypeError, match="isn't sliced"):
        _ = deep[1:2]  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(AttributeError, match=r"\.value\.mean"):
        _ = kernel.mean


def test_copies_inside_transforms() -> None:
    model = sb.Sequential([sb.Repeat(nn.Dense(8), 3)]).build((None, 8))

    @sb.jit
    def halve(model: Any) -> Any:
        model[0][1].kernel.assign(model[0][1].kernel / 2)
        return model[0][1].kernel.value

    before = model[0].kernel.value
    assert_close(halve(model), before[1] / 2)
    assert_close(model[0].kernel.value, before.at[1].divide(2))
    grads = sb.grad(lambda model: (model[0][1].kernel.value ** 2).sum())(model)
    assert [float(abs(g).sum()) > 0 for g in grads["(Sequential)[0](Repeat).kernel"]] == [
        False,
        True,
        False,
    ]


def test_keywords_are_broadcast_or_per_copy() -> None:
    scale = lambda x, rate, shift=0.0: x * rate + shift  # noqa: E731
    rates = jnp.array([1.0, 2.0, 3.0])
    model = sb.Sequential([sb.Repeat(scale, 3, per_copy="rate")])
    assert_close(model(X, rate=rates), X * 6)
    assert_close(sb.jit(model)(X, rate=rates, shift=1.0), ((X + 1) * 2 + 1) * 3 + 1)
    assert_close(sb.Sequential([sb.Repeat(scale, 3)])(X, rate=2.0), X * 8)
    for wrong in (jnp.ones(2), [1.0, 2.0, 3.0]):
        with pytest.raises(
            ValueError, match="'rate' holds a value for each of the 3 copies: give an array"
        ):
            model(X, rate=wrong)
    with pytest.raises(TypeError, match=r"per_copy='rte'.*did you mean 'rate'"):
        sb.Repeat(scale, 3, per_copy="rte")
    blocks = sb.Sequential([sb.Repeat([nn.Dense(8), scale], 3, per_copy=("rate",))]).build(
        (2, 8), rate=rates
    )
    assert_close(blocks(X * 0, rate=rates), X * 0)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(
        TypeError,
        match=r"must return what it takes.*took float32\[4,8\] and returned float32\[4,4\]",
    ):
        sb.Sequential([sb.Repeat(nn.Dense(4), 3)])(X)
    with pytest.raises(ValueError, match="not n=0"):
        sb.Repeat(nn.Dense(4), 0)
    with pytest.raises(TypeError, match=r"Repeat\(layer, 12\)"):
        sb.Repeat(3, nn.Dense(4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="is no entry"):
        sb.Repeat(3, 3)
    with pytest.raises(TypeError, match="prevent_ces"):
        sb.remat(nn.Dense(4), prevent_ces=False)  # pyright: ignore[reportCallIssue]
    assert sb.Repeat(nn.Dense(8), np.int64(2)).n == 2
    with pytest.raises(TypeError, match=r"training.*\[0\]"):
        sb.Sequential([sb.Repeat(nn.Dropout(0.5), 3)])(X)


def test_blocks_of_blocks() -> None:
    inner = lambda: sb.Sequential([nn.Dense(8), nn.relu])  # noqa: E731
    for nested in (
        lambda: sb.Repeat(sb.Sequential([sb.Repeat(inner(), 2)]), 2),
        lambda: sb.remat(sb.Sequential([sb.Repeat(inner(), 2)])),
        lambda: sb.Repeat(sb.Repeat(inner(), 2), 2),
    ):
        model = sb.Sequential([nested()]).build((None, 8))
        assert_close(model(X), sb.jit(model)(X))
    with helpers.usual_promotion():
        model = sb.Sequential([sb.Repeat([keras.layers.Dense(8), jnp.tanh], 2)]).build((None, 8))
        assert_close(model(X), model[0][1](model[0][0](X)))


@pytest.mark.parametrize("wrap", [lambda x: sb.Repeat(x, 2), sb.remat])
def test_what_is_frozen_inside_stays_frozen(wrap: Any) -> None:
    frozen = lambda: sb.Layer(functools.partial(hk.Linear, 8), trainable=False)  # noqa: E731
    built = sb.Sequential([nn.Dense(8), frozen()]).build((None, 8))
    entries = [frozen(), sb.Sequential([nn.Dense(8), frozen()])]
    for entry in entries if wrap is sb.remat else [*entries, built]:
        model = sb.Sequential([wrap(entry)]).build((None, 8))
        for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            trained = {name.rpartition(".")[2]: v.trainable for name, v in twin.vars().items()}
            assert trained == {name: name in ("kernel", "bias") for name in trained}


def test_a_copy_is_known_to_the_transforms() -> None:
    model = sb.Sequential([sb.Repeat([nn.Dense(8), nn.relu], 3)]).build((None, 8))
    expected = model[0][1](X)
    assert_close(sb.jit(model[0][1])(X), expected)
    assert_close(sb.jit(lambda one, x: one(x))(model[0][1], X), expected)
    assert_close(sb.jit(lambda one, x: one(x))(model[0][2], X), model[0][2](X))
    assert_close(sb.remat(model[0][1])(X), expected)
    with pytest.raises(TypeError, match="not a Copy"):
        sb.Sequential([model[0][1]])
    with pytest.raises(AttributeError, match="copies are trained together"):
        model[0][1].Dense_0.kernel.trainable = False


def test_several_inputs_are_carried() -> None:
    model = sb.Sequential([lambda x: (x, x), sb.Repeat(lambda x, y: (x + y, y), 3)])
    out = model(X)
    assert_close(out, (4 * X, X))


def test_it_is_copied_pickled_saved_and_edited(tmp_path: Path) -> None:
    model = sb.Sequential(
        [nn.Dense(8), sb.Repeat(sb.Sequential([nn.Dense(8), nn.BatchNorm()]), 3)]
    ).build((None, 8))
    expected = model(X, training=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin[1], sb.Repeat)
        assert_close(twin(X, training=False), expected)
        twin[1][0].Dense_0.kernel.assign(jnp.zeros((8, 8)))
        assert_close(model(X, training=False), expected)
    other = sb.Sequential(
        [nn.Dense(8), sb.Repeat(sb.Sequential([nn.Dense(8), nn.BatchNorm()]), 3)], seed=4
    )
    other.build((None, 8)).load(
        model.save(tmp_path / "deep.safetensors") or tmp_path / "deep.safetensors"
    )
    assert_close(other(X, training=False), expected)
    model[1] = sb.Repeat(nn.Dense(8), 2)
    assert model[1].kernel.shape == (2, 8, 8)
    module = sb.to_linen(other)
    variables = module.init(jax.random.key(0), X)
    assert_close(module.apply(variables, X, training=False), expected)


def test_training_packed_donated_and_by_the_pure_form() -> None:
    losses = []
    for fast in (False, True):
        model = sb.Sequential([sb.Repeat(block(), 3)]).build((None, 8))
        optimizer = sb.Optimizer(model, optax.sgd(0.01))
        step = sb.jit(helpers.train_step, pack=fast, donate=fast)
        losses.append([float(step(model, optimizer, X)) for _ in range(3)])
    assert_close(*losses)
    assert losses[0][-1] < losses[0][0]
    model = sb.Sequential([sb.Repeat(nn.Dense(8), 3)]).build((None, 8))
    assert_close(model.apply(model.variables, X)[0], model(X))


@pytest.mark.parametrize(
    "make", [lambda: sb.Repeat(nn.Dense(8), 10), lambda: sb.Repeat(block(), 10, unroll=1)]
)
def test_the_program_is_the_same_size_for_any_number(make: Callable[[], sb.Repeat]) -> None:
    def size(n: int) -> int:
        layer = make()
        model = sb.Sequential([sb.Repeat(layer.pure.one, n)]).build((None, 8))  # pyright: ignore
        return len(sb.jit(lambda m, x: m(x, training=True)).lower(model, X).as_text().splitlines())

    assert size(10) == size(1000)


def test_copies_are_traced_once() -> None:
    traces = []
    model = sb.Sequential([sb.Repeat(lambda x: traces.append(1) or x * 2, 50)])
    sb.jit(model)(jnp.ones(3))
    assert len(traces) <= 3  # to look whether it draws, and to run it


def test_remat_of_what_is_repeated() -> None:
    plain = sb.Sequential([sb.Repeat(block(), 3)]).build((None, 8))
    saving = sb.Sequential([sb.Repeat(sb.remat(block(), prevent_cse=False), 3)]).build((None, 8))
    loss = lambda model, x: (model(x, training=True) ** 2).mean()  # noqa: E731
    assert_close(sb.grad(loss)(saving, X), sb.grad(loss)(plain, X))
    assert "remat" in str(
        jax.make_jaxpr(lambda x: saving.apply(saving.variables, x, training=False)[0])(X)
    )

    def temporary(model: sb.Sequential, rows: int) -> int:
        step = sb.jit(lambda model, x: sb.grad(loss)(model, x))
        analysis = step.lower(model, jnp.ones((rows, 8))).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(saving, 4096) < 0.7 * temporary(plain, 4096)


@pytest.mark.parametrize(
    "entry",
    [
        nn.Dense(8), functools.partial(hk.Linear, 8), eqx.nn.Linear(8, 8, key=jax.random.key(0)),
        nn.Dropout(0.5), sb.Layer(nn.Dense(8), name="one"), sb.Sequential([nn.Dense(8), nn.relu]),
        functools.partial(nnx.BatchNorm, 8),
    ],
)  # fmt: skip
def test_remat_makes_a_layer_of_an_entry(entry: Any) -> None:
    plain, saving = sb.Sequential([entry]), sb.Sequential([sb.remat(entry)])
    saving.build((None, 8))
    plain.build((None, 8))
    assert_close(jax.tree.leaves(saving.variables), jax.tree.leaves(plain.variables))
    key = jax.random.key(1)
    loss = lambda model: (model(X, training=True, rng=key) ** 2).sum()  # noqa: E731
    if saving.vars().subset("params"):
        assert_close(*(list(sb.jit(sb.grad(loss))(model).values()) for model in (saving, plain)))
    assert_close(saving(X, training=True, rng=key), plain(X, training=True, rng=key))
    assert_close(copy.deepcopy(saving)(X, training=False), saving(X, training=False))
    assert "remat" in repr(saving)
