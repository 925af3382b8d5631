"""Faults of what is put into a list, of building it, and of the first call."""

from __future__ import annotations

import copy
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
import optax
import pytest
from flax import nnx
from flax.errors import ScopeParamShapeError
from jax.example_libraries import stax

import seqbridge as sb
from faults import Kept, Row, Table, X, filled, name_of
from helpers import scale

table = Table()
fault, design = table.fault, table.design
KEY = jax.random.key(0)


# What is no entry

ADAPTERS = r"give a module, a transform or a callable; there are adapters for equinox, flax\.linen"
fault(
    "an int", TypeError, r"^3 \(builtins\.int\) is no entry", ADAPTERS, r"in entry 1 of the 2 given"
)(lambda model: model.extend([jnp.tanh, 3]))
fault("None", TypeError, r"^None .* is no entry", r"in entry 0 of the 1 given")(
    lambda model: model.append(None)
)
fault("a name of a function", TypeError, r"'relu' \(builtins\.str\) is no entry")(
    lambda model: model.append("relu")
)
fault("a dict as an entry", TypeError, r"\{'a': 1\} \(builtins\.dict\) is no entry")(
    lambda model: model.append({"a": 1})
)
fault("an int under a name", TypeError, r"3 .* is no entry", r"in entry 'conv' of the 2 given")(
    lambda: sb.Sequential({"act": jnp.tanh, "conv": 3})
)
fault("a class of linen", TypeError, r"the class Dense: give a module, Dense\(\.\.\.\)", "entry 0")(
    lambda model: model.append(nn.Dense)
)
fault(
    "a class of NNX", TypeError, r"the class Linear: give a module, or partial\(Linear", "entry 0"
)(lambda model: model.append(nnx.Linear))
fault(
    "a class of Equinox",
    TypeError,
    r"the class Linear: give a module, or partial\(Linear",
    "entry 0",
)(lambda model: model.append(eqx.nn.Linear))
fault("a class of Haiku", TypeError, r"the class Linear: write partial\(hk\.Linear", "entry 0")(
    lambda model: model.append(hk.Linear)
)
fault("a class of Keras", TypeError, r"the class Dense: give a layer, Dense\(\.\.\.\)", "entry 0")(
    lambda model: model.append(keras.layers.Dense)
)
# Haiku raises while the argument is made, before anything of ours is called; so it is Haiku's own
# error.
fault(
    "a Haiku module outside of a transform",
    ValueError,
    r"must be initialized inside an `hk\.transform`",
)(lambda model: model.append(hk.Linear(3)))
fault(
    "a transform of a class of Haiku",
    TypeError,
    r"makes a module and doesn't call it: write partial\(hk\.Linear",
)(lambda model: model.append(hk.transform(hk.Linear)))
fault(
    "a transform that returns a module",
    TypeError,
    "returns a Linear and doesn't call it",
    r"layer \[1\] haiku",
)(lambda: sb.Sequential([jnp.tanh, hk.transform(lambda x: hk.Linear(3))])(X))
fault(
    "a transform of many functions",
    TypeError,
    "give hk.transform_with_state of the one to run",
    "entry 0",
)(lambda model: model.append(hk.multi_transform(lambda: (jnp.tanh, (jnp.tanh,)))))


@design("a transform with state and one without")
def transforms_with_and_without_state_are_entries() -> None:
    for transform in (hk.transform, hk.transform_with_state):
        assert sb.Sequential([transform(lambda x: hk.Linear(4)(x))])(X).shape == (2, 4)


fault(
    "a list as an entry",
    TypeError,
    r"\(builtins\.list\) is no entry: .*, or Sequential\(\.\.\.\) for several entries in one",
)(lambda model: model.append([jnp.tanh, jnp.sin]))
fault(
    "a pair of functions that are no layer",
    TypeError,
    r"is no entry: .*Sequential\(\.\.\.\)",
    "stax",
)(lambda model: model.append((jnp.tanh, jnp.sin)))
fault("an optimizer of optax", TypeError, r"GradientTransformation.* is no entry")(
    lambda model: model.append(optax.sgd(0.1))
)
fault(
    "one pair where entries are wanted",
    TypeError,
    r"this tuple is one entry, .*give \[entry\], or model\.append",
)(lambda model: model.extend(stax.Dense(3)))


