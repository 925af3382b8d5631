"""Variables, collections of variables, native trees, and how a model gives and takes them."""

import copy
import operator
import pickle
import re
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqbridge as sb

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


def vector(values: Any = (1.0, 2.0, 3.0), **options: Any) -> Any:
    return sb.Variable(jnp.array(values), **{"name": "v", **options})


def assert_same(a, b):
    """The same shape, dtype and values."""
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert_same(left, right)


def scramble(model) -> Any:
    """Give every parameter and state another, positive value, so that no zero hides a mistake."""
    for i, variable in enumerate(v for v in model.vars().values() if v.kind != "rng"):
        values = jnp.linspace(0.5, 1.5, variable.size, dtype=jnp.float32) + jnp.float32(i)
        variable.assign(values.reshape(variable.shape))
    return model


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.tanh(nn.Dense(4)(x)))


def mixed() -> Any:
    """A built model of both libraries, with a state."""
    model = sb.Sequential(
        [
            nn.Dense(3),
            nn.BatchNorm(),
            partial(hk.Linear, 4),
            hk.transform(lambda x: hk.nets.MLP([5, 3])(x)),
            MLP(),
        ]
    )
    return scramble(model.build((None, 3)))


# Variable: the value


def test_value_is_the_array_and_can_be_set():
    v = vector()
    assert_same(v.value, jnp.array([1.0, 2.0, 3.0]))
    v.value = jnp.array([4.0, 5.0, 6.0])
    assert_same(v.value, jnp.array([4.0, 5.0, 6.0]))
    assert (v.shape, v.ndim, v.size, v.dtype, v.kind, v.name) == (
        (3,),
        1,
        3,
        jnp.float32,
        "params",
        "v",
    )


@pytest.mark.parametrize(
    "given",
    [
        jnp.array([7.0, 8.0, 9.0]),
        jnp.array([7, 8, 9]),
        jnp.array([7.0, 8.0, 9.0], jnp.bfloat16),
        np.array([7.0, 8.0, 9.0], np.float32),
        np.array([7.0, 8.0, 9.0]),
        np.array([7, 8, 9], np.uint8),
        [7, 8, 9],
        (7.0, 8, np.float32(9)),
        [jnp.float32(7), np.float32(8), 9.0],
        range(7, 10),
        np.array([7.0, 8.0, 9.0], np.float32).data,
        sb.Variable(jnp.array([7.0, 8.0, 9.0])),
    ],
    ids=lambda given: type(given).__name__,
)
def test_assign_takes_what_asarray_takes_and_keeps_the_dtype(given):
    v = vector()
    v.assign(given)
    assert_same(v.value, jnp.array([7.0, 8.0, 9.0], jnp.float32))
    assert isinstance(v.value, jax.Array)


@pytest.mark.parametrize(
    "given", [5, 5.0, True, np.float64(5), jnp.float32(5)], ids=lambda given: type(given).__name__
)
def test_a_scalar_variable_takes_a_number(given):
    v = sb.Variable(jnp.float32(1.0))
    v.assign(given)
    assert_same(v.value, jnp.float32(given))


@pytest.mark.parametrize("start", [2, 2.0, jnp.asarray(2.0), jnp.asarray(2)], ids=repr)
def test_a_value_is_never_weakly_typed(start):
    v = sb.Variable(start)
    before = v.dtype
    assert not v.value.weak_type
    v.assign(jnp.asarray(3))
    assert not v.value.weak_type
    assert v.dtype == before


def test_bools_and_ints_are_cast_up_but_nothing_is_cast_down():
    v = sb.Variable(jnp.array([1, 2]))
    v.assign([True, False])
    assert_same(v.value, jnp.array([1, 0]))
    with pytest.raises(TypeError, match="float32"):
        v.assign(jnp.array([1.0, 2.0]))
    flag = sb.Variable(jnp.array([True, False]))
    with pytest.raises(TypeError, match="int32"):
        flag.assign(jnp.array([1, 0]))


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ([1.0, 2.0], ValueError, r"v has shape \(3,\).*\(2,\)"),
        (jnp.ones((1, 3)), ValueError, r"v has shape \(3,\).*\(1, 3\)"),
        (5.0, ValueError, r"v has shape \(3,\).*\(\)"),
        (jnp.ones(3, jnp.complex64), TypeError, "v .*complex64"),
        (np.array(["a", "b", "c"]), TypeError, "v "),
        (np.array([1.0, None, 2.0], object), TypeError, "v "),
        ("abc", TypeError, "v .*'abc'"),
        ({"a": 1.0}, TypeError, "v "),
        ({1.0, 2.0, 3.0}, TypeError, "v "),
        (object(), TypeError, "v "),
        (jax.ShapeDtypeStruct((3,), jnp.float32), TypeError, "v "),
        (jax.random.key(0), TypeError, "v .*key<fry>"),
    ],
    ids=lambda case: type(case).__name__ if not isinstance(case, str | type) else str(case),
)
def test_a_refused_assignment_names_the_variable_and_changes_nothing(bad, error, text):
    v = vector()
    before = v.value
    with pytest.raises(error, match=text):
        v.assign(bad)
    assert v.value is before


@pytest.mark.parametrize("bad", [None, [[1.0], [2.0, 3.0]]], ids=["None", "ragged"])
def test_what_is_no_array_is_refused_with_the_name(bad):
    v = vector()
    with pytest.raises((TypeError, ValueError), match="v "):
        v.assign(bad)


def test_a_deleted_array_is_refused():
    v, gone = vector(), jnp.array([7.0, 8.0, 9.0])
    gone.delete()
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        v.assign(gone)
    assert_same(v.value, jnp.array([1.0, 2.0, 3.0]))


def test_a_later_write_to_the_callers_numpy_array_does_not_show():
    mine = np.array([7.0, 8.0, 9.0], np.float32)
    v, made = vector(), sb.Variable(mine)
    v.assign(mine)
    mine[:] = -1
    assert_same(v.value, jnp.array([7.0, 8.0, 9.0]))
    assert_same(made.value, jnp.array([7.0, 8.0, 9.0]))


def test_a_tracer_can_not_be_assigned():
    v = vector()
    before = v.value

    @jax.jit
    def leak(x):
        v.assign(x)
        return x

    with pytest.raises(RuntimeError, match=r"v is assigned.*sb\.jit"):
        leak(jnp.array([7.0, 8.0, 9.0]))
    assert v.value is before


