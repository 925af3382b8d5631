"""Faults of the keywords of a call, of modes and keys, and of edits after the build."""

from __future__ import annotations

import copy
import re
import threading
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
from helpers import equal, scale

table = Table()
fault, design = table.fault, table.design


# Keywords

TAKEN = (
    r"Keywords that are taken: factor \(\[1\]\(scale\)\); "
    r".*use_running_average \(\[3\]\(BatchNorm\)\)"
)
fault(
    "a misspelt keyword",
    TypeError,
    r"no layer takes the keyword 'facter'; did you mean 'factor'\?",
    TAKEN,
)(lambda model: model(X, training=False, facter=2.0))
fault(
    "a key by another name at a first call",
    TypeError,
    "the keyword 'key'; did you mean 'rng', the key of a call",
)(lambda: sb.Sequential([nn.Dense(3), nn.Dropout(0.5)])(X, training=True, key=jax.random.key(0)))
fault(
    "a key by its name at a build",
    TypeError,
    r"the keyword 'rng'; a call takes it, .*, and build takes key=",
)(lambda model: model.build((2, 3), rng=0))
fault(
    "one key for all examples of a plain vmap",
    RuntimeError,
    r"\.rng is assigned inside jax.vmap.*sb\.vmap",
)(
    lambda model: jax.vmap(
        lambda x: model(x[None], training=True, per_layer={3: {"training": False}})
    )(X)
)
fault("a misspelt keyword, compiled", TypeError, r"'facter'; did you mean 'factor'\?", TAKEN)(
    lambda model: sb.jit(model)(X, training=False, facter=2.0)
)
fault(
    "a misspelt keyword of one layer",
    TypeError,
    r"layer \[1\]\(scale\) doesn't take the keyword 'facter'.*'factor'",
)(lambda model: model(X, training=False, per_layer={1: {"facter": 2.0}}))
for word in ("mutable", "method", "variables", "params", "state", "self"):
    fault(
        f"the keyword {word} of a library's own call",
        TypeError,
        f"no layer takes the keyword '{word}'",
        TAKEN,
    )(lambda model, word=word: model(X, training=False, **{word: 1}))
for word in ("key", "rngs"):
    fault(
        f"a key under the name {word}",
        TypeError,
        f"the keyword '{word}'; did you mean 'rng', the key of a call",
    )(lambda model, word=word: model(X, training=False, **{word: jax.random.key(0)}))
fault(
    "a required keyword is missing",
    TypeError,
    r"layer \[1\] \(function shift\) needs 'offset': .*, offset=.*'ofset'",
)(lambda: sb.Sequential([scale, shift, jnp.tanh])(X, ofset=1.0))


def shift(x: Any, *, offset: Any, **options: Any) -> Any:
    return x + offset


MODE = (
    r"pass training=True or training=False: the mode decides what "
    r".*\[3\]\(BatchNorm\) \(linen\), .*\[4\]\(Dropout\) \(linen\)"
)
fault("a call without a mode", TypeError, MODE, r"set the mode in the layer's constructor")(
    lambda model: model(X)
)
fault("a compiled call without a mode", TypeError, MODE)(lambda model: sb.jit(model)(X))


@design("a keyword that two layers take goes to both, and one layer can be addressed")
def a_shared_keyword_goes_to_both_layers_or_to_one() -> None:
    model = sb.Sequential({"a": scale, "b": partial(scale)})
    assert equal(model(X, factor=2.0), 4 * X)
    assert equal(model(X, factor=2.0, per_layer={"b": {"factor": 3.0}}), 6 * X)


