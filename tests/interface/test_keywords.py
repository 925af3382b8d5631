"""Which layer gets which keyword, in which mode it runs, what it draws, and what an error says."""

from __future__ import annotations

import enum
import functools
import operator
import re
from typing import Any, NamedTuple, cast

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb
from helpers import equal, scale

X = jnp.array([[-1.0, 2.0], [3.0, -4.0]])


def shift(x: Any, offset: Any, **options: Any) -> Any:
    return x * options.get("scale", 1.0) + offset


class Shift(nn.Module):
    """The seed's module with a required argument and free keywords."""

    @nn.compact
    def __call__(self, x: Any, offset: Any, **options: Any) -> Any:
        return shift(nn.Dense(2, use_bias=False)(x), offset, **options)


# Keywords


def test_each_layer_gets_the_keywords_that_it_names() -> None:
    model = sb.Sequential(
        [lambda x, negative_slope=0.01: jnp.maximum(x, x * negative_slope), scale, nn.leaky_relu]
    )
    assert equal(
        model(X, negative_slope=0.5, factor=2.0), nn.leaky_relu(2 * jnp.maximum(X, X * 0.5), 0.5)
    )
    assert equal(model(X), nn.leaky_relu(jnp.maximum(X, X * 0.01)))


def test_a_layer_with_free_keywords_gets_all() -> None:
    got: dict[str, Any] = {}
    model = sb.Sequential([scale, lambda x, **options: got.update(options) or x])
    model(X, factor=2.0, anything=3)
    assert got == {"factor": 2.0, "anything": 3}


def test_a_module_with_a_required_argument_and_free_keywords() -> None:
    model = sb.Sequential([Shift()]).build((2, 2), offset=0.0)
    y = X @ model[0].Dense_0.kernel.value
    assert equal(model(X, offset=1.0), y + 1.0)
    assert equal(model(X, offset=1.0, scale=0.0), jnp.ones((2, 2)))
    with pytest.raises(TypeError, match=r"layer \[0\] .*Shift.* needs 'offset'.*you gave 'ofset'"):
        model(X, ofset=1.0)


def test_the_call_wins_over_a_partial_but_not_over_a_mode_that_is_set() -> None:
    model = sb.Sequential([functools.partial(scale, factor=3.0)])
    assert equal(model(X), 3 * X)
    assert equal(model(X, factor=2.0), 2 * X)
    frozen = sb.Sequential(
        [
            functools.partial(lambda x, training: x if training else -x, training=False),
            nn.Dropout(0.5),
        ]
    )
    assert equal(sb.Sequential(frozen[:1])(X, training=True), -X)
    set_by_constructor = sb.Sequential([nn.Dropout(0.5, deterministic=True)])
    assert equal(set_by_constructor(X, training=True), X)
    with pytest.raises(TypeError, match="no layer takes the keyword 'deterministic'"):
        set_by_constructor(X, deterministic=False)


def test_an_unknown_keyword_lists_what_is_taken_and_by_whom() -> None:
    model = sb.Sequential([scale, sb.Sequential({"last": nn.leaky_relu})])
    with pytest.raises(TypeError) as error:
        model(X, negative_slop=0.2)
    assert "'negative_slop'; did you mean 'negative_slope'?" in str(error.value)
    assert "factor ([0](scale))" in str(error.value)
    assert "negative_slope ([1](Sequential).last(leaky_relu))" in str(error.value)


def test_training_and_rng_may_always_be_given() -> None:
    model = sb.Sequential([scale])
    assert equal(model(X, training=True, rng=jax.random.key(0)), X)
    assert equal(sb.Sequential()(X, training=False), X)


def test_a_name_that_an_input_fills_is_never_routed() -> None:
    model = sb.Sequential([lambda x: (x, 2 * x), lambda a, factor: a + factor, scale])
    assert equal(model(X, factor=3.0), (X + 2 * X) * 3.0)
    with pytest.raises(TypeError, match="no layer takes the keyword 'x'"):
        sb.Sequential([scale])(X, x=X)


