"""A layer draws if and only if a result depends on its key, wherever it hands the key on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import objax
import pytest
from flax import nnx

import cases.keras
import cases.objax
import seqbridge as sb
from helpers import assert_close, bits

pytestmark = pytest.mark.usefixtures("usual_promotion")

X = jax.random.normal(jax.random.key(1), (3, 2, 4))
W = jnp.ones((2, 4))


@dataclass(frozen=True)
class Draw:
    """One way in which a library hands a key on.

    Args:
        name: `library-what`.
        make: Whether it draws, to the entry.
        native: `(entry, native tree, key, draws)` to the outputs by hand.
    """

    name: str
    make: Callable[[bool], Any]
    native: Callable[[Any, Any, Any, bool], Any]


# Haiku


def _hk_step(draws: bool, x: Any) -> Any:
    y = hk.Linear(4)(x)
    return hk.dropout(hk.next_rng_key(), 0.5, y) if draws else y


def _hk_unroll(draws: bool, x: Any) -> Any:
    core = hk.LSTM(4)

    def step(x: Any, state: Any) -> Any:
        return core(hk.dropout(hk.next_rng_key(), 0.5, x) if draws else x, state)

    return hk.dynamic_unroll(step, x, core.initial_state(2))[0]


def _hk_stack(draws: bool, x: Any) -> Any:
    return hk.layer_stack(2)(functools.partial(_hk_step, draws))(x)


def _hk_remat(draws: bool, x: Any) -> Any:
    return hk.remat(functools.partial(_hk_step, draws))(x)


def _hk_scan(draws: bool, x: Any) -> Any:
    linear = hk.Linear(4)  # made outside: Haiku makes no parameters inside its loops

    def step(carry: Any, x: Any) -> Any:
        y = linear(x)
        return carry + x, hk.dropout(hk.next_rng_key(), 0.5, y) if draws else y

    carry = linear(x[0])
    return hk.scan(step, carry, x)[1]


def _hk_cond(draws: bool, x: Any) -> Any:
    def drops(x: Any) -> Any:
        return hk.dropout(hk.next_rng_key(), 0.5, x) if draws else 2.0 * x

    return hk.cond(x[0, 0, 0] < 9.0, drops, jnp.sin, hk.Linear(4)(x))


def haiku(name: str, function: Callable[[bool, Any], Any]) -> Draw:
    def make(draws: bool) -> Any:
        return hk.transform(functools.partial(function, draws))

    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        return entry.apply(tree[0], key, X)

    return Draw(f"haiku-{name}", make, native)


# Linen


class LinenStep(nn.Module):
    draws: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dropout(0.5, deterministic=not self.draws)(nn.Dense(4)(x))


class LinenBody(nn.Module):
    draws: bool

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        return carry + x, LinenStep(self.draws)(x)


class LinenScan(nn.Module):
    draws: bool
    split: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        split: Any = {"params": False, "dropout": self.split}
        scanned = nn.scan(LinenBody, variable_broadcast="params", split_rngs=split)
        return scanned(self.draws)(x[0], x)[1]


class LinenCell(nn.RNNCellBase):
    draws: bool

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        new = jnp.tanh(LinenStep(self.draws)(x) + carry)
        return new, new

    def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
        return jnp.zeros((*input_shape[:-1], 4))

    @property
    def num_feature_axes(self) -> int:
        return 1


def linen(name: str, make: Callable[[bool], Any]) -> Draw:
    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        return entry.apply(tree, X, rngs=key)

    return Draw(f"linen-{name}", make, native)


# NNX


class NnxStep(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.linear(x))


class NnxScan(NnxStep):
    def __call__(self, x: Any) -> Any:
        axes = nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})

        @nnx.scan(in_axes=(axes, 0), out_axes=0)
        def scanned(module: Any, x: Any) -> Any:
            return module.dropout(module.linear(x))

        return scanned(self, x)


class NnxRemat(NnxStep):
    def __call__(self, x: Any) -> Any:
        return nnx.remat(NnxStep.__call__)(self, x)


class NnxCell(nnx.LSTMCell):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(4, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry: Any, inputs: Any) -> Any:
        return super().__call__(carry, self.dropout(inputs))


def nnx_draw(name: str, build: Callable[[nnx.Rngs], nnx.Module]) -> Draw:
    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        module = nnx.clone(entry)
        module.set_attributes(deterministic=not draws)
        if draws:
            leaves, treedef = jax.tree.flatten(nnx.state(module, nnx.RngState))
            fresh: list[Any] = []
            for n in range(len(leaves) // 2):  # a count and a key of each stream
                fresh += [jnp.uint32(n << 16), key]
            nnx.update(module, jax.tree.unflatten(treedef, fresh))
        return module(X)

    return Draw(f"nnx-{name}", lambda draws: build(nnx.Rngs(0)), native)


# Equinox


class EqxScan(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self) -> None:
        self.linear = eqx.nn.Linear(4, 4, key=jax.random.key(0))
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x: Any, key: Any = None) -> Any:
        def step(key: Any, x: Any) -> Any:
            own, following = (None, None) if key is None else jax.random.split(key)
            return following, self.dropout(self.linear(x), key=own)

        return jax.lax.scan(step, key, x)[1]


class EqxCheckpoint(EqxScan):
    def __call__(self, x: Any, key: Any = None) -> Any:
        return eqx.filter_checkpoint(EqxScan.__call__)(self, x, key)


def equinox(name: str, make: Callable[..., Any]) -> Draw:
    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        module = eqx.nn.inference_mode(entry, not draws)
        if not draws:
            return jax.vmap(module)(X)
        return jax.vmap(lambda key, x: module(x, key=key))(jax.random.split(key, len(X)), X)

    return Draw(f"equinox-{name}", lambda draws: make(), native)


# Stax


def stax(name: str, through: Callable[[Any], Any]) -> Draw:
    def make(draws: bool) -> Any:
        def run(params: Any, x: Any, key: Any) -> Any:
            return _noisy(draws, key, x * params[0])[1]

        def init(key: Any, shape: Any) -> Any:
            return shape, (jnp.full(shape[-1:], 3.0),)

        def apply(params: Any, x: Any, *, rng: Any = None, **keywords: Any) -> Any:
            return through(run)(params, x, rng)

        return init, apply

    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        return entry[1](tree, X, rng=jax.random.key(5) if key is None else key)

    return Draw(f"stax-{name}", make, native)


# Keras and Objax


def keras_draw(name: str, build: Callable[[], Any]) -> Draw:
    layer = build()
    case = cases.keras.keras(name, lambda: layer, X.shape, params=0)

    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        key = jax.random.key(5) if key is None else key
        return case.native(tree, key, (X,), draws)[0]

    return Draw(f"keras-{name}", lambda draws: layer, native)


def _keras_lstm() -> Any:
    return keras.layers.LSTM(4, dropout=0.5, return_sequences=True)


def _keras_over_time() -> Any:
    steps = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5)])
    return keras.layers.TimeDistributed(steps)


class ObjaxScan(objax.Module):
    def __init__(self) -> None:
        self.linear = objax.nn.Linear(4, 4)
        self.generator = objax.random.Generator(3)

    def __call__(self, x: Any, training: bool) -> Any:
        def step(key: Any, x: Any) -> Any:
            own, following = jax.random.split(key)
            y = self.linear(x)
            return following, y * jax.random.bernoulli(own, 0.5, y.shape) if training else y

        return jax.lax.scan(step, self.generator(), x)[1]


class ObjaxRemat(ObjaxScan):
    def __call__(self, x: Any, training: bool) -> Any:
        def step(x: Any, key: Any) -> Any:
            return x * jax.random.bernoulli(key, 0.5, x.shape) if training else x

        return jax.checkpoint(step)(self.linear(x), self.generator())


def objax_draw(name: str, module: Any) -> Draw:
    case = cases.objax.objax(name, module, X.shape, mode=True, params=0)

    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        key = jax.random.key(5) if key is None else key
        return case.native(tree, key, (X,), draws)[0]

    return Draw(f"objax-{name}", lambda draws: module, native)


# Functions


def _noisy(draws: bool, key: Any, x: Any) -> Any:
    own, following = jax.random.split(key)
    return following, x * (jax.random.normal(own, x.shape) if draws else 2.0)


def _through_scan(draws: bool, x: Any, key: Any) -> Any:
    return jax.lax.scan(functools.partial(_noisy, draws), key, x)[1]


def _through_while(draws: bool, x: Any, key: Any) -> Any:
    def step(carry: Any) -> Any:
        i, key, x = carry
        return (i + 1, *_noisy(draws, key, x))

    return jax.lax.while_loop(lambda carry: carry[0] < 3, step, (0, key, x))[2]


def _through_the_condition(draws: bool, x: Any, key: Any) -> Any:
    def step(carry: Any) -> Any:
        key, i = carry
        return jax.random.split(key)[0], i + 1

    def proceeds(carry: Any) -> Any:
        key, i = carry
        return (jax.random.bernoulli(key, 0.95) if draws else True) & (i < 100)

    return x * jax.lax.while_loop(proceeds, step, (key, 0))[1].astype(x.dtype)


def _step_by_step(draws: bool, x: Any, key: Any) -> Any:
    """What is drawn reaches the result at the third step."""

    def step(carry: Any, _: Any) -> Any:
        first, second, third = carry
        _, third = _noisy(draws, key, third)
        return (first + second, second + carry[2], third), None

    return jax.lax.scan(step, (x, x, x), None, length=4)[0][0]


def _step_by_step_in_while(draws: bool, x: Any, key: Any) -> Any:
    def step(carry: Any) -> Any:
        i, first, second, third = carry
        _, noise = _noisy(draws, key, third)
        return i + 1, first + second, second + third, noise

    return jax.lax.while_loop(lambda carry: carry[0] < 4, step, (0, x, x, x))[1]


def _through_cond(draws: bool, x: Any, key: Any) -> Any:
    def step(key: Any, x: Any) -> Any:
        return _noisy(draws, key, x)

    return jax.lax.cond(x[0, 0, 0] < 9.0, step, lambda key, x: (key, x), key, x)[1]


def _through_custom_vjp(draws: bool, x: Any, key: Any) -> Any:
    @jax.custom_vjp
    def scaled(key: Any, x: Any) -> Any:
        return _noisy(draws, key, x)[1]

    scaled.defvjp(lambda key, x: (scaled(key, x), None), lambda _, slope: (None, 2.0 * slope))
    return scaled(key, x)


def _through_shard_map(draws: bool, x: Any, key: Any) -> Any:
    mesh = jax.make_mesh((1,), ("a",))
    specs = (jax.P(), jax.P())
    step = functools.partial(_noisy, draws)
    return jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs)(key, x)[1]


def _through_all(draws: bool, x: Any, key: Any) -> Any:
    def step(x: Any, key: Any) -> Any:
        return _through_while(draws, x, key)

    return jax.jit(jax.checkpoint(step))(x, key)


def function(name: str, function: Callable[[bool, Any, Any], Any]) -> Draw:
    def make(draws: bool) -> Any:
        return lambda x, *, rng: function(draws, x, rng)

    def native(entry: Any, tree: Any, key: Any, draws: bool) -> Any:
        return entry(X, rng=jax.random.key(5) if key is None else key)

    return Draw(f"function-{name}", make, native)


DRAWS = [
    haiku("dynamic_unroll", _hk_unroll),
    haiku("layer_stack", _hk_stack),
    haiku("remat", _hk_remat),
    haiku("scan", _hk_scan),
    haiku("cond", _hk_cond),
    linen("scan", LinenScan),
    linen("scan-of-one-key", lambda draws: LinenScan(draws, split=False)),
    linen("remat", lambda draws: nn.remat(LinenStep)(draws)),
    linen(
        "rnn",
        lambda draws: nn.RNN(LinenCell(draws), split_rngs={"params": False, "dropout": True}),
    ),
    nnx_draw("scan", NnxScan),
    nnx_draw("remat", NnxRemat),
    nnx_draw("rnn", lambda rngs: nnx.RNN(NnxCell(rngs))),
    equinox("scan", EqxScan),
    equinox("filter_checkpoint", EqxCheckpoint),
    stax("remat", jax.checkpoint),
    keras_draw("lstm", _keras_lstm),
    keras_draw("over-time", _keras_over_time),
    objax_draw("scan", ObjaxScan()),
    objax_draw("remat", ObjaxRemat()),
    function("scan", _through_scan),
    function("while", _through_while),
    function("condition", _through_the_condition),
    function("step-by-step", _step_by_step),
    function("step-by-step-in-while", _step_by_step_in_while),
    function("cond", _through_cond),
    function("custom_vjp", _through_custom_vjp),
    function("shard_map", _through_shard_map),
    function("all", _through_all),
]


def values_of_stream(model: sb.Sequential) -> list[Any]:
    """Return the stream of keys; nothing, if the model can't draw."""
    return [bits(variable.value) for variable in model.vars().subset("rng").values()]


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_a_key_that_is_only_handed_on_is_no_draw(draw: Draw) -> None:
    entry = draw.make(False)
    model = sb.Sequential([entry]).build(X.shape)
    expected = draw.native(entry, model[0].native, None, False)
    stream = values_of_stream(model)
    assert_close(model(X, training=False), expected)
    assert_close(sb.jit(lambda model: model(X, training=False))(model), expected)
    assert_close(model.apply(model.variables, X, training=False)[0], expected)
    assert_close(sb.freeze(model)(X), expected)
    exported = sb.to_linen(model)
    variables = exported.init(jax.random.key(3), X, training=False)
    assert_close(exported.apply(variables, X, training=False), expected)
    assert values_of_stream(model) == stream


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_a_real_draw_is_fresh_at_each_call(draw: Draw) -> None:
    entry = draw.make(True)
    model = sb.Sequential([entry]).build(X.shape)
    first, second = model(X, training=True), model(X, training=True)
    assert not jnp.array_equal(first, second)
    key = jax.random.key(4)
    expected = draw.native(entry, model[0].native, jax.random.fold_in(key, 0), True)
    assert_close(model(X, training=True, rng=key), expected)
    compiled = sb.jit(lambda model, key: model(X, training=True, rng=key))
    assert_close(compiled(model, key), expected)
    assert_close(model.apply(model.variables, X, training=True, rng=key)[0], expected)
    with pytest.raises(TypeError, match="rng=key"):
        model.apply(model.variables, X, training=True)
    exported = sb.to_linen(model)
    variables = exported.init(jax.random.key(3), X, training=False)

    def exported_call(seed: int) -> Any:
        rngs = {"dropout": jax.random.key(seed)}
        return exported.apply(variables, X, training=True, rngs=rngs)

    assert_close(exported_call(1), exported_call(1))
    assert not jnp.array_equal(exported_call(1), exported_call(2))