fault(
    "an unknown layer is addressed",
    KeyError,
    "per_layer: no layer is called 'skale'; did you mean 'scale'",
)(lambda: sb.Sequential({"scale": scale})(X, per_layer={"skale": {}}))
fault(
    "a position that isn't there is addressed", IndexError, "there is no layer 9; the model has 6"
)(lambda model: model(X, training=False, per_layer={9: {}}))
fault(
    "a layer is addressed twice", TypeError, "per_layer: -5 is a layer that stands in it already"
)(lambda model: model(X, training=False, per_layer={1: {"factor": 2.0}, -5: {"factor": 3.0}}))
fault(
    "a misspelt keyword of what is frozen",
    TypeError,
    "no layer takes the keyword 'traning'; did you mean 'training'",
)(lambda model: sb.freeze(model, traning=True))
fault("per_layer without keywords", TypeError, "per_layer: 1 needs a dict of keywords, got float")(
    lambda model: model(X, training=False, per_layer={1: 2.0})
)
fault(
    "a list as per_layer",
    TypeError,
    "per_layer= takes a dict from the names or positions of layers .*, not list",
)(lambda model: model(X, training=False, per_layer=[{"factor": 2.0}]))
fault("a list as per_layer of a build", TypeError, "per_layer= takes a dict .*, not list")(
    lambda: sb.Sequential([scale]).build((2, 3), per_layer=[{"factor": 2.0}])
)


@design("a layer with free keywords gets all, and so takes any misspelt one")
def a_layer_with_free_keywords_takes_a_misspelt_one() -> None:
    got: dict[str, Any] = {}
    sb.Sequential([lambda x, **options: got.update(options) or x])(X, anything=1)
    assert got == {"anything": 1}


# Modes

fault(
    "a mode by position",
    TypeError,
    r"inputs: .*, True.*the mode of a call is given by name: training=True",
)(lambda: sb.Sequential([nn.Dense(3)])(X, True))
fault("a mode that is no bool", TypeError, "training= is True, False or None, not 'yes'")(
    lambda model: model(X, training="yes")
)
fault(
    "a traced mode",
    TypeError,
    r"training= is True, False or None, not .*bool\[\].*make it a static argument; sb\.jit",
)(lambda model: jax.jit(lambda x, training: model(x, training=training))(X, True))


@design("one flag is the mode of every library, whichever way round")
def one_flag_is_the_mode_of_every_library() -> None:  # each flag by itself: test_keywords.py
    for layer in (
        nn.Dropout(0.9), nnx.Dropout(0.9), eqx.nn.Dropout(0.9), keras.layers.Dropout(0.9),
        stax.Dropout(0.1), lambda x, is_training: x * 0 if is_training else x,
        lambda x, deterministic: x if deterministic else x * 0,
    ):  # fmt: skip
        model = sb.Sequential([layer])
        assert bool((model(jnp.ones((8, 8)), training=True) == 0).any())
        assert equal(model(jnp.ones((8, 8)), training=False), jnp.ones((8, 8)))


@design("bools, strings and None are static")
def bools_strings_and_none_are_static() -> None:
    traces: list[Any] = []

    def choose(x: Any, how: Any = None) -> Any:
        traces.append(how)
        return x if how else -x

    compiled = sb.jit(sb.Sequential([choose]).build((2, 3)))
    traces.clear()
    given = (True, "text", None)
    for how in given:
        assert equal(compiled(X, how=how), X if how else -X)
    # Each is compiled once, and traced once more to see what the function uses.
    assert tuple(dict.fromkeys(traces)) == given
    assert len(traces) <= 6
    traces.clear()
    for how in given:
        assert equal(compiled(X, how=how), X if how else -X)
    assert not traces


# Static arguments


def evaluate(model: sb.Sequential, x: Any, option: Any) -> Any:
    return model(x, training=False)


