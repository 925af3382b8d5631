"""Exported models in each library's own hands: as parts of other modules, and transformed."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
from collections import Counter
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
from jax.example_libraries import stax

import seqbridge as sb
from helpers import assert_same, run_python
from targets import TARGETS, Target

X = jax.random.normal(jax.random.key(1), (6, 4))
KEY = jax.random.key(3)


pytestmark = pytest.mark.usefixtures("usual_promotion")  # which the libraries' own code needs


def make(*, build: bool = True) -> sb.Sequential:
    model = sb.Sequential({
        "encoder": sb.Sequential([nn.Dense(5), functools.partial(hk.BatchNorm, True, True, 0.9)]),
        "drop": nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        "head": functools.partial(eqx.nn.Linear, 5, 3),
        "scale": lambda x, factor=1.0: x * factor,
    })  # fmt: skip
    return model.build((None, 4)) if build else model


PARAMS = {
    "encoder": {"Dense_0": {"kernel", "bias"}, "BatchNorm_1": {"scale", "offset"}},
    "head": {"weight", "bias"},
}


def names(tree: Any) -> Any:
    nested = isinstance(tree, dict) and any(isinstance(v, dict) for v in tree.values())
    return {name: names(inner) for name, inner in tree.items()} if nested else set(tree)


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def run(target: Target, made: Any, tree: Any, *, training: bool, **keywords: Any) -> Any:
    return target.run(made, tree, KEY, (X,), training, keywords)


# Every target


def test_a_mixed_model_of_names_and_lists_goes_everywhere(target: Target) -> None:
    model, home = make(), make()
    made = target.make(model)
    tree = target.start(made, (X,), {})
    for training in (True, False):
        expected, after = model.apply(
            model.variables, X, rng=target.key(KEY), training=training, factor=3.0
        )
        out, new = run(target, made, tree, training=training, factor=3.0)
        np.testing.assert_allclose(out, expected, rtol=1e-6)
        sb.from_native(home, new)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), home.variables, after
        )


def test_names_are_the_readable_ones() -> None:
    model = make()
    assert names(sb.to_linen(model).init(KEY, X)["params"]) == PARAMS
    assert names(sb.to_stax(model)[0](KEY, X.shape)[1][0]) == PARAMS
    assert names(nnx.to_pure_dict(nnx.state(sb.to_nnx(model), nnx.Param))) == PARAMS
    assert names(sb.to_equinox(model).params) == PARAMS
    params, state = hk.transform_with_state(sb.to_haiku(model)).init(KEY, X)
    assert {name: set(tree) for name, tree in params.items()} == {
        "sequential/encoder/Dense_0": {"kernel", "bias"},
        "sequential/encoder/BatchNorm_1": {"scale", "offset"},
        "sequential/head": {"weight", "bias"},
    }
    assert all(name.startswith("sequential/encoder/BatchNorm_1/") for name in state)
    assert [weight.name for weight in sb.to_keras(model).trainable_weights] == [
        "encoder.Dense_0.bias", "encoder.Dense_0.kernel",
        "encoder.BatchNorm_1.offset", "encoder.BatchNorm_1.scale",
        "head.bias", "head.weight",
    ]  # fmt: skip
    assert sb.to_pure(model).init(KEY, X).keys() == model.variables.keys()
    assert sb.to_pure(model).init(KEY, X)["params"].keys() == model.variables["params"].keys()


@pytest.mark.parametrize(
    "entry", [nn.Dense, lambda n: sb.Layer(nn.Dense(n)), lambda n: [nn.Dense(n)]]
)
def test_an_entry_a_layer_or_a_list_will_do(target: Target, entry: Any) -> None:
    made = target.make(entry(3), (None, 4))
    tree = target.start(made, (X,), {})
    kernel = next(x for x in jax.tree.leaves(tree) if getattr(x, "shape", None) == (4, 3))
    np.testing.assert_allclose(
        run(target, made, tree, training=False)[0], X @ kernel, rtol=1e-5, atol=1e-6
    )
    home = sb.Sequential([nn.Dense(3)]).build((None, 4), seed=8)
    if isinstance(entry(3), list):
        sb.from_native(home, tree)
    else:
        sb.from_native(home[0], tree)
    np.testing.assert_array_equal(home[0].kernel.value, kernel)


def test_an_unknown_keyword_is_an_error(target: Target) -> None:
    made = target.make(make())
    tree = target.start(made, (X,), {})
    with pytest.raises(TypeError, match="fator"):
        run(target, made, tree, training=False, fator=2.0)


def test_what_is_frozen_gets_no_gradients(target: Target) -> None:
    model = make()
    model.encoder[0].kernel.trainable = False
    made = target.make(model)
    grads = target.grads(made, target.start(made, (X,), {}), KEY, (X,), {})
    zeros = [
        not leaf.any() for leaf in jax.tree.leaves(grads) if getattr(leaf, "shape", None) == (4, 5)
    ]
    trained = target in (TARGETS["nnx"], TARGETS["keras"])  # which know what isn't to be trained
    assert zeros == ([] if trained else [True])
    assert any(
        leaf.any() for leaf in jax.tree.leaves(grads) if getattr(leaf, "shape", None) == (3, 5)
    )
    home = make()
    home.encoder[0].kernel.trainable = False
    sb.from_native(home, target.start(made, (X,), {}))
    jax.tree.map(np.testing.assert_array_equal, home.variables, model.variables)


def test_later_edits_and_values_do_not_show(target: Target) -> None:
    model = make()
    made = target.make(model)
    tree = target.start(made, (X,), {})
    before, _ = run(target, made, tree, training=False)
    model.append(lambda x: 2 * x)
    model.encoder.append(lambda x: 2 * x)
    model.head.weight.assign(jnp.zeros((3, 5)))
    np.testing.assert_array_equal(run(target, made, tree, training=False)[0], before)


def test_a_model_and_what_was_made_of_it_own_arrays_of_their_own(target: Target) -> None:
    model = make()
    made = target.make(model)
    tree = target.start(made, (X,), {})
    for variable in model.vars().values():
        variable.value.delete()  # as a program does that an array is donated to
    out, _ = run(target, made, tree, training=False)
    assert jnp.isfinite(out).all()


@pytest.mark.parametrize("name", ["linen", "nnx", "haiku", "equinox", "keras", "stax"])
def test_what_went_out_is_an_entry_again(name: str) -> None:
    model = make()
    target = TARGETS[name]
    again = sb.Sequential([target.make(model)])
    if name == "equinox":
        assert not again[0].pure.per_example
    again.build((None, 4))
    np.testing.assert_allclose(again(X, training=False), model(X, training=False), rtol=1e-6)
    np.testing.assert_allclose(
        again(X, training=False, factor=2.0), 2 * model(X, training=False), rtol=1e-6
    )
    assert not np.allclose(again(X, training=True), again(X, training=True))
    kinds = ["params", "state"] if name == "stax" else ["params"]  # to stax, all are parameters
    assert len(again.vars().subset("params")) == sum(
        len(model.vars().subset(kind)) for kind in kinds
    )
    with pytest.raises(TypeError, match="pass training=True or training=False"):
        again(X)


@pytest.mark.parametrize("name", ["linen", "haiku", "stax", "pure"])
def test_a_mode_can_be_chosen_for_calls_that_say_none(name: str) -> None:
    model, target = make(), TARGETS[name]
    made = target.make(model, training=False)
    tree = target.start(made, (X,), {})
    calls = {
        "linen": lambda: made.apply(tree, X),
        "haiku": lambda: made.apply(*tree, None, X)[0],
        "stax": lambda: made[1](tree, X),
        "pure": lambda: made.apply(tree, X)[0],
    }
    np.testing.assert_allclose(calls[name](), model(X, training=False), rtol=1e-6)
    undecided = target.make(model)
    with pytest.raises(TypeError, match="pass training=True or training=False"):
        run(target, undecided, tree, training=None)  # pyright: ignore[reportArgumentType]


def test_libraries_that_draw_draw_what_is_not_built() -> None:
    model = make(build=False)
    expected = make(build=False).init(KEY, X)
    assert not model.built
    pair = sb.to_stax(model)
    init, apply = sb.to_pure(model)
    jax.tree.map(np.testing.assert_array_equal, init(KEY, X), expected)
    home = sb.from_native(make(), pair[0](KEY, (-1, 4))[1])
    of_shapes = model.init(KEY, (None, 4))
    jax.tree.map(np.testing.assert_array_equal, home.variables, of_shapes)
    module, layer = sb.to_linen(model), sb.to_keras(model, seed=3)
    a, b = (
        jax.jit(module.init)(jax.random.key(i), X)["params"]["head"]["weight"] for i in range(2)
    )
    assert not np.array_equal(a, b)
    out = module.apply(module.init(KEY, X), X, training=False)
    assert jax.eval_shape(module.init, KEY, X)["params"]["head"]["weight"].shape == (3, 5)
    assert out.shape == apply(init(KEY, X), X, training=False)[0].shape == layer(X).shape
    assert np.array_equal(layer(X), sb.to_keras(model, seed=3)(X))
    assert not np.array_equal(layer(X), sb.to_keras(model, seed=4)(X))
    assert not model.built
    pair = hk.transform_with_state(sb.to_haiku(model))
    assert pair.apply(*pair.init(KEY, X), None, X, is_training=False)[0].shape == (6, 3)


@pytest.mark.parametrize("export", [sb.to_nnx, sb.to_equinox])
def test_libraries_whose_modules_hold_values_want_a_built_model(export: Any) -> None:
    with pytest.raises(
        TypeError, match=r"isn't built: call model.build\(...\) before, or give the shapes"
    ):
        export(make(build=False))
    assert export(make(build=False), (None, 4)) is not None
    with pytest.raises(TypeError, match="is no entry"):
        export(3)


# The ways out themselves


def test_the_exports_are_those_of_the_adapters() -> None:
    assert set(dir(sb)) >= {
        "to_equinox", "to_haiku", "to_keras", "to_linen", "to_nnx", "to_pure", "to_stax", "to_toy",
    }  # fmt: skip
    assert sb.to_linen is sb.to_linen
    assert sb.to_linen.__name__ == "to_linen"
    assert "*inputs: The inputs that it is for" in (sb.to_linen.__doc__ or "")
    assert "layer:" not in (sb.to_linen.__doc__ or "")
    with pytest.raises(AttributeError, match="has no 'to_lienn'; did you mean 'to_linen'"):
        sb.to_lienn  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Sequental'"):
        sb.Sequental  # noqa: B018


def test_an_adapter_of_somebody_else_has_an_export() -> None:
    model = make()
    layer = sb.to_toy(model)
    weights, memory = layer.start(KEY, 4)
    out, after = layer.run(weights, memory, X, learning=True, noise=KEY)
    np.testing.assert_allclose(
        out, model.apply(model.variables, X, rng=KEY, training=True)[0], rtol=1e-6
    )
    home = sb.from_native(make(), (weights, after))
    assert not np.array_equal(
        home.encoder[1]["mean_ema.average"].value, model.encoder[1]["mean_ema.average"].value
    )


def test_a_library_that_is_not_there_is_named_with_the_cure() -> None:
    code = """
