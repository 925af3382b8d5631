"""`port`: every kind of layer from every library into every other, against their own results."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import seqbridge as sb
from helpers import usual_promotion
from ports import LIBRARIES, REFUSED, ROWS, example
from ports.torch import CNN, ENCODER, GOLDEN, OTHERS

X64: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # pyright: ignore


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 and JAX's default promotion: not every library is strict."""
    with X64(True), usual_promotion():
        yield


def pairs() -> Iterator[Any]:
    """Yield each row with a library that has it and one that can take it."""
    for row in ROWS:
        sources = [library for library in LIBRARIES if row in LIBRARIES[library]]
        if row in GOLDEN and row != "transposed 2d":
            sources.append("torch")
        for source in sources:
            for target in LIBRARIES:
                if row in LIBRARIES[target]:
                    yield pytest.param(row, source, target, id=f"{row}-{source}-{target}")


PAIRS = list(pairs())


@functools.cache
def made(row: str, library: str, seed: int) -> sb.Sequential:
    return LIBRARIES[library][row].model(seed)


def run(row: str, library: str, model: sb.Sequential) -> np.ndarray:
    """Return what the library itself computes with the weights of a model."""
    return np.asarray(LIBRARIES[library][row].run(model[0].native, example(row)))


@functools.cache
def of_source(row: str, library: str) -> tuple[Any, np.ndarray, bool]:
    """Return a model to port, its own library's outputs, and whether those are all in float64."""
    if library == "torch":
        return GOLDEN[row].state, GOLDEN[row].y, True
    model = made(row, library, 1)
    return model, run(row, library, model), LIBRARIES[library][row].exact


@functools.cache
def untouched(row: str, library: str) -> np.ndarray:
    return run(row, library, made(row, library, 2))


@pytest.mark.parametrize(("row", "source", "target"), PAIRS)
def test_a_layer_of_one_library_computes_the_same_in_another(
    row: str, source: str, target: str, x64: None, record_property: Any
) -> None:
    given, expected, exact = of_source(row, source)
    assert np.abs(untouched(row, target) - expected).max() > 1e-2  # or this would show nothing
    model = copy.deepcopy(made(row, target, 2))
    # What linen and Haiku keep in float32 whatever is asked for can't hold each value of float64.
    accept = "dtype"
    reason = REFUSED.get((row, source, target))
    if reason is not None:
        with pytest.raises(sb.WeightsError, match=reason):
            sb.port(given, model, accept=accept)
        jax.tree.map(np.testing.assert_array_equal, model.variables, made(row, target, 2).variables)
        record_property("refused", reason)
        return
    plan = sb.port(given, model, accept=accept)
    found = float(np.abs(run(row, target, model) - expected).max())
    record_property("difference", found)
    rounded = any("loses precision" in text for text in plan.accepted)
    assert found <= (1e-9 if exact and LIBRARIES[target][row].exact and not rounded else 2e-6)


# Whole models