@jax.custom_vjp
def _noise_in_the_gradient(x: Any, key: Any) -> Any:
    return 2.0 * x


_noise_in_the_gradient.defvjp(
    lambda x, key: (2.0 * x, key),
    lambda key, slope: (slope * jax.random.normal(key, slope.shape), None),
)


@jax.custom_jvp
def _noise_in_the_slope(x: Any, key: Any) -> Any:
    return 2.0 * x


@_noise_in_the_slope.defjvp
def _(given: Any, tangents: Any) -> Any:
    x, key = given
    return 2.0 * x, tangents[0] * jax.random.normal(key, x.shape)


def _scanned(x: Any, key: Any) -> Any:
    return jax.lax.scan(lambda key, x: (key, _noise_in_the_gradient(x, key)), key, x)[1]


@pytest.mark.parametrize(
    "noisy", [_noise_in_the_gradient, _noise_in_the_slope, _scanned], ids=["vjp", "jvp", "scan"]
)
def test_a_gradient_is_a_result(noisy: Callable[[Any, Any], Any]) -> None:
    def entry(x: Any, w: Any = W, *, rng: Any) -> Any:
        return noisy(x * w, rng)

    model = sb.Sequential([entry]).build(X.shape)
    slope = sb.grad(lambda model: model(X).sum())
    first, second = [jax.tree.leaves(slope(model)) for _ in range(2)]
    assert not jnp.array_equal(first[0], second[0])
    key = jax.random.key(4)
    [found] = jax.tree.leaves(sb.grad(lambda model: model(X, rng=key).sum())(model))
    own = jax.random.fold_in(key, 0)
    expected = jax.grad(lambda w: entry(X, w, rng=own).sum())(W)
    assert_close(found, expected)


def test_what_is_printed_is_a_result(capfd: pytest.CaptureFixture[str]) -> None:
    def entry(x: Any, *, rng: Any) -> Any:
        def step(key: Any, x: Any) -> Any:
            jax.debug.print("{}", jax.random.uniform(key))
            return key, x

        return jax.lax.scan(step, rng, x)[1]

    model = sb.Sequential([entry]).build(X.shape)
    model(X)
    model(X)
    jax.effects_barrier()
    assert len(set(capfd.readouterr().out.split())) == 2