import sys
sys.modules["equinox"] = None
import inspect
import seqbridge as sb
members = dict(inspect.getmembers(sb))
print(members["to_equinox"].__doc__)
try:
    sb.to_equinox(lambda x: x)
except ImportError as error:
    print(error.__notes__)
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('pip install "seqbridge[equinox]"') == 2


# linen


class Twice(nn.Module):
    """Uses one exported module at two places, and one that it makes in its call."""

    encoder: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.encoder(x, training=train) + self.encoder(2 * x, training=train)
        return sb.to_linen(functools.partial(hk.Linear, 2), name="haiku_head")(y)


def test_linen_modules_hold_it_and_share_it() -> None:
    model = make()
    module = Twice(sb.to_linen(model))
    variables = module.init({"params": KEY, "dropout": KEY}, X, train=True)
    assert variables["params"].keys() == {"encoder", "haiku_head"}
    assert names(variables["params"]["encoder"]) == PARAMS
    out, state = module.apply(
        variables, X, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
    )
    assert out.shape == (6, 2)
    assert state["batch_stats"].keys() == {"encoder"}
    sb.from_native(model, variables["params"]["encoder"])
    with pytest.raises(Exception, match=r"batch_stats.*immutable"):
        module.apply(variables, X, train=True, rngs={"dropout": KEY})
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        module.apply(variables, X, train=True, mutable=["batch_stats"])
    bound = sb.to_linen(model).bind(
        {c: tree["encoder"] for c, tree in variables.items() if "encoder" in tree}
    )
    np.testing.assert_allclose(bound(X, training=False), model(X, training=False), rtol=1e-6)


