"""A model as a Python list: positions, slices, names, sharing, and atomic edits."""

# A list and a model are joined by `+` here, since that is what is tested.
# ruff: noqa: RUF005

import copy
import dataclasses
import gc
import pickle
import re
from collections.abc import MutableSequence
from functools import partial
from typing import Any

import cloudpickle
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.core import Tracer

import seqbridge as sb
from helpers import linear

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


def f(x):
    return x + 1


def g(x):
    return x * 2


def h(x):
    return x - 3


class Tower(sb.Sequential):
    """A subclass, with a constructor and an attribute of its own."""

    def __init__(self, depth, entries):
        super().__init__(entries)
        self.depth = depth


def narrow(n):
    """A layer that can only be built for `n` features."""

    def init(key, x):
        assert x.shape[-1] == n, f"{n} features wanted, got {x.shape[-1]}"
        return {"params": {}}

    return dataclasses.replace(linear(n), init=init, label="narrow")


def entries(model):
    return [item if isinstance(item, sb.Sequential) else item.entry for item in model]


def the_same(items, others):
    """Whether two lists hold the same objects in the same order."""
    items, others = list(items), list(others)
    return len(items) == len(others) and all(a is b for a, b in zip(items, others, strict=True))


class Snapshot:
    """All that an edit may change, to see that a failing one changed nothing."""

    def __init__(self, model):
        self.model = model
        self.now = self.take()

    def take(self):
        m = self.model
        inner = tuple(tuple(item) for item in m if isinstance(item, sb.Sequential))
        return (
            tuple(m),
            inner,
            m.names,
            m.built,
            tuple(m.vars()),
            tuple(m.vars().values()),
            *m.vars().tensors().values(),
        )

    def check(self):
        now = self.take()
        assert len(now) == len(self.now)
        for a, b in zip(now, self.now, strict=True):
            assert a is b or a == b


def raised(function, *args):
    try:
        function(*args)
    except Exception as error:
        return error
    return None


# What a model is built from


@pytest.mark.parametrize(
    "given",
    [
        ([f, g],),
        (f, g),
        ((f, g),),
        (iter([f, g]),),
        ((e for e in (f, g)),),
        (sb.Sequential([f, g]),),
    ],
    ids=["list", "*layers", "tuple", "iterator", "generator", "Sequential"],
)
def test_a_model_is_made_from_a_list_or_from_its_layers(given):
    model = sb.Sequential(*given)
    assert the_same(entries(model), [f, g])
    assert model.names == (None, None)
    np.testing.assert_array_equal(model(X), (X + 1) * 2)


def test_one_entry_needs_no_list():
    assert the_same(entries(sb.Sequential(f)), [f])
    assert [type(e) for e in entries(sb.Sequential(nn.Dense(2)))] == [nn.Dense]


def test_a_mapping_gives_names():
    model = sb.Sequential({"up": f, "double": g})
    assert model.names == ("up", "double")
    assert model["up"] is model[0] is model.up
    assert model["double"].entry is g
    np.testing.assert_array_equal(model(X), (X + 1) * 2)


def test_a_model_made_from_a_model_has_its_layers_and_names():
    first = sb.Sequential({"up": linear(3), "double": g}).build((1, 3))
    model = sb.Sequential(first)
    assert model is not first
    assert the_same(model, first)
    assert model.names == ("up", "double")
    other = sb.Sequential([h])
    other.extend(first)
    assert other.names == (None, "up", "double")
    assert other.up is first.up


def test_an_empty_model_is_the_identity_and_false():
    model = sb.Sequential()
    assert the_same(model, sb.Sequential([]))
    assert not model
    assert len(model) == 0
    assert model(X) is X
    assert repr(model) == "Sequential()"


def test_a_layer_keeps_what_the_user_gave():
    dense = nn.Dense(2)
    transform = hk.transform(lambda x: x)
    given = [f, dense, transform, partial(hk.Linear, 2), partial(f), linear(2)]
    model = sb.Sequential(given)
    assert the_same(entries(model), given)
    assert all(type(layer) is sb.Layer for layer in model)
    layer = sb.Layer(f)
    assert sb.Sequential([layer])[0] is layer


# Reading


def test_a_model_is_a_mutable_sequence():
    model = sb.Sequential([f, g, h])
    assert isinstance(model, MutableSequence)
    assert not isinstance(model, list)
    assert len(model) == 3
    assert bool(model)
    assert the_same(entries(iter(model)), [f, g, h])
    assert the_same(entries(reversed(model)), [h, g, f])
    assert the_same([*model], list(model))


@pytest.mark.parametrize("index", [0, 2, -1, -3, True, np.int64(1)], ids=repr)
def test_positions_are_those_of_a_list(index):
    assert sb.Sequential([f, g, h])[index].entry is [f, g, h][index]


@pytest.mark.parametrize("index", [3, -4, 10**30, 1.0, None, (0,), np.float32(1)], ids=repr)
@pytest.mark.parametrize("what", ["get", "set", "delete", "pop"])
def test_a_wrong_position_raises_what_a_list_raises(what, index):
    plain, model = [f, g, h], sb.Sequential([f, g, h])
    before = Snapshot(model)
    edit = {
        "get": lambda items: items[index],
        "set": lambda items: items.__setitem__(index, f),
        "delete": lambda items: items.__delitem__(index),
        "pop": lambda items: items.pop(index),
    }[what]
    want, got = raised(edit, plain), raised(edit, model)
    assert type(got) is type(want)
    before.check()


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m[3],
        lambda m: m[-4],
        lambda m: m[1.0],
        lambda m: m[::0],
        lambda m: m["a":],
        lambda m: m.__setitem__(3, f),
        lambda m: m.__setitem__(slice(None, None, 2), [f]),
        lambda m: m.__setitem__(slice(None, None, -1), [f, g]),
        lambda m: m.__setitem__(slice(None, None, 0), [f]),
        lambda m: m.__delitem__(3),
        lambda m: m.__delitem__(slice(None, None, 0)),
        lambda m: m.pop(3),
        lambda m: m.pop(1.0),
        lambda m: m.insert(1.0, f),
        lambda m: m.insert("a", f),
        lambda m: m * 1.5,
        lambda m: m * "a",
    ],
)
def test_errors_of_positions_read_like_those_of_a_list(edit):
    model = sb.Sequential([f, g, h])
    before = Snapshot(model)
    want, got = raised(edit, [f, g, h]), raised(edit, model)
    assert type(got) is type(want)
    assert str(got).replace("Sequential", "list") == str(want)
    before.check()


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.__setitem__(0, f),
        lambda m: m[0],
        lambda m: m[-1],
        lambda m: m.pop(),
        lambda m: m.pop(0),
        lambda m: m.__delitem__(0),
        lambda m: m.remove(f),
        lambda m: m.index(f),
    ],
)
def test_errors_of_an_empty_model_are_those_of_an_empty_list(edit):
    want, got = raised(edit, []), raised(edit, sb.Sequential())
    assert type(got) is type(want)
    if isinstance(want, IndexError):
        assert str(got) == str(want)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.remove(h),
        lambda m: m.index(h),
        lambda m: m.index(f, 1),
        lambda m: m.index(f, 0, 0),
        lambda m: m.index(g, -1, 1),
        lambda m: m.index(f, "a"),
        lambda m: m.extend(3),
        lambda m: m.extend(None),
        lambda m: m.__setitem__(slice(0, 1), 3),
        lambda m: m.__iadd__(3),
        lambda m: m + 3,
        lambda m: 3 + m,
        lambda m: m * m,
    ],
)
def test_what_a_list_refuses_is_refused_with_the_same_type(edit):
    model = sb.Sequential([f, g])
    before = Snapshot(model)
    assert type(raised(edit, model)) is type(raised(edit, [f, g]))
    before.check()