@design("a tuple that is no layer is a row of entries")
def a_plain_tuple_is_a_list_of_entries() -> None:
    assert [layer.pure.text for layer in sb.Sequential((jnp.tanh, jnp.sin))] == ["tanh", "sin"]


fault(
    "a bound module",
    TypeError,
    r"this Dense is bound to variables: give the unbound module",
    r"load_native\(variables",
)(lambda model: model.append(nn.Dense(3).bind({"params": {}})))


class Outer(nn.Module):
    """Puts a module with values of its own into a list."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        inner = nn.Dense(3)
        y = inner(x)
        return y if self.is_initializing() else sb.Sequential([inner])(y)


fault(
    "a module that lives in another",
    TypeError,
    r"this Dense is bound to variables: give the unbound module",
)(lambda: Outer().apply(Outer().init(KEY, X), X))


@design("one object at two places is one set of variables")
def one_object_at_two_places_has_one_set_of_variables() -> None:
    for entry in (
        nn.Dense(3), nnx.Linear(3, 3, rngs=nnx.Rngs(0)), eqx.nn.Linear(3, 3, key=KEY),
        keras.layers.Dense(3), sb.Layer(partial(hk.Linear, 3)), sb.Layer(stax.Dense(3)),
    ):  # fmt: skip
        model = sb.Sequential([entry, jnp.tanh, entry]).build((2, 3))
        assert model[0] is model[2]
        assert len(set(model.vars().subset("params").values())) == 2


@design("two entries of one module share its variables")
def two_entries_of_one_module_share_its_variables() -> None:
    module = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    model = sb.Sequential([module, sb.Layer(module, trainable=False)])
    assert model[0] is not model[1]
    assert model[0].kernel is model[1].kernel
    assert len(model.vars().tensors()) == 2  # each of which is saved once


# What is no list

fault("a string as the list", TypeError, r"'relu' .* is no entry")(lambda: sb.Sequential("relu"))
fault("a number as the list", TypeError, r"3 .* is no entry")(lambda: sb.Sequential(3))
fault(
    "a number in place of entries",
    TypeError,
    r"this int is one entry, or none: give \[entry\], or model\.append",
)(lambda model: model.extend(3))
fault(
    "one module in place of entries",
    TypeError,
    r"this Dense is one entry, .*model\.append\(entry\)",
)(lambda model: model.__iadd__(nn.Dense(3)))
for _name, _text in {
    "vars": "vars isn't set: it is a method",
    "training": r"training isn't set: a call says the mode, model\(x, training=True\)",
    "seed": r"seed isn't set: Sequential\(\.\.\., seed=0\)",
    "trainabel": "trainabel isn't set; did you mean 'trainable'",
    "layers": "layers isn't set: the model is the list of its layers",
}.items():
    fault(f"an attribute that nobody reads, {_name}", AttributeError, _text)(
        lambda model, name=_name: setattr(model, name, None)
    )


@design("a layer as an attribute is warned of")
def a_layer_as_an_attribute_is_warned_of() -> None:
    model = sb.Sequential([jnp.tanh])
    built = sb.Sequential([nn.Dense(3)]).build((2, 3))
    for module in (
        nn.Dense(3),
        partial(hk.Linear, 3),
        stax.Dense(3),
        built,
        sb.Sequential([nn.Dense(3)]),
        built[0],
    ):
        with pytest.warns(
            UserWarning,
            match=r"head = \.\.\. sets an attribute, which isn't run.*del model\.head, then",
        ):
            model.head = module
        assert model.head is module
        delattr(model, "head")
    model.extend({"head": nn.Dense(3)})
    model.variables_of_another, model.optimizer = built.vars(), sb.Optimizer(built, optax.sgd(0.1))


@design("an attribute that is no layer, or is one of a class of the user's")
def other_attributes_and_those_of_subclasses_are_allowed() -> None:
    class Net(sb.Sequential):
        def __init__(self) -> None:
            self.dense = nn.Dense(3)
            super().__init__([self.dense])

    assert Net().build((2, 3)).dense.features == 3
    model = sb.Sequential([jnp.tanh])
    model.history, model.loss = [1.0], jnp.mean
    assert model.history == [1.0]


@design("a single layer, a generator and a mapping are lists")
def a_layer_a_generator_and_a_mapping_make_lists() -> None:
    assert len(sb.Sequential(nn.Dense(3))) == 1
    taken: list[int] = []
    assert len(sb.Sequential(taken.append(i) or jnp.tanh for i in range(3))) == 3
    assert taken == [0, 1, 2]  # once
    assert sb.Sequential({"a": jnp.tanh}).names == ("a",)


@design("an empty list is the identity")
def an_empty_list_is_the_identity() -> None:
    assert sb.Sequential([])(X) is X


@design("lists nest")
def lists_nest() -> None:
    assert sb.Sequential([sb.Sequential([jnp.tanh]), jnp.sin])(X).shape == X.shape


fault("a list in itself", ValueError, "a Sequential can't contain itself")(
    lambda model: model.append(model)
)


@fault("a list in a list in itself", ValueError, "a Sequential can't contain itself")
def put_a_list_into_itself(model: sb.Sequential) -> None:
    inner = sb.Sequential([jnp.tanh])
    outer = sb.Sequential([inner])
    try:
        inner.append(outer)
    finally:
        assert len(inner) == 1


@fault(
    "Keras on another backend",
    TypeError,
    r"Keras runs on numpy: set os\.environ\[\"KERAS_BACKEND\"\] = \"jax\" before",
)
def use_keras_on_another_backend(model: sb.Sequential) -> None:
    # A process that really runs on it: test_architecture.py.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.config, "backend", lambda: "numpy")
        model.append(keras.layers.Dense(3))


class Foreign:
    """An object of a library that has no adapter."""

    def __call__(self, x: Any) -> Any:
        return x


fault(
    "a class of a library without an adapter",
    TypeError,
    r"no adapter for .*Foreign: there are adapters for",
)(lambda model: model.append(partial(Foreign)))

# Names

fault(
    "two layers of one name",
    ValueError,
    r"two layers are called 'a', \[0\] and \[1\]: give one of them another",
)(lambda: sb.Sequential([sb.Layer(jnp.tanh, name="a"), sb.Layer(jnp.sin, name="a")]))
for text in ("a/b", "a.b", "~", "\0", "", "\ud800", " a", "1a", "class"):
    fault(
        f"{text.encode(errors='replace')} as a name",
        ValueError,
        "can't be the name of a layer: it must be a Python id",
    )(lambda model, text=text: model.extend({text: jnp.tanh}))
fault(
    "a name that the list needs", ValueError, r"'append' can't .*: it is an attribute of Sequential"
)(lambda model: model.extend({"append": jnp.tanh}))


@design("a name may be of any language")
def a_name_may_be_of_any_language() -> None:
    assert sb.Sequential({"größe": jnp.tanh}).names == ("größe",)


# What can't be called as a layer is

fault(
    "a function of nothing",
    TypeError,
    "takes 0 positional arguments",
    r"layer \[1\] function <lambda>; inputs: float32",
)(lambda: sb.Sequential([jnp.tanh, lambda: 1])(X))
fault(
    "a function of two",
    TypeError,
    r"layer \[1\] \(function <lambda>\) needs 'b': give it by keyword, b=",
)(lambda: sb.Sequential([jnp.tanh, lambda a, b: a])(X))


async def coroutine(x: Any) -> Any:
    return x


def generator(x: Any) -> Any:
    yield x


async def asynchronous(x: Any) -> Any:
    yield x


class Later:
    async def __call__(self, x: Any) -> Any:
        return x


for entry in (coroutine, generator, asynchronous, partial(coroutine), Later()):
    name = getattr(getattr(entry, "func", entry), "__name__", type(entry).__name__)
    fault(
        f"{type(entry).__name__} {name}",
        TypeError,
        f"{name} is a coroutine or generator function",
        "entry 0 of",
    )(lambda model, entry=entry: model.append(entry))


@design("one nnx.Rngs for two layers")
def one_rngs_serves_two_layers() -> None:
    # The layers draw from the model's stream, wherever their own began, and it is one variable.
    rngs = nnx.Rngs(0)
    rngs.dropout()  # has drawn before
    model = sb.Sequential([nnx.Dropout(0.5, rngs=rngs), jnp.ones_like, nnx.Dropout(0.5, rngs=rngs)])
    assert list(model.vars()) == ["(Sequential).rng"]
    first, second = (
        model[:1](jnp.ones((8, 8)), rng=1, training=True),
        model(jnp.ones((8, 8)), rng=1, training=True),
    )
    assert not jnp.array_equal(first, second)


# Keys

fault("init without a key", TypeError, r"a key is an int, jax\.random\.key\(0\) or .*, not None")(
    lambda model: model.init(None, X)
)
fault("init with inputs only", TypeError, r"a key is an int, .*, not float32\[2,3\]")(
    lambda model: model.init(X)
)
fault(
    "a pure call that draws, without a key",
    TypeError,
    "draws random numbers: give a key, rng=key",
    r"\[4\] linen Drop",
)(lambda model: model.apply(model.variables, X, training=True))
for key, shown in (
    (jnp.ones(2), r"float32\[2\]"),
    (jnp.zeros(3, "uint32"), r"uint32\[3\]"),
    (jax.random.split(KEY), r"key<fry>\[2\]"),
    (jnp.zeros((4, 2), "uint32"), r"uint32\[4,2\]"),
    ("seed", "'seed'"),
    (1.5, r"1\.5"),
    (True, "True"),
):
    fault(
        f"{shown.replace(chr(92), '')} as a key",
        TypeError,
        f"a key is an int, .*PRNGKey.*, not {shown}$",
    )(lambda model, key=key: sb.Sequential([nn.Dense(3)], key=key))
    fault(
        f"{shown.replace(chr(92), '')} as rng",
        TypeError,
        f"a key is an int, .*, not {shown}",
        r"layer \[4\] linen Drop",
    )(lambda model, key=key: model(X, training=True, rng=key))
fault("a seed that is none", TypeError, r"a key is an int, jax\.random\.key\(0\).*not 'a'")(
    lambda: sb.Sequential([nn.Dense(3)], seed="a")  # pyright: ignore[reportArgumentType]
)


@design("ints and keys of both kinds are the same key")
def ints_and_keys_of_both_kinds_draw_the_same(model: sb.Sequential) -> None:
    raw = jax.random.PRNGKey(3)
    keys = [3, np.int64(3), jax.random.key(3), raw, np.asarray(raw)]
    outs = [model(X, training=True, rng=key, per_layer={3: {"training": False}}) for key in keys]
    assert all(jnp.array_equal(out, outs[0]) for out in outs)


# Building


TAKES = r"a shape or an array is wanted for each input, model\.build\(\(None, 28, 28, 1\)\); got "
fault("init without inputs", TypeError, TAKES + "nothing")(lambda model: model.init(0))
for given, shown in (
    ("28", "'28'"),
    ((2.0, 3), r"\(2\.0, 3\)"),
    ((np.float32(2), 3), r"\(.*2.*, 3\)"),
    (True, "True"),
):
    fault(f"{given} as a shape", TypeError, TAKES + shown)(
        lambda model, given=given: model.build(given)
    )


@design("sizes may be NumPy's")
def sizes_may_be_of_numpy() -> None:
    model = sb.Sequential([nn.Dense(2)]).build((np.int64(4), np.int32(3)))
    assert model[0].kernel.shape == (3, 2)
    assert "float32[4,3]" in str(model.summary())


fault("a path for the inputs of a picture", TypeError, TAKES + r"'model\.svg'")(
    lambda model: sb.plot(model, "model.svg")
)
fault("a number for the inputs of a summary", TypeError, TAKES + "28")(
    lambda model: model.summary(28)
)
fault("a number to compare with", TypeError, "diff takes models, .*; got int")(
    lambda model: sb.diff(model, 3)
)
fault(
    "a size of -1",
    ValueError,
    r"a size that may be anything is None, not -1: got the shape \(-1, 3\)",
)(lambda model: model.build((-1, 3)))


fault(
    "another shape for a model that is built",
    ScopeParamShapeError,
    r"its variables were made for: float32\[2,3\]",
)(lambda model: model.build((2, 7)))
fault(
    "another seed for a model that is built",
    ValueError,
    r"is built: other values are model\.assign\(model\.init",
)(lambda model: model.build((2, 3), seed=7))


@design("a model is built twice, of another batch, and from the seed that it has")
def building_again_keeps_the_values() -> None:
    model = sb.Sequential([nn.Dense(3)]).build((2, 3), seed=7)
    before = model[0].kernel.value
    assert (
        model.build((5, 3), seed=7).build((1, 3), key=jax.random.key(7))[0].kernel.value is before
    )


@design("a layer with variables that can't be traced is built all the same, of any size")
def a_layer_that_cannot_be_traced_is_built_for_any_size() -> None:
    def through_eye(x: Any, w: Any = jnp.eye(3)) -> Any:  # noqa: B008
        return x @ w if float(w[0, 0]) > 0 else x

    model = sb.Sequential([nn.Conv(3, (3,)), through_eye])
    assert model.build((2, 8, 3)).build((2, 16, 3)).built


@fault(
    "another shape after a build with open sizes",
    ScopeParamShapeError,
    r"its variables were made for: float32\[1,3\]",
)
def build_again_for_other_features() -> None:
    sb.Sequential([nn.Dense(3)]).build((1, 3)).build((None, 5))


def broken(*_: Any) -> Any:
    raise FloatingPointError("no values")


@fault(
    "a layer that fails in the middle of a build",
    FloatingPointError,
    "no values",
    r"layer \[1\] linen Dense\(features=2",
)
def fail_in_the_middle_of_a_build() -> None:
    model = sb.Sequential([nn.Dense(3), nn.Dense(2, kernel_init=broken)])
    with pytest.raises(FloatingPointError, match="no values"):
        model(X)
    try:
        model.build((2, 3))
    finally:
        assert not any(layer.built for layer in model)
        assert len(model.vars()) == 0


@fault(
    "an edit of a built model that can't be built",
    FloatingPointError,
    r"layer \[6\] linen Dense\(features=2",
)
def append_what_cannot_be_built(model: sb.Sequential) -> None:
    model.append(nn.Dense(2, kernel_init=broken))


TRACED = (
    r"building a model inside a JAX transform .* is refused: it would store tracers",
    r"model\.build\(.*model\.init",
)
for transform in (
    jax.jit,
    jax.vmap,
    partial(partial, jax.eval_shape),
    lambda f: jax.grad(lambda x: f(x).sum()),
):

    def build_inside(transform: Any = transform) -> None:
        model = sb.Sequential([nn.Dense(3)])
        try:
            transform(lambda x: model(x))(X)
        finally:
            assert not model.built

    fault(f"the first call inside of transform {len(table)}", RuntimeError, *TRACED)(build_inside)

fault("build inside sb.jit", RuntimeError, *TRACED)(
    lambda: sb.jit(lambda model, x: model.build(x.shape))(sb.Sequential([nn.Dense(3)]), X)
)


@design("init inside of a transform is a function")
def init_inside_of_a_transform_is_a_function() -> None:
    model = sb.Sequential([nn.Dense(3)])
    made = jax.jit(lambda key: model.init(key, X))(KEY)
    assert not model.built
    assert {name: bool(jnp.any(array)) for name, array in made["params"].items()} == {
        "(Sequential)[0](Dense).bias": False,
        "(Sequential)[0](Dense).kernel": True,
    }


# Inputs


@design("an array of NumPy is what JAX makes of it")
def an_array_of_numpy_is_cast_as_jax_does(model: sb.Sequential) -> None:
    y = model(X, training=False)
    assert y.dtype == jnp.float32
    assert jnp.array_equal(model(np.asarray(X, np.float64), training=False), y)


fault(
    "ints where floats are wanted",
    ValueError,
    "int32",
    r"layer \[0\] linen Dense.*inputs: int64\[2,3\]",
)(lambda model: model(np.ones((2, 3), int), training=False))
fault(
    "an array of objects",
    TypeError,
    r"layer \[0\] linen Dense\(features=3\); inputs: object\[2,3\]",
)(lambda model: model(np.full((2, 3), None), training=False))
fault("an array of texts", TypeError, r"layer \[0\] linen Dense\(features=3\); inputs: <U1\[1,3\]")(
    lambda model: model(np.array([["a", "b", "c"]]), training=False)
)
fault("a text", IndexError, r"layer \[0\] linen Dense\(features=3\); inputs: 'abc'")(
    lambda model: model("abc", training=False)
)
fault(
    "a list of numbers, for Haiku",
    AttributeError,
    r"layer \[0\] haiku Linear\(3\); inputs: list\(1\.0, 2\.0, 3\.0\)",
)(lambda model: model[2]([1.0, 2.0, 3.0]))
MADE_FOR = r"inputs: float32\[2,4\]; its variables were made for: float32\[2,3\]"
fault(
    "another number of features, for linen",
    ScopeParamShapeError,
    r"\(4, 3\).*\(3, 3\)",
    r"layer \[0\] linen Dense.*" + MADE_FOR,
)(lambda model: model(jnp.ones((2, 4)), training=False))
fault(
    "another number of features, for Haiku",
    ValueError,
    r"\(3, 3\).*\[4, 3\]",
    r"layer \[0\] haiku Linear.*" + MADE_FOR,
)(lambda model: model[2](jnp.ones((2, 4))))
fault(
    "another number of features, for Equinox",
    TypeError,
    r"\(3,\) and \(4,\)",
    r"layer \[0\] equinox Linear.*\[2,4\]",
)(lambda model: model[5](jnp.ones((2, 4))))
fault(
    "another number of features, compiled",
    ScopeParamShapeError,
    r"\(4, 3\).*\(3, 3\)",
    r"layer \[0\] linen Dense.*" + MADE_FOR,
)(lambda model: sb.jit(model)(jnp.ones((2, 4)), training=False))
fault(
    "one example for a layer that is mapped",
    ValueError,
    r"mapped over 3 of them",
    r"\[0\] equinox Linear.*float32\[3\]",
)(lambda model: model[5](jnp.ones(3)))
fault(
    "a scalar for a layer that is mapped",
    ValueError,
    r"one leading axis, the batch; got shapes \(\).*per_example=False",
)(lambda model: model[5](jnp.ones(())))
fault(
    "a sequence for a layer that is mapped",
    TypeError,
    r"per_example=2",
    r"inputs: float32\[2,2,2\]",
)(lambda model: model[5](jnp.ones((2, 2, 2))))


@design("a batch of no examples leaves the statistics alone")
def an_empty_batch_leaves_the_statistics_alone() -> None:
    for norm in (
        nn.BatchNorm(), nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
        keras.layers.BatchNormalization(),
    ):  # fmt: skip
        kept = Kept(filled(sb.Sequential([norm]).build((2, 3))))
        assert kept.model(jnp.zeros((0, 3)), training=True).shape == (0, 3)
        kept.check()


@design("a batch of one example has a variance of zero")
def a_batch_of_one_has_a_variance_of_zero() -> None:
    # No library warns of it, and the core knows none of them.
    model = filled(sb.Sequential([nn.BatchNorm(momentum=0.5)]).build((1, 3)))
    var = model[0].var.value
    model(jnp.ones((1, 3)), training=True)
    assert jnp.allclose(model[0].var.value, var / 2)


@design("an index that is out of range gives what the library gives")
def an_index_out_of_range_gives_what_the_library_gives() -> None:
    model = sb.Sequential([nn.Embed(3, 2)]).build(jax.ShapeDtypeStruct((2,), jnp.int32))
    assert jnp.isnan(model(jnp.array([0, 7]))).tolist() == [[False, False], [True, True]]


@design("a tuple is spread and a dict is one value")
def a_tuple_is_spread_and_a_dict_is_not() -> None:
    assert jnp.array_equal(sb.Sequential([lambda x: (x, x), jnp.add])(X), 2 * X)
    assert jnp.array_equal(sb.Sequential([lambda x: {"a": x}, lambda d: d["a"]])(X), X)


fault("None from the layer before", TypeError, r"layer \[1\] function tanh; inputs: None$")(
    lambda: sb.Sequential([lambda x: None, jnp.tanh])(X)
)
fault("nothing from the layer before", TypeError, r"layer \[1\] \(function tanh\) needs 'x'")(
    lambda: sb.Sequential([lambda x: (), jnp.tanh])(X)
)
fault(
    "a dict from the layer before",
    TypeError,
    r"layer \[1\] function tanh; inputs: dict\(float32\[2,3\]\)",
)(lambda: sb.Sequential([lambda x: {"a": x}, jnp.tanh])(X))
fault(
    "a shape that depends on data, compiled",
    IndexError,
    "must be concrete",
    r"layer \[1\] function <lambda>; inputs",
)(lambda: sb.jit(sb.Sequential([jnp.tanh, lambda x: x[x > 0]]))(X))


@design("a shape that depends on data, not compiled")
def a_shape_may_depend_on_data_outside_of_jit() -> None:
    assert sb.Sequential([jnp.tanh, lambda x: x[x > 0]])(X).shape == (3,)


@fault("a lazy layer whose first call is compiled", RuntimeError, *TRACED)
def call_a_lazy_layer_first_inside_of_jit() -> None:
    layer = keras.layers.Dense(3)
    try:
        sb.jit(sb.Sequential([layer]))(X)
    finally:
        assert not layer.built


class Drift(nn.Module):
    """Its state becomes something else in a call."""

    to: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        state = self.variable("batch_stats", "state", lambda: jnp.ones(2))
        if not self.is_initializing():
            state.value = self.to
        return x


def drift(to: Any, *, compiled: bool) -> None:
    model = sb.Sequential([nn.BatchNorm(), Drift(to)]).build((2, 3))
    values = model.variables
    try:
        (sb.jit(model) if compiled else model)(X, training=True)
    finally:
        assert jax.tree.all(jax.tree.map(jnp.array_equal, model.variables, values))


STATE = r"\(Sequential\)\[1\]\(Drift\)\.state"
for how in ("eager", "compiled"):
    late = partial(drift, compiled=how == "compiled")
    fault(
        f"a state of another dtype, {how}",
        TypeError,
        STATE + " was float32 and would become bfloat16: a state keeps",
    )(lambda late=late: late(jnp.ones(2, jnp.bfloat16)))
    fault(
        f"a state of another shape, {how}",
        ValueError,
        STATE + r" has shape \(2,\): can't assign shape \(3,\)",
    )(lambda late=late: late(jnp.ones(3)))
    fault(
        f"a state of another structure, {how}",
        KeyError,
        r"the state of linen Drift.*unknown: batch_stats/state/a",
    )(lambda late=late: late({"a": jnp.ones(2)}))
    fault(
        f"a state that is a number, {how}",
        ValueError,
        STATE + r" has shape \(2,\): can't assign shape \(\)",
    )(lambda late=late: late(1.0))


@pytest.mark.parametrize("row", table, ids=name_of)
def test_faults(row: Row, tmp_path: Path) -> None:
    row.check(tmp_path)


def test_that_check_can_fail() -> None:
    model = filled(sb.Sequential([nn.Dense(3), scale]).build((2, 3)))
    for change in (
        lambda m: m[0].bias.assign(m[0].bias.value + 1),
        lambda m: m.pop(),
        lambda m: setattr(m[0].bias, "trainable", False),
        lambda m: m.__setitem__(0, copy.deepcopy(m[0])),
    ):
        kept = Kept(copy.deepcopy(model))
        kept.check()
        change(kept.model)
        with pytest.raises(AssertionError, match="has changed"):
            kept.check()
    for row in (
        Row("no error", TypeError, (), lambda: None),
        Row("other words", TypeError, ("no such words",), lambda: sb.Sequential(3)),
        Row("a change", None, (), lambda model: model[0].bias.assign(model[0].bias.value + 1)),
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            row.check(Path())