def test_linen_shows_it_and_lifts_it() -> None:
    model = make(build=False)
    table = nn.tabulate(  # pyright: ignore[reportPrivateImportUsage]
        sb.to_linen(model), KEY, console_kwargs={"width": 200}
    )(X, training=False)
    assert re.search(r"Dense_0:[\s\S]*kernel:[\s\S]*Total Parameters: [1-9]", table)
    ensemble = nn.vmap(
        type(sb.to_linen(model)),
        in_axes=None,  # pyright: ignore[reportArgumentType]
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        axis_size=3,
    )()
    variables = ensemble.init(KEY, X)
    assert variables["params"]["head"]["weight"].shape == (3, 3, 5)
    assert len(np.unique(variables["params"]["head"]["weight"])) == 45


def test_a_linen_model_of_linen_layers_is_the_same_program() -> None:
    def layers() -> list[Any]:
        return [nn.Dense(8), nn.BatchNorm(use_running_average=True), nn.relu, nn.Dense(3)]

    def program(module: nn.Module) -> Counter[str]:
        variables = module.init(KEY, X)

        def loss(params: Any) -> Any:
            return module.apply({**variables, "params": params}, X).sum()  # pyright: ignore

        return Counter(
            re.findall(
                r"stablehlo\.\w+", jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()
            )
        )

    model = sb.Sequential(layers()).build((None, 4))
    assert program(sb.to_linen(model)) == program(nn.Sequential(layers()))