def test_a_copy_inside_a_transform_is_refused():
    v, kept = vector(), []

    @sb.jit
    def leak(v):
        kept.append(copy.deepcopy(v))
        return v * 2

    with pytest.raises(RuntimeError, match="tracer"):
        leak(v)
    assert not kept


# Variable: arithmetic and truth

BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "other",
    [2.0, jnp.array([3.0, 1.0, 2.0]), np.array([3.0, 1.0, 2.0], np.float32), np.float32(2.0)],
    ids=type,
)
def test_arithmetic_and_comparison_work_on_the_value(name, other):
    function, v = getattr(operator, name), vector()
    array = v.value
    for got, want in [
        (function(v, other), function(array, other)),
        (function(other, v), function(other, array)),
    ]:
        assert_same(got, want)
        assert isinstance(got, jax.Array)


@pytest.mark.parametrize("name", BINARY)
def test_two_variables_can_be_combined(name):
    function, v, w = getattr(operator, name), vector(), vector((3.0, 1.0, 2.0))
    assert_same(function(v, w), function(v.value, w.value))


def test_matmul_from_both_sides():
    matrix: Any = sb.Variable(jnp.arange(6.0).reshape(2, 3))
    assert_same(matrix @ jnp.ones(3), matrix.value @ jnp.ones(3))
    assert_same(jnp.ones(2) @ matrix, jnp.ones(2) @ matrix.value)
    assert_same(np.ones(2, np.float32) @ matrix, jnp.ones(2) @ matrix.value)


def test_numpy_scalars_and_arrays_combine_with_a_variable_under_a_transform():
    v = vector()

    def total(v):
        return (np.float32(2) * v + np.ones(3, np.float32) / v).sum()

    want = (2 * v.value + 1 / v.value).sum()
    np.testing.assert_allclose(sb.jit(total)(v), want, rtol=1e-6)
    np.testing.assert_allclose(sb.value_and_grad(total)(v)[0], want, rtol=1e-6)


def test_unary_operators_indexing_and_length():
    v = vector((-1.0, 2.0, -3.0))
    assert_same(-v, jnp.array([1.0, -2.0, 3.0]))
    assert_same(abs(v), jnp.array([1.0, 2.0, 3.0]))
    assert_same(v[1], jnp.float32(2.0))
    assert_same(v[::2], jnp.array([-1.0, -3.0]))
    assert len(v) == 3


def test_iteration_ends_with_the_array():
    assert [float(a) for a in islice(vector(), 10)] == [1.0, 2.0, 3.0]


def test_numpy_and_python_read_the_value():
    v = vector()
    assert_same(np.asarray(v), np.array([1.0, 2.0, 3.0], np.float32))
    assert_same(jnp.asarray(v), v.value)
    assert float(sb.Variable(jnp.float32(2.5))) == 2.5
    assert int(sb.Variable(jnp.int32(2))) == 2


def test_an_array_is_true_whatever_it_holds_and_a_scalar_refuses():
    assert bool(vector())
    assert bool(sb.Variable(jnp.zeros(3)))
    assert bool(sb.Variable(jnp.zeros(1)))
    for scalar in (1.0, 0.0):
        with pytest.raises(TypeError, match=r"step.*step\.value"):
            bool(sb.Variable(jnp.float32(scalar), name="step"))


# Variable: identity


def test_equality_and_hash_are_by_identity():
    v, w = vector(), vector()
    assert v == v
    assert v != w
    assert v != v.value.tolist()
    assert len({v, w, v}) == 2
    assert {v: 1, w: 2}[w] == 2
    assert w in [v, w]
    before = hash(v)
    v.assign([7.0, 8.0, 9.0])
    assert hash(v) == before