class Net(nn.Module):
    """Whose layers linen numbers from the outside in."""

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not training)(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(16)(nn.gelu(nn.Dense(16)(x)))


IMAGE = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def net(seed: int = 1) -> sb.Sequential:
    model = sb.Sequential([Net()], seed=seed).build(IMAGE)
    model(IMAGE, training=True)
    return model


def of_haiku(gelu: Any = jax.nn.gelu, **norm: Any) -> sb.Sequential:
    def function(x: jax.Array, is_training: bool) -> jax.Array:
        x = hk.Conv2D(8, 3)(x)
        x = hk.BatchNorm(True, True, **{"decay_rate": 0.99, **norm})(x, is_training)
        return hk.Linear(16)(gelu(hk.Linear(16)(flat(jax.nn.relu(x)))))

    with usual_promotion():
        return sb.Sequential([hk.transform_with_state(function)], seed=2).build(IMAGE)


def of_nnx() -> sb.Sequential:
    rngs = nnx.Rngs(3)
    layers = [nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu, flat]
    layers += [nnx.Linear(128, 16, rngs=rngs), nnx.gelu, nnx.Linear(16, 16, rngs=rngs)]
    return sb.Sequential([nnx.Sequential(*layers)]).build(IMAGE)


def of_keras() -> sb.Sequential:
    layers = [
        keras.layers.Conv2D(8, 3, padding="same"),
        keras.layers.BatchNormalization(epsilon=1e-5),
    ]
    layers += [keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(16)]
    layers += [keras.layers.Lambda(jax.nn.gelu), keras.layers.Dense(16)]
    return sb.Sequential([keras.Sequential(layers)]).build(IMAGE)


@pytest.mark.parametrize("make", [of_haiku, of_nnx, of_keras], ids=["haiku", "nnx", "keras"])
def test_a_model_in_one_piece_goes_into_one_of_another_library_and_home(make: Any) -> None:
    source, target = net(), make()
    with usual_promotion():
        plan = sb.port(source, target, check=IMAGE)
        assert plan.difference is not None
        assert plan.difference < 1e-5
        home = net(seed=5)
        assert sb.port(target, home, check=IMAGE).difference == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(
        home(IMAGE, training=False), source(IMAGE, training=False), atol=1e-6
    )


def test_a_model_that_keras_has_fitted() -> None:
    layers = [
        keras.layers.Input((8,)),
        keras.layers.Dense(16),
        keras.layers.BatchNormalization(epsilon=1e-5),
    ]
    fitted = keras.Sequential([*layers, keras.layers.ReLU(), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    linen = sb.Sequential([nn.Dense(16), nn.BatchNorm(), nn.relu, nn.Dense(3)]).build((1, 8))
    with usual_promotion():
        fitted.compile("sgd", "mse")
        fitted.fit(x, np.zeros((16, 3)), verbose=0)  # pyright: ignore[reportArgumentType]
        sb.port(fitted, linen, check=jnp.asarray(x))
        np.testing.assert_allclose(linen(x, training=False), fitted(x, training=False), atol=1e-5)


def test_channels_first_and_last_and_a_flattened_image_between() -> None:
    """After a flattened image, the rows of a linear layer are permuted, which no shape tells."""
    keys = jax.random.split(jax.random.key(0), 3)
    equinox = sb.Sequential(
        [
            lambda x: jnp.moveaxis(x, -1, 1),
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            jax.nn.relu,
            flat,
            eqx.nn.Linear(8 * 4 * 4, 5, key=keys[1]),
        ]
    ).build(IMAGE)
    linen = sb.Sequential([nn.Conv(8, (3, 3)), nn.relu, flat, nn.Dense(5)]).build(IMAGE)
    with pytest.raises(
        sb.WeightsError, match=r"looks? like a flattened image of 8 channels.*say flatten="
    ):
        sb.port(equinox, linen)
    flatten = {"[3]": (8, 4, 4)}
    difference = sb.port(equinox, linen, flatten=flatten, check=IMAGE).difference
    assert difference is not None
    assert difference < 1e-5
    back = sb.Sequential([*equinox[:3], flat, partial(eqx.nn.Linear, 128, 5)]).build(IMAGE)
    back[1].load_native(sb.Sequential([eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[2])])[0].native)
    sb.port(linen, back, flatten={"[4]": (8, 4, 4)})
    np.testing.assert_allclose(back(IMAGE), linen(IMAGE), atol=1e-5)
    with pytest.raises(sb.WeightsError, match="takes 128 features"):
        sb.port(equinox, linen, flatten={"[3]": (8, 4, 5)})
    wrong = sb.port(equinox, linen, flatten={"[3]": None}, check=IMAGE).difference
    assert wrong is not None
    assert wrong > 0.01


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_norm_of_a_flattened_image(norm: str) -> None:
    conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=jax.random.key(0))
    theirs = {
        "batch": eqx.nn.BatchNorm(128, axis_name="batch", mode="batch"),
        "layer": eqx.nn.LayerNorm(128),
    }
    ours = {"batch": nn.BatchNorm(), "layer": nn.LayerNorm(epsilon=1e-5)}
    equinox = sb.Sequential(
        [
            lambda x: jnp.moveaxis(x, -1, 1),
            conv,
            flat,
            theirs[norm],
            eqx.nn.Linear(128, 5, key=jax.random.key(1)),
        ]
    ).build(IMAGE)
    for variable in equinox[3].vars().subset("params").values():
        variable.assign(jax.random.normal(jax.random.key(2), variable.shape))
    linen = sb.Sequential([nn.Conv(8, (3, 3)), flat, ours[norm], nn.Dense(5)]).build(IMAGE)
    with pytest.raises(sb.WeightsError, match=r"\[2\].* look like a flattened image") as caught:
        sb.port(equinox, linen)
    assert "[3](Dense) takes 128 features, which look like" in str(caught.value)
    plan = sb.port(equinox, linen, flatten={"[2]": (8, 4, 4), "[3]": (8, 4, 4)}, check=IMAGE)
    assert plan.difference is not None
    assert plan.difference < 1e-5


def square(*names: str) -> type[nn.Module]:
    class Squares(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for name in names:
                x = nn.Dense(4, name=name)(x)
            return x

    return Squares


def test_layers_that_are_alike_are_told_apart_by_their_names_or_else_their_order() -> None:
    source = sb.Sequential([square("a", "b", "c")()], seed=1).build((2, 4))
    for names in (("a", "b", "c"), ("c", "b", "a"), ("x", "y", "z")):
        target = sb.Sequential([square(*names)()], seed=2).build((2, 4))
        plan = sb.port(source, target)
        assert any("only their order tells" in note for note in plan.notes) == ("a" not in names)
        for ours, theirs in zip("abc", "abc" if "a" in names else names, strict=True):
            np.testing.assert_array_equal(
                source[0][ours].kernel.value, target[0][theirs].kernel.value
            )


def test_what_is_ambiguous_is_reported_and_settled_by_a_mapping() -> None:
    source = sb.Sequential([square("a", "b")(), nn.LayerNorm()], seed=1).build((2, 4))
    target = sb.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(4)], seed=2).build((2, 4))
    with pytest.raises(
        sb.WeightsError, match=r"\[0\]\(Dense\) may be any of .*\.a, .*\.b: say which by mapping="
    ):
        sb.port(source, target)
    plan = sb.port(
        source, target, mapping={"a": "[2]", "(Sequential)[0](Squares).b": "(Sequential)[0](Dense)"}
    )
    assert len(plan.rows) == 6
    np.testing.assert_array_equal(source[0].a.kernel.value, target[2].kernel.value)
    np.testing.assert_array_equal(source[0].b.kernel.value, target[0].kernel.value)