class Compact(nn.Module):
    """A module that makes its entries where linen's people make them."""

    def setup(self) -> None:
        self.first = sb.to_linen([nn.Dense(3), nn.BatchNorm(), functools.partial(hk.Linear, 2)])

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x, training=False)
        x = sb.to_linen(
            sb.Sequential({"a": nn.Dense(3), "b": nn.Sequential([nn.Dense(4)])}), name="second"
        )(x)
        return nn.jit(lambda module, x: module(x))(sb.to_linen(nn.Dense(2), name="third"), x)


def test_linen_entries_are_made_where_linen_modules_are() -> None:
    variables = Compact().init(KEY, X)
    assert variables["params"].keys() == {"first", "second", "third"}
    assert names(variables["params"]["second"]) == {
        "a": {"kernel", "bias"},
        "b": {"layers_0": {"kernel", "bias"}},
    }
    assert jax.jit(Compact().apply)(variables, X).shape == (6, 2)


def test_what_is_wrong_is_said_and_not_that_a_key_is_missing(target: Target) -> None:
    made = target.make([nn.Dense(3), functools.partial(hk.Linear, 2)], (None, 4))
    tree = target.start(made, (X,), {})
    bad = jnp.ones((6, 7))
    calls: dict[str, Any] = {
        "linen": lambda: made.apply(tree, bad),
        "nnx": lambda: made(bad),
        "haiku": lambda: made.apply(*tree, None, bad),
        "equinox": lambda: made(bad),
        "keras": lambda: made(bad),
        "stax": lambda: made[1](tree, bad),
        "pure": lambda: made.apply(tree, bad),
    }
    name = next(name for name, known in TARGETS.items() if known is target)
    with pytest.raises(Exception, match=r"shape") as error:
        calls[name]()
    assert "PRNG" not in str(error.value)


def test_a_key_can_be_given_by_the_name_that_it_has_here() -> None:
    model = make()
    module = sb.to_linen(model)
    variables = module.init(KEY, X)
    out, _ = module.apply(variables, X, training=True, rng=KEY, mutable=["batch_stats"])
    np.testing.assert_allclose(
        out, model.apply(model.variables, X, training=True, rng=KEY)[0], rtol=1e-6
    )


# NNX


def test_nnx_modules_are_made_inside_transforms() -> None:
    def create(rngs: nnx.Rngs) -> nnx.Module:
        return sb.to_nnx(make(build=False), (None, 4), rngs=rngs)

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def ensemble(rngs: nnx.Rngs) -> Any:
        return create(rngs)

    weights = ensemble(nnx.Rngs(0)).head.weight[...]
    assert weights.shape == (3, 3, 5)
    assert len(np.unique(weights)) == 45
    abstract: Any = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    assert abstract.head.weight.shape == (3, 5)
    first, second, other = (create(nnx.Rngs(seed)) for seed in (0, 0, 1))
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(first, nnx.Param), nnx.state(second, nnx.Param)
    )
    assert not np.array_equal(first.head.weight[...], other.head.weight[...])  # pyright: ignore


def test_what_is_frozen_stays_in_nnx_and_what_is_added_is_left_alone() -> None:
    model = make()
    model.encoder[0].kernel.trainable = False
    module: Any = sb.to_nnx(model)
    module.extra = nnx.Param(jnp.ones(3))
    optimizer = nnx.Optimizer(module, optax.adamw(0.1, weight_decay=0.1), wrt=nnx.Param)
    grads = nnx.grad(lambda module: module(X).sum())(module)
    optimizer.update(module, grads)
    np.testing.assert_array_equal(module.encoder.Dense_0.kernel[...], model.encoder[0].kernel.value)
    assert not np.array_equal(module.head.weight[...], model.head.weight.value)


def test_nnx_modules_hold_it_and_their_transforms_see_its_state() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.encoder = sb.to_nnx(make(), rngs=rngs)
            self.out = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.out(self.encoder(x))

    net, twin = Net(nnx.Rngs(4)), Net(nnx.Rngs(4))
    call = nnx.jit(lambda net, x: net(x))
    before = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    first, second = call(net, X), call(net, X)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(twin(X), first, rtol=1e-6)
    assert not np.array_equal(
        net.encoder.encoder.BatchNorm_1.mean_ema.average[...],
        before["encoder"]["encoder"]["BatchNorm_1"]["mean_ema"]["average"][...],
    )
    net.eval()
    np.testing.assert_array_equal(call(net, X), call(net, X))
    graph, state = nnx.split(net)
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), net(X))
    if hasattr(nnx, "view"):  # which the oldest version has not
        train = nnx.view(net, deterministic=False, use_running_average=False)
        assert not np.array_equal(train(X), train(X))
    assert net.encoder.deterministic
    assert sb.to_nnx(make(), training=False).deterministic
    np.testing.assert_array_equal(
        net.encoder(X, training=True, rngs=nnx.Rngs(1)),
        net.encoder(X, training=True, rngs=nnx.Rngs(1)),
    )