def test_an_array_of_numpy_is_a_copy_that_can_be_written():
    v = vector()
    mine = np.array(v)
    mine += 1
    assert_same(v.value, jnp.array([1.0, 2.0, 3.0]))
    assert np.asarray(v, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("name", ["T", "mean", "at", "astype", "reshape"])
def test_attributes_of_the_array_are_not_forwarded_and_the_error_says_where_they_are(name):
    v = vector()
    assert not hasattr(v, name)
    with pytest.raises(AttributeError, match=rf"'{name}'.*\.value\.{name}"):
        getattr(v, name)


def test_an_unknown_attribute_gets_no_wrong_hint():
    with pytest.raises(AttributeError, match="'nonsense'") as error:
        _ = vector().nonsense
    assert ".value" not in str(error.value)


def test_an_array_of_numpys_is_not_followed():
    for _ in range(50):
        given = np.zeros(100_000, np.float32)
        made = sb.Variable(given)
        given += 1
        other = sb.Variable(jnp.ones(100_000))
        other.assign(given)
        given += 1
        assert not made.value.any()
        assert (other.value == 1).all()


def test_a_shared_variable_is_assigned_by_all_of_its_names_or_by_the_first():
    v = vector()
    variables = sb.VarCollection({"b": v, "a": v})
    for names in (("b",), ("b", "a")):
        variables.assign(dict.fromkeys(names, jnp.full(3, float(len(names)))))
        assert_same(v.value, jnp.full(3, float(len(names))))
    with pytest.raises(KeyError, match="the names don't match: missing: b"):
        variables.assign({"a": jnp.zeros(3)})


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("read_first", [True, False])
def test_copies_are_independent_and_equal(copied, read_first):
    v = vector(kind="state", collection="batch_stats", path=("mean",), trainable=True)
    if read_first:
        v.value.block_until_ready()
    w = copied(v)
    assert type(w) is sb.Variable
    assert w is not v
    assert_same(w.value, v.value)
    for name in ("kind", "collection", "path", "name", "trainable"):
        assert getattr(w, name) == getattr(v, name)
    w.assign([7.0, 8.0, 9.0])
    assert_same(v.value, jnp.array([1.0, 2.0, 3.0]))


def test_a_typed_prng_key_can_be_held_copied_and_replaced_by_a_key_only():
    key = jax.random.key(3)
    v = sb.Variable(key, kind="rng", name="stream")
    for made in (v, copy.deepcopy(v), pickle.loads(pickle.dumps(v))):
        assert made.dtype == key.dtype
        assert_same(jax.random.key_data(made.value), jax.random.key_data(key))
    v.assign(sb.Variable(jax.random.key(4), kind="rng"))
    assert_same(jax.random.key_data(v.value), jax.random.key_data(jax.random.key(4)))
    before = v.value
    for bad in (jax.random.PRNGKey(4), 4, jax.random.key(4, impl="rbg")):
        with pytest.raises(TypeError, match="stream"):
            v.assign(bad)
    with pytest.raises(ValueError, match="stream"):
        v.assign(jax.random.split(key))
    assert v.value is before
    assert "key<fry>" in repr(v)


def test_repr_names_the_variable_its_kind_and_its_type():
    text = repr(vector(kind="state", name="mean"))
    assert "mean" in text
    assert "state" in text
    assert "float32" in text
    assert "3" in text


def test_trainable_follows_the_kind_unless_it_is_set():
    assert vector().trainable
    assert not vector(kind="state").trainable
    v = vector()
    v.trainable = False
    assert not v.trainable


# Variable: names


def test_the_name_follows_the_edits_of_the_model():
    model = sb.Sequential([jnp.tanh, nn.Dense(2)]).build((1, 3))
    kernel = model[1].kernel
    assert kernel.name == "(Sequential)[1](Dense).kernel"
    del model[0]
    assert kernel.name == "(Sequential)[0](Dense).kernel"
    model.insert(0, jnp.tanh)
    model.insert(0, jnp.sin)
    assert kernel.name == "(Sequential)[2](Dense).kernel"
    model.reverse()
    assert kernel.name == "(Sequential)[0](Dense).kernel"
    assert model.vars()[kernel.name] is kernel
    layer = model.pop(0)
    assert layer.kernel is kernel
    assert "[0]" not in kernel.name
    other = sb.Sequential({"head": layer})
    assert kernel.name == "(Sequential).head(Dense).kernel"
    assert other.vars()[kernel.name] is kernel


def test_an_array_that_fits_is_taken_as_it_is():
    v, array = vector(), jnp.ones(3)
    v.assign(array)
    assert v.value is array


def test_the_name_is_that_in_the_outermost_model():
    inner = sb.Sequential([nn.Dense(2)]).build((1, 3))
    outer = sb.Sequential([inner])
    assert inner[0].kernel.name == "(Sequential)[0](Sequential)[0](Dense).kernel"
    outer.append(jnp.tanh)
    del outer[0]
    assert inner[0].kernel.name == "(Sequential)[0](Dense).kernel"


def test_a_nested_model_draws_what_it_would_draw_inside():
    def make() -> Any:
        return sb.Sequential([jnp.tanh, sb.Sequential([nn.Dense(2)])], seed=7)

    alone, whole = make(), make().build((1, 3))
    alone[1].build((1, 3))
    assert_same(alone[1][0].kernel.value, whole[1][0].kernel.value)


def test_a_table_of_a_model_says_what_is_not_built():
    model = sb.Sequential([nn.Dense(2), jnp.tanh, nn.Dense(3)])
    waiting = "(Sequential)[0](Dense), (Sequential)[2](Dense)"
    assert str(model.vars()).endswith(f"  not built yet: {waiting}; call model.build(...)")
    assert "not built" not in str(model.build((1, 3)).vars())


def test_the_name_holds_when_only_a_slice_lives_on():
    first = sb.Sequential([jnp.tanh, nn.Dense(2), jnp.tanh]).build((1, 3))[1:]
    assert first[0].kernel.name == "(Sequential)[0](Dense).kernel"


def test_the_name_stands_in_errors_of_the_model():
    model = sb.Sequential({"head": nn.Dense(2)}).build((1, 3))
    with pytest.raises(
        ValueError, match=re.escape("(Sequential).head(Dense).kernel has shape (3, 2)")
    ):
        model.head.kernel.assign(jnp.ones((2, 3)))


# VarCollection: a mapping


def collection() -> Any:
    return sb.VarCollection(
        {
            "w": vector(name="w"),
            "b": sb.Variable(jnp.float32(4.0), name="b"),
            "mean": vector((5.0, 6.0), kind="state", collection="batch_stats", name="mean"),
        }
    )


def test_a_collection_is_an_ordered_mapping():
    variables = collection()
    assert isinstance(variables, Mapping)
    assert list(variables) == ["w", "b", "mean"]
    assert list(variables.keys()) == ["w", "b", "mean"]
    assert len(variables) == 3
    assert "w" in variables
    assert "x" not in variables
    assert variables.get("x") is None
    assert [v.name for v in variables.values()] == ["w", "b", "mean"]
    assert dict(variables)["mean"].kind == "state"
    assert len(sb.VarCollection()) == 0


def test_a_collection_holds_variables_only():
    given: Any = {"w": jnp.ones(3)}
    with pytest.raises(TypeError, match="'w' is no Variable"):
        sb.VarCollection(given)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'mean'"):
        collection()["maen"]


def test_a_collection_of_a_model_is_live_and_in_the_models_order():
    model = sb.Sequential([nn.Dense(2), jnp.tanh])
    variables = model.vars()
    params = variables.subset("params")
    renamed = params.rename(lambda name: name.replace("(Sequential)", "net"))
    assert list(variables) == []
    model.build((1, 3))
    assert list(variables) == ["(Sequential)[0](Dense).bias", "(Sequential)[0](Dense).kernel"]
    assert variables["(Sequential)[0](Dense).kernel"] is model[0].kernel
    model.append(nn.Dense(1))
    names = [f"(Sequential)[{i}](Dense).{name}" for i in (0, 2) for name in ("bias", "kernel")]
    assert list(variables) == list(params) == names
    assert "net[2](Dense).kernel" in renamed
    del model[0]
    assert list(variables) == ["(Sequential)[1](Dense).bias", "(Sequential)[1](Dense).kernel"]
    assert len(params) == len(renamed) == 2


def test_subset_by_kind_regex_predicate_and_collection():
    variables = collection()
    assert list(variables.subset()) == ["w", "b", "mean"]
    assert list(variables.subset("params")) == ["w", "b"]
    assert list(variables.subset("state")) == ["mean"]
    assert list(variables.subset("rng")) == []
    assert list(variables.subset("^[wb]$")) == ["w", "b"]
    assert list(variables.subset(re.compile("E", re.IGNORECASE))) == ["mean"]
    assert list(variables.subset(lambda v: v.ndim == 0)) == ["b"]
    assert list(variables.subset(sb.VarCollection({"other": variables["b"]}))) == ["b"]
    assert variables.subset("w")["w"] is variables["w"]
    with pytest.raises(TypeError, match="3"):
        variables.subset(3)  # pyright: ignore[reportArgumentType]


def test_addition_joins_and_refuses_one_name_for_two_variables():
    first, second = collection(), sb.VarCollection({"w2": vector()})
    both = first + second
    assert list(both) == ["w", "b", "mean", "w2"]
    assert both["w2"] is second["w2"]
    assert list(first + first) == list(first)
    with pytest.raises(ValueError, match="'w'"):
        _ = first + sb.VarCollection({"w": vector()})
    with pytest.raises(TypeError):
        _ = first + {"x": 1}


def test_the_sum_of_two_models_is_live():
    a, b = (
        sb.Sequential({"a": nn.Dense(2)}).build((1, 3)),
        sb.Sequential({"b": nn.Dense(2)}).build((1, 3)),
    )
    both = a.vars() + b.vars()
    b.append(jnp.tanh)
    del a[0]
    assert list(both) == ["(Sequential).b(Dense).bias", "(Sequential).b(Dense).kernel"]


def test_rename_by_mapping_and_by_function():
    variables = collection()
    renamed = variables.rename({"w": "kernel"})
    assert list(renamed) == ["kernel", "b", "mean"]
    assert renamed["kernel"] is variables["w"]
    assert list(variables.rename(str.upper)) == ["W", "B", "MEAN"]
    with pytest.raises(KeyError, match="did you mean 'mean'"):
        variables.rename({"maen": "x"})
    with pytest.raises(ValueError, match="'b'"):
        variables.rename({"w": "b"})


def test_tensors_are_the_arrays_by_name():
    variables = collection()
    assert list(variables.tensors()) == ["w", "b", "mean"]
    assert variables.tensors()["w"] is variables["w"].value


# VarCollection: assign


@pytest.mark.parametrize("form", ["mapping", "collection", "list", "tuple"])
def test_assign_takes_a_mapping_a_collection_and_a_list(form):
    variables = collection()
    new = {"w": jnp.array([7.0, 8.0, 9.0]), "b": 10, "mean": np.array([11.0, 12.0])}
    given = {
        "mapping": dict(reversed(new.items())),
        "collection": sb.VarCollection(
            {n: sb.Variable(jnp.asarray(a, jnp.float32)) for n, a in new.items()}
        ),
        "list": list(new.values()),
        "tuple": tuple(new.values()),
    }[form]
    variables.assign(given)
    for name, array in new.items():
        assert_same(variables[name].value, jnp.asarray(array, jnp.float32))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"w": [7, 8, 9], "b": 1.0}, KeyError, "missing: mean"),
        (
            {"w": [7, 8, 9], "b": 1.0, "maen": [1, 2]},
            KeyError,
            "missing: mean; unknown: maen; did you mean 'mean'",
        ),
        ({"w": [7, 8, 9], "b": 1.0, "mean": [1, 2], "x": 1.0}, KeyError, "unknown: x"),
        ({"w": [7, 8, 9], "b": 1.0, "mean": [1, 2, 3]}, ValueError, "mean has shape"),
        ({"w": [7, 8, 9], "b": 1.0, "mean": [1j, 2j]}, TypeError, "mean .*complex64"),
        ([[7, 8, 9], 1.0], ValueError, "2 arrays for 3 variables"),
        ([[7, 8, 9], 1.0, [1, 2], [3]], ValueError, "4 arrays for 3 variables"),
        ([[7, 8, 9], 1.0, [1, 2, 3]], ValueError, "mean has shape"),
    ],
)
def test_a_refused_assignment_of_many_changes_nothing(given, error, text):
    variables = collection()
    before = variables.tensors()
    with pytest.raises(error, match=text):
        variables.assign(given)
    for name, array in before.items():
        assert variables[name].value is array