UNHASHABLE = "is static, and a static argument must be hashable: unhashable type: 'list'"
fault("a text for a switch", TypeError, "donate= is True or False, not 'no'")(
    lambda model: sb.jit(model, donate="no")  # pyright: ignore
)
fault("an unknown way of an uneven batch", ValueError, "uneven= is 'auto' or 'error', not 'pad'")(
    lambda model: sb.jit(model, uneven="pad")
)
fault(
    "an unknown argument is to be split",
    TypeError,
    "argument 'images', but the function takes no 'images'",
)(lambda: sb.jit(lambda model, image: model(image), batch_kwargs=["images"]))
fault(
    "a model as the result",
    TypeError,
    "returns Sequential, whose variables are changed in place: return arrays",
)(lambda model: sb.jit(lambda model, x: (model, model(x, training=False)))(model, X))
fault("a static list", TypeError, f"argument 'option' {UNHASHABLE}. Give a tuple")(
    lambda model: sb.jit(evaluate, static_argnames=["option"])(model, X, option=[1, 2])
)
fault("a static list by its position", TypeError, f"argument 2 {UNHASHABLE}. Give a tuple")(
    lambda model: sb.jit(evaluate, static_argnames="option")(model, X, [1, 2])
)
fault(
    "a set",
    TypeError,
    r"\{1\} \(set\) is no array, so it is static, and .* must be hashable: give a tuple or a "
    r"frozen",
)(lambda model: sb.jit(evaluate)(model, X, {1}))
fault("a set in a list, by keyword", TypeError, r"\{1\} \(set\) is no array, so it is static")(
    lambda model: sb.jit(evaluate)(model, X, option=[{1}])
)
fault("a set in a call that is frozen", TypeError, r"\{1\} \(set\) is no array, so it is static")(
    lambda model: sb.freeze(model)(X, factor={1})
)
fault(
    "a static argument that isn't there",
    TypeError,
    "told of an argument 'optoin', .* takes no 'optoin'.*mean 'option'",
)(lambda model: sb.jit(evaluate, static_argnames=["optoin"])(model, X, 1))


@design("what is no array need not be hashable where nothing is compiled")
def an_unhashable_keyword_is_allowed_outside_of_jit(model: sb.Sequential) -> None:
    assert equal(sb.remat(evaluate)(model, X, {1}), model(X, training=False))


@design("many values of a static argument are warned of once, and programs are not kept for ever")
def many_values_of_a_static_argument_are_warned_of_once() -> None:
    traces: list[Any] = []
    compiled = sb.jit(lambda x, how: traces.append(how) or x)
    for i in range(64):
        compiled(1.0, str(i))
    with pytest.warns(
        UserWarning,
        match="was compiled 65 times. .* is static .*: give as an array what changes often",
    ):
        compiled(1.0, "64")
    compiled(1.0, "65")  # a second warning would be an error here
    compiled(1.0, "65")
    assert len(traces) == 66
    compiled(1.0, "0")  # the oldest is gone
    assert len(traces) == 67


# Keys


def noise(x: Any, rng: Any) -> Any:
    return x + jax.random.normal(rng, x.shape)


def dropped(x: Any) -> Any:
    return x * jax.random.bernoulli(hk.next_rng_key(), 0.5, x.shape).astype(x.dtype)


for layer, text in (
    (nn.Dropout(0.5), "linen Dropout"),
    (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), "nnx Dropout"),
    (eqx.nn.Dropout(0.5), "equinox Dropout"),
    (keras.layers.Dropout(0.5), "keras Dropout"),
    (stax.Dropout(0.5), "stax Dropout"),
    (hk.transform(dropped), "haiku transform"),
    (noise, "function noise"),
):

    def draw(layer: Any = layer) -> None:
        model = sb.Sequential([jnp.tanh, layer]).build((2, 3))
        model.apply(model.variables, X, training=True)

    fault(
        f"a pure call of {text} without a key",
        TypeError,
        "draws random numbers: give a key, rng=key",
        re.escape(f"[1] {text}"),
    )(draw)


@design("a layer that is called alone takes the next key of its model, from the first call on")
def a_layer_that_is_called_alone_takes_the_next_key() -> None:
    model = sb.Sequential([nn.Dense(3), nn.Dropout(0.5)]).build((2, 3))
    ones = jnp.ones((64, 3))
    first, second = (model[1](ones, training=True) for _ in range(2))
    assert not equal(first, second)
    model = sb.Sequential([nn.Dense(3), nn.Dropout(0.5)]).build((2, 3))
    assert equal(model[1](ones, training=True), first)