def test_the_first_layer_takes_inputs_by_keyword() -> None:
    assert equal(sb.Sequential([lambda x, y: x + y, scale])(X, y=X), 2 * X)


def test_callables_without_a_signature_get_no_keywords_and_run() -> None:
    model = sb.Sequential([lambda x: [x, x], operator.itemgetter(1), scale, operator.neg, jnp.add])
    with pytest.raises(TypeError):
        model(X)
    assert equal(model[:4](X, factor=2.0), -2 * X)


def test_names_of_python_itself_are_free() -> None:
    model = sb.Sequential(
        [lambda x, self, args, layer, method, mutable: x * self * args * layer * method * mutable]
    )
    assert equal(model(X, self=2.0, args=3.0, layer=1.0, method=1.0, mutable=1.0), 6 * X)


def test_single_layers_are_addressed_by_name_and_by_position() -> None:
    model = sb.Sequential(
        {"a": scale, "b": functools.partial(scale), "c": sb.Sequential([scale, scale])}
    )
    assert equal(model(X, factor=2.0), 16 * X)
    assert equal(model(X, factor=2.0, per_layer={"b": {"factor": 5.0}}), 40 * X)
    assert equal(
        model(
            X,
            per_layer={
                "c": {"factor": 3.0, "per_layer": {-1: {"factor": 7.0}}},
                0: {"factor": 2.0},
            },
        ),
        42 * X,
    )
    assert equal(sb.jit(model)(X, per_layer={"c": {"factor": 3.0}, 0: {"factor": 2.0}}), 18 * X)
    with pytest.raises(KeyError, match="no layer is called 'd'"):
        model(X, per_layer={"d": {}})
    with pytest.raises(IndexError):
        model(X, per_layer={7: {}})
    with pytest.raises(TypeError, match="'fctor'; did you mean 'factor'"):
        model(X, per_layer={"a": {"fctor": 2.0}})


def test_tuples_are_spread_and_namedtuples_are_not() -> None:
    class pair(NamedTuple):
        a: Any
        b: Any

    assert equal(sb.Sequential([lambda x: (x, 2 * x), jnp.add])(X), 3 * X)
    assert equal(sb.Sequential([lambda x: pair(x, 2 * x), lambda p: p.a + p.b])(X), 3 * X)
    out = sb.Sequential([lambda x: (x,), lambda x: (x, x)])(X)
    assert type(out) is tuple
    assert sb.Sequential()(1, 2) == (1, 2)
    with pytest.raises(TypeError, match="empty"):
        sb.Sequential()()


def test_key_means_what_the_ecosystem_means() -> None:
    class Attend(hk.Module):
        def __call__(self, query: Any, key: Any) -> Any:
            return query @ key

    model = sb.Sequential([functools.partial(Attend)])
    assert equal(model(X, key=X), X @ X)
    drawn = sb.Sequential([lambda x, key: jax.random.normal(key, x.shape)])
    assert equal(
        drawn(X, rng=jax.random.key(1)),
        jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), X.shape),
    )
    with pytest.raises(TypeError):
        drawn(X, key="mine")


# Mode