def test_a_name_that_nnx_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' is an attribute of every NNX module"):
        sb.to_nnx(sb.Sequential({"train": nn.Dense(2)}), (None, 3))


# Haiku


def test_haiku_functions_hold_it_and_share_it() -> None:
    model = make()

    def net(x: jax.Array, is_training: bool) -> jax.Array:
        encoder = sb.to_haiku(model, name="shared")
        y = encoder(x, is_training=is_training) + encoder(2 * x, is_training=is_training)
        return hk.Linear(2)(y)

    pair = hk.transform_with_state(net)
    params, state = pair.init(KEY, X, True)
    assert {name.partition("/")[0] for name in params} == {"shared", "linear"}
    out, after = pair.apply(params, state, KEY, X, True)
    assert out.shape == (6, 2)
    counters = [tree["counter"] for tree in after.values()]
    assert all(counter == 2 for counter in counters)
    assert isinstance(hk.transform(lambda: sb.to_haiku(model).name).apply({}, None), str)
    with pytest.raises(Exception, match=r"PRNG|rng"):
        pair.apply(params, state, None, X, True)
    exported = sb.to_haiku(model)
    signature = str(inspect.signature(hk.transform_with_state(exported).init))
    assert "training" in signature
    assert "factor" in signature


def test_haiku_state_that_is_forgotten_is_missed() -> None:
    pair = hk.transform_with_state(sb.to_haiku(make()))
    params, _ = pair.init(KEY, X)
    with pytest.raises(ValueError, match="No value for"):
        pair.apply(params, {}, None, X, training=False)


# Equinox


def test_equinox_jits_maps_copies_and_prints_it() -> None:
    model = make()
    module, state = eqx.nn.make_with_state(lambda: sb.to_equinox(model))()
    out, _ = eqx.filter_jit(module)(X, state, key=KEY)
    np.testing.assert_allclose(
        out, model.apply(model.variables, X, rng=KEY, training=True)[0], rtol=1e-5
    )
    assert jax.tree.structure(copy.deepcopy(module)) == jax.tree.structure(module)
    assert len(repr(module)) < 700
    keys = jax.random.split(KEY, 3)
    ensemble = eqx.filter_vmap(
        lambda key: sb.to_equinox(sb.Sequential([nn.Dense(3)]), (None, 4), key=key)
    )(keys)
    assert ensemble.params["Dense_0"]["kernel"].shape == (3, 4, 3)
    outs = eqx.filter_vmap(lambda module: module(X))(ensemble)
    np.testing.assert_allclose(outs[1], X @ ensemble.params["Dense_0"]["kernel"][1], rtol=1e-5)
    alone = sb.to_equinox(model, axis_name="batch")
    alone, state = eqx.nn.make_with_state(lambda: alone)()
    quiet = eqx.nn.inference_mode(alone)
    expected = model(X, training=False)
    np.testing.assert_allclose(quiet(X[0], state)[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(quiet, (0, None), (0, None))(X, state)[0], expected, rtol=1e-5
    )
    with pytest.raises(NameError, match=r"looks at the whole batch: map it by jax\.vmap"):
        alone(X[0], state, key=KEY)


# Equinox' errors


def test_equinox_modules_hold_it_and_hand_its_state_on() -> None:
    first, second = sb.to_equinox(make()), sb.to_equinox(nn.Dense(2), (None, 3))
    chain: Any
    chain, state = eqx.nn.make_with_state(
        lambda: eqx.nn.Sequential([first, eqx.nn.Lambda(jnp.tanh), second])
    )()
    out, after = eqx.filter_jit(chain)(X, state, key=KEY)
    assert out.shape == (6, 2)
    assert not np.array_equal(
        after.get(chain[0].index)["encoder"]["BatchNorm_1"]["mean_ema"]["average"], 0
    )
    quiet = eqx.nn.inference_mode(chain)
    np.testing.assert_array_equal(
        quiet(X, after)[0], second(jnp.tanh(chain[0](X, after, inference=True)[0]))
    )
    assert not second.is_stateful()
    np.testing.assert_array_equal(
        second(out @ jnp.ones((2, 3))), second(out @ jnp.ones((2, 3)), key=KEY)
    )


def test_equinox_state_and_key_are_asked_for() -> None:
    module = sb.to_equinox(make())
    with pytest.raises(TypeError, match=r"has a state: module, state = eqx.nn.make_with_state"):
        module(X)
    module, state = eqx.nn.make_with_state(lambda: module)()
    with pytest.raises(TypeError, match="draws random numbers"):
        module(X, state)


def test_an_equinox_module_that_takes_one_example_computes_the_batch() -> None:
    model = make()
    module, state = eqx.nn.make_with_state(lambda: sb.to_equinox(model, axis_name="batch"))()
    keys = jnp.broadcast_to(KEY, len(X))

    def batched(module: Any, state: Any) -> Any:
        call = jax.vmap(
            lambda x, s, k: module(x, s, key=k), (0, None, 0), (0, None), axis_name="batch"
        )
        return call(X, state, keys)

    def loss(module: Any) -> jax.Array:
        clone = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))
        return batched(module, clone)[0].sum()

    grads = eqx.filter_grad(loss)(module)
    out, after = batched(module, state)
    expected, variables = model.apply(model.variables, X, rng=KEY, training=True)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    home = sb.from_native(make(), (module, after))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), home.variables, variables
    )
    by_hand = jax.grad(
        lambda p: model.apply({**model.variables, "params": p}, X, rng=KEY, training=True)[0].sum()
    )
    sb.from_native(home, grads.params)
    for name, grad in by_hand(model.variables["params"]).items():
        np.testing.assert_allclose(home.vars()[name].value, grad, rtol=1e-5, atol=1e-6)
    again = sb.Sequential([sb.to_equinox(model, axis_name="batch")])
    np.testing.assert_allclose(again(X, training=False), model(X, training=False), rtol=1e-6)