@design("no key is used twice")
def no_key_is_used_twice() -> None:
    with jax.debug_key_reuse(True):
        model = sb.Sequential([nn.Dropout(0.5), noise, nn.Dropout(0.5)]).build((2, 3))
        assert not equal(model(X, training=True), model(X, training=True))


# Edits


@design("layers that stay keep their variables, under the names that an optimizer sees")
def layers_that_stay_keep_their_variables() -> None:
    model = filled(sb.Sequential({"a": nn.Dense(3), "b": nn.Dense(3), "c": jnp.tanh}).build((2, 3)))
    optimizer = sb.Optimizer(model, optax.sgd(0.1, momentum=0.9))
    optimizer.update({name: jnp.ones_like(v.value) for name, v in model.vars().items()})
    a, b, state = (
        model.a.kernel,
        model.b.kernel,
        optimizer.vars()["(Optimizer).0.trace.(Sequential).b(Dense).kernel"],
    )
    model.reverse()
    model.insert(0, scale)
    model["c"] = jnp.sin
    del model["a"]
    assert model.b.kernel is b
    assert list(model.vars()) == ["(Sequential).b(Dense).bias", "(Sequential).b(Dense).kernel"]
    assert optimizer.vars()["(Optimizer).0.trace.(Sequential).b(Dense).kernel"] is state
    assert a.name != b.name


@fault(
    "what follows doesn't fit any more",
    ScopeParamShapeError,
    r"\[1\] linen Dense.*float32\[2,5\]; .*made for: float32\[2,4\]",
)
def an_edit_leaves_a_later_layer_that_does_not_fit() -> None:
    model = sb.Sequential([nn.Dense(4), nn.Dense(2)]).build((2, 3))
    kernel = model[1].kernel
    model[0] = nn.Dense(5)
    assert model[0].kernel.shape == (3, 5)
    assert model[1].kernel is kernel  # which is never drawn again silently
    model(X)


@design("what was deleted comes back as the layer that it was, or as a new one of its entry")
def a_deleted_layer_comes_back_as_itself_or_anew() -> None:
    entry = nn.Dense(3)
    model = filled(sb.Sequential([entry, jnp.tanh]).build((2, 3)))
    layer = model.pop(0)
    model.insert(0, layer)
    assert float(model[0].kernel.value[0, 0]) == 0.5
    del model[0]
    model.insert(0, entry)
    assert float(model[0].kernel.value[0, 0]) != 0.5
    assert float(layer.kernel.value[0, 0]) == 0.5


for index in (6, -7, 1.5, None, (0,)):
    for what, do in (
        ("read", lambda items, index: items[index]),
        ("replaced", lambda items, index: items.__setitem__(index, jnp.tanh)),
        ("deleted", lambda items, index: items.__delitem__(index)),
        ("popped", lambda items, index: items.pop(index)),
    ):

        def as_a_list(model: sb.Sequential, index: Any = index, do: Any = do) -> None:
            with pytest.raises((IndexError, TypeError)) as wanted:
                do(list(model), index)
            with pytest.raises(type(wanted.value)) as found:
                do(model, index)
            assert str(found.value) == str(wanted.value)

        design(f"position {index} is {what} as in a list")(as_a_list)

fault("a step of zero", ValueError, "slice step cannot be zero")(lambda model: model[::0])
fault(
    "a name that isn't there",
    KeyError,
    r"no layer is called 'dens'; .*extend\(\{'dens': \.\.\.\}\)",
)(lambda model: model["dens"])
fault(
    "an extended slice of another length",
    ValueError,
    "sequence of size 2 to extended slice of size 3",
)(lambda model: model.__setitem__(slice(None, None, 2), [jnp.tanh] * 2))
fault("extend with one bad entry", TypeError, r"3 .* is no entry", "entry 1 of the 3")(
    lambda model: model.extend([nn.Dense(2), 3, nn.Dense(2)])
)


