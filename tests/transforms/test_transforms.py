"""jit, grad, value_and_grad, vmap, scan, remat, eval_shape and the Optimizer."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
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
from jax.core import Tracer

import seqbridge as sb
from helpers import assert_close, equal

X = jnp.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]])


def mixed(seed: int = 0) -> sb.Sequential:
    entries = [
        nn.Dense(4),
        nn.BatchNorm(momentum=0.5),
        nn.relu,
        nn.Dropout(0.5),
        functools.partial(hk.Linear, 2),
    ]
    return sb.Sequential(entries, seed=seed).build((3, 2))


def loss(model: sb.Sequential, x: Any, **keywords: Any) -> Any:
    return (model(x, training=True, **keywords) ** 2).sum()


# jit


def test_jit_does_what_the_function_does() -> None:
    eager, compiled = mixed(), mixed()
    step = sb.jit(loss)
    for _ in range(3):
        assert_close(step(compiled, X), loss(eager, X))
        assert_close(compiled.variables, eager.variables)
        assert equal(
            jax.random.key_data(compiled.vars()["(Sequential).rng"].value),
            jax.random.key_data(eager.vars()["(Sequential).rng"].value),
        )


@pytest.mark.parametrize(
    "arguments",
    [
        lambda m, o: ((m,), {}),
        lambda m, o: ((), {"model": m}),
        lambda m, o: (({"a": [m, o]},), {}),
        lambda m, o: ((m.vars(),), {}),
        lambda m, o: ((m[:2], m[2:]), {}),
        lambda m, o: ((m[0], m[1], m[3], m.vars()["(Sequential).rng"], m[4]), {}),
    ],
)
def test_stateful_arguments_anywhere(arguments: Any) -> None:
    model, twin = mixed(), mixed()

    @sb.jit
    def call(*args: Any, **keywords: Any) -> Any:
        return model(X, training=True)

    args, keywords = arguments(model, sb.Optimizer(model, optax.sgd(0.1)))
    for _ in range(2):
        assert_close(call(*args, **keywords), twin(X, training=True))
    assert_close(model.variables, twin.variables)


def test_a_model_a_method_and_a_partial_can_be_jitted() -> None:
    model = mixed()
    expected = model(X, training=False)
    assert_close(sb.jit(model)(X, training=False), expected)
    assert_close(sb.jit(model.__call__)(X, training=False), expected)
    assert_close(sb.jit(model[:1])(X), model[0](X))
    assert_close(sb.jit(lambda x: model(x, training=False), vars=model.vars())(X), expected)
    assert_close(sb.jit(lambda x: model(x, training=False), vars=[model])(X), expected)

    class Net(sb.Sequential):
        @sb.jit
        def predict(self, x: Any) -> Any:
            return self(x, training=False)

    net = Net(list(model))
    assert_close(net.predict(X), expected)
    with pytest.raises(TypeError, match="vars="):
        sb.jit(lambda x: x, vars=3)


def test_traces_once_for_static_arguments_and_shapes() -> None:
    model = sb.Sequential([nn.Dense(4), nn.leaky_relu, nn.Dropout(0.5)]).build((3, 2))
    traced: Any = chex.assert_max_traces(
        lambda model, x, slope, training, mode: model(x, training=training, negative_slope=slope),
        n=4,
    )
    step = sb.jit(traced)
    for slope in (0.1, 0.2, 0.3):
        step(model, X, slope, training=True, mode="a")
        step(model, 2 * X, slope, training=True, mode="a")  # 1
    step(model, X, 0.1, training=False, mode="a")  # 2
    step(model, X, 0.1, training=np.bool_(False), mode="a")
    step(model, X[:2], 0.1, training=False, mode="a")  # 3
    step(model, X, 0.1, training=False, mode="b")  # 4
    model[0].kernel.assign(model[0].kernel * 2)
    with jax.no_tracing():
        step(model, X, 0.5, mode="a", training=True)
    model.append(nn.relu)
    with pytest.raises(AssertionError, match="traced"):
        step(model, X, 0.1, training=True, mode="a")


def test_an_edit_is_seen_and_slices_of_one_structure_share_a_program() -> None:
    model = sb.Sequential([nn.Dense(4), nn.Dense(3)]).build((3, 2))
    predict = sb.jit(lambda model, x: model(x))
    for _ in range(3):
        assert_close(predict(model[:-1], X), model[0](X))
    with jax.no_tracing():
        predict(model[:-1], X)
    model[1] = nn.Dense(5)
    assert_close(predict(model, X), model(X))
    assert predict(model, X).shape == (3, 5)
    model[0].kernel.trainable = False
    assert set(sb.jit(lambda m: sb.grad(lambda m: m(X).sum())(m))(model)) == {
        "(Sequential)[0](Dense).bias",
        "(Sequential)[1](Dense).bias",
        "(Sequential)[1](Dense).kernel",
    }


def test_static_argnames_and_ints() -> None:
    assert sb.jit(lambda x, axis: x.sum(axis), static_argnames="axis")(X, axis=1).shape == (3,)
    traced: Any = chex.assert_max_traces(lambda x, n: x * n, n=1)
    times = sb.jit(traced)
    for n in range(3):
        assert equal(times(X, n), X * n)
    with pytest.raises(TypeError, match="'axis' is static"):
        sb.jit(lambda x, axis: x, static_argnames=["axis"])(X, axis=[1])
    with pytest.raises(TypeError, match="a function or a model"):
        sb.jit(3)  # pyright: ignore


def test_what_jit_does_not_know_is_refused_and_not_a_constant() -> None:
    model = mixed()
    with pytest.raises(
        RuntimeError,
        match=r"\(Sequential\)\[0\]\(Dense\)\.\w+ is read inside sb.jit.*vars=model.vars\(\)",
    ):
        sb.jit(lambda x: model(x, training=False))(X)
    counter = sb.Variable(jnp.zeros(()), name="counter")
    with pytest.raises(RuntimeError, match="counter is read"):
        sb.jit(lambda x: counter.assign(x))(1.0)
    assert float(counter.value) == 0


def test_nothing_changes_when_the_function_raises() -> None:
    model = mixed()
    before = {name: v.value for name, v in model.vars().items()}

    def fail(model: sb.Sequential, x: Any) -> Any:
        model(x, training=True)
        model[0].bias.assign(model[0].bias + 1)
        raise KeyError("no")

    for transformed in (
        sb.jit(fail),
        sb.grad(fail),
        sb.jit(sb.grad(fail)),
        lambda m, x: sb.vmap(fail, (None, 0))(m, x[:, None]),
    ):
        with pytest.raises(KeyError):
            transformed(model, X)
        assert all(model.vars()[name].value is value for name, value in before.items())
    loss(model, X)


@pytest.mark.parametrize(
    ("transform", "cure"),
    [
        (lambda f: jax.jit(f)(X), "sb.jit"),
        (lambda f: jax.grad(lambda s: f(X * s).sum())(1.0), "sb.grad"),
        (lambda f: jax.vmap(lambda x: f(x[None]))(X), "sb.vmap"),
        (lambda f: jax.lax.scan(lambda c, x: (c, f(x[None])), 0.0, X), "sb.scan"),
    ],
)
def test_plain_transforms_of_a_stateful_call_are_refused_with_the_cure(
    transform: Any, cure: str
) -> None:
    model = sb.Sequential([nn.BatchNorm()]).build((3, 2))
    before = model[0].mean.value
    with pytest.raises(RuntimeError, match=cure):
        transform(lambda x: model(x, training=True))
    assert model[0].mean.value is before
    if cure != "sb.grad":
        with pytest.raises(RuntimeError, match=r"mean is assigned"):
            sb.jit(lambda model: transform(lambda x: model(x, training=True)))(model)
    assert model[0].mean.value is before
    transform(lambda x: model(x, training=False))


def test_building_and_editing_inside_a_trace_is_refused() -> None:
    model = sb.Sequential([nn.Dense(3)])
    for attempt in (
        lambda: jax.jit(model)(X),
        lambda: sb.jit(model)(X),
        lambda: jax.jit(lambda x: model.build(x))(X),
        lambda: jax.jit(lambda x: model.append(nn.relu))(X),
    ):
        with pytest.raises(
            RuntimeError, match=r"is refused: it would store tracers\. Do it before"
        ):
            attempt()
    assert not model.built
    assert len(model) == 1


def test_donated_buffers_are_given_once() -> None:
    model, twin = mixed(), mixed()
    optimizer, other = sb.Optimizer(model, optax.sgd(0.1)), sb.Optimizer(twin, optax.sgd(0.1))

    def step(model: Any, optimizer: Any, x: Any) -> Any:
        value, grads = sb.value_and_grad(loss)(model, x)
        optimizer.update(grads)
        return value

    donating, plain = sb.jit(step, donate=True), sb.jit(step)
    old = model[0].kernel.value
    for _ in range(3):
        assert_close(donating(model, optimizer, X), plain(twin, other, X))
        assert_close(model.variables, twin.variables)
    assert old.is_deleted()
    model[0].bias.assign(model[4].b.value[jnp.array([0, 0, 0, 0])])
    model[1].bias.assign(model[0].bias.value)  # one buffer in two variables
    donating(model, optimizer, X)
    borrower = sb.Variable(model[0].kernel.value, kind="state", name="borrower")
    gone = borrower.value
    donating(model, optimizer, X)
    with pytest.raises(ValueError, match="deleted"):
        model[0].kernel.assign(gone)
    with pytest.raises(RuntimeError, match="borrower was donated before"):
        sb.jit(lambda v: v.assign(v + 1), donate=True)(borrower)


def test_donation_leaves_the_users_modules_alone() -> None:
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    model = sb.Sequential([module])
    before = np.asarray(module.kernel[...])
    double = sb.jit(lambda model: model[0].kernel.assign(model[0].kernel * 2), donate=True)
    assert "donor" in (text := double.lower(model).as_text()) or "aliasing" in text
    double(model)
    double(model)
    np.testing.assert_array_equal(module.kernel[...], before)
    assert_close(model[0].kernel.value, 4 * before)


def test_donation_of_nothing_traces_once() -> None:
    model = mixed()
    # One of the two traces sees what changes.
    traced: Any = chex.assert_max_traces(lambda model, x: model(x, training=False), n=2)
    step = sb.jit(traced, donate=True)
    for _ in range(3):
        step(model, X)


def test_a_failing_call_under_a_plain_transform_writes_nothing() -> None:
    v, w = (sb.Variable(jnp.zeros(()), kind="state", name=name) for name in "vw")

    @sb.jit
    def f(variables: Any, s: Any) -> Any:
        variables[0].assign(variables[0] + 1)
        variables[1].assign(variables[1] + s)
        return s * 2

    with pytest.raises(RuntimeError, match=r"sb\.grad"):
        jax.grad(lambda s: f([v, w], s))(1.0)
    assert float(v.value) == float(w.value) == 0


def test_a_new_optimizer_is_a_new_program() -> None:
    w = sb.Variable(jnp.ones(2), name="w")
    step = sb.jit(lambda optimizer: optimizer.update({"w": jnp.ones(2)}))
    for rate in (0.5, 0.25, 0.125, 0.5):
        before = w.value
        step(sb.Optimizer(w, optax.sgd(rate)))
        gc.collect()
        assert_close(before - w.value, jnp.full(2, rate))


def test_programs_keep_no_model_alive() -> None:
    predict = sb.jit(lambda model, x: model(x))
    model = sb.Sequential([nn.Dense(3)]).build((3, 2))
    kernel, me = weakref.ref(model[0].kernel), weakref.ref(model)
    predict(model, X)
    del model
    gc.collect()
    assert me() is None
    assert kernel() is None


def test_jit_lowers_and_nests() -> None:
    model, twin = mixed(), mixed()
    assert "stablehlo" in sb.jit(loss).lower(model, X).as_text()
    inner = sb.jit(loss)
    outer = sb.jit(lambda model, x: inner(model, x) + inner(model, x))
    assert_close(outer(model, X), loss(twin, X) + loss(twin, X))
    assert_close(model.variables, twin.variables)


def test_two_threads_lose_nothing() -> None:
    counter = sb.Variable(jnp.zeros(()), kind="state", name="counter")
    barrier = threading.Barrier(2)
    count = sb.jit(lambda counter, x: counter.assign(counter + x))
    count(counter, 0.0)
    model = sb.Sequential([nn.BatchNorm(momentum=0.5)]).build((3, 2))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            barrier.wait(10)
            for _ in range(200):
                count(counter, 1.0)
                model(X, training=True)
                assert not isinstance(model[0].mean.value, Tracer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert float(counter.value) == 400


# Gradients


def test_gradients_by_name_aux_and_state() -> None:
    model = mixed()
    before = model[1].mean.value
    (value, aux), grads = sb.value_and_grad(lambda m: (loss(m, X), "seen"), has_aux=True)(model)
    assert aux == "seen"
    assert set(grads) == set(model.variables["params"])
    assert all(grads[name].shape == v.shape for name, v in model.vars().subset("params").items())
    assert model[1].mean.value is not before
    only, aux = sb.grad(lambda m: (loss(m, X), "seen"), has_aux=True)(mixed())
    assert_close(only, grads)
    assert value > 0


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("value_and_grad", lambda function, known: sb.grad(function)(known)),
        ("vmap", lambda function, known: sb.vmap(lambda known, x: function(known) * x)(known, X)),
        (
            "scan",
            lambda function, known: sb.scan(
                lambda c, x: (c, function(known) * x), None, X, vars=known
            ),
        ),
        ("remat", lambda function, known: sb.remat(function)(known)),
    ],
    ids=["grad", "vmap", "scan", "remat"],
)  # fmt: skip
def test_what_a_transform_does_not_know_of_can_be_read_and_not_assigned(
    name: str, transform: Any
) -> None:
    known, other = (
        sb.Variable(jnp.float32(2), name="known"),
        sb.Variable(jnp.float32(3), name="other"),
    )
    expected = transform(lambda known: known.value * 3, known)
    assert_close(transform(lambda known: known.value * other.value, known), expected)
    with pytest.raises(
        RuntimeError, match=f"other is assigned inside sb.{name}, which doesn't know of it"
    ):
        transform(lambda known: [other.assign(known.value), known.value][1], known)
    assert float(other.value) == 3


def test_a_variable_that_is_made_inside_belongs_to_the_transform() -> None:
    @sb.jit
    def double(x: Any) -> Any:
        total = sb.Variable(x)
        total.assign(total.value + x)
        return total.value

    assert equal(double(X), 2 * X)


def test_gradients_agree_with_the_pure_form() -> None:
    model = mixed()
    variables, key = model.variables, jax.random.key(3)

    def pure(params: Any) -> Any:
        out, _ = model.apply({**variables, "params": params}, X, training=True, rng=key)
        return (out**2).sum()

    assert_close(sb.grad(loss)(model, X, rng=key), jax.grad(pure)(variables["params"]))


@pytest.mark.parametrize(
    ("wrt", "names"),
    [
        (r"\[0\]", ["bias", "kernel"]),
        ("params", ["bias", "kernel", "bias", "scale", "b", "w"]),
        (lambda v: v.ndim == 2, ["kernel", "w"]),
    ],
)
def test_wrt_chooses(wrt: Any, names: list[str]) -> None:
    grads = sb.grad(loss, wrt=wrt)(mixed(), X)
    assert [name.rpartition(".")[2] for name in grads] == names


def test_wrt_a_collection_and_frozen_layers() -> None:
    model = mixed()
    for part in (model[:1].vars(), model[:1], model[0]):
        assert set(sb.grad(loss, wrt=part)(model, X)) == set(model[:1].vars())
    for variable in model.vars().subset(r"\[4\]").values():
        variable.trainable = False
    assert not [n for n in sb.grad(loss)(model, X) if "[4]" in n]
    with pytest.raises(ValueError, match="nothing to differentiate"):
        sb.grad(loss, wrt="rng")(model, X)
    with pytest.raises(ValueError, match=r"model.build\(...\)"):
        sb.grad(loss)(sb.Sequential([nn.Dense(2)]), X)
    with pytest.raises(ValueError, match=r"wrt=model\.vars"):
        sb.grad(lambda a, b: loss(a, X) + loss(b, X))(mixed(), mixed(1))


def test_what_is_closed_over_is_found_by_vars() -> None:
    model = mixed()
    assert set(sb.grad(lambda x: loss(model, x), vars=model)(X)) == set(model.variables["params"])


# vmap, scan, remat, eval_shape


def test_vmap_gives_each_example_its_own_draws() -> None:
    model = sb.Sequential([nn.Dropout(0.5)]).build((1, 50))
    ones = jnp.ones((4, 1, 50))
    rows = sb.vmap(lambda model, x: model(x, training=True))(model, ones)
    assert len({row.tobytes() for row in np.asarray(rows)}) == 4
    assert not equal(rows, sb.vmap(lambda model, x: model(x, training=True))(model, ones))


def test_vmap_refuses_a_state_of_each_example() -> None:
    model = sb.Sequential([nn.BatchNorm()]).build((1, 2))
    with pytest.raises(ValueError, match="out_axes") as error:
        sb.vmap(lambda model, x: model(x[None], training=True))(model, X)
    assert "(Sequential)[0](BatchNorm).mean" in error.value.__notes__[-1]
    model.append(nn.Dropout(0.5))
    with pytest.raises(ValueError, match="out_axes") as error:
        sb.vmap(lambda model, x: model(x[None], training=True))(model, X)
    # Each example has its own keys, which is no mistake.
    assert ".rng" not in error.value.__notes__[-1]


def test_vmap_maps_arrays_by_position_and_by_name() -> None:
    assert equal(
        sb.vmap(lambda x, scale: x * scale)(X, scale=jnp.arange(3.0)), X * jnp.arange(3.0)[:, None]
    )


def test_vmap_hands_on_what_is_no_array() -> None:
    model = sb.Sequential([nn.Dense(2)]).build((1, 2))
    apply = sb.vmap(lambda x, models, pair, how: getattr(jnp, how)(models[0](x)) + pair[0])
    out = apply(X, [model], (X[0], ""), how="sin")
    assert_close(out, jnp.sin(model(X)) + X[:1])
    with pytest.raises(ValueError, match="no argument is an array"):
        sb.vmap(lambda how, models: how)("sin", [model])


def test_vmap_axes_and_an_ensemble_by_the_pure_form() -> None:
    model = sb.Sequential([nn.Dense(4)]).build((1, 2))
    assert sb.vmap(lambda m, x, y: m(x) + y, in_axes=(None, 1, None), out_axes=1)(
        model, X.T, 1.0
    ).shape == (4, 3)
    keys = jax.random.split(jax.random.key(0), 5)
    stacked = jax.vmap(lambda key: model.init(key, X))(keys)
    outs, _ = jax.vmap(lambda variables: model.apply(variables, X))(stacked)
    assert outs.shape == (5, 3, 4)
    assert not equal(outs[0], outs[1])


def test_scan_carries_what_changes() -> None:
    model, twin = (
        sb.Sequential([nn.BatchNorm()]).build((1, 2)),
        sb.Sequential([nn.BatchNorm()]).build((1, 2)),
    )
    batches = jnp.stack([X, 2 * X, 3 * X])
    scale = model[0].scale.value
    carry, outs = sb.scan(lambda c, x: (c + 1, model(x, training=True)), 0, batches, vars=model)
    assert_close(outs, jnp.stack([twin(x, training=True) for x in batches]))
    assert_close(model.variables, twin.variables)
    assert int(carry) == 3
    assert model[0].scale.value is scale
    jitted = sb.jit(
        lambda model: sb.scan(lambda c, x: (c, model(x, training=True)), 0, batches, vars=model)[1]
    )
    assert_close(jitted(model), jnp.stack([twin(x, training=True) for x in batches]))


def test_remat_computes_again_and_agrees() -> None:
    model, twin = mixed(), mixed()
    value, grads = sb.value_and_grad(lambda m: (sb.remat(m)(X, training=True) ** 2).sum())(model)
    expected, native = sb.value_and_grad(loss)(twin, X)
    assert_close((value, grads), (expected, native))
    assert_close(model.variables, twin.variables)
    assert "remat" in str(jax.make_jaxpr(lambda x: sb.remat(jnp.sin)(x))(1.0))
    assert sb.remat(loss).__name__ == "loss"
    assert repr(sb.remat(functools.partial(hk.Linear, 2))) == "haiku remat of Linear(2)"


def test_eval_shape_changes_nothing() -> None:
    model = mixed()
    before = model.variables
    shape = sb.eval_shape(loss, model, jax.ShapeDtypeStruct((7, 2), jnp.float32))
    assert shape == jax.ShapeDtypeStruct((), jnp.float32)
    assert sb.eval_shape(model, X, training=True).shape == (3, 2)
    assert_close(model.variables, before)


def test_transforms_compose() -> None:
    model, twin = mixed(), mixed()

    def batches(model: Any, xs: Any) -> Any:
        return sb.scan(
            lambda c, x: (c, sb.value_and_grad(loss)(model, x)[0]), None, xs, vars=model
        )[1]

    xs = jnp.stack([X, 2 * X])
    assert_close(sb.jit(batches)(model, xs), jnp.stack([loss(twin, x) for x in xs]))


# The Optimizer


def test_the_optimizer_is_optax() -> None:
    model, variables = mixed(), mixed().variables
    tx = optax.sgd(0.1, momentum=0.9)
    optimizer, state, params = (
        sb.Optimizer(model, tx),
        tx.init(variables["params"]),
        variables["params"],
    )
    for _ in range(3):
        grads = sb.grad(loss)(model, X)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        optimizer.update(grads)
    assert_close(model.variables["params"], params)
    assert len(optimizer.vars()) == 6
    assert all(v.kind == "state" for v in optimizer.vars().values())


def test_the_optimizer_follows_edits() -> None:
    model = sb.Sequential([nn.Dense(4), nn.Dense(2)]).build((3, 2))
    optimizer = sb.Optimizer(model, optax.sgd(0.1, momentum=0.9))
    step = sb.jit(lambda m, o: o.update(sb.grad(lambda m: (m(X) ** 2).sum())(m)))
    step(model, optimizer)
    moments = {v: v.value for v in optimizer.vars().values()}
    kept = optimizer.vars()["(Optimizer).0.trace.(Sequential)[1](Dense).kernel"]
    model.insert(1, nn.Dense(4))
    assert optimizer.vars()["(Optimizer).0.trace.(Sequential)[2](Dense).kernel"] is kept
    assert kept.value is moments[kept]
    fresh = optimizer.vars()["(Optimizer).0.trace.(Sequential)[1](Dense).kernel"]
    assert equal(fresh.value, jnp.zeros((4, 4)))
    step(model, optimizer)
    assert not equal(fresh.value, jnp.zeros((4, 4)))


def test_the_optimizer_takes_some_variables_and_refuses_wrong_gradients() -> None:
    model = mixed()
    before = model.variables["params"]
    optimizer = sb.Optimizer(model, optax.sgd(0.1), wrt=r"\[4\]")
    optimizer.update(sb.grad(loss, wrt=r"\[4\]")(model, X))
    changed = [n for n, v in model.variables["params"].items() if not equal(v, before[n])]
    assert changed == ["(Sequential)[4](Linear).b", "(Sequential)[4](Linear).w"]
    with pytest.raises(KeyError, match="don't belong"):
        optimizer.update({**sb.grad(loss)(model, X), "another": X})
    with pytest.raises(TypeError, match=r"optimizer.update\(gradients\)"):
        optimizer.update(model, {})  # pyright: ignore
    with pytest.raises(TypeError, match="takes a model"):
        sb.Optimizer({}, optax.sgd(0.1))  # pyright: ignore


def test_model_and_optimizer_copy_together() -> None:
    model = mixed()
    optimizer = sb.Optimizer(model, optax.sgd(0.1, momentum=0.9))
    optimizer.update(sb.grad(loss)(model, X))
    twin, other = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (twin, other)):
        o.update(sb.grad(loss)(m, X, rng=jax.random.key(0)))
    assert_close(twin.variables, model.variables)
    assert not set(other.vars().values()) & set(optimizer.vars().values())
    for m, o in ((model, optimizer), (twin, other)):  # the copy follows edits of the copy
        m.append(nn.Dense(1))
        m[0].kernel.trainable = False
        o.update(sb.grad(lambda m: (m(X, training=False) ** 2).sum())(m))
    assert_close(twin.variables, model.variables)


def test_extra_arguments_reach_the_transformation() -> None:
    model = sb.Sequential([nn.Dense(2)]).build((3, 2))
    optimizer = sb.Optimizer(model, optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()))
    value, grads = sb.value_and_grad(lambda m: m(X).sum())(model)
    with jax.numpy_dtype_promotion("standard"):  # optax' own arithmetic mixes ints and floats
        optimizer.update(grads, value=value)


def test_a_traced_pure_call_comes_first_and_leaves_nothing_behind() -> None:
    model = sb.Sequential([nn.Dropout(0.5)]).build((3, 2))
    jax.jit(lambda v: model.apply(v, X, training=False))(model.init(0, X))
    step = sb.jit(lambda model: model(jnp.ones((4, 50)), training=True))
    assert not equal(step(model), step(model))
    assert not equal(model(jnp.ones((4, 50)), training=True), step(model))
    assert not isinstance(model.vars()["(Sequential).rng"].value, Tracer)


def test_two_models_as_in_an_adversarial_step() -> None:
    generator, judge = mixed(), sb.Sequential([nn.Dense(1), nn.BatchNorm()]).build((3, 2))
    judge[0].kernel.trainable = False
    optimizer = sb.Optimizer(generator, optax.sgd(0.1))

    def objective(generator: Any, judge: Any) -> Any:
        return judge(generator(X, training=True), training=True).mean()

    optimizer.update(sb.grad(objective, wrt=generator.vars())(generator, judge))
    assert list(sb.grad(objective, wrt=judge.vars())(generator, judge)) == [
        "(Sequential)[0](Dense).bias",
        "(Sequential)[1](BatchNorm).bias",
        "(Sequential)[1](BatchNorm).scale",
    ]


def test_static_arguments_by_position() -> None:
    total = sb.jit(lambda model, x, axis: model(x).sum(axis), static_argnames="axis")
    model = sb.Sequential([nn.relu])
    assert total(model, X, 1).shape == total(model, X, axis=1).shape == (3,)


def test_a_whole_model_is_frozen_and_thawed() -> None:
    model = mixed()
    names = list(sb.grad(loss)(model, X))
    model.trainable = False
    assert not model.trainable
    with pytest.raises(ValueError, match="no trainable variable"):
        sb.grad(loss)(model, X)
    model.trainable = True
    assert model.trainable
    assert list(sb.grad(loss)(model, X)) == names
    with pytest.raises(RuntimeError, match=r"nothing is there to freeze: call build"):
        sb.Sequential([nn.Dense(2)]).trainable = False
    with pytest.raises(TypeError, match="True or False"):
        model.trainable = "no"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_layer_and_a_part_of_the_variables_are_frozen_and_thawed() -> None:
    model = mixed()
    names = list(sb.grad(loss)(model, X))
    parts: list[tuple[Any, str]] = [
        (model[0], r"\[0\]"),
        (model[1:], r"\[[^0]\]"),
        (model.vars().subset("w$"), "w$"),
    ]
    for part, pattern in parts:
        inside = set(model.vars().subset(pattern).subset("params"))
        assert inside
        part.trainable = False
        assert not part.trainable
        assert set(sb.grad(loss)(model, X)) == set(names) - inside
        part.trainable = True
        assert list(sb.grad(loss)(model, X)) == names


def test_a_compiled_function_is_copied_as_functions_are() -> None:
    step = sb.jit(loss)
    holder = {"step": step, "model": mixed()}
    assert copy.deepcopy(holder)["step"] is step
    assert copy.copy(step) is step
    for of_one in (sb.jit(mixed()), sb.jit(mixed().__call__)):
        with pytest.raises(
            TypeError, match=r"is for one object: copy that, and make sb\.jit of the copy"
        ):
            copy.deepcopy(of_one)


def test_gradients_have_the_names_of_the_collection_that_was_asked_for() -> None:
    model = mixed()
    wrt = model[:1].vars().rename(str.upper)
    grads = sb.grad(loss, wrt=wrt)(model, X)
    assert list(grads) == list(wrt)
    # `wrt` says what the function closes over, too.
    closed = sb.grad(lambda x: (model[:1](x) ** 2).sum(), wrt=wrt)
    assert list(closed(X)) == list(wrt)


def test_options_of_a_layer_that_is_computed_again_are_checked_at_once() -> None:
    with pytest.raises(TypeError, match="polcy"):
        sb.remat(nn.Dense(3), polcy=None)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_scan_steps_over_rows() -> None:
    total = sb.Variable(jnp.zeros(3), kind="state", name="total")

    def step(carry: Any, row: Any) -> Any:
        total.assign(total + row @ jnp.eye(3))
        return carry, row.shape[0]

    rows = jnp.arange(12.0).reshape(4, 3)
    _, sizes = sb.scan(step, 0.0, rows, vars=total)
    assert equal(total.value, rows.sum(0))
    assert equal(sizes, jnp.full(4, 3))


def test_vmap_takes_the_size_from_what_is_mapped_alone() -> None:
    assert equal(
        sb.vmap(lambda a, b: a[:1] + b, in_axes=(None, 0))(jnp.ones(5), X[:, :1]), 1 + X[:, :1]
    )
    with pytest.raises(ValueError, match="rank") as caught:
        sb.vmap(lambda a, b: a + b)(2.0, X)
    assert not any("another value" in note for note in getattr(caught.value, "__notes__", []))
    with pytest.raises(ValueError, match="out_axes of mine") as caught:
        sb.vmap(lambda x: (_ for _ in ()).throw(ValueError("out_axes of mine")))(X)
    assert not any("another value" in note for note in getattr(caught.value, "__notes__", []))


def test_vmap_leaves_the_stream_at_a_key_that_no_example_has_had() -> None:
    model = sb.Sequential([nn.Dropout(0.5)]).build((1, 3))
    stream = model.vars()["(Sequential).rng"]
    after = jax.random.split(stream.value)[0]
    sb.vmap(lambda model, x: model(x, training=True))(model, jnp.ones((4, 3)))
    assert equal(jax.random.key_data(stream.value), jax.random.key_data(after))


def test_a_variable_that_is_frozen_is_so_in_programs_that_are_there() -> None:
    model = mixed()
    step = sb.jit(lambda model, x: sb.grad(loss)(model, x))
    names = set(step(model, X))
    model[0].kernel.trainable = False
    assert names - set(step(model, X)) == {model[0].kernel.name}