def test_augmented_multiplication_refuses_what_a_list_refuses():
    model: Any = sb.Sequential([f, g])
    before = Snapshot(model)
    with pytest.raises(TypeError):
        model *= 1.5
    before.check()


# Search by identity


def test_search_takes_an_entry_or_a_layer_and_compares_by_identity():
    one, other = nn.Dense(4), nn.Dense(4)
    assert one == other
    model = sb.Sequential([one, f, other, f])
    assert [model.index(e) for e in (one, f, other)] == [0, 1, 2]
    assert [model.index(model[i]) for i in range(4)] == [0, 1, 2, 1]
    assert model.index(f, 2) == 3
    assert model.index(f, -3, -1) == 1
    assert model.index(f, -99, 99) == 1
    assert model.count(f) == model.count(model[1]) == 2
    assert model.count(one) == model.count(other) == 1
    assert one in model
    assert model[2] in model
    assert nn.Dense(4) not in model
    assert sb.Layer(one) not in model
    assert model.count(nn.Dense(4)) == 0
    with pytest.raises(ValueError, match="Dense"):
        model.index(nn.Dense(4))
    model.remove(other)
    assert the_same(entries(model), [one, f, f])
    model.remove(f)
    model.remove(model[-1])
    assert the_same(entries(model), [one])


def test_two_equal_modules_are_two_sets_of_variables():
    assert len(sb.Sequential([nn.Dense(3), nn.Dense(3)]).build((1, 3)).vars().tensors()) == 4


def test_search_finds_nested_models_by_identity():
    inner, twin = sb.Sequential([f]), sb.Sequential([f])
    model = sb.Sequential([g, inner])
    assert model.index(inner) == 1
    assert twin not in model
    assert f not in model


def test_models_are_equal_by_identity_and_hashable():
    model = sb.Sequential([f])
    assert model == model
    assert model != model[:]
    assert model != [model[0]]
    assert len({model, model[:], model}) == 2


# Edits


def edits():
    """Edits by name, each on a list or a model that starts as f, g, h."""
    return {
        "append": lambda m: m.append(f),
        "extend": lambda m: m.extend([g, f]),
        "extend by an iterator": lambda m: m.extend(iter([g, f])),
        "extend by itself": lambda m: m.extend(m),
        "insert": lambda m: m.insert(1, h),
        "insert at the end": lambda m: m.insert(99, g),
        "insert before the last": lambda m: m.insert(-1, f),
        "insert far before the start": lambda m: m.insert(-99, g),
        "set": lambda m: m.__setitem__(1, f),
        "set the last": lambda m: m.__setitem__(-1, f),
        "set a slice": lambda m: m.__setitem__(slice(1, 3), [f]),
        "set a slice from a generator": lambda m: m.__setitem__(
            slice(1, 2), (e for e in (h, h, f))
        ),
        "set an empty slice": lambda m: m.__setitem__(slice(1, 1), [h, h]),
        "set all": lambda m: m.__setitem__(slice(None), []),
        "set an extended slice": lambda m: m.__setitem__(slice(None, None, 2), [h, g]),
        "set a reversed slice": lambda m: m.__setitem__(slice(None, None, -1), [f, f, g]),
        "set a slice to itself": lambda m: m.__setitem__(slice(1, 2), m),
        "delete": lambda m: m.__delitem__(1),
        "delete the last": lambda m: m.__delitem__(-1),
        "delete a slice": lambda m: m.__delitem__(slice(0, 2)),
        "delete an extended slice": lambda m: m.__delitem__(slice(None, None, 2)),
        "pop": lambda m: m.pop(),
        "pop the first": lambda m: m.pop(0),
        "remove": lambda m: m.remove(g),
        "clear": lambda m: m.clear(),
        "reverse": lambda m: m.reverse(),
        "add in place": lambda m: m.__iadd__([h, f]),
        "multiply in place": lambda m: m.__imul__(2),
        "multiply in place by nothing": lambda m: m.__imul__(0),
        "multiply in place by a negative": lambda m: m.__imul__(-1),
    }


@pytest.mark.parametrize("name", edits())
def test_an_edit_does_what_it_does_to_a_list(name):
    plain, model = [f, g, h], sb.Sequential([f, g, h])
    layers = {layer.entry: layer for layer in model}
    edits()[name](plain)
    edits()[name](model)
    assert the_same(entries(model), plain)
    assert len(model.names) == len(model)
    for layer in model:
        if layer.entry in layers and name not in ("set all",):
            assert model.count(layer) == plain.count(layer.entry)
    want = X
    for function in plain:
        want = function(want)
    np.testing.assert_array_equal(model(X), want)


def test_add_is_append_as_keras_has_it():
    model = sb.Sequential()
    model.add(nn.Dense(8))
    model.add(nn.Dense(4))
    model.build((None, 16))
    assert model[0].kernel.shape == (16, 8)
    assert model[1].kernel.shape == (8, 4)
    assert model(jnp.ones((5, 16))).shape == (5, 4)


def test_pop_returns_the_layer_with_its_variables():
    model = sb.Sequential([linear(3), f, linear(2)]).build((1, 3))
    layer, w = model[2], model[2].w
    assert model.pop() is layer
    assert layer.w is w
    assert the_same(model.vars().values(), model[0].vars().values())
    assert model.pop(0).entry.label == "linear"
    assert len(model.vars()) == 0


@pytest.mark.parametrize(
    "bad", [3, None, "relu", {"a": f}, [f], b"x", object()], ids=lambda bad: type(bad).__name__
)
@pytest.mark.parametrize(
    "door",
    [
        lambda m, e: m.append(e),
        lambda m, e: m.add(e),
        lambda m, e: m.insert(0, e),
        lambda m, e: m.extend([f, e]),
        lambda m, e: m.__iadd__([f, e]),
        lambda m, e: m + [f, e],
        lambda m, e: [f, e] + m,
        lambda m, e: m.__setitem__(0, e),
        lambda m, e: m.__setitem__("g", e),
        lambda m, e: m.__setitem__(slice(0, 1), [f, e]),
        lambda m, e: sb.Sequential([f, e]),
        lambda m, e: sb.Sequential(f, e),
        lambda m, e: sb.Sequential({"f": f, "e": e}),
        lambda m, e: sb.Layer(e),
    ],
)
def test_every_door_refuses_what_is_no_entry_and_nothing_changes(door, bad):
    model = sb.Sequential({"lin": linear(3), "g": g}).build((1, 3))
    before = Snapshot(model)
    with pytest.raises(TypeError, match=re.escape(type(bad).__name__)) as error:
        door(model, bad)
    assert "give a module, a transform or a callable" in str(error.value)
    before.check()