class Flags(nn.Module):
    """Which mode arrived, by whatever name."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return x + (1.0 if train else 0.0)


@pytest.mark.parametrize(
    "flag",
    ["training", "train", "is_training", "deterministic", "use_running_average", "inference"],
)
def test_one_flag_reaches_every_spelling(flag: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def layer(x, {flag}): return ('{flag}', {flag})", namespace)
    positive = flag in ("training", "train", "is_training")
    model = sb.Sequential([namespace["layer"], lambda name, value: jnp.float32(value)])
    assert bool(model(X, training=True)) is positive
    assert bool(model(X, training=False)) is not positive
    with pytest.raises(TypeError, match="pass training=True or training=False"):
        model(X)


def test_a_flag_by_its_own_name_wins_for_the_layers_that_name_it() -> None:
    model = sb.Sequential([nn.BatchNorm(), nn.Dropout(0.5)]).build((2, 2))
    out = model(X, training=True, deterministic=True)
    assert not equal(model[0].mean.value, jnp.zeros(2))
    assert equal(model[1:](out, deterministic=True), out)
    before = model[0].mean.value
    model(X, training=True, use_running_average=True)
    assert model[0].mean.value is before


def test_a_default_decides_and_none_does_not() -> None:
    assert equal(sb.Sequential([lambda x, train=False: x + train * 1.0])(X), X)
    with pytest.raises(TypeError, match="pass training=True or training=False"):
        sb.Sequential([lambda x, deterministic=None: x])(X)


def test_of_a_missing_mode_only_the_layers_that_want_it_are_named() -> None:
    model = sb.Sequential(
        [nn.Dense(2), nn.BatchNorm(), nn.Dropout(0.5), lambda x, train=False: x]
    ).build((2, 2))
    with pytest.raises(
        TypeError, match=r"decides what \(Sequential\)\[1\]\(BatchNorm\) \(linen\) do"
    ):
        model(X, deterministic=True)


def test_a_mode_is_no_keyword_of_a_trace_a_table_and_the_pure_form() -> None:
    model = sb.Sequential([scale, lambda x: x + 1])
    each: dict[str, Any] = {"training": True, "per_layer": {0: {"factor": 3.0}}}
    assert equal(model.trace(X, **each)["[1]"], 3 * X + 1)
    assert [row.outputs for row in model.summary(X, **each).rows][:2] == ["float32[2,2]"] * 2
    assert model.init(jax.random.key(0), X, **each)["params"] == {}


@pytest.mark.parametrize("shape", [(None, 2), jax.ShapeDtypeStruct((2, 2), jnp.float32)])
def test_build_takes_the_shapes_of_keywords_for_single_layers(shape: Any) -> None:
    model = sb.Sequential([Shift()]).build((2, 2), per_layer={0: {"offset": shape}})
    assert equal(model(X, offset=X), X @ model[0].Dense_0.kernel.value + X)


def test_a_keyword_that_is_a_tuple_of_numbers_is_no_shape_to_a_build() -> None:
    model = sb.Sequential([lambda x, axis: x.sum(axis), nn.Dense(3)]).build((5, 4, 2), axis=(0, 1))
    assert model[1].kernel.shape == (2, 3)
    assert model(jnp.ones((5, 4, 2)), axis=(0, 1)).shape == (3,)


def test_state_of_a_layer_that_counts_its_calls_changes_in_every_mode() -> None:
    def count(x: Any, is_training: Any) -> Any:
        hk.set_state("n", hk.get_state("n", (), init=jnp.zeros) + 1)
        return x

    model = sb.Sequential([hk.transform_with_state(count)]).build((2, 2), training=True)
    (n,) = model.vars().values()
    start = float(n.value)
    given: list[Any] = [
        {"training": False},
        {"training": True},
        {"is_training": False},
        {"is_training": 1},
        {"training": True, "is_training": np.False_},
        {"is_training": jnp.array(False)},
    ]
    for calls, keywords in enumerate(given, 1):
        model(X, **keywords)
        assert float(n.value) == start + calls, keywords


def test_per_layer_mode_freezes_one_batch_norm() -> None:
    model = sb.Sequential({"a": nn.BatchNorm(), "b": nn.BatchNorm()}).build((2, 2))
    before = model.a.mean.value
    model(X, training=True, per_layer={"a": {"training": False}})
    assert model.a.mean.value is before
    assert not equal(model.b.mean.value, before)


def test_a_traced_or_mistyped_mode_is_refused() -> None:
    model = sb.Sequential([Flags()])
    assert equal(model(X, training=cast(bool, np.bool_(True))), X + 1)
    with pytest.raises(TypeError, match="training= is True, False or None"):
        jax.jit(lambda t: model(X, training=t))(True)
    with pytest.raises(TypeError, match="training= is True, False or None"):
        model(X, training=cast(bool, "yes"))


def test_every_layer_that_needs_a_mode_is_named() -> None:
    model = sb.Sequential([nn.Dropout(0.5), scale, nn.BatchNorm()]).build((2, 2))
    with pytest.raises(
        TypeError, match=r"\[0\]\(Dropout\) \(linen\), .*\[2\]\(BatchNorm\) \(linen\)"
    ):
        model(X)


# Randomness


def test_draws_differ_by_call_and_layer_and_repeat_by_seed() -> None:
    def model(seed: int) -> sb.Sequential:
        return sb.Sequential([nn.Dropout(0.5)], seed=seed)

    ones = jnp.ones((20, 20))
    first, second = model(0), model(0)
    a, b = first(ones, training=True), first(ones, training=True)
    assert not equal(a, b)
    assert equal(second(ones, training=True), a)
    assert equal(second(ones, training=True), b)
    assert not equal(model(1)(ones, training=True), a)
    twice = sb.Sequential([nn.Dropout(0.5), lambda x: (x > 0).astype(jnp.float32), nn.Dropout(0.5)])
    kept = twice[:1](ones, rng=jax.random.key(0), training=True) > 0
    both = twice(ones, rng=jax.random.key(0), training=True) > 0
    assert 0 < both.sum() < kept.sum()


def test_a_call_that_draws_nothing_takes_no_key() -> None:
    model = sb.Sequential([nn.Dense(2), nn.Dropout(0.5)]).build((2, 2))
    stream = model.vars().subset("rng")["(Sequential).rng"]
    before = stream.value
    model(X, training=False)
    assert stream.value is before
    model(X, training=True)
    assert stream.value is not before


@pytest.mark.parametrize(
    "key", [3, jax.random.key(3), jax.random.PRNGKey(3)], ids=["int", "typed", "raw"]
)
def test_seeds_and_keys_of_every_kind(key: Any) -> None:
    expected = sb.Sequential([nn.Dense(2)], seed=3).build((2, 2)).variables
    for variables in (
        sb.Sequential([nn.Dense(2)], key=key).build((2, 2)).variables,
        sb.Sequential([nn.Dense(2)]).build((2, 2), key=key).variables,
        sb.Sequential([nn.Dense(2)]).init(key, X),
    ):
        assert jax.tree.all(jax.tree.map(equal, variables, expected))
    with pytest.raises(TypeError, match="a key is"):
        sb.Sequential([nn.Dense(2)], key=jnp.ones(2)).build((2, 2))


# Errors


class PickyError(Exception):
    """With a constructor that takes more than a text."""

    def __init__(self, code: int, why: str):
        super().__init__(why)
        self.code = code


class Colour(enum.Enum):
    RED = 1


def test_errors_keep_type_fields_and_traceback_and_are_noted_once() -> None:
    def fail(x: Any, colour: Any = None) -> Any:
        raise PickyError(7, "no")

    model = sb.Sequential([scale, sb.Sequential({"inner": fail})])
    with pytest.raises(PickyError) as error:
        model(X, colour=Colour.RED)
    assert error.value.code == 7
    notes = [n for n in error.value.__notes__ if n.startswith("in layer")]
    assert notes == [
        "in layer [1].inner function fail; inputs: float32[2,2]; keywords: colour=<Colour.RED: 1>"
    ]
    assert error.traceback[-1].name == "fail"


def test_an_error_says_what_containers_hold_and_what_is_no_array() -> None:
    def fail(x: Any, *args: Any, dtype: Any = None, mask: Any = 0) -> Any:
        raise ValueError

    inputs, keywords = (
        "dict(float32[3], 2), None, float32[2,2]",
        "dtype=dtype('float16'), mask=tuple(float32[2,2])",
    )
    note = f"in layer [0] function fail; inputs: {inputs}; keywords: {keywords}"
    with pytest.raises(ValueError, match=re.escape(note) + "$"):
        sb.Sequential([fail])(
            {"a": jnp.ones(3), "b": 2}, None, X, dtype=np.dtype("float16"), mask=(X, None)
        )


def test_the_unicode_error_that_breaks_reraising() -> None:
    model = sb.Sequential([lambda x: b"\xff".decode()])
    with pytest.raises(UnicodeDecodeError):
        model(1.0)


@pytest.mark.parametrize("inputs", [(), (1, 8, 8, 1), (None, 8), ([None, 8],)])
def test_build_says_what_it_takes(inputs: Any) -> None:
    with pytest.raises(TypeError, match=r"model\.build\(\(None, 28, 28, 1\)\)"):
        sb.Sequential([nn.Dense(2)]).build(*inputs)


def test_a_size_that_decides_a_shape_must_be_given() -> None:
    model = sb.Sequential([nn.relu, nn.Dense(2)])
    with pytest.raises(
        ValueError, match=r"decides the shape of \(Sequential\)\[1\]\(Dense\)\.kernel"
    ):
        model.build((None, None))
    assert not model.built
    assert model.build((None, 3)).built


def test_a_mode_that_nobody_said_is_not_handed_on() -> None:
    seen: list[dict[str, Any]] = []
    model = sb.Sequential([nn.Dense(2), lambda x, **options: seen.append(options) or x])
    model.build((2, 2))
    model(X)
    model(X, training=True)
    assert seen[:3] == [{}, {}, {"training": True}]
    # A new kind of call is looked at once more, for what the function uses.
    assert all(options == {"training": True} for options in seen[3:])


def test_a_flag_that_an_input_fills_is_not_given_again() -> None:
    seen: list[Any] = []

    def layer(x: Any, train: Any = False) -> Any:
        seen.append(train)
        return x

    model = sb.Sequential([lambda x: (x, 0.5), layer])
    model(X, training=True)
    assert set(seen) == {0.5}


def test_what_is_taken_by_position_alone_is_no_keyword() -> None:
    def layer(x: Any, scale: float = 1.0, /, *rest: Any) -> Any:
        return x * scale

    for name in ("scale", "rest"):
        with pytest.raises(TypeError, match=f"no layer takes the keyword '{name}'"):
            sb.Sequential([layer])(X, **dict[str, Any]({name: 2.0}))


def test_many_takers_are_not_all_listed() -> None:
    def layer(x: Any, factor: float = 1.0) -> Any:
        return x * factor

    for n, listed in ((4, "[0], [1], [2], [3])"), (5, "[0], [1], [2], [3], ...)")):
        with pytest.raises(TypeError) as caught:
            sb.Sequential([(lambda x, factor=1.0: layer(x, factor)) for _ in range(n)])(
                X, factr=2.0
            )
        text = re.sub(r"\(Sequential\)|\(<lambda>\)", "", str(caught.value))
        assert text.endswith(f"factor ({listed}"), text


def test_a_mode_that_is_none_says_no_more_than_that() -> None:
    with pytest.raises(TypeError, match=r"training= is True, False or None, not 'yes'$"):
        sb.Sequential([nn.Dropout(0.5)])(X, training="yes")  # pyright: ignore[reportArgumentType]


def test_keywords_for_single_layers_inside_reach_them_alone() -> None:
    def layer(x: Any, factor: float = 1.0) -> Any:
        return x * factor

    seen: list[Any] = []

    def whatever(x: Any, **keywords: Any) -> Any:
        seen.append(keywords)
        return x

    inner = sb.Sequential(
        {
            "first": sb.Layer(layer),
            "second": lambda x, factor=1.0: layer(x, factor),
            "last": whatever,
        }
    )
    given = {0: {"per_layer": {"first": {"factor": 2.0}, 1: {"factor": 3.0}, "last": {"a": 1.0}}}}
    model = sb.Sequential([inner]).build((2, 3), per_layer=given)
    seen.clear()
    assert equal(model(X, per_layer=given), 6.0 * X)
    assert seen == [{"a": 1.0}]