@fault("extend by a generator that raises", ZeroDivisionError, "division")
def extend_by_a_generator_that_raises(model: sb.Sequential) -> None:
    model.extend(jnp.tanh if i < 2 else 1 // 0 for i in range(4))


fault(
    "an edit inside sb.jit",
    RuntimeError,
    "an edit of a model inside a JAX transform .* is refused: .* Do it before",
)(lambda model: sb.jit(lambda model, x: model.append(jnp.tanh))(model, X))
fault(
    "an edit inside jax.jit",
    RuntimeError,
    "an edit of a model inside a JAX transform .* is refused",
)(lambda model: jax.jit(lambda x: model.pop())(X))


@design("an iteration goes over the list as it was when it began")
def an_iteration_ignores_later_edits() -> None:
    model = sb.Sequential([jnp.tanh, scale])
    seen = []
    for layer in model:
        seen.append(layer)
        del model[0]
    assert [layer.pure.text for layer in seen] == ["tanh", "scale"]
    assert len(model) == 0


class Editor:
    """A layer that edits its own model, which no search finds in a class attribute."""

    model: Any = None

    def __call__(self, x: Any) -> Any:
        if len(Editor.model) == 3:
            Editor.model.pop()
        return x


@design("a call runs the list as it was when it began")
def a_running_call_ignores_edits() -> None:
    Editor.model = sb.Sequential([scale, Editor(), lambda x: 2 * x])
    Editor.model.append(jnp.tanh)
    assert len(Editor.model) == 4
    del Editor.model[0]
    assert equal(Editor.model(X), jnp.tanh(2 * X))
    assert len(Editor.model) == 2
    assert equal(Editor.model(X), 2 * X)


@design("an edit waits for the call of another thread")
def an_edit_waits_for_the_call_of_another_thread() -> None:
    inside, edited = threading.Event(), threading.Event()

    def slow(x: Any) -> Any:
        inside.set()
        assert not edited.wait(0.2)  # it has tried for so long
        return x

    model = sb.Sequential([slow, scale])

    def edit() -> None:
        inside.wait(10)
        model.append(jnp.tanh)
        edited.set()

    thread = threading.Thread(target=edit)
    thread.start()
    assert equal(model(X), X)
    thread.join(10)
    assert equal(sb.Sequential(list(model)[1:])(X), jnp.tanh(X))


@design("a compiled function sees an edit")
def a_compiled_function_sees_an_edit() -> None:
    model = sb.Sequential([partial(scale, factor=2.0)])
    compiled = sb.jit(model)
    assert equal(compiled(X), 2 * X)
    model[0] = partial(scale, factor=6.0)
    assert equal(compiled(X), 6 * X)
    model.append(jnp.negative)
    assert equal(compiled(X), -6 * X)


class Times:
    """A callable with an attribute that may be changed."""

    factor = 2.0

    def __call__(self, x: Any) -> Any:
        return x * self.factor


@design(
    "what a module is was decided when it joined, and what a function holds when it was compiled"
)
def modules_are_read_when_they_join_and_closures_when_compiled() -> None:
    # Attributes of modules are read once, so that eager and compiled calls agree. Those of any
    # callable object can't be watched; a compiled function keeps them, as `jax.jit` does. A new
    # entry is seen by both.
    module = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model = sb.Sequential([module])
    before = model(X, rng=0, training=True)
    module.rate = 1.0
    assert equal(model(X, rng=0, training=True), before)
    times = Times()
    model = sb.Sequential([times])
    compiled = sb.jit(model)
    assert equal(compiled(X), 2 * X)
    times.factor = 3.0
    assert equal(model(X), 3 * X)
    assert equal(compiled(X), 2 * X)
    model[0] = Times()
    model[0].entry.factor = 3.0
    assert equal(compiled(X), 3 * X)


@design("positions stand in names, and names of one's own go where their layers go")
def given_names_go_where_their_layers_go(folder: Path) -> None:
    layers = {"a": nn.Dense(3), "b": nn.Dense(3)}
    model = filled(sb.Sequential(layers).build((2, 3)))
    model.a.bias.assign(jnp.zeros(3))
    model.save(folder / "file")
    other = sb.Sequential(layers).build((2, 3))
    other.reverse()
    other.load(folder / "file")
    assert equal(other.a.bias.value, jnp.zeros(3))
    assert equal(other.b.bias.value, model.b.bias.value)
    assert (
        next(iter(sb.Sequential([nn.Dense(3)]).build((2, 3)).vars()))
        == "(Sequential)[0](Dense).bias"
    )


@fault(
    "gradients from before an edit",
    KeyError,
    "gradients don't belong to .* missing: .*\\[1\\]\\(Dense\\)\\.kernel",
)
def apply_gradients_from_before_an_edit() -> None:
    model = filled(sb.Sequential([nn.Dense(3)]).build((2, 3)))
    optimizer = sb.Optimizer(model, optax.sgd(0.1))
    gradients = {name: jnp.ones_like(v.value) for name, v in model.vars().items()}
    model.append(nn.Dense(2))
    kept = Kept(model)
    try:
        optimizer.update(gradients)
    finally:
        kept.check()


def loss(model: sb.Sequential, x: Any = X) -> Any:
    return model(x, training=False).sum()


@fault(
    "a gradient of another shape",
    ValueError,
    r"\[0\]\(Dense\)\.bias has shape \(3,\): its gradient can't .* \(2, 3\)",
)
def apply_a_gradient_of_another_shape(model: sb.Sequential) -> None:
    gradients = sb.grad(loss)(model)
    sb.Optimizer(model, optax.sgd(0.1)).update({**gradients, "(Sequential)[0](Dense).bias": X})


untyped: Any = sb  # what a type checker would refuse
BY_NAME = (
    r"an Optimizer knows its variables: write optimizer\.update\(gradients\), arrays by name; got "
)
fault("an update with the model", TypeError, BY_NAME + "dict, Sequential")(
    lambda model: untyped.Optimizer(model, optax.sgd(0.1)).update({}, model)
)
fault("an update without gradients", TypeError, BY_NAME + "NoneType")(
    lambda model: untyped.Optimizer(model, optax.sgd(0.1)).update(None)
)
fault(
    "an optimizer that wasn't called",
    TypeError,
    r"takes a gradient transformation that was made, such as adam\(1e-3\), not <function sgd",
)(lambda model: untyped.Optimizer(model, optax.sgd))
fault(
    "the arguments of an optimizer in the wrong order",
    TypeError,
    "takes a model, a layer or a collection, and then",
)(lambda model: untyped.Optimizer(optax.sgd(0.1), model))
fault(
    "gradients of a number",
    TypeError,
    "gradients are of a function of models, or of a model, not of int",
)(lambda model: untyped.grad(3))
fault("gradients of a vector", TypeError, r"scalar-output functions. Output had shape: \(2, 3\)")(
    lambda model: sb.grad(lambda model: model(X, training=False))(model)
)
fault(
    "gradients of one value where two are wanted",
    TypeError,
    "has_aux=True wants a pair of a scalar and anything, and got",
)(lambda model: sb.grad(loss, has_aux=True)(model))
fault(
    "gradients of nothing",
    ValueError,
    r"nothing to differentiate: .* no trainable variable that wrt= lets through",
)(lambda model: sb.grad(loss, wrt="kernal")(model))
fault("a map over nothing", ValueError, "vmap: no argument is an array that could be mapped over")(
    lambda model: sb.vmap(loss)(model)
)
fault(
    "a model in a carry",
    TypeError,
    "carries arrays: name the Sequential in vars=, and close over it",
)(lambda model: sb.scan(lambda c, _: ((c[0], c[0](c[1])), None), (model, X), None, 3, vars=model))
fault(
    "axes that don't fit the arguments", ValueError, "vmap: in_axes= says 1 axes for 2 arguments"
)(lambda model: sb.vmap(loss, in_axes=(0,))(model, X))


fault(
    "an optimizer of nothing", ValueError, "nothing to update: wrt='conv' lets no variable through"
)(lambda model: sb.Optimizer(model, optax.sgd(0.1), wrt="conv"))
fault(
    "a rate of an optimizer",
    AttributeError,
    r"no 'lr': set optimizer\.transformation, or .* schedule",
)(lambda model: setattr(sb.Optimizer(model, optax.sgd(0.1)), "lr", 0.2))
fault(
    "an optimizer is asked to be trained",
    AttributeError,
    r"an Optimizer isn't trained: set model\.trainable",
)(lambda model: setattr(sb.Optimizer(model, optax.sgd(0.1)), "trainable", False))


@design("an optimizer for what isn't there yet, or is frozen for now")
def an_optimizer_may_be_for_what_is_unbuilt_or_frozen() -> None:
    model = sb.Sequential([nn.Dense(3)])
    optimizer = sb.Optimizer(model.vars(), optax.sgd(0.1), wrt="kernel")
    model.build((2, 3)).trainable = False
    other = sb.Optimizer(model, optax.sgd(0.1), wrt="kernel")
    model.trainable = True
    for each in (optimizer, other):
        before = model[0].kernel.value
        each.update(
            {name: jnp.ones_like(v.value) for name, v in model.vars().subset("kernel").items()}
        )
        assert not equal(model[0].kernel.value, before)


@fault(
    "a part without a variable is frozen",
    ValueError,
    r"this collection is empty: print\(model\.vars\(\)\) shows",
)
def freeze_a_part_without_variables(model: sb.Sequential) -> None:
    model.vars().subset("weights").trainable = False


@fault(
    "the variables of what isn't built are frozen",
    RuntimeError,
    "isn't built, so nothing is there to freeze",
)
def freeze_variables_before_the_build() -> None:
    sb.Sequential([nn.Dense(3)]).vars().subset("kernel").trainable = False


@fault(
    "one copy is frozen",
    AttributeError,
    "the copies are trained together: set it of what repeats them",
)
def freeze_one_copy_of_a_repeated_layer() -> None:
    sb.Repeat(nn.Dense(3), 2)[0].trainable = False


@fault("a text as trainable", TypeError, "trainable is True or False, not 'no'")
def set_trainable_to_a_text(model: sb.Sequential) -> None:
    model[0].bias.trainable = "no"


@design("a slice shares its variables, and a deep copy has its own")
def a_slice_shares_variables_and_a_deep_copy_does_not() -> None:
    model = filled(sb.Sequential([nn.Dense(3), nn.Dense(3)]).build((2, 3)))
    assert model[:1][0].kernel is model[0].kernel
    assert (model + [scale])[1] is model[1]  # noqa: RUF005
    assert copy.deepcopy(model)[0].kernel is not model[0].kernel


@pytest.mark.parametrize("row", table, ids=name_of)
def test_faults(row: Row, tmp_path: Path) -> None:
    row.check(tmp_path)


class Twice(sb.Sequential):
    def __call__(self, x: Any, **keywords: Any) -> Any:
        return 2 * super().__call__(x, **keywords)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: sb.Sequential([model]),
        lambda model: sb.Sequential().append(model),
        lambda model: model.apply(model.variables, X),
        lambda model: model.init(0, X),
        lambda model: model.trace(X),
        sb.freeze,
        lambda model: sb.to_pure(model)[0](0, X),
        sb.to_linen,
        lambda model: sb.to_equinox(model, (2, 3)),
    ],
)
def test_a_call_of_a_subclass_is_not_passed_over(use: Any) -> None:
    """By what runs the layers one by one. The model itself, and the transforms, call it."""
    model = Twice([nn.Dense(2)]).build((2, 3))
    with pytest.raises(
        TypeError, match=r"Twice has a __call__ of its own, .* Put what it does into the list"
    ):
        use(model)
    once = model[:]
    np.testing.assert_array_equal(model(X), 2 * sb.Sequential([*once])(X))
    np.testing.assert_array_equal(sb.jit(model)(X), model(X))