def test_a_list_with_one_bad_item_names_the_item():
    with pytest.raises(TypeError) as error:
        sb.Sequential([f, g, 3])
    assert any("2" in note for note in error.value.__notes__)
    with pytest.raises(TypeError) as error:
        sb.Sequential({"f": f, "bad": 3})
    assert any("'bad'" in note for note in error.value.__notes__)


def test_an_iterator_that_fails_changes_nothing():
    def broken():
        yield f
        raise OSError("disk")

    model = sb.Sequential([g])
    before = Snapshot(model)
    for edit in (
        model.extend,
        model.__iadd__,
        model.__add__,
        partial(model.__setitem__, slice(0, 1)),
    ):
        with pytest.raises(OSError, match="disk"):
            edit(broken())
        before.check()


def test_an_edit_inside_a_transform_is_refused():
    model = sb.Sequential([linear(3), f]).build((1, 3))
    before = Snapshot(model)
    for edit in (
        lambda: model.append(g),
        model.reverse,
        model.clear,
        lambda: model.__setitem__(0, f),
    ):

        @jax.jit
        def traced(x, edit=edit):
            edit()
            return x

        with pytest.raises(RuntimeError, match="edit"):
            traced(X)
        before.check()


# Slices, sums, products and copies share


def shared_ways():
    return {
        "slice": (lambda m: m[:], [0, 1, 2]),
        "part": (lambda m: m[:-1], [0, 1]),
        "tail": (lambda m: m[1:], [1, 2]),
        "steps": (lambda m: m[::2], [0, 2]),
        "reversed": (lambda m: m[::-1], [2, 1, 0]),
        "nothing": (lambda m: m[5:], []),
        "copy": (lambda m: m.copy(), [0, 1, 2]),
        "copy.copy": (copy.copy, [0, 1, 2]),
        "sum": (lambda m: m + m[:1], [0, 1, 2, 0]),
        "sum with a list": (lambda m: m + [m[1]], [0, 1, 2, 1]),
        "sum from the left": (lambda m: [m[1]] + m, [1, 0, 1, 2]),
        "sum with entries": (lambda m: m + [m[0].entry], [0, 1, 2, 0]),
        "product": (lambda m: m * 2, [0, 1, 2, 0, 1, 2]),
        "product from the left": (lambda m: 2 * m, [0, 1, 2, 0, 1, 2]),
        "empty product": (lambda m: m * 0, []),
    }


@pytest.mark.parametrize("name", shared_ways())
@pytest.mark.parametrize("built", [True, False])
def test_slices_sums_products_and_copies_are_new_models_of_the_same_layers(name, built):
    way, positions = shared_ways()[name]
    model = Tower(7, [linear(3), f, linear(3)])
    if built:
        model.build((1, 3))
    before = Snapshot(model)
    made = way(model)
    assert type(made) is Tower
    assert made.depth == 7
    assert made is not model
    assert the_same(made, [model[i] for i in positions])
    assert set(made.vars().values()) == {v for layer in made for v in layer.vars().values()}
    before.check()
    made.append(g)
    made.reverse()
    before.check()
    model.build((1, 3))
    want = X
    for layer in made:
        want = (
            layer.entry.apply({"params": {"w": layer.w.value, "b": layer.b.value}}, None, want)[0]
            if layer.vars()
            else layer.entry(want)
        )
    np.testing.assert_allclose(made(X), want, rtol=1e-6)
    if positions:
        owner = next(layer for layer in made if layer in list(model))
        if owner.vars():
            owner.w.assign(owner.w + 1)
            assert model[model.index(owner)].w is owner.w


def test_a_slice_trains_the_models_variables():
    model = sb.Sequential([linear(3), f, linear(2)]).build((1, 3))
    embed, y = model[:-1], model(X)
    embed[0].w.assign(embed[0].w * 2)
    assert not np.allclose(model(X), y)
    np.testing.assert_allclose(model[-1:](embed(X)), model(X), rtol=1e-6)
    assert list(embed.vars().values()) == list(model[0].vars().values())


def test_a_slice_of_an_unbuilt_model_is_built_with_it():
    model = sb.Sequential([linear(3), f])
    part = model[:1]
    model.build((1, 3))
    assert part[0].w is model[0].w
    np.testing.assert_allclose(part(X) + 1, model(X), rtol=1e-6)


def test_a_model_whose_layers_are_all_built_is_built():
    model = sb.Sequential([linear(3), f])
    model[:].build((1, 3))
    assert model.built
    assert set(model.variables["params"]) == {
        "(Sequential)[0](linear).w",
        "(Sequential)[0](linear).b",
    }


def test_augmented_assignment_is_in_place_and_keeps_the_type():
    model = Tower(7, [linear(3)])
    alias, layer = model, model[0]
    model += [f]
    model += (g,)
    model += sb.Sequential([h])
    model *= 2
    assert model is alias
    assert type(model) is Tower
    assert the_same(entries(model), [layer.entry, f, g, h] * 2)
    assert model[4] is layer


def test_a_nested_model_is_not_copied_by_slicing():
    inner = sb.Sequential([linear(3)])
    model = sb.Sequential([f, inner])
    assert model[:][1] is inner
    assert (model + [g])[1] is inner
    assert (model * 2)[3] is inner


# Nesting


def test_models_nest_and_names_show_the_way():
    inner = sb.Sequential({"lin": linear(3), "f": f})
    model = sb.Sequential([g, inner, sb.Sequential([sb.Sequential([linear(2)])])]).build((1, 3))
    assert list(model.vars()) == [
        "(Sequential)[1](Sequential).lin(linear).b",
        "(Sequential)[1](Sequential).lin(linear).w",
        "(Sequential)[2](Sequential)[0](Sequential)[0](linear).b",
        "(Sequential)[2](Sequential)[0](Sequential)[0](linear).w",
    ]
    assert model[1] is inner
    assert model[1].lin.w is model.vars()["(Sequential)[1](Sequential).lin(linear).w"]
    want = model[2](model[1](g(X)))
    np.testing.assert_allclose(model(X), want, rtol=1e-6)
    inner.append(h)
    np.testing.assert_allclose(model(X), model[2](inner(g(X))), rtol=1e-6)