@pytest.mark.parametrize(
    ("mapping", "match"),
    [
        ({"q": "[0]"}, r"the source has no 'q'"),
        ({"a": "[7]"}, r"the target has no '\[7\]'"),
        ({"a": "[1]"}, r"can't be .*\[1\]\(LayerNorm\): one is linear, the other layer_norm"),
    ],
)
def test_a_wrong_mapping_says_what_is_wrong(mapping: Any, match: str) -> None:
    source = sb.Sequential([square("a", "b")(), nn.LayerNorm()], seed=1).build((2, 4))
    target = sb.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(4)], seed=2).build((2, 4))
    with pytest.raises(sb.WeightsError, match=match):
        sb.port(source, target, mapping=mapping)


def test_everything_that_would_make_a_difference_stands_in_one_report_and_nothing_changes() -> None:
    source, target = (
        net(),
        of_haiku(partial(jax.nn.gelu, approximate=False), eps=1e-3, decay_rate=0.9),
    )
    before = target.variables
    with usual_promotion(), pytest.raises(sb.WeightsError) as caught:
        sb.port(source, target)
    said = str(caught.value)
    assert "epsilon is 1e-05 in the source and 0.001 in the target [accept='epsilon']" in said
    assert "momentum is 0.99 in the source and 0.9 in the target [accept='momentum']" in said
    assert "the source alone computes tanh and the target alone computes erf" in said
    jax.tree.map(np.testing.assert_array_equal, before, target.variables)
    with usual_promotion():
        plan = sb.port(source, target, accept={"epsilon", "momentum", "activation"})
        with pytest.raises(
            sb.WeightsError, match=r"accept='epsilom' names no option .*; did you mean 'epsilon'"
        ):
            sb.port(source, target, accept="epsilom")
    assert len(plan.accepted) == 3