# VarCollection: the table


@pytest.mark.parametrize(("wrong", "more"), [(12, ""), (13, "; and 1 more"), (30, "; and 18 more")])
def test_of_many_wrong_names_twelve_are_listed(wrong, more):
    given = {f"u{i}": 0.0 for i in range(wrong - 1)}
    with pytest.raises(KeyError) as caught:
        sb.VarCollection({"missing-one": vector()}).assign(given)
    listed = "; ".join(["missing: missing-one", *(f"unknown: {name}" for name in given)][:12])
    assert caught.value.args[0] == f"assign: the names don't match: {listed}{more}"


def test_the_table_is_the_seeds():
    variables = sb.VarCollection(
        {
            "(Sequential)[0](Conv2D).b": sb.Variable(jnp.ones((20, 1, 1))),
            "(Sequential)[0](Conv2D).w": sb.Variable(jnp.ones((5, 5, 1, 20))),
            "(Sequential)[2](Conv2D).b": sb.Variable(jnp.ones((64, 1, 1))),
            "(Sequential)[2](Conv2D).w": sb.Variable(jnp.ones((5, 5, 20, 64))),
        }
    )
    assert str(variables) == (
        "(Sequential)[0](Conv2D).b       20 (20, 1, 1)\n"
        "(Sequential)[0](Conv2D).w      500 (5, 5, 1, 20)\n"
        "(Sequential)[2](Conv2D).b       64 (64, 1, 1)\n"
        "(Sequential)[2](Conv2D).w    32000 (5, 5, 20, 64)\n"
        "+Total(4)                    32584"
    )
    assert repr(variables) == str(variables)


def test_the_table_of_a_built_model():
    model = sb.Sequential([nn.Conv(20, (5, 5)), nn.relu, nn.Conv(64, (5, 5))]).build((1, 28, 28, 1))
    assert str(model.vars()) == (
        "(Sequential)[0](Conv).bias         20 (20,)\n"
        "(Sequential)[0](Conv).kernel      500 (5, 5, 1, 20)\n"
        "(Sequential)[2](Conv).bias         64 (64,)\n"
        "(Sequential)[2](Conv).kernel    32000 (5, 5, 20, 64)\n"
        "+Total(4)                       32584"
    )


def test_the_table_has_twenty_columns_for_names_at_least():
    assert (
        str(sb.VarCollection({"w": vector()}))
        == f"w{' ' * 19} {3:8d} (3,)\n+Total(1){' ' * 11} {3:8d}"
    )
    assert str(sb.VarCollection()) == f"+Total(0){' ' * 11} {0:8d}"


def test_the_table_has_a_hundred_columns_for_names_at_most():
    names = "a" * 120, "b" * 99
    first, second, total = str(sb.VarCollection({name: vector() for name in names})).splitlines()
    assert first == f"{names[0]} {3:8d} (3,)"
    assert second == f"{names[1]}  {3:8d} (3,)"
    assert total == f"+Total(2){' ' * 91} {6:8d}"


