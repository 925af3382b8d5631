"""A call on any number of devices: same values and programs, no more traffic than by hand."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import seqbridge as sb
from helpers import run_python

X = np.asarray(jax.random.normal(jax.random.key(0), (32, 6, 6, 1)))
LABELS = np.arange(32) % 4
KEEP = (np.arange(32) % 3 > 0).astype("float32")
ROWS = np.asarray(jax.random.normal(jax.random.key(1), (16, 4)))


def mesh_of(*sizes: int) -> Mesh:
    return jax.make_mesh(sizes, ("data", "model")[: len(sizes)])


LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, P]]] = {
    "data": ((8,), {}),
    "one device": ((1,), {}),
    "fully sharded": ((8,), {r"\[4\].*w$": P("data"), r"\[9\].*kernel$": P(None, "data")}),
    "tensors": ((4, 2), {r"\[4\].*w$": P(None, "model"), r"\[8\].*weight$": P(None, "model")}),
}


# Which Haiku's moving averages need.
pytestmark = pytest.mark.usefixtures("usual_dtype_promotion")


def mixed() -> sb.Sequential:
    return sb.Sequential([
        nn.Conv(8, (3, 3), use_bias=False), nn.BatchNorm(momentum=0.9), nn.relu,
        lambda x: x.reshape(x.shape[0], -1),
        functools.partial(hk.Linear, 16, with_bias=False),
        functools.partial(hk.BatchNorm, True, True, 0.9),
        nn.Dropout(0.5), functools.partial(nn.leaky_relu, negative_slope=0.1),
        functools.partial(eqx.nn.Linear, 16, 8), functools.partial(nnx.Linear, 8, 8), nn.Dense(4),
        lambda x, keep=None: x if keep is None else x * keep[:, None],
    ], seed=3).build((None, 6, 6, 1))  # fmt: skip


def train(layout: str | None, steps: int = 20, **options: Any) -> Any:
    model = mixed()
    if layout is not None:
        sizes, rules = LAYOUTS[layout]
        options["mesh"] = mesh_of(*sizes)
        model.shard(options["mesh"], rules)
    optimizer = sb.Optimizer(model, optax.sgd(0.05, momentum=0.9))

    @sb.jit(**options)
    def step(
        model: Any,
        optimizer: Any,
        x: Any,
        labels: Any,
        keep: Any = None,
        negative_slope: float = 0.1,
    ) -> Any:
        def loss_fn(model: Any) -> Any:
            logits = model(x, training=True, keep=keep, negative_slope=negative_slope)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = sb.value_and_grad(loss_fn)(model)
        optimizer.update(grads)
        return loss

    call = functools.partial(step, model, optimizer, X, LABELS, keep=KEEP, negative_slope=0.2)
    losses = [float(call()) for _ in range(steps)]
    lowered = step.lower(model, optimizer, X, LABELS, keep=KEEP, negative_slope=0.2)
    return losses, model, lowered


@pytest.fixture(scope="module")
def alone() -> Any:
    with jax.numpy_dtype_promotion("standard"):
        losses, model, _ = train(None)
    assert losses[-1] < losses[0]
    return losses, model.variables


def traffic(lowered: Any) -> Counter[str]:
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return Counter(re.findall(rf"({kinds})(?:-start)?\(", lowered.compile().as_text()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_is_the_same_on_any_mesh(layout: str, alone: Any) -> None:
    losses, model, lowered = train(layout)
    np.testing.assert_allclose(losses, alone[0], atol=2e-6)
    for kind, arrays in alone[1].items():
        for name, array in arrays.items():
            np.testing.assert_allclose(model.variables[kind][name], array, atol=2e-6, err_msg=name)
    _, rules = LAYOUTS[layout]
    for pattern, spec in rules.items():
        (variable,) = model.vars().subset(pattern).values()
        assert variable.value.sharding.spec == spec  # it is where it was
    if layout == "data":  # of two BatchNorms forwards and backwards, and of all gradients
        assert traffic(lowered) == {"all-reduce": 5}
    if layout == "fully sharded":
        assert traffic(lowered)["all-gather"] == len(rules)
    if layout == "one device":
        assert not traffic(lowered)


def test_the_traffic_is_that_of_a_program_by_hand() -> None:
    mesh = Mesh(mesh_of(8).devices, ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    model = sb.Sequential([nn.Dense(8), nn.BatchNorm(), nn.relu, nn.Dense(2)]).build((None, 4))
    variables = jax.device_put(model.variables, whole)

    @jax.jit
    def by_hand(variables: Any, x: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            out, after = model.apply({**variables, "params": params}, x, training=True)
            return (out**2).mean(), after["state"]

        grads, state = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads), state

    @sb.jit(mesh=mesh)
    def here(model: Any, x: Any) -> None:
        grads = sb.grad(lambda model: (model(x, training=True) ** 2).mean())(model)
        for name, variable in model.vars().subset("params").items():
            variable.assign(variable - 0.1 * grads[name])

    expected = traffic(by_hand.lower(variables, jax.device_put(ROWS, rows)))
    assert traffic(here.lower(model.shard(mesh), ROWS)) == expected
    assert expected["all-reduce"] == 3


def test_dropout_masks_do_not_depend_on_devices() -> None:
    masks = []
    for mesh in (None, mesh_of(8), mesh_of(4, 2)):
        model = sb.Sequential([nn.Dropout(0.5), eqx.nn.Dropout(0.5)]).build((None, 4))
        masks.append([np.asarray(sb.jit(model, mesh=mesh)(ROWS, training=True)) for _ in range(2)])
    for other in masks[1:]:
        np.testing.assert_array_equal(other, masks[0])
    assert not np.array_equal(*masks[0])


def where(array: Any) -> Any:
    return tuple(array.sharding.spec)


def test_keywords_mean_the_same_everywhere_and_make_as_many_programs() -> None:
    weights = np.linspace(0, 1, 16, dtype="float32")  # as long as the batch
    calls: list[tuple[Any, dict[str, Any]]] = [
        (ROWS, {"mask": KEEP[:16], "scale": 0.5}),
        (ROWS, {"mask": KEEP[:16], "scale": 0.7}),
        (ROWS, {"mask": weights, "scale": 0.7, "mode": "sum"}),
        (ROWS, {"table": np.ones((3, 4), "float32")}),
        (ROWS[:10], {"mask": KEEP[:10]}),
        (ROWS, {"per_layer": {1: {"mask": KEEP[:16], "mode": "sum"}}}),
    ]
    results, traces = [], []
    for mesh in (None, mesh_of(8), mesh_of(4, 2)):
        count = []

        def layer(
            x: Any, mask: Any = None, scale: float = 1.0, mode: str = "mean", table: Any = None
        ) -> Any:
            count.append(1)  # noqa: B023
            x = x if mask is None else x * mask[:, None]
            x = x if table is None else x + table.sum(0, keepdims=True)
            return (x * scale).sum(1) if mode == "sum" else (x * scale).mean(1)

        model = sb.Sequential([nn.Dense(4), layer], seed=1).build((None, 4))
        count.clear()
        jitted = sb.jit(
            lambda x, model=model, **keywords: model(x, **keywords), vars=model, mesh=mesh
        )
        results.append([np.asarray(jitted(x, **keywords)) for x, keywords in calls])
        traces.append(len(count))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert len(set(traces)) == 1


def test_arrays_lie_where_they_are_said_to() -> None:
    def mix(x: Any, mask: Any, *, other: Any, pairs: Any, table: Any) -> Any:
        return x * mask[:, None] + table.sum() + other.sum() + pairs.sum()

    given = ROWS, np.ones(16, "float32")
    keywords = {"other": np.ones(16), "pairs": np.ones((8, 2)), "table": np.ones((5, 4))}
    jitted = sb.jit(mix, mesh=mesh_of(8), replicated_kwargs=["other"], batch_kwargs="pairs")
    compiled = jitted.lower(*given, **keywords).compile()
    (_, _, arrays), _ = compiled.input_shardings
    assert [s.is_fully_replicated for s in arrays] == [False, False, True, False, True]
    out = jitted(*given, **keywords)
    np.testing.assert_allclose(out, mix(*map(jnp.asarray, given), **keywords), rtol=1e-5)
    assert not out.sharding.is_fully_replicated


def test_options_hold_by_position_and_are_checked() -> None:
    def second(x: Any, other: Any, training: bool = False) -> Any:
        return other * 2 if training else other

    jitted = sb.jit(second, mesh=mesh_of(8), replicated_kwargs=["other"])
    (_, _, arrays), _ = jitted.lower(ROWS, np.ones(16)).compile().input_shardings
    assert arrays[1].is_fully_replicated
    bool_: Any = np.True_
    np.testing.assert_array_equal(jitted(ROWS, np.ones(16), training=bool_), 2 * np.ones(16))
    with pytest.raises(TypeError, match="the function takes no 'othre'; did you mean 'other'"):
        sb.jit(second, mesh=mesh_of(8), batch_kwargs=["othre"])
    with pytest.raises(ValueError, match="feed takes arrays of rows, and got a number"):
        sb.feed({"x": ROWS, "scale": 3.0})
    with pytest.raises(ValueError, match="batch_axis='dta': the mesh has 'data'"):
        sb.feed(ROWS, mesh_of(8), batch_axis="dta")


def test_an_uneven_batch_has_the_same_values_or_is_refused() -> None:
    model = sb.Sequential([nn.Dense(3), nn.BatchNorm()], seed=1).build((None, 4))
    twin = copy.deepcopy(model)
    out = sb.jit(model, mesh=mesh_of(8))(ROWS[:11], training=True)
    np.testing.assert_allclose(out, twin(ROWS[:11], training=True), rtol=1e-6, atol=1e-6)
    for name, array in twin.variables["state"].items():
        np.testing.assert_allclose(model.variables["state"][name], array, rtol=1e-6, atol=1e-6)
    strict = sb.jit(model, mesh=mesh_of(8), uneven="error")
    with pytest.raises(ValueError, match="a batch of 11 can't be split evenly over 8 devices"):
        strict(ROWS[:11], training=True)
    strict(ROWS, training=True)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"kernle": P("data")}, "the rule 'kernle' matches no variable"),
        (
            {"kernel": P("modle")},
            "the rule 'kernel'.* names the axis 'modle', and the mesh has 'data', 'model'",
        ),
        (
            {"bias": P(None, "data")},
            r"the rule 'bias'.* has 2 dimensions, and \(Sequential\)\[0\]\(Dense\).bias has",
        ),
        (
            {"kernel": P(None, "model")},
            r"splits dimension 1 of \(Sequential\)\[0\]\(Dense\).kernel into 2.*\(4, 3\)",
        ),
        ({"kernel": ("data",)}, "a rule is a regular expression and a PartitionSpec"),
    ],
)
def test_a_rule_that_is_wrong_is_named_and_nothing_moves(rules: Any, message: str) -> None:
    model = sb.Sequential([nn.Dense(3)]).build((None, 4))
    before = [v.value.sharding for v in model.vars().values()]
    with pytest.raises((ValueError, TypeError), match=message):
        model.shard(mesh_of(4, 2), rules)
    assert [v.value.sharding for v in model.vars().values()] == before


def test_layouts_are_kept_by_edits_assignments_and_copies() -> None:
    model = sb.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(8)]).build((None, 4))
    with pytest.raises(RuntimeError, match="isn't built"):
        sb.Sequential([nn.Dense(3)]).shard(mesh_of(8))
    assert model.shard(mesh_of(8), [(r"\[0\].*kernel", P()), ("kernel", P(None, "data"))]) is model
    assert [where(v.value) for v in model.vars().subset("kernel").values()] == [(), (None, "data")]
    model.append(nn.Dense(16))
    assert where(model[3].kernel.value) == (None, "data")
    model[2].kernel.assign(np.ones((8, 8), "float32"))
    model[2].load_native({"params": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}})
    assert where(model[2].kernel.value) == (None, "data")
    assert where(copy.deepcopy(model)[2].kernel.value) == (None, "data")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again(ROWS), model(ROWS), rtol=1e-6, atol=1e-6)
    names = list(model.vars())
    with pytest.raises(ValueError, match=r"\[4\]\(Dense\).kernel into 8, which doesn't divide"):
        model.append(nn.Dense(3))
    assert len(model) == 4
    assert list(model.vars()) == names
    part = model[:3]
    part.append(nn.Dense(24))
    assert where(part[3].kernel.value) == (None, "data")
    model.shard(mesh_of(4, 2), {"kernel": P("model")})
    assert where(model[3].kernel.value) == ("model",)


def test_a_model_is_laid_out_outside_of_transforms() -> None:
    model = sb.Sequential([nn.Dense(8)]).build((8, 4))
    with pytest.raises(RuntimeError, match="laying a model out inside a JAX transform"):
        jax.jit(lambda x: model.shard(mesh_of(8)) and x)(1.0)
    model.shard(mesh_of(8), {"kernel": P(None, "data")}).shard(mesh_of(8))
    assert model[0].kernel.value.sharding.spec == P()


def test_what_is_assigned_or_loaded_stays_on_the_device_that_was_chosen(tmp_path: Path) -> None:
    one, two = jax.devices()[1:3]
    here = sb.VarCollection({name: sb.Variable(jnp.zeros(3)) for name in ("a", "b")})

    def there() -> set[Any]:
        return {v.value.device for v in here.values()}

    here.assign(jax.device_put(here.tensors(), one))
    assert there() == {one}
    here.assign({"a": np.ones(3, "float32"), "b": [1, 2, 3]})
    assert there() == {one}
    here.save(tmp_path / "file")
    here.load(tmp_path / "file")
    assert there() == {one}
    with sb.Checkpoint(tmp_path / "run", part=here, also=here) as checkpoint:
        checkpoint.save(0)
    renamed = sb.VarCollection({"c": here["a"], "b": here["b"]})
    with sb.Checkpoint(tmp_path / "run", part=renamed) as checkpoint:
        checkpoint.restore(rename=("a", "c"))
    assert there() == {one}
    here.assign(jax.device_put(here.tensors(), two))
    assert there() == {two}


def test_another_mesh_is_refused_before_anything_changes() -> None:
    model = sb.Sequential([nn.Dense(3), nn.BatchNorm()]).build((None, 4))
    few = Mesh(np.array(jax.devices()[:4]), ("data",))
    model.shard(few)
    before = model.variables
    with pytest.raises(
        ValueError, match=r"\(Dense\).* lies on another mesh.*model.shard\(mesh\) moves it"
    ):
        sb.jit(model, mesh=mesh_of(8))(ROWS, training=True)
    jax.tree.map(np.testing.assert_array_equal, model.variables, before)
    model.shard(mesh_of(8))
    elsewhere = jax.device_put(ROWS, NamedSharding(few, P("data")))
    with pytest.raises(ValueError, match="input 0 lies on another mesh"):
        sb.jit(model, mesh=mesh_of(8))(elsewhere, training=True)
    jax.tree.map(np.testing.assert_array_equal, model.variables, before)
    sb.jit(model, mesh=mesh_of(8))(ROWS, training=True)
    with pytest.raises(ValueError, match="batch_axis='batch': the mesh has 'data'"):
        sb.jit(model, mesh=mesh_of(8), batch_axis="batch")
    with pytest.raises(TypeError, match=r"takes a jax\.sharding\.Mesh"):
        sb.jit(model, mesh=8)


def test_the_state_of_an_optimizer_lies_beside_its_parameters() -> None:
    model = sb.Sequential([nn.Dense(8), nn.Dense(8)]).build((None, 4))
    optimizer = sb.Optimizer(model, optax.adam(1e-3))  # made before anything is laid out

    def step(model: Any, optimizer: Any, x: Any) -> None:
        optimizer.update(sb.grad(lambda model: (model(x) ** 2).mean())(model))

    for sizes, rules in (((8,), {"kernel": P(None, "data")}), ((4, 2), {"kernel": P("model")})):
        mesh = mesh_of(*sizes)
        sb.jit(step, mesh=mesh)(model.shard(mesh, rules), optimizer, ROWS)
        for name, variable in optimizer.vars().items():
            assert where(variable.value) == (tuple(rules["kernel"]) if "kernel" in name else ()), (
                name
            )
    with pytest.raises(ValueError, match="lies on another mesh"):
        sb.jit(step, mesh=mesh_of(8))(model, optimizer, ROWS)


def test_a_mesh_of_the_users_own_does_not_disturb() -> None:
    model = sb.Sequential([nn.Dense(3), functools.partial(hk.Linear, 2)]).build((None, 4))
    expected = model(ROWS)
    explicit = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(explicit):
        out = sb.jit(model.shard(explicit), mesh=explicit)(ROWS)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_donation_works_on_a_mesh() -> None:
    _, kept, _ = train("fully sharded", steps=3)
    _, donated, lowered = train("fully sharded", steps=3, donate=True)
    assert "donor" in lowered.as_text() or "aliasing" in lowered.as_text()
    for name, array in kept.variables["params"].items():
        np.testing.assert_allclose(donated.variables["params"][name], array, rtol=1e-6, atol=1e-6)


def test_what_a_library_says_of_layouts_holds_where_rules_are_silent() -> None:
    def init(*names: str | None, logical: bool = False) -> Any:
        wrap = nn.with_logical_partitioning if logical else nn.with_partitioning
        return wrap(nn.initializers.lecun_normal(), names)

    auto = (AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), axis_types=auto)):
        names = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0), kernel_init=names)
    model = sb.Sequential([
        nn.Dense(4, kernel_init=init(None, "model")),
        nn.Dense(4, kernel_init=init("embed", "mlp", logical=True)),
        nn.Dense(4, kernel_init=init("elsewhere", None)),
        linear,
        nn.Dense(4, kernel_init=init(None, "model")),
    ]).build((None, 4))  # fmt: skip
    expected = model(ROWS)

    def specs() -> list[Any]:
        return [where(v.value) for v in model.vars().subset("kernel").values()]

    model.shard(mesh_of(4, 2), {r"\[4\]": P()}, logical={"embed": None, "mlp": "model"})
    assert specs() == [(None, "model"), (None, "model"), (None, None), (None, "model"), ()]
    np.testing.assert_allclose(sb.jit(model, mesh=mesh_of(4, 2))(ROWS), expected, atol=1e-5)
    copy.deepcopy(model).shard(mesh_of(4, 2), logical={"mlp": "model"})
    with pytest.raises(ValueError, match=r"logical={'mlp': 'modle'}: the mesh has data, model"):
        model.shard(mesh_of(4, 2), logical={"mlp": "modle"})
    odd = sb.Sequential([nn.Dense(3, kernel_init=init(None, "model"))]).build((None, 4))
    with pytest.raises(ValueError, match=r"'its own axes'.* splits dimension 1"):
        odd.shard(mesh_of(4, 2))


def test_layers_that_name_an_axis_of_devices_run_as_they_are() -> None:
    def norms(axis: str | None) -> sb.Sequential:
        names: dict[str, Any] = {} if axis is None else {"axis_name": axis}
        crossing = {} if axis is None else {"cross_replica_axis": axis}
        return sb.Sequential([
            nn.BatchNorm(momentum=0.9, **names),
            functools.partial(hk.BatchNorm, True, True, 0.9, **crossing),
            functools.partial(nnx.BatchNorm, 4, **names),
        ]).build((None, 4))  # fmt: skip

    plain, named = norms(None), norms("batch")
    expected = plain(ROWS, training=True)
    np.testing.assert_allclose(named(ROWS, training=True), expected, rtol=1e-6, atol=1e-6)
    spread = norms("batch")
    np.testing.assert_allclose(
        sb.jit(spread, mesh=mesh_of(8))(ROWS, training=True), expected, rtol=1e-6, atol=1e-6
    )
    for model in (named, spread):
        for name, array in plain.variables["state"].items():
            np.testing.assert_allclose(model.variables["state"][name], array, rtol=1e-6, atol=1e-6)
    with pytest.raises(NameError, match="nowhere"):
        sb.Sequential([lambda x: nowhere * x])(ROWS)  # noqa: F821  # pyright: ignore
    auto = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def centered(axis: str) -> Any:  # where devices have a name, another one is a mistake
        model = sb.Sequential([lambda x: x - jax.lax.pmean(x.mean(), axis)])
        body = lambda x: model.apply({"params": {}, "state": {}}, x)[0]  # noqa: E731
        return jax.shard_map(
            body, mesh=auto, in_specs=P("data"), out_specs=P("data"), check_vma=False
        )(ROWS)

    np.testing.assert_allclose(centered("data"), ROWS - ROWS.mean(), rtol=1e-6, atol=1e-6)
    with pytest.raises(NameError, match="unbound axis name: dta"):
        centered("dta")


def test_a_process_that_is_killed_while_it_saves_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    code = f"""
import os, signal, threading
import flax.linen as nn, jax.numpy as jnp
import orbax.checkpoint as ocp
import seqbridge as sb
model = sb.Sequential([nn.Dense(2000)]).build((None, 2000))
manager = ocp.CheckpointManager({str(tmp_path)!r})
model[0].bias.assign(jnp.full(2000, 1.0))
manager.save(1, args=ocp.args.StandardSave(model.variables))
manager.wait_until_finished()
model[0].bias.assign(jnp.full(2000, 2.0))
threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
for step in range(2, 100):
    manager.save(step, args=ocp.args.StandardSave(model.variables))
"""
    killed = run_python(code)
    assert killed.returncode == -9, killed.stderr
    model = (
        sb.Sequential([nn.Dense(2000)], seed=5)
        .build((None, 2000))
        .shard(mesh_of(8), {"kernel": P("data")})
    )
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), model.variables
    )
    with ocp.CheckpointManager(tmp_path) as manager:
        step = manager.latest_step()
        model.assign(manager.restore(step, args=ocp.args.StandardRestore(like)))
    assert step is not None
    np.testing.assert_array_equal(model[0].bias.value, 1.0 if step == 1 else 2.0)
    assert bool(model[0].kernel.value.any())