def test_a_plan_can_be_looked_at_before_it_is_carried_out() -> None:
    source, target = net(), of_haiku()
    before = target.variables
    with usual_promotion():
        plan = sb.port(source, target, dry_run=True)
    text = str(plan)
    assert re.search(
        r"Net\)\.Dense_1\.kernel +\(Sequential\).*\.linear_1\.w +linear kernel +\(128, 16\) +as it "
        r"is",
        text,
    )
    jax.tree.map(np.testing.assert_array_equal, before, target.variables)
    plan.apply()
    np.testing.assert_array_equal(target[0].linear_1.w.value, source[0].Dense_1.kernel.value)
    unusable: Any = ({"dry_run": True, "check": IMAGE}, {"expected": IMAGE})
    for wrong in unusable:
        with pytest.raises(TypeError, match="check= runs both sides once the weights are there"):
            sb.port(source, target, **wrong)
    target.append(jnp.tanh)  # which has no part in it
    plan.apply()
    target[-2] = copy.deepcopy(target[-2])
    with pytest.raises(RuntimeError, match="the target was edited since this plan was made"):
        plan.apply()


def test_more_than_the_target_has_or_less() -> None:
    source = sb.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)], seed=1).build((2, 4))
    target = sb.Sequential(
        [partial(hk.Linear, 8), jax.nn.relu, partial(hk.Linear, 5)], seed=2
    ).build((2, 4))
    with pytest.raises(
        sb.WeightsError, match=r"nothing fits .*\[2\]\(Linear\), linear .*\n.*nothing takes .*\[2\]"
    ):
        sb.port(source, target)
    before = np.asarray(target[2].w.value)
    sb.port(source, target, strict=False)
    np.testing.assert_array_equal(target[0].w.value, source[0].kernel.value)
    np.testing.assert_array_equal(target[2].w.value, before)
    sb.port(source, target, mapping={"[2]": None}, strict=False)


def test_a_bias_that_one_side_has_not_got() -> None:
    without = sb.Sequential([partial(hk.Linear, 4, with_bias=False)], seed=1).build((2, 4))
    with_bias = sb.Sequential([nn.Dense(4)], seed=2).build((2, 4))
    with_bias[0].bias.assign(jnp.ones(4))
    with pytest.raises(sb.WeightsError, match=r"has no bias, and that of .* isn't 0"):
        sb.port(with_bias, without)
    sb.port(without, with_bias)
    np.testing.assert_array_equal(with_bias[0].bias.value, np.zeros(4))
    sb.port(with_bias, without)  # where the bias is 0, nothing is lost