def test_the_table_says_what_is_no_trained_float32():
    state = sb.Variable(jnp.array([1, 2]), kind="state")
    table = str(
        sb.VarCollection({"frozen one": vector(trainable=False), "count": state, "plain": vector()})
    )
    frozen, count, plain, _ = table.splitlines()
    assert frozen.endswith("(3,)  frozen")
    assert count.endswith("(2,)  state int32")
    assert plain.endswith("(3,)")


def test_the_table_counts_a_shared_variable_once():
    v = vector()
    table = str(sb.VarCollection({"a": v, "b": v, "c": vector((1.0,))}))
    assert table.splitlines()[-1].split() == ["+Total(2)", "4"]
    assert len(table.splitlines()) == 4


# VarCollection: a pytree


def test_tree_map_gives_a_collection_and_leaves_the_first_alone():
    variables = collection()
    doubled = jax.tree.map(lambda a: 2 * a, variables)
    assert isinstance(doubled, sb.VarCollection)
    assert list(doubled) == list(variables)
    assert_same(doubled["w"].value, jnp.array([2.0, 4.0, 6.0]))
    assert_same(variables["w"].value, jnp.array([1.0, 2.0, 3.0]))
    assert doubled["mean"].kind == "state"
    variables.assign(jax.tree.map(lambda a, b: a + b, variables, doubled))
    assert_same(variables["w"].value, jnp.array([3.0, 6.0, 9.0]))


def test_paths_of_the_pytree_are_the_names():
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(collection())[0]
    ]
    assert paths == ["['w']", "['b']", "['mean']"]


def test_plain_jax_differentiates_jits_and_maps_a_function_of_a_collection():
    variables = collection().subset("params")

    def loss(variables):
        return (variables["w"] ** 2).sum() * variables["b"].value

    gradients = jax.grad(loss)(variables)
    assert isinstance(gradients, sb.VarCollection)
    assert_same(gradients["w"].value, 2 * variables["w"].value * 4.0)
    assert_same(gradients["b"].value, jnp.float32(14.0))
    assert_same(jax.jit(loss)(variables), jnp.float32(56.0))
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), variables)
    assert_same(jax.vmap(loss)(stacked), jnp.array([56.0, 448.0]))


def test_a_step_of_optax_on_a_collection():
    variables: Any = collection().subset("params")
    optimizer = optax.sgd(0.5)
    gradients = jax.tree.map(jnp.ones_like, variables)
    updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
    variables.assign(optax.apply_updates(variables, updates))
    assert_same(variables["w"].value, jnp.array([0.5, 1.5, 2.5]))
    assert_same(variables["b"].value, jnp.float32(3.5))


def test_a_shared_variable_is_one_leaf():
    v = vector()
    variables = sb.VarCollection({"a": v, "b": v})
    assert len(jax.tree.leaves(variables)) == 1
    assert list(variables.tensors()) == ["a"]
    mapped = jax.tree.map(lambda a: a + 1, variables)
    assert mapped["a"] is mapped["b"]
    gradients = jax.grad(lambda c: (c["a"] * c["b"].value).sum())(variables)
    assert_same(gradients["b"].value, 2 * v.value)
    variables.assign({"a": [7.0, 8.0, 9.0]})
    assert_same(v.value, jnp.array([7.0, 8.0, 9.0]))
    variables.assign([[1.0, 2.0, 3.0]])
    assert_same(v.value, jnp.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))], ids=["deepcopy", "pickle"]
)
def test_a_copied_collection_keeps_order_and_sharing_and_is_independent(copied):
    v = vector()
    variables = sb.VarCollection({"b": v, "a": v, "c": vector((4.0,))})
    made = copied(variables)
    assert list(made) == ["b", "a", "c"]
    assert made["a"] is made["b"]
    assert made["a"] is not v
    made["a"].assign([7.0, 8.0, 9.0])
    assert_same(v.value, jnp.array([1.0, 2.0, 3.0]))


def test_a_collection_of_a_model_survives_pickle():
    model = mixed()
    made = pickle.loads(pickle.dumps(model[:3].vars()))
    assert list(made) == list(model[:3].vars())
    for name, variable in made.items():
        assert_same(variable.value, model.vars()[name].value)


# The model's variables as plain dicts


def test_variables_are_plain_dicts_of_params_and_state_under_the_models_names():
    model = mixed()
    variables = model.variables
    assert type(variables) is dict
    assert list(variables) == ["params", "state"]
    assert list(variables["params"]) == list(model.vars().subset("params"))
    assert list(variables["state"]) == list(model.vars().subset("state"))
    assert list(variables["state"]) == [
        "(Sequential)[1](BatchNorm).mean",
        "(Sequential)[1](BatchNorm).var",
    ]
    for part in variables.values():
        assert type(part) is dict
        for name, array in part.items():
            assert array is model.vars()[name].value


def test_the_dicts_are_the_callers_own():
    model = mixed()
    model.variables["params"].clear()
    model.variables["state"]["(Sequential)[1](BatchNorm).mean"] = None
    assert len(model.variables["params"]) == len(model.vars().subset("params"))
    assert model.variables["state"]["(Sequential)[1](BatchNorm).mean"] is model[1].mean.value


def test_assign_takes_back_what_variables_gave():
    model = mixed()
    saved, y = model.variables, model(X, training=False)
    for variable in model.vars().subset(lambda v: v.kind != "rng").values():
        variable.assign(variable * 0 + 1)
    assert not np.allclose(model(X, training=False), y)
    model.assign(saved)
    assert_same(model(X, training=False), y)
    other = {"params": {name: array + 1 for name, array in saved["params"].items()}}
    model.assign(other)
    assert_same(model[0].kernel.value, saved["params"]["(Sequential)[0](Dense).kernel"] + 1)
    assert_same(model[1].mean.value, saved["state"]["(Sequential)[1](BatchNorm).mean"])


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "dtype", "part"])
def test_a_refused_assignment_of_a_model_changes_nothing(fault):
    model = mixed()
    before = model.vars().tensors()
    given = jax.tree.map(lambda a: a + 1, model.variables)
    name = "(Sequential)[1](BatchNorm).mean"
    array = given["state"].pop(name)
    if fault == "unknown":
        given["state"][name.replace("mean", "maen")] = array
    elif fault == "shape":
        given["state"][name] = array[1:]
    elif fault == "dtype":
        given["state"][name] = array.astype(jnp.complex64)
    elif fault == "part":
        given["stats"] = {name: array}
    error, text = {
        "missing": (KeyError, f"missing: {name}"),
        "unknown": (KeyError, f"did you mean '{name}'"),
        "shape": (ValueError, f"{name} has shape"),
        "dtype": (TypeError, name),
        "part": (KeyError, "did you mean 'state'|stats"),
    }[fault]
    with pytest.raises(error, match=text if fault == "part" else re.escape(text)):
        model.assign(given)
    for key, old in before.items():
        assert model.vars()[key].value is old