def test_an_edit_of_a_nested_model_builds_at_once_and_shows_outside():
    inner = sb.Sequential([linear(3)])
    model = sb.Sequential([linear(4), inner, f]).build((1, 3))
    inner.append(linear(5))
    assert inner[1].w.shape == (3, 5)
    assert model.vars()["(Sequential)[1](Sequential)[1](linear).w"] is inner[1].w
    assert model.built
    assert model(X).shape == (2, 5)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.append(m),
        lambda m: m.insert(0, m),
        lambda m: m.extend([f, m]),
        lambda m: m.__setitem__(0, m),
        lambda m: m.__setitem__(slice(0, 1), [m]),
        lambda m: m.__iadd__([m]),
        lambda m: m[1].append(m),
        lambda m: m[1][0].append(m),
        lambda m: m[1][0].append(sb.Sequential([m])),
        lambda m: m[1][0].append(m[1]),
    ],
)
def test_a_model_can_not_contain_itself(edit):
    model = sb.Sequential([linear(3), sb.Sequential([sb.Sequential([f])])]).build((1, 3))
    before, deepest = Snapshot(model), Snapshot(model[1][0])
    with pytest.raises(ValueError, match="contain itself"):
        edit(model)
    before.check()
    deepest.check()


def test_a_copy_of_itself_may_be_contained():
    model = sb.Sequential([linear(3), f]).build((1, 3))
    model.append(model[:])
    assert model.count(model[2]) == 1
    assert len(model.vars().tensors()) == 2
    once = X @ model[0].w.value + model[0].b.value[None] + 1
    np.testing.assert_allclose(
        model(X), once @ model[0].w.value + model[0].b.value[None] + 1, rtol=1e-6
    )


# Names


def test_names_work_as_keys_and_attributes_and_stand_in_the_names_of_variables():
    model = sb.Sequential({"conv": nn.Conv(2, (3,)), "act": jnp.tanh, "head": nn.Dense(2)}).build(
        (1, 5, 1)
    )
    assert list(model.vars()) == [
        f"(Sequential).{name}.{v}"
        for name in ("conv(Conv)", "head(Dense)")
        for v in ("bias", "kernel")
    ]
    assert model["conv"] is model.conv is model[0]
    assert model.head.kernel.name == "(Sequential).head(Dense).kernel"
    assert {"conv", "act", "head", "append"} <= set(dir(model))
    assert hasattr(model, "conv")
    assert not hasattr(model, "cnov")
    with pytest.raises(AttributeError, match="did you mean 'conv'"):
        _ = model.cnov
    for edit in (
        lambda: model["cnov"],
        lambda: model.pop("cnov"),
        lambda: model.__setitem__("cnov", f),
    ):
        with pytest.raises(KeyError, match="did you mean 'conv'"):
            edit()


def test_a_layer_without_a_name_is_no_attribute():
    model = sb.Sequential({"activity": f})
    model.append(g)
    assert {"activity", "append"} <= set(dir(model))
    assert model._ipython_key_completions_() == ["activity"]
    with pytest.raises(AttributeError, match=r"^Sequential has no 'params': model\.vars\(\)"):
        _ = sb.Sequential([jnp.sin]).params
    with pytest.raises(AttributeError, match=r"^Sequential has no 'none'$"):
        _ = model.none


def test_edits_by_name():
    model = sb.Sequential({"a": f, "b": g, "c": h})
    model["b"] = jnp.tanh
    assert model.names == ("a", "b", "c")
    assert model.b.entry is jnp.tanh
    layer = model.c
    assert model.pop("c") is layer
    del model["a"]
    assert model.names == ("b",)


def test_names_stay_with_their_layers():
    model = sb.Sequential({"a": f, "b": g, "c": h})
    model.insert(1, jnp.tanh)
    assert model.names == ("a", None, "b", "c")
    assert model[1:].names == (None, "b", "c")
    assert model[1:].c is model.c
    assert model[::-1].names == ("c", "b", None, "a")
    assert model.copy().names == model.names
    model.reverse()
    assert model.names == ("c", "b", None, "a")
    del model[0]
    model.append(jnp.sin)
    assert model.names == ("b", None, "a", None)
    model[0] = jnp.cos
    assert model.b.entry is jnp.cos
    model.extend({"d": jnp.abs})
    assert (model + {"e": g}).names == ("b", None, "a", None, "d", "e")
    model[1:2] = {"x": f, "y": g}
    assert model.names == ("b", "x", "y", "a", None, "d")
    model.clear()
    assert model.names == ()
    assert not hasattr(model, "b")


def test_a_layer_brings_its_name():
    model = sb.Sequential([f])
    model.append(sb.Layer(linear(3), name="head"))
    assert model.names == (None, "head")
    assert model.head is model[1]
    model[0] = sb.Layer(g, name="first")
    assert model.names == ("first", "head")
    model.build((1, 3))
    assert model.head.w.name == "(Sequential).head(linear).w"


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.append(sb.Layer(f, name="a")),
        lambda m: m.insert(0, sb.Layer(f, name="a")),
        lambda m: m.extend({"c": f, "a": f}),
        lambda m: m.extend([sb.Layer(f, name="c"), sb.Layer(g, name="c")]),
        lambda m: m.__iadd__({"a": f}),
        lambda m: m + {"a": f},
        lambda m: m.__setitem__(1, sb.Layer(f, name="a")),
        lambda m: m.__setitem__("b", sb.Layer(f, name="a")),
        lambda m: m.__setitem__(slice(1, 2), {"a": f}),
        lambda m: sb.Sequential([sb.Layer(f, name="a"), sb.Layer(g, name="a")]),
    ],
)
def test_two_layers_can_not_have_one_name(edit):
    model = sb.Sequential({"a": linear(3), "b": g}).build((1, 3))
    before = Snapshot(model)
    with pytest.raises(ValueError, match=r"'[ac]'"):
        edit(model)
    before.check()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1",
        "a b",
        "a.b",
        "a/b",
        "a-b",
        "\0",
        "\ud800",
        "append",
        "build",
        "vars",
        "names",
        "__class__",
        "class",
        3,
    ],
    ids=ascii,
)
@pytest.mark.parametrize(
    "door",
    [
        lambda m, n: sb.Sequential({n: f}),
        lambda m, n: m.extend({n: f}),
        lambda m, n: m.append(sb.Layer(f, name=n)),
    ],
)
def test_a_name_must_work_as_an_attribute(door, name):
    model = sb.Sequential({"a": linear(3)}).build((1, 3))
    before = Snapshot(model)
    with pytest.raises((ValueError, TypeError), match="name"):
        door(model, name)
    before.check()


def test_a_name_must_not_hide_what_the_model_holds():
    taken = sorted(vars(sb.Sequential([f]).build((1, 3))))
    for name in taken:
        if not name.endswith(
            "_by_version"
        ):  # what is cached, which a layer can't get in the way of
            with pytest.raises(ValueError, match=name):
                sb.Sequential({name: f})