class Positions(nn.Module):
    """With an array that belongs to no kind of layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(x + self.param("positions", nn.initializers.ones, (4,))[None])


def test_arrays_that_nobody_knows_are_carried_by_name_only() -> None:
    def function(x: jax.Array) -> jax.Array:
        return hk.Linear(4)(x + hk.get_parameter("where", (4,), init=jnp.zeros)[None])

    source = sb.Sequential([Positions()]).build((2, 4))
    target = sb.Sequential([hk.transform(function)]).build((2, 4))
    with pytest.raises(
        sb.WeightsError, match=r"positions isn't ported: nobody says what it is\. mapping="
    ):
        sb.port(source, target)
    ours, theirs = "(Sequential)[0](Positions).positions", "(Sequential)[0](function).~.where"
    theirs = next(name for name in target.vars() if name.endswith("where"))
    assert sb.port(source, target, mapping={ours: theirs}, check=jnp.ones((2, 4))).difference == 0
    np.testing.assert_array_equal(target.vars()[theirs].value, np.ones(4))


def test_precision_that_would_be_lost_is_reported() -> None:
    source = sb.Sequential([nn.Dense(4)]).build((2, 4))
    target = sb.Sequential([nn.Dense(4, param_dtype=jnp.bfloat16, dtype=jnp.float32)]).build((2, 4))
    with pytest.raises(
        sb.WeightsError,
        match=r"is bfloat16, and would take float32, which loses precision .*'dtype'",
    ):
        sb.port(source, target)
    sb.port(target, source)
    sb.port(source, target)  # what came from there goes back whole


def test_a_layer_whose_weights_another_changes_is_refused() -> None:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.WeightNorm(nn.Dense(4))(x)

    source = sb.Sequential([Normed()]).build((2, 4))
    target = sb.Sequential([partial(hk.Linear, 4)]).build((2, 4))
    with pytest.raises(sb.WeightsError, match="WeightNorm or a SpectralNorm changes its weights"):
        sb.port(source, target, strict=False)


def test_words_for_padding_that_mean_the_same() -> None:
    source = sb.Sequential([nn.Conv(4, (3,), padding="CAUSAL")]).build((2, 9, 4))
    target = sb.Sequential([partial(hk.Conv1D, 4, 3, padding=[(2, 0)])]).build((2, 9, 4))
    assert sb.port(source, target, check=jnp.ones((2, 9, 4))).difference == 0


def test_layers_alone_and_entries_and_what_can_not_be_a_target() -> None:
    module = eqx.nn.Linear(4, 4, key=jax.random.key(0))
    model = sb.Sequential([nn.Dense(4), jnp.tanh]).build((2, 4))
    sb.port(module, model[0])
    np.testing.assert_array_equal(model[0].kernel.value, module.weight.T)
    with pytest.raises(TypeError, match="put the entry into a Sequential"):
        sb.port(model, module)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match=r"call model.build\(...\) first"):
        sb.port(sb.Sequential([nn.Dense(4)]), model)
    with pytest.raises(sb.WeightsError, match="put them into a model of their own library"):
        sb.port({"kernel": np.ones((4, 4))}, model)


def test_what_is_shared_is_carried_once() -> None:
    dense, linear = nn.Dense(4), sb.Layer(partial(hk.Linear, 4))
    source = sb.Sequential([dense, jnp.tanh, dense]).build((2, 4))
    target = sb.Sequential([linear, jnp.tanh, linear], seed=3).build((2, 4))
    plan = sb.port(source, target, check=jnp.ones((2, 4)))
    assert len(plan.rows) == 2
    assert plan.difference == 0


def test_a_layer_under_a_scan_is_none_that_is_known() -> None:
    """Its arrays have an axis more: nothing is guessed."""

    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            def body(layer: nn.Module, x: jax.Array, _: Any) -> Any:
                return nn.Dense(4)(x), None

            scanned = nn.scan(
                body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return scanned(self, x, None)[0]

    source = sb.Sequential([Stacked()]).build((2, 4))
    target = sb.Sequential([partial(hk.Linear, 4)]).build((2, 4))
    with pytest.raises(sb.WeightsError, match="nothing fits"):
        sb.port(source, target)
    assert sb.port(source, sb.Sequential([Stacked()], seed=2).build((2, 4))).rows


# PyTorch


def test_a_cnn_of_pytorch(x64: None) -> None:
    golden = CNN
    of = {"param_dtype": jnp.float64}
    model = sb.Sequential(
        [
            nn.Conv(8, (3, 3), 2, 1, **of),
            nn.BatchNorm(momentum=0.9, dtype=jnp.float64, **of),
            nn.relu,
            partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2)),
            nn.Conv(8, (3, 3), padding=1, feature_group_count=2, **of),
            partial(nn.gelu, approximate=False),
            flat,
            nn.Dense(8, **of),
            nn.LayerNorm(epsilon=1e-5, **of),
        ]
    ).build(jax.ShapeDtypeStruct(golden.x.shape, jnp.float64))
    with pytest.raises(sb.WeightsError, match="which look like a flattened image of 8 channels"):
        sb.port(golden.state, model)
    plan = sb.port(
        golden.state, model, flatten={"[7]": (8, 3, 2)}, check=golden.x, expected=golden.y
    )
    assert plan.difference is not None
    assert plan.difference < 1e-6  # linen's statistics are in float32
    wrapped = {f"module._orig_mod.{name}": array for name, array in golden.state.items()}
    sb.port(wrapped, model, flatten={"[7]": (8, 3, 2)}, check=golden.x, expected=golden.y)
    assert float(sb.port(model, model, check=golden.x, expected=golden.y + 1).difference or 0) > 0.5
    with pytest.raises(TypeError, match="strict= is True or False"):
        sb.port(model, model, strict="no")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="give expected="):
        sb.port(golden.state, model, flatten={"[7]": (8, 3, 2)}, check=golden.x)


class Encoder(nn.Module):
    """PyTorch's `nn.TransformerEncoderLayer` in linen, with layers in an order of its own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        of = {"param_dtype": jnp.float64}
        norms = [nn.LayerNorm(epsilon=1e-5, name=f"norm{i}", **of) for i in (1, 2)]
        x = norms[0](x + nn.MultiHeadDotProductAttention(2, qkv_features=8, **of)(x))
        hidden = nn.gelu(nn.Dense(16, name="up", **of)(x), approximate=False)
        return norms[1](x + nn.Dense(8, name="down", **of)(hidden))