def test_an_unbuilt_model_has_no_variables_to_read_or_assign():
    model = sb.Sequential([nn.Dense(2)])
    with pytest.raises(RuntimeError, match="build"):
        _ = model.variables
    with pytest.raises(RuntimeError, match="build"):
        model.assign({"params": {}})


def test_init_stores_nothing_and_equals_a_build_from_the_same_seed():
    model = sb.Sequential([nn.Dense(3), nn.BatchNorm(), partial(hk.Linear, 2)])
    fresh = model.init(jax.random.key(5), X)
    assert not model.built
    assert len(model.vars()) == 0
    same_trees(model.init(5, (None, 3)), fresh)
    assert not np.array_equal(
        model.init(6, X)["params"]["(Sequential)[0](Dense).kernel"],
        fresh["params"]["(Sequential)[0](Dense).kernel"],
    )
    same_trees(
        sb.Sequential([nn.Dense(3), nn.BatchNorm(), partial(hk.Linear, 2)], seed=5)
        .build(X)
        .variables,
        fresh,
    )


def test_init_of_a_built_model_gives_fresh_values_and_leaves_the_models_alone():
    model = mixed()
    before = model.vars().tensors()
    fresh = model.init(5, X)
    assert jax.tree.structure(fresh) == jax.tree.structure(model.variables)
    assert not np.array_equal(
        fresh["params"]["(Sequential)[0](Dense).kernel"], model[0].kernel.value
    )
    for name, old in before.items():
        assert model.vars()[name].value is old


def test_apply_computes_what_a_call_computes_and_changes_nothing():
    model = mixed()
    variables = model.variables
    out, after = model.apply(variables, X, training=False)
    assert_same(out, model(X, training=False))
    same_trees(after, variables)
    out, after = model.apply(variables, X, training=True)
    same_trees(model.variables, variables)
    same_trees(after["params"], variables["params"])
    assert not np.array_equal(
        after["state"]["(Sequential)[1](BatchNorm).mean"], model[1].mean.value
    )
    assert_same(out, model(X, training=True))
    same_trees(model.variables, after)


def test_apply_needs_no_built_model():
    model = sb.Sequential([nn.Dense(3), nn.BatchNorm(), partial(hk.Linear, 2)])
    variables = model.init(5, X)
    out, _ = model.apply(variables, X, training=False)
    assert not model.built
    model.build(X)
    model.assign(variables)
    assert_same(out, model(X, training=False))


def test_apply_with_plain_jax_and_optax():
    model = mixed()
    variables, optimizer = model.variables, optax.sgd(0.25)

    @jax.jit
    def step(params, state, moments):
        def loss(params):
            out, after = model.apply({"params": params, "state": state}, X, training=True)
            return (out**2).sum(), after["state"]

        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), state, value, gradients

    params, state, value, gradients = step(*variables.values(), optimizer.init(variables["params"]))
    for name, old in variables["params"].items():
        np.testing.assert_allclose(params[name], old - 0.25 * gradients[name], rtol=1e-6)
    model.assign({"params": params, "state": state})
    assert_same(model[1].mean.value, state["(Sequential)[1](BatchNorm).mean"])
    assert np.isfinite(value)


@pytest.mark.parametrize(
    ("old", "new"), [("missing", None), ("unknown", "(Sequential)[1](BatchNorm).maen")]
)
def test_apply_names_what_does_not_match(old, new):
    model = mixed()
    variables = model.variables
    array = variables["state"].pop("(Sequential)[1](BatchNorm).mean")
    if new:
        variables["state"][new] = array
    with pytest.raises(KeyError, match=old):
        model.apply(variables, X, training=False)


def test_a_shared_layer_stands_once_in_the_plain_dicts():
    shared = nn.Dense(3)
    model = scramble(sb.Sequential([shared, jnp.tanh, shared]).build((1, 3)))
    assert list(model.vars()) == [
        f"(Sequential)[{i}](Dense).{n}" for i in (0, 2) for n in ("bias", "kernel")
    ]
    assert len(model.vars().tensors()) == 2
    variables = model.variables
    assert list(variables["params"]) == [
        "(Sequential)[0](Dense).bias",
        "(Sequential)[0](Dense).kernel",
    ]
    assert_same(model.apply(variables, X)[0], model(X))
    model.assign({"params": {name: array * 0.5 for name, array in variables["params"].items()}})
    assert_same(model[2].kernel.value, variables["params"]["(Sequential)[0](Dense).kernel"] * 0.5)


# Native trees


def test_the_native_tree_of_a_linen_module_runs_in_linen():
    model = mixed()
    dense, norm, mlp = nn.Dense(3), nn.BatchNorm(), MLP()
    tree = model[0].native
    assert jax.tree.structure(tree) == jax.tree.structure(dense.init(jax.random.key(0), X))
    assert_same(dense.apply(tree, X), model[0](X))
    tree = model[1].native
    assert set(tree) == {"params", "batch_stats"}
    assert_same(norm.apply(tree, X, use_running_average=True), model[1](X, training=False))
    want, state = norm.apply(tree, X, use_running_average=False, mutable=["batch_stats"])
    assert_same(model[1](X, training=True), want)
    same_trees(model[1].native["batch_stats"], state["batch_stats"])
    assert set(model[4].native["params"]) == {"Dense_0", "Dense_1"}
    assert_same(mlp.apply(model[4].native, X), model[4](X))


def test_the_native_tree_of_a_haiku_transform_runs_in_haiku():
    entry = hk.transform(lambda x: hk.nets.MLP([5, 2])(x))
    model = scramble(sb.Sequential([entry]).build((1, 3)))
    params, state = model[0].native
    assert not state
    assert jax.tree.structure(params) == jax.tree.structure(entry.init(jax.random.key(0), X))
    assert_same(entry.apply(params, None, X), model(X))


def test_the_native_tree_of_a_haiku_transform_with_state_runs_in_haiku():
    def center(x, is_training):
        mean = hk.get_state("mean", x.shape[1:], init=jnp.ones)
        if is_training:
            mean = 0.5 * mean + 0.5 * x.mean(0)
            hk.set_state("mean", mean)
        return hk.Linear(2)(x - mean[None])

    entry = hk.transform_with_state(center)
    model = scramble(sb.Sequential([entry]).build((1, 3)))
    params, state = model[0].native
    assert jax.tree.structure((params, state)) == jax.tree.structure(
        entry.init(jax.random.key(0), X, is_training=True)
    )
    assert_same(entry.apply(params, state, None, X, is_training=False)[0], model(X, training=False))
    want, after = entry.apply(params, state, None, X, is_training=True)
    assert_same(model(X, training=True), want)
    same_trees(model[0].native[1], after)