def test_a_nested_model_may_have_a_layer_called_name():
    inner = sb.Sequential({"name": f, "entry": g})
    model = sb.Sequential([inner])
    assert model.names == (None,)
    assert model[0]["name"].entry is f


def test_assigning_an_attribute_never_hides_a_layer():
    model: Any = sb.Sequential({"a": f, "b": g})
    try:
        model.a = h
    except AttributeError:
        assert model["a"].entry is f
    assert model.a is model["a"] is model[0]


def test_the_first_place_of_a_repeated_layer_keeps_the_name():
    model = sb.Sequential({"a": f, "b": linear(3)})
    assert (model * 2).names == (model + model).names == ("a", "b", None, None)
    doubled = model.copy()
    doubled += doubled
    assert doubled.names == ("a", "b", None, None)
    doubled = model.copy()
    doubled.extend(model)
    assert doubled.names == ("a", "b", None, None)
    doubled = model.copy()
    doubled *= 2
    assert doubled.names == ("a", "b", None, None)


def test_a_named_layer_may_stand_at_two_places():
    layer = sb.Layer(linear(3), name="a")
    model = sb.Sequential([layer, f, layer]).build((1, 3))
    assert model[0] is model[2] is model.a
    assert len(model.vars().tensors()) == 2
    model.append(layer)
    assert model.count(layer) == 3


# One entry at two places


def makers():
    return {
        "linen": lambda: nn.Dense(3),
        "haiku class": lambda: sb.Layer(partial(hk.Linear, 3)),
        "haiku transform": lambda: sb.Layer(hk.transform(lambda x: hk.Linear(3)(x))),
        "pure": lambda: linear(3),
        "function": lambda: partial(lambda w, x: x @ w, jnp.arange(1.0, 10.0).reshape(3, 3)),
    }


@pytest.mark.parametrize("name", makers())
def test_one_entry_at_two_places_is_one_set_of_variables(name):
    entry = makers()[name]()
    n = len(sb.Sequential([entry]).build((1, 3)).vars())
    for model in (
        sb.Sequential([entry, jnp.tanh, entry]),
        sb.Sequential([entry]) + [jnp.tanh, entry],
        sb.Sequential([entry, jnp.tanh]) * 2,
        sb.Sequential([entry, sb.Sequential([jnp.tanh, entry])]),
        sb.Sequential([sb.Sequential([jnp.tanh, entry]), entry]),
        sb.Sequential([sb.Sequential([entry]), sb.Sequential([jnp.tanh, sb.Sequential([entry])])]),
    ):
        model.build((1, 3))
        assert len(model.vars()) == 2 * n
        assert len(model.vars().tensors()) == n
        assert f"+Total({n})" in str(model.vars())
    changed = model[0][0].vars()
    before = model(X)
    changed.assign([a * 2 for a in changed.tensors().values()])
    assert the_same(model[1][1][0].vars().values(), changed.values())
    assert not np.allclose(model(X), before)


def test_one_layer_may_have_two_names():
    model = sb.Sequential({"a": linear(3), "b": f})
    model.extend({"c": model.a})
    assert model.names == model[:].names == (model + [g]).names[:3] == ("a", "b", "c")
    assert model.a is model.c
    assert len(model.build((1, 3)).vars().tensors()) == 2


def test_an_entry_with_options_shares_the_variables_of_the_entry():
    entry = linear(3)
    model = sb.Sequential([entry, sb.Layer(entry, name="again"), f]).build((1, 3))
    assert model.names == (None, "again", None)
    assert model.again.w is model[0].w


def test_an_embedding_is_tied_to_its_other_method():
    embed = nn.Embed(5, 3)
    model = sb.Sequential([embed, jnp.tanh, sb.Layer(embed, method="attend")]).build(
        jnp.array([[1, 2]])
    )
    assert len(model.vars()) == 2
    assert len(model.vars().tensors()) == 1
    table = model[0].embedding
    table.assign(jnp.linspace(0.5, 1.5, 15).reshape(5, 3))
    want = jnp.tanh(table.value[jnp.array([[1, 4]])]) @ table.value.T
    np.testing.assert_allclose(model(jnp.array([[1, 4]])), want, rtol=1e-6)


def test_a_tied_embedding_is_one_array_in_the_pure_form():
    embed, ids = nn.Embed(5, 3), jnp.array([[1, 4]])
    model = sb.Sequential([embed, jnp.tanh, sb.Layer(embed, method="attend")])
    assert len(model.init(0, ids)["params"]) == 1
    model.build(ids)
    variables = model.variables
    assert len(variables["params"]) == 1
    np.testing.assert_array_equal(model.apply(variables, ids)[0], model(ids))
    (pure,) = jax.grad(lambda params: model.apply({"params": params}, ids)[0].sum())(
        variables["params"]
    ).values()
    (stateful,) = sb.grad(lambda model: model(ids).sum())(model).values()
    np.testing.assert_allclose(pure, stateful, rtol=1e-6)


@pytest.mark.parametrize("name", makers())
def test_a_model_keeps_its_layers_when_another_of_the_same_entries_joins_it(name):
    entry = makers()[name]()
    model, inner = sb.Sequential([entry]).build((1, 3)), sb.Sequential([jnp.tanh, entry])
    layer, variables = model[0], list(model.vars().values())
    model.append(inner)
    assert model[0] is inner[1] is layer
    assert the_same(model[0].vars().values(), variables)
    model.insert(0, sb.Sequential([entry]))
    assert model[0][0] is model[1] is layer


def test_layers_of_one_entry_that_both_have_values_of_their_own_stay_two():
    entry = linear(3)
    first, second = (sb.Sequential([entry], seed=seed).build((1, 3)) for seed in (0, 1))
    layers = first[0], second[0]
    both = sb.Sequential([first, second])
    assert (both[0][0], both[1][0]) == layers
    assert len(both.vars().tensors()) == 4


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize(
    "edit",
    [
        lambda m, e: m.append(e),
        lambda m, e: m.insert(0, e),
        lambda m, e: m.extend([f, e]),
        lambda m, e: m.__setitem__(1, e),
        lambda m, e: m.insert(0, g) or m.__setitem__(0, e),
        lambda m, e: m.__setitem__(slice(1, 2), [e, e]),
        lambda m, e: m.append(sb.Sequential([e])),
        lambda m, e: m.append(m[0]),
        lambda m, e: m[2].append(e),
        lambda m, e: m[2].append(sb.Sequential([e])),
    ],
)
def test_an_edit_that_repeats_an_entry_shares_its_variables(edit, built):
    entry = linear(3)
    model = sb.Sequential([entry, f, sb.Sequential([g])])
    if built:
        model.build((1, 3))
    edit(model, entry)
    model.build((1, 3))
    assert len(model.vars()) >= 4
    assert len(model.vars().tensors()) == 2