def test_a_transformer_of_pytorch(x64: None) -> None:
    model = sb.Sequential([Encoder()]).build(jax.ShapeDtypeStruct(ENCODER.x.shape, jnp.float64))
    plan = sb.port(ENCODER.state, model, check=ENCODER.x, expected=ENCODER.y)
    assert plan.difference is not None
    assert plan.difference < 1e-9
    matched = {row.source: row.target for row in plan.rows}
    assert matched["norm2.weight"] == "(Sequential)[0](Encoder).norm2.scale"


def _both_ways(of: Any) -> nn.Module:
    there, back = (nn.RNN(nn.GRUCell(4, name=name, **of)) for name in ("there", "back"))
    return nn.Bidirectional(there, back)


class _Separate(nn.Module):
    attention: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attention(x, x[..., :6], x[..., :6])  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("weight norm", lambda of: [nn.Dense(5, **of)]),
        (
            "separate attention",
            lambda of: [_Separate(nn.MultiHeadDotProductAttention(2, qkv_features=8, **of))],
        ),
        ("old weight norm", lambda of: [nn.Conv(4, (3, 3), padding="VALID", **of)]),
        ("stacked lstm", lambda of: [nn.RNN(nn.OptimizedLSTMCell(4, **of)) for _ in range(2)]),
        ("bidirectional gru", lambda of: [_both_ways(of)]),
    ],
)
def test_what_pytorch_has_in_several_ways(name: str, make: Any, x64: None) -> None:
    golden = OTHERS[name]
    model = sb.Sequential(make({"param_dtype": jnp.float64})).build(
        jax.ShapeDtypeStruct(golden.x.shape, jnp.float64)
    )
    mapping = (
        {"l0": "forward_rnn.cell", "l0_reverse": "backward_rnn.cell"}
        if name == "bidirectional gru"
        else {}
    )
    difference = sb.port(
        golden.state, model, mapping=mapping, check=golden.x, expected=golden.y
    ).difference
    assert difference is not None
    assert difference < 1e-9


def test_a_file_has_no_order_but_that_of_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {f"layers.{i}.weight": rng.normal(size=(4, 4)).astype(np.float32) for i in range(12)}
    model = sb.Sequential([nn.Dense(4, use_bias=False) for _ in range(12)]).build((2, 4))
    for given in (state, dict(sorted(state.items())), tmp_path / "layers.safetensors"):
        save_file(state, tmp_path / "layers.safetensors")
        sb.port(given, model)
        for i in range(12):
            np.testing.assert_array_equal(model[i].kernel.value, state[f"layers.{i}.weight"].T)
    named = {"q_proj.weight": state["layers.0.weight"], "k_proj.weight": state["layers.1.weight"]}
    with pytest.raises(
        sb.WeightsError, match=r"may be any of q_proj, k_proj: say which by mapping="
    ):
        sb.port(named, model[:2])
    sb.port(named, model[:2], mapping={"q_proj": "[0]", "k_proj": "[1]"})
    np.testing.assert_array_equal(model[1].kernel.value, named["k_proj.weight"].T)


def test_transposed_convolutions_of_pytorch_in_groups(x64: None) -> None:
    golden = OTHERS["transposed in groups"]
    module = eqx.nn.ConvTranspose2d(
        4, 6, 3, 2, padding=1, groups=2, dtype=jnp.float64, key=jax.random.key(0)
    )
    model = sb.Sequential(
        [lambda x: jnp.moveaxis(x, -1, 1), module, lambda x: jnp.moveaxis(x, 1, -1)]
    )
    difference = sb.port(golden.state, model, check=golden.x, expected=golden.y).difference
    assert difference is not None
    assert difference < 1e-9
