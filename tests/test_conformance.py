"""Every adapter's duty: a layer does what its entry does when its own library runs it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb
from cases import CASES, Case
from helpers import assert_same, usual_promotion

KEY = jax.random.key(5)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with contextlib.nullcontext() if request.param.strict else usual_promotion():
        yield request.param


def call(model: sb.Sequential, case: Case, training: bool, **more: Any) -> Any:
    return model(*case.arrays(), training=training, rng=KEY, **case.keywords, **more)


def by_hand(case: Case, tree: Any, training: bool) -> Any:
    """The layer stands at position 0 of its model, so this is the key that it gets."""
    return case.native(tree, jax.random.fold_in(KEY, 0), case.arrays(), training)


def split(tree: Any) -> tuple[dict[int, Any], Callable[[Any], Any]]:
    """The float arrays of a native tree, and how to make the tree again from others."""
    leaves, treedef = jax.tree.flatten(tree)
    floats = {
        i: x
        for i, x in enumerate(leaves)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
    }
    return floats, lambda new: jax.tree.unflatten(
        treedef, [new.get(i, leaf) for i, leaf in enumerate(leaves)]
    )


def test_initial_values_are_those_of_the_library(case: Case) -> None:
    model = sb.Sequential([case.make()], seed=3).build(*case.inputs, **case.keywords)
    inputs = tuple(jnp.zeros(shape) for shape in case.inputs)
    assert_same(model[0].native, case.native_init(jax.random.fold_in(jax.random.key(3), 0), inputs))
    assert len(model.vars().subset("params")) == case.params


@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_state_are_those_of_the_library(case: Case, training: bool) -> None:
    model = case.model()
    out, tree = by_hand(case, model[0].native, training)
    assert_same(call(model, case, training), out)
    assert_same(model[0].native, tree)


def test_gradients_are_those_of_the_library(case: Case) -> None:
    if not case.params:
        return
    model = case.model()
    before = model[0].native
    variables = model.variables

    floats, tree = split(before)
    expected = tree(jax.grad(lambda floats: by_hand(case, tree(floats), True)[0].sum())(floats))
    grads = sb.grad(lambda model: call(model, case, True).sum())(model)
    holder = case.model()
    holder[0].load_native(expected)
    assert grads.keys() == variables["params"].keys()
    assert_same(grads, holder.variables["params"], rtol=1e-5, atol=1e-6)
    assert all(np.abs(g).sum() > 0 for g in grads.values()) or case.mode


def test_a_summary_tells_what_a_call_will_show(case: Case) -> None:
    model = sb.Sequential([case.make()])
    built = model.built  # what came with its values
    before = model.summary(*case.inputs, training=True, **case.keywords)
    assert model.built == built
    model.build(*case.inputs, **case.keywords)
    (row,) = before.rows
    assert row == model.summary(training=True).rows[0]
    assert row.params == sum(box.size for box in model.vars().subset("params").values())
    outputs = model.trace(*case.arrays(), training=True, rng=KEY, **case.keywords)
    assert repr(outputs).endswith(f"  {row.outputs}")


@pytest.mark.parametrize("training", [True, False])
def test_jit_agrees_and_traces_once(case: Case, training: bool) -> None:
    model, other = case.model(), case.model()
    jitted = sb.jit(lambda model: call(model, case, training), pack=training, donate=training)
    for _ in range(2):
        assert_same(jitted(other), call(model, case, training), rtol=1e-5, atol=1e-6)
        assert_same(other.variables, model.variables, rtol=1e-5, atol=1e-6)
    with jax.no_tracing():
        jitted(other)
    if case.moves and not training:
        with pytest.raises(TypeError, match="freeze_state=True"):
            sb.freeze(other)(*case.arrays(), rng=KEY, **case.keywords)
    elif not training:
        frozen = sb.freeze(other)(*case.arrays(), rng=KEY, **case.keywords)
        assert_same(frozen, call(model, case, training), rtol=1e-5, atol=1e-6)


def test_vmap_agrees(case: Case) -> None:
    if case.draws or case.moves:
        return
    model = case.model()
    x, *rest = case.arrays()
    stacked = jnp.stack([x, 2 * x])

    def one(model: sb.Sequential, x: jax.Array) -> Any:
        return model(x, *rest, training=False, **case.keywords)

    expected = jnp.stack([one(model, x) for x in stacked])
    assert_same(sb.vmap(one)(model, stacked), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_pure_form_agrees(case: Case, training: bool) -> None:
    model = case.model()
    variables = model.variables

    @jax.jit
    def apply(variables: Any) -> Any:
        return model.apply(variables, *case.arrays(), training=training, rng=KEY, **case.keywords)

    out, after = apply(variables)
    assert_same(model.variables, variables)
    assert_same(out, call(model, case, training), rtol=1e-5, atol=1e-6)
    assert_same(after, model.variables, rtol=1e-5, atol=1e-6)


def test_the_pure_form_needs_no_built_model(case: Case) -> None:
    model, built = sb.Sequential([case.make()]), sb.Sequential([case.make()], seed=4)
    before = model.built
    keeps = case.given and case.params
    with pytest.warns(UserWarning, match="init keeps") if keeps else contextlib.nullcontext():
        variables = model.init(4, *case.arrays(), **case.keywords)
    assert_same(variables, built.build(*case.arrays(), **case.keywords).variables)
    out, _ = model.apply(variables, *case.arrays(), training=False, rng=KEY, **case.keywords)
    assert_same(out, call(built, case, False))
    assert model.built == before


def test_structure_is_kept_and_state_moves_where_the_library_moves_it(case: Case) -> None:
    model = case.model()
    before, names = model.variables, list(model.vars())
    call(model, case, False)
    assert (not _equal_trees(model.variables, before)) == case.moves
    call(model, case, True)
    after = model.variables
    assert list(model.vars()) == names
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), before
    )
    assert_same(after["params"], before["params"])
    moved = any(bool((after["state"][n] != v).any()) for n, v in before["state"].items())
    assert moved == case.state


def _equal_trees(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b)))


def test_randomness_follows_key_and_call(case: Case) -> None:
    model = case.model()

    def draw(**given: Any) -> Any:
        return np.asarray(model(*case.arrays(), training=True, **case.keywords, **given))

    assert (not np.array_equal(draw(), draw())) == case.draws or case.state
    other = case.model()
    np.testing.assert_array_equal(
        other(*case.arrays(), training=True, **case.keywords),
        case.model()(*case.arrays(), training=True, **case.keywords),
    )
    assert any(v.kind == "rng" for v in model.vars().values()) == case.draws


def test_an_undecided_mode_names_the_layer(case: Case) -> None:
    model = case.model()
    if case.mode:
        with pytest.raises(TypeError, match=r"training=True.*\(Sequential\)\[0\]"):
            model(*case.arrays(), **case.keywords)
    else:
        model(*case.arrays(), **case.keywords)


def test_an_unknown_keyword_is_an_error(case: Case) -> None:
    with pytest.raises(
        TypeError, match="no layer takes the keyword 'trainnig'; did you mean 'training'"
    ):
        case.model()(*case.arrays(), trainnig=True, **case.keywords)


def test_declared_keywords_are_those_of_the_entry(case: Case) -> None:
    model = case.model()
    for name in case.keywords:
        assert name in model[0].call_parameters.names
        if name in model[0].call_parameters.required:
            with pytest.raises(TypeError, match=f"layer \\[0\\] .* needs {name!r}"):
                model(*case.arrays(), training=False)


def test_an_error_inside_keeps_its_type_and_is_noted(case: Case) -> None:
    if case.refuses is None:
        return
    model = case.model()
    bad = tuple(jnp.ones(case.refuses) for _ in case.inputs[:1]) + case.arrays()[1:]
    with pytest.raises(Exception) as native:  # noqa: PT011
        case.native(model[0].native, KEY, bad, True)
    before = model.variables
    with pytest.raises(type(native.value)) as error:
        model(*bad, training=True, rng=KEY, **case.keywords)
    note = error.value.__notes__[-1]
    shape = f"float32[{','.join(map(str, case.refuses))}]"
    assert "[0]" in note
    assert case.ecosystem in note
    assert shape in note
    assert_same(model.variables, before)


def test_a_later_error_leaves_the_state_as_it_was(case: Case) -> None:
    def fail(x: Any) -> Any:
        raise KeyError("later")

    model = case.model()
    before = {name: v.value for name, v in model.vars().items()}
    model.append(lambda x: x)
    model[1] = lambda x, broken=False: fail(x) if broken else x
    with pytest.raises(KeyError, match="later"):
        model(*case.arrays(), training=True, broken=True, **case.keywords)
    jitted = sb.jit(
        lambda model: model(*case.arrays(), training=True, broken=True, **case.keywords)
    )
    with pytest.raises(KeyError, match="later"):
        jitted(model)
    assert all(model.vars()[name].value is array for name, array in before.items())


def test_a_copy_is_equal_and_independent(case: Case) -> None:
    model = case.model()
    twin = copy.deepcopy(model)
    assert_same(call(twin, case, False), call(model, case, False))
    assert not set(twin.vars().values()) & set(model.vars().values())
    before = model.variables
    for variable in twin.vars().subset("params").values():
        variable.assign(variable + 1)
    assert_same(model.variables, before)


def test_an_object_at_two_places_is_one_layer_and_a_recipe_two(case: Case) -> None:
    entry, arrays = case.make(), [np.asarray(array) for array in case.arrays()]

    def start_again(*_: Any) -> Any:
        inputs = [jnp.asarray(array) for array in arrays]
        return tuple(inputs) if len(inputs) > 1 else inputs[0]

    model = sb.Sequential([entry, start_again, entry]).build(*case.inputs, **case.keywords)
    first, second = model[0], model[2]
    assert (first is not second) == case.recipe
    params = model.vars().subset("params")
    assert len(params.tensors()) == case.params * (2 if case.recipe else 1)
    for variable in params.values():
        variable.assign(variable + 0.1)

    trees = first.native, second.native
    keys = [jax.random.fold_in(KEY, place) for place in (0, 2)]
    _, tree = case.native(trees[0], keys[0], case.arrays(), True)
    given = trees[1] if case.recipe else tree
    out, again = case.native(given, keys[1], case.arrays(), True)
    exported = sb.to_pure(model)
    variables = exported.init(KEY, *case.arrays(), **case.keywords)
    assert_same(
        exported.apply(variables, *case.arrays(), training=True, rng=KEY, **case.keywords)[0], out
    )
    assert_same(call(model, case, True), out)
    assert_same(second.native, again)
    assert_same(first.native, tree if case.recipe else again)


def test_no_tracer_leaks(case: Case) -> None:
    model = case.model()
    loss = lambda model: call(model, case, True).sum()  # noqa: E731
    with contextlib.nullcontext() if case.leaks else jax.checking_leaks():
        sb.jit(sb.grad(loss) if case.params else loss)(model)
    assert all(not isinstance(v.value, jax.core.Tracer) for v in model.vars().values())


def test_native_values_go_out_and_come_back(case: Case) -> None:
    model, other = case.model(), case.model(seed=9)
    other[0].load_native(model[0].native)
    assert_same(other.variables, model.variables)
    with pytest.raises((KeyError, TypeError, ValueError)):
        other[0].load_native({"params": {"no such": jnp.ones(3)}})
    assert_same(other.variables, model.variables)