def test_an_entry_that_was_taken_out_comes_back_with_fresh_variables_and_its_layer_with_the_old():
    entry = linear(3)
    model = sb.Sequential([entry, f]).build((1, 3))
    layer = model.pop(0)
    w = layer.w
    model.insert(0, entry)
    assert model[0] is not layer
    assert model[0].w is not w
    model[0] = layer
    assert model[0].w is w


def test_layers_can_be_swapped():
    model = sb.Sequential({"a": linear(3), "b": f, "c": linear(3)}).build((1, 3))
    a, c = model.a, model.c
    model[0], model[2] = model[2], model[0]
    assert the_same(model, [c, model[1], a])
    model[::2] = [a, c]
    assert the_same(model, [a, model[1], c])


# Edits of a built model


def test_new_layers_are_built_at_once_and_the_others_keep_their_variables():
    model = sb.Sequential([linear(4), f, linear(3)]).build((1, 3))
    kept = list(model[0].vars().values()) + list(model[2].vars().values())
    values = [v.value for v in kept]
    model.append(linear(2))
    model.insert(1, linear(4))
    model[2] = linear(4)
    model.extend([g, nn.Dense(5), partial(hk.Linear, 6)])
    assert model.built
    assert [tuple(v.shape for v in layer.vars().values()) for layer in model] == [
        ((4,), (3, 4)),
        ((4,), (4, 4)),
        ((4,), (4, 4)),
        ((3,), (4, 3)),
        ((2,), (3, 2)),
        (),
        ((5,), (2, 5)),
        ((6,), (5, 6)),
    ]
    assert the_same([*model[0].vars().values(), *model[3].vars().values()], kept)
    assert the_same([v.value for v in kept], values)
    model.reverse()
    model.reverse()
    assert the_same([v.value for v in kept], values)


def test_replacing_a_layer_drops_its_variables():
    model = sb.Sequential([linear(3), linear(3)]).build((1, 3))
    old = model[1].w
    model[1] = linear(3)
    assert model[1].w is not old
    assert old not in list(model.vars().values())


def test_initial_values_depend_on_seed_and_position_alone():
    def fresh():
        return sb.Sequential([nn.Dense(3), nn.Dense(2)])

    def assert_same(a, b):
        assert all(bool((a["params"][name] == array).all()) for name, array in b["params"].items())

    expected = fresh().build((1, 4)).variables
    assert_same(fresh().build((None, 4)).variables, expected)
    model = fresh()
    assert_same(model.init(0, (1, 4)), expected)
    model.apply(expected, jnp.ones((2, 4)))
    assert_same(model.build((1, 4)).variables, expected)


def test_adding_a_layer_does_not_change_the_initial_values_of_others():
    short, long = (
        sb.Sequential([linear(3), linear(3)]),
        sb.Sequential([linear(3), linear(3), linear(3)]),
    )
    short.build((1, 3))
    long.build((1, 3))
    for i in range(2):
        np.testing.assert_array_equal(short[i].w.value, long[i].w.value)
    short.append(linear(3))
    np.testing.assert_array_equal(short[2].w.value, long[2].w.value)


def test_an_edit_of_an_unbuilt_model_builds_nothing():
    model = sb.Sequential([linear(3)])
    model.append(linear(2))
    assert not model.built
    assert len(model.vars()) == 0


def test_a_layer_that_needs_a_keyword_is_built_by_the_next_call():
    model = sb.Sequential([linear(3)]).build((1, 3))
    model.append(lambda x, scale: x * scale)
    model.append(linear(2))
    np.testing.assert_allclose(model[:1](X), model[0](X), rtol=1e-6)
    assert model(X, scale=2.0).shape == (2, 2)
    assert model[2].w.shape == (3, 2)


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        (nn.Dense(4), nn.Dense(2), nn.Dense(5)),
        (partial(hk.Linear, 4), partial(hk.Linear, 2), partial(hk.Linear, 5)),
        (linear(4), linear(2), linear(5)),
    ],
    ids=["linen", "haiku", "pure"],
)
def test_a_layer_that_no_longer_fits_is_named_at_the_next_call_and_never_rebuilt(
    first, second, other
):
    model = sb.Sequential([first, jnp.tanh, second]).build((1, 3))
    kept = Snapshot(model[2:])
    model[0] = other
    assert model[0].built
    for _ in range(2):
        error = raised(model, X)
        assert error is not None
        text = "\n".join(error.__notes__)
        assert "layer [2]" in text
        assert model[2].pure.label in text
        assert "float32[2,5]" in text
        kept.check()
    model[0] = first
    assert model(X).shape == (2, 2)
    kept.check()


def test_what_comes_after_a_layer_that_no_longer_fits_is_built_once_it_is_replaced():
    model = sb.Sequential([linear(4), linear(2)]).build((1, 3))
    model[0] = linear(5)
    model.append(linear(3))
    assert not model[2].built
    model[1] = linear(6)
    assert model[1].w.shape == (5, 6)
    assert model[2].w.shape == (6, 3)


def test_deleting_a_layer_from_the_middle():
    model = sb.Sequential([linear(3), linear(3), linear(2)]).build((1, 3))
    last = model[2].w
    del model[1]
    assert model(X).shape == (2, 2)
    assert model[1].w is last
    assert list(model.vars())[-1] == "(Sequential)[1](linear).w"


@pytest.mark.parametrize(
    "edit",
    [
        lambda m, bad: m.append(bad),
        lambda m, bad: m.insert(1, bad),
        lambda m, bad: m.extend([linear(2), bad]),
        lambda m, bad: m.extend([linear(99), bad, linear(1)]),
        lambda m, bad: m.__iadd__([f, bad]),
        lambda m, bad: m.__setitem__(0, bad),
        lambda m, bad: m.__setitem__(slice(0, 2), [linear(7), bad]),
        lambda m, bad: m.append(sb.Sequential([linear(2), bad])),
        lambda m, bad: m[2].append(bad),
    ],
)
def test_an_edit_whose_new_layer_fails_changes_nothing(edit):
    model = sb.Sequential({"a": linear(3), "b": f, "c": sb.Sequential([linear(4)])}).build((1, 3))
    y = model(X)
    before, inner = Snapshot(model), Snapshot(model.c)
    with pytest.raises(AssertionError, match="98 features wanted"):
        edit(model, narrow(98))
    before.check()
    inner.check()
    np.testing.assert_array_equal(model(X), y)


def test_a_failing_edit_leaves_what_it_was_given_alone():
    entry = linear(3)
    model = sb.Sequential([entry]).build((1, 3))
    inner, layer = sb.Sequential([entry, linear(2), narrow(98)]), sb.Layer(linear(3), name="late")
    inner_before = Snapshot(inner)
    with pytest.raises(AssertionError, match="98 features wanted"):
        model.extend([layer, inner])
    inner_before.check()
    assert not layer.built
    assert len(model.vars()) == 2
    other = sb.Sequential([layer]).build((1, 8))
    assert other.late.w.shape == (8, 3)