def test_the_native_tree_of_a_haiku_class_runs_in_haiku():
    model = mixed()
    params, state = model[2].native
    entry = hk.transform(lambda x: hk.Linear(4)(x))
    assert not state
    assert_same(entry.apply(params, None, X), model[2](X))


def test_load_native_takes_what_the_library_itself_made():
    model = mixed()
    y = jnp.ones((2, 3)) / 2
    for i, module in ((0, nn.Dense(3)), (4, MLP())):
        tree = module.init(jax.random.key(7), y)
        model[i].load_native(tree)
        assert_same(model[i](y), module.apply(tree, y))
        same_trees(model[i].native, tree)
    entry = hk.transform(lambda x: hk.nets.MLP([5, 3])(x))
    params = entry.init(jax.random.key(7), jnp.ones((2, 4)))
    model[3].load_native(params)
    assert_same(model[3](jnp.ones((2, 4))), entry.apply(params, None, jnp.ones((2, 4))))


def test_native_round_trips_between_models():
    source, target = (
        mixed(),
        sb.Sequential([layer.entry for layer in mixed()], seed=3).build((1, 3)),
    )
    for a, b in zip(source, target, strict=True):
        b.load_native(a.native)
    assert_same(target(X, training=False), source(X, training=False))


def renamed(tree):
    return {"params": {"kernal" if k == "kernel" else k: a for k, a in tree["params"].items()}}


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (renamed, KeyError, "unknown: params/kernal; did you mean 'params/kernel'"),
        (
            lambda tree: {"params": {"kernel": tree["params"]["kernel"]}},
            KeyError,
            "missing: params/bias",
        ),
        (
            lambda tree: {**tree, "batch_stats": {"mean": jnp.ones(3)}},
            KeyError,
            "unknown: batch_stats/mean",
        ),
        (
            lambda tree: jax.tree.map(lambda a: a.T if a.ndim == 1 else a[1:], tree),
            ValueError,
            "kernel has shape",
        ),
        (
            lambda tree: jax.tree.map(lambda a: a.astype(jnp.complex64), tree),
            TypeError,
            "complex64",
        ),
        (lambda tree: tree["params"], KeyError, "missing: params/kernel"),
        (lambda tree: {}, KeyError, "missing: params/kernel"),
    ],
)
def test_a_refused_native_tree_changes_nothing(spoil, error, text):
    model = scramble(sb.Sequential([nn.Dense(3)]).build((1, 3)))
    before = model.vars().tensors()
    with pytest.raises(error, match=text):
        model[0].load_native(spoil(jax.tree.map(lambda a: a + 1, model[0].native)))
    for name, old in before.items():
        assert model.vars()[name].value is old


def test_native_needs_a_built_layer_and_says_so():
    layer = sb.Sequential([nn.Dense(3)])[0]
    with pytest.raises(AttributeError, match="build"):
        _ = layer.native
    with pytest.raises(AttributeError, match="build"):
        layer.load_native({"params": {}})


def test_an_edit_of_the_native_tree_does_not_reach_the_model():
    model = mixed()
    model[0].native["params"].clear()
    model[2].native[0].clear()
    assert set(model[0].native["params"]) == {"kernel", "bias"}
    model(X, training=False)


# Attributes and items of a layer


def test_variables_are_attributes_and_items_of_their_layer():
    model = mixed()
    assert model[0].kernel is model.vars()["(Sequential)[0](Dense).kernel"]
    assert model[0]["kernel"] is model[0].kernel
    assert model[1].mean.kind == "state"
    assert (model[1].mean.collection, model[1].mean.path) == ("batch_stats", ("mean",))
    assert model[4].Dense_0.kernel is model.vars()["(Sequential)[4](MLP).Dense_0.kernel"]
    assert model[4]["Dense_0"]["kernel"] is model[4].Dense_0.kernel
    assert model[4].Dense_0.kernel.path == ("Dense_0", "kernel")
    assert model[2].w is model.vars()["(Sequential)[2](Linear).w"]
    assert list(model[4].vars()) == [
        "Dense_0.bias",
        "Dense_0.kernel",
        "Dense_1.bias",
        "Dense_1.kernel",
    ]
    assert list(model[4].Dense_0.vars()) == ["bias", "kernel"]


def test_the_names_of_haiku_modules_are_branches():
    model = mixed()
    assert model[3].mlp.linear_0.w is model.vars()["(Sequential)[3](Transformed).mlp.linear_0.w"]
    assert model[3]["mlp"]["linear_1"]["b"] is model[3].mlp.linear_1.b
    assert model[3].mlp.linear_0.w.path == ("mlp/~/linear_0", "w")
    assert_same(model[3].mlp.linear_0.w.value, model[3].native[0]["mlp/~/linear_0"]["w"])


def test_items_take_the_names_of_haiku_itself():
    model = mixed()
    assert model[3]["mlp/~/linear_0"]["w"] is model[3].mlp.linear_0.w
    assert model[3]["mlp/~/linear_1"].b is model[3].mlp.linear_1.b


def double(x):
    return 2 * x


def holding(variables, **options):
    """A built layer of no library that holds `variables`."""
    signature = sb.signature_of(double)
    entry = sb.PureLayer(
        init=lambda key, x: variables,
        apply=lambda variables, key, x: (2 * x, {}),
        signature=signature,
        label="Own",
        ecosystem="test",
        **options,
    )
    return sb.Sequential([entry]).build((1, 3))


def test_one_name_in_two_collections_gets_the_collection():
    model = holding(
        {"params": {"mean": jnp.ones(1)}, "stats": {"mean": jnp.ones(2), "var": jnp.ones(3)}}
    )
    assert [(name, v.shape) for name, v in model[0].vars().items()] == [
        ("mean", (1,)),
        ("stats.mean", (2,)),
        ("var", (3,)),
    ]
    assert model[0].stats.mean.kind == "state"


def test_short_names_that_would_clash_stay_long():
    tree = {"params": {"a": {"w": jnp.ones(1), "b": jnp.ones(2)}, "c": {"w": jnp.ones(3)}}}
    model = holding(tree, shorten=lambda path: path[-1:])
    assert [(name, v.shape) for name, v in model[0].vars().items()] == [
        ("b", (2,)),
        ("a.w", (1,)),
        ("c.w", (3,)),
    ]
    assert model[0].a.w.path == ("a", "w")


