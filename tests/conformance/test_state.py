"""State after a call is what the library says, in every mode."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import objax
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same, predict, usual_promotion

STEPS = 3
SEQUENCE = jax.random.normal(jax.random.key(1), (2, STEPS + 2, 4))


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    with usual_promotion():
        yield


# What moves in evaluation, too


class Mover(NamedTuple):
    """An entry whose state a call in evaluation changes.

    Attributes:
        model: A built model of it.
        native: The outputs of so many calls, each of one position of the sequence, by hand.
    """

    model: Callable[[], sb.Sequential]
    native: Callable[[sb.Sequential], list[Any]]


def position(t: int) -> jax.Array:
    return SEQUENCE[:, t : t + 1]


class LinenDecoder(nn.Module):
    """Attention with a cache, and dropout."""

    @nn.compact
    def __call__(self, x: Any, deterministic: bool) -> Any:
        attention = nn.MultiHeadDotProductAttention(
            2, qkv_features=8, out_features=4, decode=True, dropout_rate=0.5
        )
        return attention(x, x, x, deterministic=deterministic)


def linen_steps(model: sb.Sequential) -> list[Any]:
    variables, outputs = model[0].native, []
    for t in range(STEPS):
        out, new = LinenDecoder().apply(
            variables, position(t), deterministic=True, mutable=["cache"]
        )
        variables = {**variables, **new}
        outputs.append(out)
    return outputs


def nnx_attention() -> nnx.MultiHeadAttention:
    attention = nnx.MultiHeadAttention(2, 4, 8, 4, decode=True, rngs=nnx.Rngs(0))
    attention.init_cache(SEQUENCE.shape)
    return attention


def nnx_steps(model: sb.Sequential) -> list[Any]:
    attention = nnx_attention()
    nnx.update(attention, model[0].native)
    attention.eval()
    return [attention(position(t)) for t in range(STEPS)]


def core(x: Any) -> Any:
    hidden = hk.get_state("h", (x.shape[0], 1, 4), init=jnp.zeros)
    hidden = jnp.tanh(hk.Linear(4)(jnp.concatenate([x, hidden], -1)))
    hk.set_state("h", hidden)
    return hidden


def haiku_steps(model: sb.Sequential) -> list[Any]:
    params, state = model[0].native
    outputs = []
    for t in range(STEPS):
        out, state = hk.transform_with_state(core).apply(params, state, None, position(t))
        outputs.append(out)
    return outputs


class EquinoxCounter(eqx.Module):
    """Scales by how often it was called."""

    calls: eqx.nn.StateIndex

    def __init__(self) -> None:
        self.calls = eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x: Any, state: eqx.nn.State) -> tuple[Any, eqx.nn.State]:
        calls = state.get(self.calls) + 1
        return x * calls, state.set(self.calls, calls)


def equinox_steps(model: sb.Sequential) -> list[Any]:
    module, state = eqx.nn.make_with_state(EquinoxCounter)()
    outputs = []
    for t in range(STEPS):
        out, state = module(position(t), state)
        outputs.append(out)
    return outputs


class KerasCounter(keras.layers.Layer):
    """Scales by how often it was called."""

    def build(self, input_shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign(self.calls + 1)
        return x * self.calls


def counted_steps(layer: Any) -> list[Any]:
    return [jnp.asarray(layer(position(t))) for t in range(STEPS)]


class ObjaxCounter(objax.Module):
    """Scales by how often it was called."""

    def __init__(self) -> None:
        self.calls = objax.StateVar(jnp.zeros(()))

    def __call__(self, x: Any) -> Any:
        self.calls.value = self.calls.value + 1
        return x * self.calls.value


def built(entry: Any, *shape: int | None) -> sb.Sequential:
    return sb.Sequential([entry]).build(shape or (2, 1, 4), training=False)


MOVERS = {
    "linen": Mover(lambda: built(LinenDecoder(), *SEQUENCE.shape), linen_steps),
    "nnx": Mover(lambda: built(nnx_attention()), nnx_steps),
    "haiku": Mover(lambda: built(hk.transform_with_state(core)), haiku_steps),
    "equinox": Mover(lambda: built(partial(EquinoxCounter)), equinox_steps),
    "keras": Mover(lambda: built(KerasCounter()), lambda _: counted_steps(KerasCounter())),
    "objax": Mover(lambda: built(ObjaxCounter()), lambda _: counted_steps(ObjaxCounter())),
}


@pytest.fixture(params=MOVERS)
def mover(request: pytest.FixtureRequest) -> Mover:
    return MOVERS[request.param]


def test_calls_in_evaluation_go_on(mover: Mover) -> None:
    model = mover.model()
    expected = mover.native(model)
    assert not np.allclose(expected[0], expected[1])
    for t in range(STEPS):
        assert_close(predict(model, position(t)), expected[t])


def test_compiled_calls_in_evaluation_go_on(mover: Mover) -> None:
    model = mover.model()
    expected = mover.native(model)
    compiled = sb.jit(predict, donate=True)
    for t in range(STEPS):
        assert_close(compiled(model, position(t)), expected[t])


def test_a_loop_goes_on(mover: Mover) -> None:
    model = mover.model()
    expected = jnp.stack(mover.native(model))
    steps = jnp.stack([position(t) for t in range(STEPS)])

    @sb.jit
    def run(model: sb.Sequential) -> Any:
        return sb.scan(lambda carry, x: (carry, predict(model, x)), None, steps, vars=model)[1]

    assert_close(run(model), expected)


def test_the_pure_form_goes_on(mover: Mover) -> None:
    model = mover.model()
    expected = mover.native(model)
    variables = model.variables
    for t in range(STEPS):
        out, variables = model.apply(variables, position(t), training=False)
        assert_close(out, expected[t])
    assert_same(model.variables["params"], variables["params"])


def test_an_export_goes_on(mover: Mover) -> None:
    model = mover.model()
    expected = mover.native(model)
    exported = sb.to_linen(model)
    mode = {}
    if "training" in inspect.signature(type(exported).__call__).parameters:
        mode = {"training": False}
    variables = exported.init(jax.random.key(0), position(0), **mode)
    state = [collection for collection in variables if collection != "params"]
    for t in range(STEPS):
        out, new = exported.apply(variables, position(t), **mode, mutable=state)
        variables = {**variables, **new}
        assert_close(out, expected[t])


def test_state_is_reset_in_one_line(mover: Mover) -> None:
    model = mover.model()
    fresh = model.vars().subset("state").tensors()
    expected = mover.native(model)
    for _ in range(2):
        assert_close(predict(model, position(0)), expected[0])
        model.vars().subset("state").assign(fresh)


def test_freeze_refuses_with_the_cure(mover: Mover) -> None:
    with pytest.raises(TypeError, match="freeze_state=True"):
        sb.freeze(mover.model(), position(0))


def test_frozen_state_stays(mover: Mover) -> None:
    model = mover.model()
    expected = mover.native(model)[0]
    shape = SEQUENCE.shape if isinstance(model[0].entry, nn.Module) else position(0).shape
    layer = sb.Layer(model[0].entry, freeze_state=True)
    kept = sb.Sequential([layer]).build(shape, training=False)
    kept.assign(model.variables)
    before = kept.variables["state"]
    for run in (kept, copy.deepcopy(kept), sb.freeze(kept)):
        for _ in range(2):
            assert_close(run(position(0), training=False), expected)
    assert_same(kept.variables["state"], before)


# What stands still in evaluation


class Spectral(eqx.Module):
    norm: eqx.nn.SpectralNorm

    def __init__(self, key: Any):
        linear = eqx.nn.Linear(4, 4, key=key)
        self.norm = eqx.nn.SpectralNorm(linear, "weight", key=key)

    def __call__(self, x: Any, state: eqx.nn.State) -> tuple[Any, eqx.nn.State]:
        return self.norm(x, state)


NORMALIZATIONS: dict[str, Callable[[], Any]] = {
    "linen BatchNorm": lambda: nn.BatchNorm(momentum=0.5),
    "linen BatchNorm under remat": lambda: nn.remat(nn.BatchNorm, static_argnums=(2,))(
        momentum=0.5
    ),
    "nnx BatchNorm": lambda: nnx.BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(0)),
    "haiku BatchNorm": lambda: partial(hk.BatchNorm, True, True, 0.5),
    "equinox BatchNorm": lambda: partial(eqx.nn.BatchNorm, 4, "batch", mode="ema"),
    "equinox SpectralNorm": lambda: partial(Spectral),
    "keras BatchNormalization": lambda: keras.layers.BatchNormalization(momentum=0.5),
    "keras SpectralNormalization": lambda: keras.layers.SpectralNormalization(
        keras.layers.Dense(4)
    ),
    "objax BatchNorm0D": lambda: objax.nn.BatchNorm0D(4),
}


@pytest.fixture(params=NORMALIZATIONS)
def normalization(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return NORMALIZATIONS[request.param]


def test_normalizations_stand_still_in_evaluation(normalization: Callable[[], Any]) -> None:
    x = SEQUENCE[:, 0]
    model = sb.Sequential([normalization()]).build((None, 4))
    model(x, training=True)
    before = model.variables["state"]
    assert before
    expected = predict(model, x)
    assert_same(model.variables["state"], before)
    assert_close(sb.jit(predict)(model, x), expected)
    assert_same(model.variables["state"], before)
    assert_close(sb.freeze(model)(x), expected)
    model(2 * x, training=True)
    assert any(
        not np.array_equal(new, before[name]) for name, new in model.variables["state"].items()
    )


def test_repeated_normalizations_stand_still_in_evaluation() -> None:
    block = [nn.Dense(4), nn.BatchNorm(momentum=0.5), partial(hk.BatchNorm, True, True, 0.5)]
    x = SEQUENCE[:, 0]
    model = sb.Sequential([sb.Repeat(block, 2), sb.remat(nn.BatchNorm(momentum=0.5))]).build(
        (None, 4)
    )
    model(x, training=True)
    before = model.variables["state"]
    expected = predict(model, x)
    assert all(new is before[name] for name, new in model.variables["state"].items())
    assert_close(sb.freeze(model)(x), expected)


def test_a_mode_that_a_module_has_set_is_its_own() -> None:
    norm = nn.BatchNorm(use_running_average=False, momentum=0.5)
    model = sb.Sequential([norm]).build((None, 4))
    native = model[0].native
    x = SEQUENCE[:, 0]
    out, new = norm.apply(native, x, mutable=["batch_stats"])
    assert_close(predict(model, x), out)
    assert_same(model[0].native["batch_stats"], new["batch_stats"])


# A decoder


def decoder(*, decode: bool) -> sb.Sequential:
    entries: list[Any] = [nn.Embed(11, 8)]
    for i in range(2):
        entries.append(
            nn.MultiHeadDotProductAttention(
                2, qkv_features=8, out_features=8, decode=decode, deterministic=True
            )
        )
        mlp = eqx.nn.MLP(8, 8, 16, 1, key=jax.random.key(i))
        entries += [jax.vmap(jax.vmap(mlp)), nn.Dropout(0.1)]
    return sb.Sequential([*entries, partial(hk.Linear, 11)])


def test_a_decoder_generates_in_one_compiled_loop_what_the_whole_sequence_gives() -> None:
    length = 32
    shape = jax.ShapeDtypeStruct((2, length), jnp.int32)
    model = decoder(decode=True).build(shape, training=False)

    @sb.jit
    def generate(model: sb.Sequential, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(token: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = predict(model, token)
            return logits.argmax(-1), (token, logits)

        _, (tokens, logits) = sb.scan(step, token, None, length=length, vars=model)
        return jnp.moveaxis(tokens, 0, 1)[..., 0], jnp.moveaxis(logits, 0, 1)[:, :, 0]

    tokens, logits = generate(model, jnp.array([[1], [7]]))
    whole = decoder(decode=False).build(shape, training=False)
    whole.assign({"params": model.variables["params"]})
    expected = whole(tokens, mask=nn.make_causal_mask(tokens), training=False)
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_summary_of_a_decoder_shows_the_whole_sequence() -> None:
    shape = jax.ShapeDtypeStruct((2, 32), jnp.int32)
    model = decoder(decode=True).build(shape, training=False)
    attention = model.summary(training=False).rows[1]
    assert (attention.inputs, attention.outputs) == ("float32[2,32,8]", "float32[2,32,8]")


def test_whether_state_moves_may_depend_on_the_size_of_the_inputs() -> None:
    def counting(x: Any) -> Any:
        calls = hk.get_state("calls", (), init=jnp.zeros)
        if x.shape[0] > 1:
            hk.set_state("calls", calls + 1)
        return x

    native = hk.transform_with_state(counting)
    model = sb.Sequential([native]).build((1, 4))
    params, state = model[0].native
    for size in (1, 2, 1, 2):
        x = jnp.ones((size, 4))
        predict(model, x)
        _, state = native.apply(params, state, None, x)
        assert_same(model[0].native[1], state)


def test_a_state_that_differs_between_examples_is_refused_with_the_cure() -> None:
    model = built(hk.transform_with_state(core), 2, 1, 4)
    with pytest.raises(ValueError, match="out_axes") as refusal:
        sb.vmap(predict)(model, SEQUENCE[None, :, :1])
    assert "freeze_state=True" in "".join(refusal.value.__notes__)