def test_a_failing_construction_leaves_what_it_was_given_alone():
    inner = sb.Sequential([linear(3)])
    before = Snapshot(inner)
    with pytest.raises(TypeError):
        sb.Sequential([inner, inner[0].entry, 3])
    before.check()


# Copies


def rich():
    """A built model with names, nesting, sharing, a state, a key stream and picklable functions."""
    shared = linen_dense = nn.Dense(3)
    model = sb.Sequential(
        {
            "first": linen_dense,
            "act": nn.relu,
            "norm": nn.BatchNorm(momentum=0.5),
            "inner": sb.Sequential(
                [partial(hk.Linear, 3), shared, partial(nn.leaky_relu, negative_slope=0.1)]
            ),
            "drop": nn.Dropout(0.5),
        }
    ).build((1, 3))
    for i, variable in enumerate(v for v in model.vars().values() if v.kind != "rng"):
        variable.assign(
            jnp.linspace(0.5, 1.5, variable.size).reshape(variable.shape) + jnp.float32(i)
        )
    return model


def copies():
    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        "cloudpickle": lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
    }


@pytest.mark.parametrize("way", copies())
@pytest.mark.parametrize("read_first", [True, False])
def test_copies_are_equal_and_independent(way, read_first):
    model = rich()
    if read_first:
        for variable in model.vars().values():
            variable.value.block_until_ready()
        model(X, training=True)
    made = copies()[way](model)
    assert type(made) is type(model)
    assert made.names == model.names
    assert made.built
    assert repr(made) == repr(model)
    assert list(made.vars()) == list(model.vars())
    assert str(made.vars()) == str(model.vars())
    assert not set(made.vars().values()) & set(model.vars().values())
    for name, variable in made.vars().items():
        assert (
            variable.name == name
            if made.vars()[name] not in made.inner[1].vars().values()
            else True
        )
        assert (variable.kind, variable.path) == (model.vars()[name].kind, model.vars()[name].path)
    np.testing.assert_array_equal(made(X, training=False), model(X, training=False))
    np.testing.assert_array_equal(made(X, training=True), model(X, training=True))
    np.testing.assert_array_equal(made(X, training=True), model(X, training=True))
    np.testing.assert_array_equal(made.norm.mean.value, model.norm.mean.value)
    before = model(X, training=False)
    made.first.kernel.assign(made.first.kernel + 1)
    made.append(f)
    np.testing.assert_array_equal(model(X, training=False), before)
    assert len(model) == len(made) - 1


@pytest.mark.parametrize("way", copies())
def test_copies_keep_sharing_inside(way):
    model = rich()
    assert model.first is model.inner[1]
    made = copies()[way](model)
    assert made.first is made.inner[1]
    assert len(made.vars().tensors()) == len(model.vars().tensors())
    made, kernel, part = copies()[way]((model, model.first.kernel, model[:2]))
    assert made.first.kernel is kernel
    assert part[0] is made.first


@pytest.mark.parametrize("way", copies())
def test_copies_of_an_unbuilt_model(way):
    model = sb.Sequential({"a": nn.Dense(3), "b": nn.relu}, seed=4)
    made = copies()[way](model)
    assert not made.built
    model.build((1, 3))
    assert not made.built
    made.build((1, 3))
    np.testing.assert_array_equal(made.a.kernel.value, model.a.kernel.value)
    assert made.a.kernel is not model.a.kernel


@pytest.mark.parametrize("built", [True, False])
def test_a_model_of_deep_copies_shares_nothing(built):
    block = sb.Sequential([linear(3), jnp.tanh])
    if built:
        block.build((1, 3))
    blocks = sb.Sequential([block, copy.deepcopy(block), copy.deepcopy(block)]).build((1, 3))
    assert len(blocks.vars().tensors()) == 6
    chain = (block + copy.deepcopy(block)).build((1, 3))
    assert len(chain.vars().tensors()) == 4


@pytest.mark.parametrize("way", copies())
def test_copies_list_no_stream_of_keys_that_the_model_does_not_use(way):
    model = sb.Sequential([nn.Dense(3), partial(hk.Linear, 2)]).build((1, 3))
    made = copies()[way](model)
    assert "rng" not in str(model.vars())
    assert list(made.vars()) == list(model.vars())
    made.vars().assign(model.vars())


@pytest.mark.parametrize("way", copies())
def test_a_copied_model_can_be_edited_and_builds_what_is_new(way):
    made = copies()[way](rich())
    made.append(nn.Dense(2))
    assert made[-1].kernel.shape == (3, 2)
    del made["norm"]
    assert made(X, training=False).shape == (2, 2)


@pytest.mark.parametrize("way", copies())
def test_copies_keep_a_subclass_and_its_attributes(way):
    made = copies()[way](Tower(7, [nn.Dense(2), nn.relu]).build((1, 3)))
    assert type(made) is Tower
    assert made.depth == 7


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_knows_its_names_and_itself_at_once(way):
    model = sb.Sequential([jnp.tanh, sb.Sequential({"first": nn.Dense(2)})]).build((1, 3))
    model.us = [model]
    made = copies()[way](model)
    assert made.us[0] is made
    assert made[1].first.kernel.name == "(Sequential)[1](Sequential).first(Dense).kernel"
    made[1].append(nn.Dense(4))
    assert made(X).shape == (2, 4)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_of_one_layer(way):
    model = rich()
    layer = copies()[way](model.first)
    assert type(layer) is sb.Layer
    np.testing.assert_array_equal(layer.kernel.value, model.first.kernel.value)
    assert layer.kernel is not model.first.kernel
    np.testing.assert_array_equal(sb.Sequential([layer])(X), sb.Sequential([model.first])(X))


def test_a_deep_copy_keeps_functions_by_reference():
    model = sb.Sequential([jnp.tanh, f, partial(nn.leaky_relu, negative_slope=0.2)])
    assert the_same(entries(copy.deepcopy(model)), entries(model))


def test_cloudpickle_takes_lambdas_and_local_functions():
    slope = 0.25

    def local(x):
        return jnp.where(x > 0, x, slope * x)

    model = sb.Sequential(
        [
            lambda x: x * 2,
            local,
            hk.transform(lambda x: hk.Linear(3)(x)),
            nn.Dense(2, kernel_init=lambda *a: jnp.ones(a[1])),
        ]
    ).build((1, 3))
    made = cloudpickle.loads(cloudpickle.dumps(model))
    np.testing.assert_array_equal(made(X), model(X))
    made[-1].kernel.assign(made[-1].kernel * 3)
    assert not np.allclose(made(X), model(X))


@pytest.mark.parametrize("way", copies())
def test_copies_inside_a_transform_are_refused(way):
    model = sb.Sequential([nn.Dense(3)]).build((1, 3))

    @sb.jit
    def copied(model, x):
        copies()[way](model)
        return model(x)

    with pytest.raises(RuntimeError, match="tracer"):
        copied(model, X)