def test_the_names_of_a_layer_are_listed_by_dir():
    model = mixed()
    assert {"kernel", "bias", "entry"} <= set(dir(model[0]))
    assert {"Dense_0", "Dense_1"} <= set(dir(model[4]))
    assert {"kernel", "bias"} <= set(dir(model[4].Dense_0))
    assert repr(model[4].Dense_0).splitlines()[-1].startswith("+Total(2)")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        (lambda m: m[0].kernal, "kernel"),
        (lambda m: m[0]["kernal"], "kernel"),
        (lambda m: m[1].maen, "mean"),
        (lambda m: m[4].Dense1, "Dense_1"),
        (lambda m: m[4].Dense_0.kernal, "kernel"),
        (lambda m: m[4]["Dense_0"]["kernal"], "kernel"),
        (lambda m: m[3].mlp.linear0, "linear_0"),
    ],
)
def test_a_wrong_name_gets_the_nearest(wrong, near):
    with pytest.raises((AttributeError, KeyError), match=f"did you mean '{near}'"):
        wrong(mixed())


def test_attributes_raise_attribute_errors_and_items_key_errors():
    model = mixed()
    assert not hasattr(model[0], "weight")
    assert not hasattr(model[4].Dense_0, "weight")
    assert getattr(model[0], "weight", None) is None
    with pytest.raises(KeyError):
        model[0]["weight"]
    with pytest.raises(AttributeError, match="isn't built"):
        _ = sb.Sequential([nn.Dense(3)])[0].kernel


def test_writing_over_a_variable_is_refused_and_names_the_cure():
    model = mixed()
    before = model.vars().tensors()
    with pytest.raises(AttributeError, match="assign"):
        model[0].bias = jnp.zeros(3)
    with pytest.raises(TypeError, match=r"write `v\.value \+= x`"):
        model[2].b += 1
    with pytest.raises(AttributeError, match="assign"):
        model[4].Dense_0.kernel = jnp.zeros((4, 4))
    for name, old in before.items():
        assert model.vars()[name].value is old


def test_the_seeds_update_of_a_bias():
    model = mixed()
    before = model[0].bias.value
    model[0].bias.assign(model[0].bias.value + 1)
    assert_same(model[0].bias.value, before + 1)
    model[0].bias.assign(model[0].bias - 1)
    np.testing.assert_allclose(model[0].bias.value, before, rtol=1e-6)


# What a person looks at


def test_a_collection_is_itself_alone_and_says_its_names():
    v = vector()
    one, two = sb.VarCollection({"a": v}), sb.VarCollection({"a": v})
    assert one == one
    assert one != two
    assert len({one, two, one}) == 2
    assert one._ipython_key_completions_() == ["a"]


def test_a_shared_variable_is_marked_where_it_stands_again():
    v = vector()
    lines = str(sb.VarCollection({"b": v, "a": v, "c": vector()})).splitlines()
    assert ["shared" in line for line in lines] == [False, True, False, False]


def test_a_variable_lists_what_it_has_and_nothing_of_the_arrays():
    names = dir(vector())
    assert "assign" in names
    assert "mean" not in names
    assert sb.Variable.mean is not None  # pyright: ignore[reportAttributeAccessIssue]  (asked of the class)


def test_a_collection_is_read_anew_at_each_call_of_a_program():
    table = {"v": vector()}
    live = sb.VarCollection(lambda: table)
    total = sb.jit(lambda variables: variables["v"].value.sum())
    assert float(total(live)) == 6.0
    assert float(total(live)) == 6.0
    table = {"v": vector((4.0, 5.0, 6.0))}
    assert float(total(live)) == 15.0


def test_what_jax_makes_of_a_collection_inside_of_a_program_has_its_values():
    model = mixed()

    @sb.jit
    def doubled(model, x):
        made = jax.tree.map(
            lambda a: 2 * a if a.dtype == x.dtype else a, model.vars().subset("params")
        )
        return {name: variable.value for name, variable in made.items()}

    for name, array in doubled(model, jnp.ones(())).items():
        assert_same(array, 2 * model.vars()[name].value)


def test_keys_come_and_go_with_the_layers_that_draw():
    model = sb.Sequential([nn.Dense(3), nn.Dropout(0.5)]).build((1, 3))
    model(jnp.ones((1, 3)), training=True)
    assert "(Sequential).rng" in model.vars()
    del model[1]
    assert "(Sequential).rng" not in model.vars()


def test_a_filter_may_be_a_name_as_it_is_printed_and_a_misspelt_kind_is_an_error() -> None:
    w = jnp.ones(2)
    variables = sb.Sequential(
        [lambda x: x * w, *(partial(lambda x, w: x * w, w=w + i) for i in range(12))]
    ).vars()
    name = [*variables][1]
    assert name.startswith("(Sequential)[1]")
    assert [*variables.subset(name)] == [*variables.subset(name.removesuffix(".w"))] == [name]
    for part in ("(Sequential)[1]", "[1]", f"[1]({name.split('(')[2].split(')')[0]})"):
        assert [*variables.subset(part)] == [name]  # and not those of [10]
    assert len(variables.subset("[1-2]")) == 5  # a class of characters, since no name has it
    assert [*variables.subset("[1].w")] == [*variables.subset(f"{name[12:]}")] == [name]
    assert [*variables.subset(re.compile("[1].w"))] == []
    named = (
        sb.Sequential({"conv": nn.Conv(2, (3,)), "conv2": nn.Conv(2, (3,))}).build((1, 3, 1)).vars()
    )
    for part in ("conv.kernel", ".conv(Conv).kernel", "conv(Conv).kernel"):
        assert [*named.subset(part)] == ["(Sequential).conv(Conv).kernel"]
    assert len(named.subset("conv")) == len(named.subset("[cC]onv")) == 4
    with pytest.raises(
        ValueError,
        match=r"'\(Sequential' is neither a part of a name, whose brackets are closed, nor",
    ):
        variables.subset("(Sequential")
    assert not variables.subset("stage") + variables.subset("scale")
    with pytest.raises(
        KeyError, match="'parms' in its name, and it is no kind; did you mean 'params'"
    ):
        variables.subset("parms")
    with pytest.raises(TypeError, match="can't choose variables by <class 'int'>"):
        variables.subset(int)  # type: ignore[arg-type]
    assert not variables.subset("state")