# Keras


def test_keras_models_hold_it_and_know_its_shapes() -> None:
    layer = sb.to_keras(make(build=False), name="mixed")
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(2)(layer(x)))
    assert model.output_shape == (None, 2)
    assert layer.name == "mixed"
    np.testing.assert_array_equal(model(X), model(X))
    assert not np.array_equal(model(X, training=True), model(X, training=True))
    assert len(layer.trainable_weights) == 6
    layer.trainable = False
    assert not layer.trainable_weights
    embed = sb.to_keras(sb.Sequential([nn.Embed(7, 3)]))
    assert embed(np.array([[1, 2]])).shape == (1, 2, 3)
    merged = sb.to_keras(lambda a, b: a + b)
    np.testing.assert_array_equal(merged([X, X]), merged(X, X))
    assert layer.built
    assert sb.to_keras(make(build=False)).build((None, 4)) is None


# Keras' own way to save warns.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_keras_saves_and_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for built in (True, False):
        source = sb.Sequential(
            [nn.Dense(5), functools.partial(hk.Linear, 3), nn.BatchNorm(), jnp.tanh]
        )
        model = keras.Sequential(
            [keras.Input((4,)), sb.to_keras(source.build((None, 4)) if built else source)]
        )
        file = str(tmp_path / f"{built}.keras")
        model.save(file)
        np.save(tmp_path / "x.npy", X)
        code = f"""
import os
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np, seqbridge_keras
try:
    keras.saving.load_model({file!r})
except Exception as error:
    print("safe_mode=False" in str(error))
model = keras.saving.load_model({file!r}, safe_mode=False)
np.save({str(tmp_path / "y.npy")!r}, model(np.load({str(tmp_path / "x.npy")!r})))
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["True"]
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(X), rtol=1e-6)
        here: Any = keras.saving.load_model(file)  # where the entries are still there
        np.testing.assert_array_equal(here(X), model(X))
    model = keras.Sequential([keras.Input((4,)), sb.to_keras(make())])
    model.save(file)  # with lambdas, by cloudpickle
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    twin: Any = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    np.testing.assert_array_equal(twin(X), model(X))
    with pytest.raises(TypeError, match=r"can't be pickled.*save_weights"):
        model.save(file)


# Keras' own arrays warn.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_keras_freezes_it_casts_it_and_shapes_it() -> None:
    model = make()
    layer = sb.to_keras(model)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_allclose(layer(X, training=True), model(X, training=False), rtol=1e-6)
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for variable in model.encoder[0].vars().values():
        variable.trainable = False
    assert len(sb.to_keras(model).trainable_weights) == 4
    np.testing.assert_array_equal(layer(X, training=None), layer(X))
    drops = sb.to_keras(nn.Dropout(0.5), training=True)
    assert not np.array_equal(drops(X), X)
    half = sb.to_keras(nn.Dense(3), dtype="mixed_bfloat16")
    assert half(X).dtype == "bfloat16"
    assert half.weights[0].dtype == "float32"
    assert sb.to_keras(nn.Dense(3), (None, 4), dtype="bfloat16").weights[0].dtype == "bfloat16"
    timed: Any = keras.layers.TimeDistributed(sb.to_keras(nn.Dense(3)))
    assert timed(jnp.ones((2, 5, 4))).shape == (2, 5, 3)
    embed = keras.Sequential([sb.to_keras(nn.Embed(7, 3), jnp.zeros((1, 2), jnp.int32))])
    assert embed(np.array([[1.0, 2.0]])).shape == (1, 2, 3)
    both = sb.to_keras([lambda d: jnp.concatenate([d["a"], d["b"]], -1), nn.Dense(2)])
    assert both({"a": X, "b": X}).shape == (6, 2)


# stax


def test_stax_knows_what_a_model_was_built_for() -> None:
    model = sb.Sequential([nn.Embed(7, 3), nn.Dense(2)]).build(
        jax.ShapeDtypeStruct((1, 5), jnp.int32)
    )
    init_fun, apply_fun = sb.to_stax(model)
    shape, params = init_fun(KEY, (-1, 5))
    assert shape == (-1, 5, 2)
    ids = jnp.ones((3, 5), jnp.int32)
    np.testing.assert_array_equal(apply_fun(params, ids), model(ids))
    noisy = sb.to_stax(nn.Dropout(0.5))
    with pytest.raises(TypeError, match=r"give a key, apply_fun\(params, x, rng=key\)"):
        noisy[1](noisy[0](KEY, (-1, 4))[1], X, training=True)


def test_stax_combinators_hold_it() -> None:
    init_fun, apply_fun = stax.serial(
        stax.FanOut(2),
        stax.parallel(sb.to_stax(make()), stax.Dense(3)),
        stax.FanInSum,
        sb.to_stax(nn.Dense(2)),
    )
    shape, params = init_fun(KEY, (-1, 4))
    assert shape == (-1, 2)
    assert apply_fun(params, X, rng=KEY, training=True).shape == (6, 2)
    assert not np.array_equal(
        apply_fun(params, X, rng=KEY, training=True), apply_fun(params, X, rng=KEY, training=False)
    )


# And back


def test_from_native_takes_all_or_nothing() -> None:
    model = make()
    before = model.variables
    tree = sb.to_linen(model).init(KEY, X)
    params = jax.tree.map(lambda a: a + 1, tree["params"])
    with pytest.raises(RuntimeError, match=r"call model.build\(...\) first"):
        sb.from_native(make(build=False), tree)
    with pytest.raises(KeyError, match="unknown: params/head/wieght; did you mean 'head/weight'"):
        sb.from_native(
            model,
            {
                "params": {
                    **params,
                    "head": {"wieght": params["head"]["weight"], "bias": jnp.ones(3)},
                }
            },
        )
    with pytest.raises(KeyError, match=r"missing: \(Sequential\).head\(Linear\).weight"):
        sb.from_native(model, {"params": {**params, "head": {"bias": jnp.ones(3)}}})
    with pytest.raises(ValueError, match="shape"):
        sb.from_native(
            model, {"params": {**params, "head": {"weight": jnp.ones((5, 3)), "bias": jnp.ones(3)}}}
        )
    with pytest.raises(ValueError, match="two arrays for"):
        sb.from_native(model, {"a": params, "b": params})
    with pytest.raises(ValueError, match="a list of 2 arrays for"):
        sb.from_native(model, [jnp.ones(3), jnp.ones(3)])
    with pytest.raises(KeyError, match="missing"):
        sb.from_native(model, {})
    jax.tree.map(np.testing.assert_array_equal, model.variables, before)
    sb.from_native(model, {"params": {"outer": {"Sequential_0": params}}})
    np.testing.assert_array_equal(
        model.head.weight.value, before["params"]["(Sequential).head(Linear).weight"] + 1
    )
    jax.tree.map(np.testing.assert_array_equal, model.variables["state"], before["state"])


def test_from_native_finds_a_model_inside_a_bigger_one() -> None:
    model = make()
    start = jax.tree.map(lambda a: a + 1, model.variables)
    model.assign(start)
    module = sb.to_linen(model)
    own = module.init(KEY, X)
    dense = {"Dense_9": {"kernel": jnp.ones((3, 2))}}
    outer = {
        "params": {"body": own["params"], **dense},
        "batch_stats": {"body": own["batch_stats"]},
    }

    class Net(eqx.Module):
        body: Any
        head: Any

    class Holder(nnx.Module):
        def __init__(self) -> None:
            self.body = sb.to_nnx(model)
            self.head = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    net, state = eqx.nn.make_with_state(
        lambda: Net(sb.to_equinox(model), eqx.nn.Linear(3, 2, key=KEY))
    )()
    trees = [
        outer,
        (net, state),
        Holder(),
        nnx.state(Holder()),
        [sb.to_nnx(model)],
        {"a": sb.to_keras(model)},
    ]
    for tree in trees:
        home = sb.from_native(make(), tree)
        jax.tree.map(np.testing.assert_array_equal, home.variables, start)
    encoder = make().encoder
    sb.from_native(encoder, own)
    np.testing.assert_array_equal(encoder[0].kernel.value, model.encoder[0].kernel.value)
    for wrong in (3, None, eqx.nn.Linear(2, 2, key=KEY)):
        with pytest.raises(
            TypeError, match="from_native takes what one exported object holds, and finds 0"
        ):
            sb.from_native(model, wrong)


def test_values_that_come_home_are_copies() -> None:
    model = make()
    variables = sb.to_linen(model).init(KEY, X)
    sb.from_native(model, variables)
    jax.tree.map(lambda a: a.delete(), variables)
    assert model(X, training=False).shape == (6, 3)


def test_a_variable_and_a_module_of_one_name_are_told_apart() -> None:
    def net(x: jax.Array) -> jax.Array:
        return hk.Linear(4, name="w")(x) * hk.get_parameter("w", (1, 4), init=jnp.ones)

    class Both(hk.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return net(x)

    model = sb.Sequential([functools.partial(Both)]).build((None, 4))
    variables = sb.to_linen(model).init(KEY, X)
    assert names(variables["params"]["Both_0"]["w"]) == {"w", "b"}
    np.testing.assert_allclose(sb.to_nnx(model)(X), model(X), rtol=1e-6)
    sb.from_native(model, variables)


def test_an_option_that_is_misspelt_is_named() -> None:
    with pytest.raises(TypeError, match="to_equinox takes no 'axisname'; did you mean 'axis_name'"):
        sb.to_equinox(make(), axisname="b")
    with pytest.raises(TypeError, match="training= is True, False or None"):
        sb.to_linen(make(), training="yes")
    with pytest.raises(TypeError, match="got nothing"):
        sb.to_pure(make(build=False)).init(KEY)
    with pytest.raises(TypeError, match="apply takes"):
        sb.to_pure(make()).apply(make().variables["params"], X)


def test_variables_that_are_shared_go_out_once() -> None:
    dense = nn.Dense(4)
    model = sb.Sequential([dense, jnp.tanh, dense]).build((None, 4))
    variables = sb.to_linen(model).init(KEY, X)
    assert names(variables["params"]) == {"Dense_0": {"kernel", "bias"}}
    module = sb.to_nnx(model)
    np.testing.assert_allclose(module(X), model(X), rtol=1e-6)
    assert len(jax.tree.leaves(nnx.state(module))) == 2


def test_two_variables_of_one_name_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"two variables would be called Dense_1/.*give their layers names"
    ):
        sb.to_linen([sb.Layer(nn.Dense(2), name="Dense_1"), nn.Dense(2)]).init(KEY, X)


def test_what_drew_nothing_when_it_was_built_may_still_draw() -> None:
    def noise(x: jax.Array, rng: Any, *, noisy: bool = False) -> jax.Array:
        return x + jax.random.normal(rng, x.shape) if noisy else x

    model = sb.Sequential([noise]).build((None, 4))
    module = sb.to_nnx(model)
    np.testing.assert_array_equal(module(X), X)
    assert not np.array_equal(module(X, noisy=True, rngs=nnx.Rngs(0)), X)
    with pytest.raises(TypeError, match=r"give the call rngs=nnx\.Rngs"):
        module(X, noisy=True)
    with pytest.raises(TypeError, match="drew none when the model was built"):
        sb.to_keras(sb.Sequential([noise]).build((None, 4)))(X, noisy=True)


def test_an_export_inside_a_module_of_its_library_is_found() -> None:
    model = sb.Sequential([nn.Dense(2)]).build((None, 3))
    layer = sb.to_keras(model)
    outer = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    for weight in layer.weights:
        weight.assign(weight.value + 1)
    before = model.variables["params"]
    sb.from_native(model, outer)
    assert_same(model.variables["params"], jax.tree.map(lambda a: a + 1, before))

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.inner = sb.to_nnx(model)

    sb.from_native(model, Net())
    assert_same(model.variables["params"], jax.tree.map(lambda a: a + 1, before))
    other = sb.to_keras(sb.Sequential([nn.Dense(2)]).build((None, 2)))
    two = keras.Sequential([keras.Input((3,)), sb.to_keras(model), other])
    with pytest.raises(TypeError, match="finds 2 of them"):
        sb.from_native(model, two)