def test_a_model_dies_with_its_last_reference():
    model = sb.Sequential([linear(3)]).build((1, 3))
    model(X)
    layer = model[0]
    live = {id(o) for o in gc.get_objects() if isinstance(o, sb.Sequential)}
    mine = id(model)
    assert mine in live
    del model
    gc.collect()
    assert mine not in {id(o) for o in gc.get_objects() if isinstance(o, sb.Sequential)}
    assert layer.w.shape == (3, 3)


# Looks


def test_repr_shows_index_name_ecosystem_and_entry():
    model = sb.Sequential(
        {
            "conv": nn.Conv(20, (5, 5)),
            "act": nn.relu,
            "inner": sb.Sequential([partial(hk.Linear, 3), hk.transform(lambda x: x)]),
            "leaky": partial(nn.leaky_relu, negative_slope=0.1),
        }
    )
    assert repr(model) == (
        "Sequential(\n"
        "  [0] conv: linen Conv(features=20, kernel_size=(5, 5))\n"
        "  [1] act: function relu\n"
        "  [2] inner: Sequential(\n"
        "    [0] haiku Linear(3)\n"
        "    [1] haiku transform(<lambda>)\n"
        "  )\n"
        "  [3] leaky: function partial(leaky_relu, negative_slope=0.1)\n"
        ")"
    )


class Callable:
    """A callable object with the default repr."""

    def __call__(self, x):
        return x


def test_repr_never_shows_a_memory_address():
    def init(key, shape, dtype=jnp.float32):
        return jnp.ones(shape, dtype)

    model = sb.Sequential(
        [
            lambda x: x,
            Callable(),
            partial(Callable(), 1),
            partial(lambda x, other: x, other=Callable()),
            partial(lambda x, **k: x, table={"a": Callable()}, items=[Callable(), f]),
            nn.Dense(2, kernel_init=init),
            nn.Dense(2, kernel_init=partial(init, dtype=jnp.float32)),
            nn.Dense(2, kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "normal")),
            nn.Sequential([nn.Dense(2), nn.relu, Callable()]),
            partial(hk.Linear, 2, w_init=hk.initializers.RandomNormal()),
            partial(hk.nets.MLP, [2, 3], activation=jnp.tanh),
            hk.transform(Callable()),
            hk.transform_with_state(lambda x: x),
            hk.without_apply_rng(hk.transform(lambda x: x)),
            linear(2),
            f.__get__(1),
            jax.jit(f),
            jax.vmap(f),
            jnp.tanh,
            np.tanh,
            sb.Layer(Callable(), name="named"),
        ]
    )
    for text in (repr(model), *map(repr, model)):
        assert not re.search(r"0x[0-9a-f]{4,}", text)
    assert "Callable" in repr(model[1])


def test_repr_says_the_same_in_every_process():
    assert repr(sb.Sequential([f, nn.Dense(2)])) == repr(sb.Sequential([f, nn.Dense(2)]))


def test_new_layers_start_with_values_of_their_own():
    model = sb.Sequential([linear(3), sb.Sequential([linear(3)])]).build((1, 3))
    model.insert(0, linear(3))
    model[2].append(linear(3))
    tail = model[1:]
    tail.append(linear(3))
    tail.build((1, 3))
    kernels = {
        v: v.value for v in [*model.vars().values(), *tail.vars().values()] if v.path[-1] == "w"
    }
    assert len({np.asarray(k).tobytes() for k in kernels.values()}) == len(kernels) == 5


def test_an_untouched_function_joins_the_one_that_was_trained():
    entry = partial(lambda w, x: x @ w, jnp.eye(3))
    inner, model = sb.Sequential([entry]), sb.Sequential([entry])
    model[0].vars().assign([2 * jnp.eye(3)])
    model.append(inner)
    assert inner[0] is model[0]
    np.testing.assert_allclose(model(X), 4 * X)


def test_an_entry_that_takes_its_own_place_is_a_new_layer():
    entry = nn.Dense(2)
    model = sb.Sequential([entry]).build((1, 3))
    fresh = model[0].kernel.value
    for place in (0, slice(0, 1), slice(None)):
        before = model[0]
        before.kernel.assign(jnp.full((3, 2), 7.0))
        model[place] = entry if place == 0 else [entry]
        assert model[0] is not before
        assert model[0].entry is entry
        np.testing.assert_array_equal(model[0].kernel.value, fresh)


def test_an_entry_that_stays_is_one_layer_with_what_comes():
    entry = nn.Dense(3)
    model = sb.Sequential([entry, jnp.tanh, jnp.sin]).build((1, 3))
    model[1:3] = [entry, entry]
    assert model[0] is model[1] is model[2]
    model[1] = entry
    assert model[1] is model[0]


def test_names_hold_right_after_an_edit():
    inner = sb.Sequential([eqx.nn.Linear(3, 2, key=jax.random.key(0))])
    outer = sb.Sequential()
    outer.append(inner)
    assert inner[0].weight.name == "(Sequential)[0](Sequential)[0](Linear).weight"


class _Coder(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def encode(self, x):
        return self.linear(x)

    def decode(self, x):
        return x @ self.linear.kernel.T


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True)])
def test_what_is_frozen_in_one_layer_is_frozen_in_all_that_share_it(flags):
    coder = _Coder()
    parts = [
        sb.Layer(coder, method=method, trainable=flag)
        for method, flag in zip(("encode", "decode"), flags, strict=True)
    ]
    model = sb.Sequential(parts)
    assert model[0].linear.kernel is model[1].linear.kernel
    assert {variable.trainable for variable in model.vars().values()} == {all(flags)}


def test_an_edit_that_fails_freezes_and_shares_nothing():
    coder = _Coder()
    model = sb.Sequential([sb.Layer(coder, method="encode")]).build((1, 3))
    other = sb.Layer(coder, method="decode", trainable=False)
    kernel, own = model[0].linear.kernel, other.linear.kernel
    with pytest.raises(AssertionError, match="divisible"):
        model.extend([other, nn.MultiHeadDotProductAttention(num_heads=2)])
    assert len(model) == 1
    assert model[0].linear.kernel is kernel
    assert kernel.trainable
    assert other.linear.kernel is own


def test_a_slice_takes_its_keys_from_the_stream_of_the_whole():
    model = sb.Sequential([eqx.nn.Dropout(0.5), jnp.tanh])
    part = model[:1]
    assert part.vars()["(Sequential).rng"] is model.vars()["(Sequential).rng"]


def test_a_stream_that_is_first_asked_for_inside_a_trace_holds_a_value():
    model = sb.Sequential([eqx.nn.Dropout(0.5)])
    apply = jax.jit(lambda x: model.apply(model.variables, x, rng=0, training=True)[0])
    assert apply(X).shape == X.shape
    assert not isinstance(model.vars()["(Sequential).rng"].value, Tracer)


def test_an_object_that_is_only_begun_has_no_layers():
    """As who unpickles it may ask."""
    assert not hasattr(sb.Sequential.__new__(sb.Sequential), "conv")
