"""Faults of values: traces, errors inside calls, assignments, threads, copies. All or nothing."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import pickletools
import re
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import seqbridge as sb
from faults import Kept, Row, Table, X, filled, name_of
from helpers import bits, equal, scale
from seqbridge._sharding.placement import Placement
from seqbridge._state import Locks
from seqbridge._state.packing import pack, packed_buffer_of

table = Table()
fault, design = table.fault, table.design
KERNEL = r"\(Sequential\)\[0\]\(Dense\)\.kernel"
BIAS = r"\(Sequential\)\[0\]\(Dense\)\.bias"


def small() -> sb.Sequential:
    return filled(
        sb.Sequential([nn.Dense(3), nn.BatchNorm(momentum=0.5), nn.Dropout(0.5)]).build((2, 3))
    )


# Inside of plain transforms

UNKNOWN = "is assigned inside jax.*, which doesn't know of it: .* leak out as a tracer"
GRAD: Callable[..., Any] = lambda f: jax.grad(lambda x: jnp.sum(f(x)))  # noqa: E731
for transform, cure in (
    (jax.jit, r"sb\.jit in its place"),
    (jax.vmap, r"sb\.vmap in its place"),
    (GRAD, r"sb\.grad in its place"),
):

    def assign(model: sb.Sequential, transform: Any = transform) -> None:
        kernel = model[0].kernel
        transform(lambda x: kernel.assign(kernel.value * x.sum()) or x)(X)

    fault(
        f"an assignment inside of a transform whose cure is {cure}",
        RuntimeError,
        f"{KERNEL} {UNKNOWN}.*Use .*{cure}",
    )(assign)

    def call(model: sb.Sequential, transform: Any = transform) -> None:
        transform(lambda x: model(jnp.atleast_2d(x), training=True))(X)

    fault(
        f"a call inside of a transform whose cure is {cure}",
        RuntimeError,
        f"{UNKNOWN}.*Use .*{cure}.*model.apply",
    )(call)

fault("a call inside of jax.lax.scan", RuntimeError, UNKNOWN, r"sb\.scan in its place")(
    lambda model: jax.lax.scan(lambda carry, x: (carry, model(x[None], training=True)), 0.0, X)
)
fault("an assignment of a constant inside of jax.jit", RuntimeError, UNKNOWN)(
    lambda model: jax.jit(lambda x: model[0].bias.assign(jnp.zeros(3)))(X)
)
fault(
    "a model that sb.jit doesn't know of",
    RuntimeError,
    "is read inside sb.jit, which doesn't know of it: .* constant of",
)(lambda model: sb.jit(lambda x: model(x, training=False))(X))
fault(
    "a deep copy of what is traced",
    RuntimeError,
    "can't be copied inside a JAX transform: the copy would keep a tracer",
)(lambda model: sb.jit(lambda model, x: copy.deepcopy(model)(x, training=False))(model, X))
fault("a pickle of what is traced", RuntimeError, "can't be copied inside a JAX transform")(
    lambda model: sb.jit(lambda model, x: len(pickle.dumps(model)))(model, X)
)
fault(
    "a file of what is traced",
    RuntimeError,
    "saving inside a JAX transform .* is refused: .* Do it before, or after it",
)(lambda model, folder: sb.jit(lambda model, x: model.save(folder / "file"))(model, X))


@design("a deep copy inside of a plain transform holds values")
def a_deep_copy_inside_of_a_transform_holds_values(model: sb.Sequential) -> None:
    copies: list[sb.Sequential] = []
    jax.jit(lambda x: copies.append(copy.deepcopy(model)) or x)(X)
    assert equal(copies[0](X, training=False), model(X, training=False))


@fault("a tracer in a list of the user's", Exception, "Leaked trace", "closed-over variable side")
def leak_a_tracer_into_a_list(model: sb.Sequential) -> None:
    side: list[Any] = []
    with jax.checking_leaks():
        sb.jit(sb.Sequential([lambda x: side.append(x) or x]))(X)


# In the middle of a call


def values(model: sb.Sequential) -> list[Any]:
    """Return the bits of what a call in training changes: statistics and the stream of keys."""
    return [bits(v.value) for v in model.vars().subset(lambda v: v.kind != "params").values()]


class Bomb:
    """A layer that raises what it is loaded with. It is read when a call is traced."""

    def __init__(self) -> None:
        self.loaded: BaseException | None = None

    def __call__(self, x: Any) -> Any:
        if self.loaded is not None:
            raise self.loaded
        return x


def ways(model: sb.Sequential) -> dict[str, Callable[[], Any]]:
    """Ways to train, all of which change the statistics and the stream of keys."""

    def loss(model: sb.Sequential, x: Any) -> Any:
        return model(x, training=True).sum()

    jitted, donating, gradient = sb.jit(loss), sb.jit(loss, donate=True), sb.value_and_grad(loss)
    return {
        "eager": lambda: model(X, training=True),
        "compiled": lambda: jitted(model, X),
        "compiled and donated": lambda: donating(model, X),
        "gradients": lambda: gradient(model, X),
        "rematerialized": lambda: sb.remat(loss)(model, X),
        "mapped": lambda: sb.vmap(
            lambda model, x: model(x[None], training=False), in_axes=(None, 0)
        )(model, X),
    }


@pytest.mark.parametrize("place", range(4))
def test_an_error_in_any_layer_changes_nothing(place: int) -> None:
    bomb = Bomb()
    layers: list[Any] = [nn.BatchNorm(momentum=0.5), nn.Dropout(0.5), nn.BatchNorm(momentum=0.5)]
    layers.insert(place, bomb)
    kept = Kept(filled(sb.Sequential(layers).build((2, 3))))
    for (way, run), error in zip(
        ways(kept.model).items(),
        (
            ValueError("mine"),
            KeyboardInterrupt(),
            SystemExit(3),
            GeneratorExit(),
            RecursionError(),
            ValueError("last"),
        ),
        strict=True,
    ):
        bomb.loaded = error
        with pytest.raises(type(error)) as caught:
            run()
        bomb.loaded = None
        assert caught.value is error, way
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("in layer")]
        expected = [
            f"in layer [{place}] function Bomb; inputs: "
            f"float32[{'1,3' if way == 'mapped' else '2,3'}]"
        ]
        assert notes == (expected if isinstance(error, Exception) else [])
        kept.check()
    before = values(kept.model)
    for way, run in ways(kept.model).items():  # and all of them work as if nothing had been
        run()
        assert (values(kept.model) != before) is (way != "mapped"), way
        before = values(kept.model)


def control_c() -> None:
    raise KeyboardInterrupt


def interrupted(
    run: Callable[[], Any],
    at: int,
    writing: set[str] | None,
    handler: Callable[[], Any] = control_c,
) -> bool:
    """Run a function with Ctrl-C before one line; return whether that line was reached.

    `at` is its number among the lines that run of the library's functions called `writing`; None:
    among those that run of JAX.
    """
    lines = itertools.count()

    def trace(frame: Any, event: str, arg: Any) -> Any:
        ours = "seqbridge" in frame.f_code.co_filename
        if ours if writing is None else not ours or frame.f_code.co_name not in writing:
            return None if event == "call" else trace
        if event == "line" and next(lines) == at:
            handler()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return next(lines) > at


def quick() -> sb.PureLayer:
    """A layer that takes no time to build: a model is made for each line that runs."""

    def init(key: Any, x: Any, training: bool = True) -> Any:
        return {"params": {"w": jax.random.normal(key, (3,))}, "state": {"n": jnp.zeros(())}}

    def apply(variables: Any, key: Any, x: Any, training: bool = True) -> Any:
        return x * jnp.broadcast_to(variables["params"]["w"], x.shape), {
            "state": {"n": variables["state"]["n"] + float(training)}
        }

    signature = sb.signature_of(lambda x, training=True: x)
    return sb.PureLayer(
        init=init, apply=apply, signature=signature, label="quick", ecosystem="test"
    )


def test_control_c_between_any_two_lines_changes_all_or_nothing() -> None:
    """Ctrl-C comes at each line that writes variables in turn, for calls of each kind."""
    writing = {
        "commit",
        "_write",
        "store",
        "finishing",
        "call_and_keep",
        "keep",
        "_donating",
        "donate",
        "arguments",
        "unalias",
    }
    for way in ("eager", "compiled", "compiled and donated", "gradients"):
        model = sb.Sequential([quick(), quick()]).build((2, 3))
        run = ways(model)[way]
        at = 0
        for at in itertools.count():
            before = values(model)
            stopped = interrupted(run, at, writing)
            changed = [a != b for a, b in zip(values(model), before, strict=True)]
            assert len(set(changed)) == 1, f"{way}, line {at}: a part of the variables has changed"
            if not stopped:
                break
        assert at > 5
        assert elsewhere(partial(model, X, training=True)) is not None, "a lock is still held"


def test_control_c_inside_of_jax_loses_no_array_that_was_donated() -> None:
    """After a compiled program has run, JAX makes no object in Python, even of stream keys."""
    model = sb.Sequential([nn.BatchNorm(momentum=0.5), nn.Dropout(0.5)]).build((2, 3))
    step = sb.jit(model, donate=True)
    step(X, training=True)
    for at in itertools.count():
        stopped = interrupted(lambda: step(X, training=True), at, None)
        assert model(X, training=False).shape == (2, 3), f"line {at}"
        if not stopped:
            break


def test_a_signal_handler_saves_a_whole_step_or_is_told_to_wait(tmp_path: Path) -> None:
    writing = {"commit", "_write", "store", "finishing", "call_and_keep", "keep", "_donating"}
    for way in ("eager", "compiled", "compiled and donated"):
        model = sb.Sequential([quick(), quick()]).build((2, 3))
        run = ways(model)[way]
        run()
        said: list[Any] = []

        def save(model: sb.Sequential = model, said: list[Any] = said) -> None:
            try:
                model.save(tmp_path / "saved")
            except RuntimeError as error:
                said.append(str(error))
            else:
                counts = {
                    float(n)
                    for name, n in sb.read(tmp_path / "saved").items()
                    if name.endswith(".n")
                }
                said.append(len(counts))

        steps = 1
        for at in itertools.count():
            steps += 1
            if not interrupted(run, at, writing, save):
                break
        refused = {text for text in said if "let the handler set a flag" in str(text)}
        assert len(refused) == 1
        assert set(said) <= refused | {1}
        assert float(model[0].n.value) == steps


ROW = jnp.linspace(1.0, 2.0, 3)


def test_control_c_while_a_model_is_built_leaves_it_built_or_not() -> None:
    """After that the next build makes what the first would have made."""
    placement = Placement(jax.make_mesh((1,), ("data",)))
    wanted = {
        name: bits(v.value)
        for name, v in sb.Sequential([quick(), quick()]).build((3,)).vars().items()
    }
    builds: tuple[Callable[[sb.Sequential], Any], ...] = (
        lambda model: model.build((3,)),
        lambda model: model(ROW, training=False),
    )
    for build in builds:
        at = 0
        for at in itertools.count():
            model = sb.Sequential([quick(), quick()])
            model.mesh_placement = placement
            stopped = interrupted(
                partial(build, model), at, {"install", "fill_variables", "lay_out", "_build"}
            )
            assert len({(layer.built, len(layer.vars())) for layer in model}) == 1, (
                f"line {at}: a part is built"
            )
            assert {name: bits(v.value) for name, v in model.build((3,)).vars().items()} == wanted
            if not stopped:
                break
        assert at > 30


def test_a_build_that_fails_takes_no_initial_values_away() -> None:
    bomb = Bomb()
    model = sb.Sequential([nn.Dense(3), bomb, nn.Dense(3)])
    for run in (lambda: model.build((2, 3)), lambda: model(X)):
        bomb.loaded = ValueError("mine")
        with pytest.raises(ValueError, match="mine"):
            run()
    bomb.loaded = None
    twin = sb.Sequential([nn.Dense(3), Bomb(), nn.Dense(3)]).build((2, 3))
    for name, variable in model.build((2, 3)).vars().items():
        assert equal(variable.value, twin.vars()[name].value)


def test_control_c_in_an_edit_leaves_the_list_as_it_was_or_as_it_was_to_be() -> None:
    # Not those that hold `version.lock`: a tracer raises where a signal can't, between the end of a
    # block and its lock's.
    functions = {
        "_edit",
        "_share_variables",
        "_unify_layers",
        "unified",
        "share",
        "install",
        "fill_variables",
    }
    at = 0
    for at in itertools.count():
        model = sb.Sequential([quick(), quick()]).build((3,))
        kept = list(model)
        stopped = interrupted(partial(model.insert, 1, quick()), at, functions)
        assert list(model) == (kept if len(model) == 2 else [kept[0], model[1], kept[1]])
        assert len(model.names) == len(model)
        assert all(layer.built for layer in model)
        assert len(model.vars()) == 2 * len(model)
        if not stopped:
            break
    assert at > 30
    assert elsewhere(lambda: sb.Sequential([jnp.tanh]).built) is True, "a lock is still held"


def test_control_c_in_an_edit_leaves_nested_models_as_they_were() -> None:
    functions = {"_edit", "_share_variables", "_unify_layers", "unified", "share", "swap_layers"}
    at = 0
    for at in itertools.count():
        dense = nn.Dense(3)
        inner, built = sb.Sequential([dense]), sb.Sequential([dense]).build((2, 3))
        own, model = inner[0], sb.Sequential([quick()]).build((2, 3))
        stopped = interrupted(partial(model.extend, [inner, built[0]]), at, functions)
        assert inner[0] is (own if len(model) == 1 else built[0])
        if not stopped:
            break
    assert at > 30


def test_control_c_while_an_optimizer_follows_an_edit_keeps_its_state() -> None:
    functions = {"update", "_follow", "_fit", "cached", "commit", "_write", "finishing"}

    def add(updates: Any, state: Any, params: Any = None) -> Any:  # the sum of what it has got
        new = {n: state[n] + updates[n] for n in updates}
        return new, new

    transformation = optax.GradientTransformation(lambda params: params, add)
    at = 0
    for at in itertools.count():
        model = sb.Sequential([quick()]).build((3,))
        model[0].w.assign(jnp.zeros(3))
        optimizer = sb.Optimizer(model, transformation)
        optimizer.update(dict.fromkeys(model.vars().subset("params"), ROW))
        model.append(quick())
        step = partial(optimizer.update, dict.fromkeys(model.vars().subset("params"), ROW))
        stopped = interrupted(step, at, functions)
        state = optimizer.vars()["(Optimizer).(Sequential)[0](quick).w"].value
        assert equal(state, 2 * ROW if equal(model[0].w.value, 3 * ROW) else ROW)
        assert equal(model[0].w.value, 3 * ROW) or equal(model[0].w.value, ROW)
        if not stopped:
            break
    assert at > 20


def test_control_c_while_a_model_is_packed_or_laid_out_changes_no_value() -> None:
    mesh = jax.make_mesh((1,), ("data",))
    compiled = sb.jit(lambda model, x: model(x, training=False))
    works: tuple[tuple[set[str], Callable[[sb.Sequential], Any]], ...] = (
        (
            {"pack", "_pack", "_pack_group", "__init__", "_move", "finishing", "dissolve"},
            lambda model: pack([model]),
        ),
        (
            {"shard", "_place", "put", "commit", "_write", "finishing"},
            lambda model: model.shard(mesh),
        ),
    )
    for functions, work in works:
        model = sb.Sequential([quick(), quick()]).build((3,))
        before, out = [bits(v.value) for v in model.vars().values()], model(ROW, training=False)
        at = 0
        for at in itertools.count():
            stopped = interrupted(partial(work, model), at, functions)
            assert [bits(v.value) for v in model.vars().values()] == before
            assert equal(compiled(model, ROW), out)
            if not stopped:
                break
            for variable in model.vars().values():
                if (buffer := packed_buffer_of(variable)) is not None:
                    buffer.dissolve()
        assert at > 10


def elsewhere(function: Callable[[], Any]) -> Any:
    """Return what a function returns in another thread; None: it hangs."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(30)
    return results[0] if results else None


def test_control_c_while_it_waits_for_a_lock_gives_the_others_back() -> None:
    class Interrupted:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    first: Any = threading.RLock()
    with pytest.raises(KeyboardInterrupt), tuple.__new__(Locks, (first, Interrupted())):
        pass
    assert elsewhere(lambda: first.acquire(blocking=False)) is True


def failing(x: Any) -> Any:
    def report(value: Any) -> Any:
        raise RuntimeError("the device says no")

    return jax.pure_callback(report, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@design("an error while the program runs changes nothing, and with donation says what is gone")
def an_error_at_run_time_changes_nothing_or_names_what_is_gone() -> None:
    model = filled(
        sb.Sequential([nn.BatchNorm(), lambda x, fail=False: failing(x) if fail else x]).build(
            (2, 3)
        )
    )
    kept = Kept(model)
    for run in (model, sb.jit(model)):
        with pytest.raises(Exception, match="the device says no"):
            run(X, training=True, fail=True)
        kept.check()
    # Copies: a view would keep the arrays.
    good = {name: np.array(array) for name, array in model.vars().tensors().items()}
    gone = (
        r"the arrays of \(Sequential\)\[0\]\(BatchNorm\)\.mean, .*\.var were donated and are gone: "
        "assign them, or load"
    )
    for run in (
        lambda: sb.jit(model, donate=True)(X, training=True, fail=True),
        lambda: model(X, training=False),
        lambda: sb.jit(model)(X, training=False),
        lambda: sb.jit(model, donate=True)(X, training=True),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            run()
        assert any(re.search(gone, note) for note in caught.value.__notes__)
    with pytest.raises(
        RuntimeError, match=r"the array of .*\.mean was donated and is gone: assign it, or load"
    ):
        model.save("never")
    model.vars().assign(good)
    kept.check()


def failing_step(model: sb.Sequential, **how: Any) -> Callable[[bool], Any]:
    """A step that changes all variables, and fails while it runs if it is told to."""
    fail = False

    def report(value: Any) -> Any:
        if fail:
            raise RuntimeError("the device says no")
        return np.asarray(value)

    @sb.jit(**how)
    def step(model: sb.Sequential, x: Any) -> None:
        for variable in model.vars().subset("params").values():
            variable.assign(
                variable + jax.pure_callback(report, jax.ShapeDtypeStruct((), x.dtype), x.sum())
            )
        model(x, training=True)

    def run(failing: bool) -> None:
        nonlocal fail
        fail = failing
        step(model, X)

    return run


@design("what was lost by a donated step comes back by a load and by any assignment")
def a_load_or_an_assignment_restores_what_was_donated(folder: Path) -> None:
    for how in ({"donate": True}, {"donate": True, "pack": True}):
        model = filled(
            sb.Sequential([nn.Dense(3), nn.BatchNorm(momentum=0.5), nn.Dropout(0.5)]).build((2, 3))
        )
        step = failing_step(model, **how)
        step(False)
        model.save(folder / "good")
        good = {
            name: np.array(array)
            for name, array in model.vars().subset(lambda v: v.kind != "rng").tensors().items()
        }
        key = jax.random.clone(model.vars()["(Sequential).rng"].value)
        kept = Kept(model)

        def one_by_one(model: sb.Sequential = model, good: Any = good, key: Any = key) -> None:
            for name, array in good.items():
                model.vars()[name].assign(array)
            model.vars()["(Sequential).rng"].assign(key)

        def together(model: sb.Sequential = model, good: Any = good, key: Any = key) -> None:
            model.vars().assign({**good, "(Sequential).rng": key})

        for revive in (lambda: model.load(folder / "good"), together, one_by_one):  # noqa: B023
            with pytest.raises(Exception, match="the device says no"):
                step(True)
            with pytest.raises(
                RuntimeError, match="was donated before and is gone: assign it, or load the model"
            ):
                step(False)
            revive()
            kept.check()
            step(False)
            model.load(folder / "good")


@fault(
    "an error that can't be made again from its message",
    UnicodeDecodeError,
    "invalid start byte",
    r"layer \[1\] function",
)
def raise_an_error_with_a_constructor_of_its_own() -> None:
    sb.Sequential([scale, lambda x: b"\xff".decode()])(X)


@design("a layer that catches its own errors is left alone")
def a_layer_may_catch_its_own_errors() -> None:
    def careful(x: Any) -> Any:
        try:
            raise ValueError("caught")
        except ValueError:
            return 2 * x

    assert equal(sb.Sequential([careful])(X), 2 * X)


RECURSIVE: dict[str, Any] = {}


@fault(
    "a layer that calls its own model",
    RecursionError,
    r"in layer \[1\] function <lambda>; inputs: float32\[2,3\](\n|$)",
)
def call_the_model_from_its_own_layer() -> None:
    RECURSIVE["model"] = model = sb.Sequential(
        [nn.BatchNorm(), lambda x: RECURSIVE["model"](x, training=True)]
    )
    model[:1].build((2, 3))
    before = model[0].mean.value
    try:
        with pytest.raises(RecursionError) as caught:
            model(X, training=True)
        notes = caught.value.__notes__
        # Each once, however often the layer was in the middle of a call.
        assert len(set(notes)) == len(notes)
        raise caught.value
    finally:
        assert model[0].mean.value is before


fault(
    "a layer that holds its own model",
    TypeError,
    "holds model, a Sequential: its variables would be lost. Put it into",
)(lambda model: model.append(lambda x: model(x)))


@fault(
    "a result that is no number, if JAX is to look",
    FloatingPointError,
    "nan",
    r"layer \[1\] function <lambda>",
)
def return_nan_under_debug_nans() -> None:
    model = sb.Sequential([jnp.abs, lambda x: jnp.log(-x)])
    with jax.debug_nans(True):
        model(X + 2)


@design("a model called twice in one trace goes through its state twice")
def two_calls_in_one_trace_change_the_state_twice() -> None:
    model, twin = small(), small()
    sb.jit(lambda model, x: (model(x, training=True), model(2 * x, training=True)))(model, X)
    twin(X, training=True)
    twin(2 * X, training=True)
    assert all(
        jnp.allclose(a, b)
        for a, b in zip(*(m.variables["state"].values() for m in (model, twin)), strict=True)
    )


@design("a call inside of remat, of a nested jit and around a custom derivative")
def calls_compose_with_remat_jit_and_custom_derivatives() -> None:
    @jax.custom_vjp
    def double(x: Any) -> Any:
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, g: (5 * g,))
    model = filled(sb.Sequential([nn.Dense(3), double]).build((2, 3)))

    def loss(model: sb.Sequential, x: Any) -> Any:
        return model(x).sum()

    wanted = sb.grad(loss)(model, X)
    assert equal(wanted["(Sequential)[0](Dense).bias"], jnp.full(3, 10.0))
    for way in (sb.remat(loss), sb.jit(loss), sb.jit(sb.remat(sb.jit(loss)))):
        assert all(equal(a, wanted[name]) for name, a in sb.grad(way)(model, X).items())


# Assignments. Shardings: test_devices.py.

for value, error, words in (
    (1.0, ValueError, r"has shape \(3,\): can't assign shape \(\)"),
    (jnp.zeros(2), ValueError, r"has shape \(3,\): can't assign shape \(2,\)"),
    (
        jnp.zeros(3, jnp.complex64),
        TypeError,
        "is float32: can't assign complex64 without loss; cast it yourself",
    ),
    ("abc", TypeError, "takes an array: can't assign str 'abc'"),
    (None, TypeError, "takes an array: can't assign None$"),
    ([10**400] * 3, TypeError, r"takes an array: can't assign list \[1000"),
    ([1, "x", 2], TypeError, r"takes an array: can't assign list \[1, 'x', 2\]"),
    (np.array([None] * 3), TypeError, r"takes an array: can't assign object\[3\]"),
    (jax.random.split(jax.random.key(0), 3), TypeError, "is float32: can't assign key<fry>"),
    (
        jax.ShapeDtypeStruct((3,), jnp.float32),
        TypeError,
        r"takes an array: can't assign float32\[3\]",
    ),
):
    fault(f"{type(value).__name__} {words[-12:]} for a bias", error, f"{BIAS} {words}")(
        lambda model, value=value: model[0].bias.assign(value)
    )


fault("a kind that is none", ValueError, "one of params, state, rng, not 'param'")(
    lambda: sb.Variable(jnp.zeros(3), kind="param")  # pyright: ignore[reportArgumentType]
)
for dtype, numbers in (
    (jnp.uint8, [256, 0]),
    (jnp.uint8, [0, -1]),
    (jnp.int32, [2**40, 0]),
    (jnp.int4, [7, 8]),
):
    fault(
        f"{numbers} for {jnp.dtype(dtype)}",
        TypeError,
        "can't assign numbers that are too large for it",
    )(
        lambda dtype=dtype, numbers=numbers: sb.Variable(jnp.zeros(2, dtype)).assign(
            np.array(numbers)
        )
    )
fault("a list of numbers for uint8", TypeError, "can't assign numbers that are too large for it")(
    lambda: sb.Variable(jnp.zeros(2, jnp.uint8)).assign([300, 1])
)


@fault(
    "an array that is gone",
    ValueError,
    f"{BIAS} can't be assigned an array that is deleted: it was donated",
)
def assign_an_array_that_was_donated(model: sb.Sequential) -> None:
    array = jnp.ones(3)
    array.delete()
    model[0].bias.assign(array)


for value in (0, jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
    fault(
        f"{getattr(value, 'dtype', 'int')} for a key",
        TypeError,
        r"\.rng holds a PRNG key, key<fry>: .*jax\.random\.key",
    )(lambda model, value=value: model.vars()["(Sequential).rng"].assign(value))
fault("a float for an int", TypeError, "count is int32: can't assign float32 without loss")(
    lambda: sb.Variable(jnp.zeros(3, jnp.int32), name="count").assign(jnp.ones(3))
)
fault(
    "a scalar for a statistic",
    ValueError,
    r"\[3\]\(BatchNorm\)\.mean has shape \(3,\): can't assign shape \(\)",
)(
    lambda model: model.assign(
        {"state": {**model.variables["state"], "(Sequential)[3](BatchNorm).mean": 0.0}}
    )
)


def renamed(variables: dict[str, Any], new: str) -> dict[str, Any]:
    return {
        new if name == "(Sequential)[0](Dense).kernel" else name: array
        for name, array in variables.items()
    }


FORM = r'takes \{"params": \{name: array\}, "state": \{name: array\}\}, as init returns it'
NEAR = (
    r"missing: .*kernel; unknown: .*\.kernal; did you mean '\(Sequential\)\[0\]\(Dense\)\.kernel'"
)
fault("a misspelt name", KeyError, f"assign: the names don't match: {NEAR}")(
    lambda model: model.assign(
        {"params": renamed(model.variables["params"], "(Sequential)[0](Dense).kernal")}
    )
)
fault(
    "a misspelt name of a collection",
    KeyError,
    "assign: there is no 'parms'; did you mean 'params'",
)(lambda model: model.assign({"parms": model.variables["params"]}))
fault("variables without their kinds", TypeError, f"assign {FORM}; got a flat dict")(
    lambda model: model.assign(model.variables["params"])
)
fault("no variables", TypeError, f"assign {FORM}; got NoneType")(lambda model: model.assign(None))
fault("a pure call without variables", TypeError, f"apply {FORM}; got NoneType")(
    lambda model: model.apply(None, X)
)
fault("a pure call with the inputs first", TypeError, f"apply {FORM}; got ArrayImpl")(
    lambda model: model.apply(X, model.variables, training=False)
)
fault(
    "a pure call with a part of the variables",
    KeyError,
    r"apply: the names don't match: missing: .*\[3\]\(Batch.*mean",
)(lambda model: model.apply({"params": model.variables["params"]}, X, training=False))
fault("a list that is too short", ValueError, "got 1 arrays for 11 variables: .*Dense.*bias")(
    lambda model: model.vars().assign([X])
)
fault(
    "a number for all variables",
    TypeError,
    "assign takes arrays by name, or a list of them, not int",
)(lambda model: model.vars().assign(3))
fault(
    "the last of many arrays is wrong",
    ValueError,
    r"\.rng has shape \(\): can't assign shape \(2,\)",
)(
    lambda model: model.vars().assign(
        {
            name: v.value + 1 if v.kind != "rng" else jax.random.split(v.value)
            for name, v in model.vars().items()
        }
    )
)
fault(
    "a misspelt name in a native tree",
    KeyError,
    "load_native: .* unknown: params/kernal; did you mean 'params/kernel'",
)(lambda model: model[0].load_native({"params": {"kernal": X, "bias": X[0]}}))
fault(
    "a wrong shape in a native tree",
    ValueError,
    rf"{BIAS} has shape \(3,\): can't assign shape \(2, 3\)",
)(lambda model: model[0].load_native({"params": {"kernel": jnp.ones((3, 3)), "bias": X}}))
fault(
    "a variable that isn't there",
    AttributeError,
    "linen Dense.* has no 'kernal'; did you mean 'kernel'.*: bias, kernel",
)(lambda model: model[0].kernal)
fault(
    "a model in place of its variables",
    TypeError,
    r"by name, not a Sequential, whose \.vars\(\) are such",
)(lambda model: sb.VarCollection(model))
fault(
    "another name for a layer",
    AttributeError,
    r"name stays as it is: put another in its place, sb\.Layer",
)(lambda model: setattr(model[0], "name", "dense"))


@fault(
    "a step on a loop's own name", TypeError, r"leave the variable as it is: write `v\.value -= x`"
)
def subtract_in_place_from_a_loop_variable(model: sb.Sequential) -> None:
    for v in model.vars().subset("params").values():
        v -= 0.1


fault("a part of a variable", TypeError, r"v\.value = v\.value\.at\[index\]\.set")(
    lambda model: model[0].kernel.__setitem__(0, 1.0)
)
fault(
    "an array in place of a variable",
    AttributeError,
    r"kernel is a variable: write \.kernel\.assign\(\.\.\.\)",
)(lambda model: setattr(model[0], "kernel", X))


@design("a number is cast to the variable's dtype, and is not weak")
def an_assigned_number_is_cast_and_not_weak() -> None:
    traces: list[Any] = []
    variable = sb.Variable(jnp.zeros(()), name="v")
    read = sb.jit(lambda v, x: traces.append(0) or v + x)
    for value in (1.0, 2, np.float64(3), jnp.float32(4)):
        variable.assign(value)
        assert (variable.dtype, variable.value.weak_type) == (jnp.float32, False)
        read(variable, X)
    assert len(traces) == 1


@design("numbers that are none are values")
def nan_can_be_assigned() -> None:  # see above for `jax.debug_nans`
    model = small()
    model[0].bias.assign(jnp.full(3, jnp.nan))
    assert jnp.isnan(model[0].bias.value).all()


# Threads and copies


@design("two threads that call one model both change it, and a third saves one moment")
def threads_that_call_and_save_see_whole_states(folder: Path) -> None:
    # At length: test_transforms.py, test_saving.py.
    count = sb.Sequential([Count()]).build((2, 3))
    pair = count.vars()
    barrier = threading.Barrier(3)
    read: list[Any] = []

    def call() -> None:
        barrier.wait(10)
        for _ in range(20):
            count(X, training=True)

    def save() -> None:
        barrier.wait(10)
        for i in range(5):
            count.save(folder / f"{i}")
            read.extend(a == b for a, b in [load_file(folder / f"{i}").values()])

    threads = [threading.Thread(target=target) for target in (call, call, save)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [float(v.value) for v in pair.values()] == [40.0, 40.0]
    assert len(read) == 5
    assert all(read)


class Count(nn.Module):
    """Two counters that are always equal."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in ("a", "b"):
            counter = self.variable("batch_stats", name, lambda: jnp.zeros(()))
            counter.value += 0.0 if self.is_initializing() else 1.0
        return x


@design("a call sees the weights of one file or of the other while another thread loads")
def a_call_sees_the_weights_of_one_file_during_a_load(folder: Path) -> None:
    ones, other, twos = (jnp.full(3, n) for n in (1.0, 1.0, 2.0))
    model = sb.Sequential([lambda x, a=ones, b=other: (a - b) + x * 0])
    model.save(folder / "ones")
    model.vars().assign([twos, twos])
    model.save(folder / "twos")
    stop = threading.Event()

    def load() -> None:
        for name in itertools.cycle(("ones", "twos")):
            if stop.is_set():
                break
            model.load(folder / name)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        compiled = sb.jit(model)
        differences = [
            float(jnp.abs(run(jnp.zeros(3))).sum()) for run in (model, compiled) for _ in range(40)
        ]
    finally:
        stop.set()
        thread.join(60)
    assert not any(differences)


@design("a pickle is of NumPy arrays, so that another JAX reads it, and a process that is spawned")
def a_pickle_holds_arrays_of_numpy() -> None:  # in another process: test_list.py
    model = small()
    data = pickle.dumps(model)
    names = [
        arg
        for op, arg, _ in pickletools.genops(data)
        if op.name in ("SHORT_BINUNICODE", "BINUNICODE")
    ]
    assert "numpy" in " ".join(map(str, names))
    assert not [name for name in names if str(name).startswith(("jax._src", "jaxlib"))]
    assert equal(pickle.loads(data)(X, training=False), model(X, training=False))


fault(
    "a pickle of a function that can't be imported",
    Exception,
    "[Cc]an't (pickle|get) local object .*<lambda>",
)(
    # Only the pickler knows what it can (cloudpickle takes this), so the error is its own.
    lambda: pickle.dumps(sb.Sequential([(lambda n: lambda x: n * x)(2)]))
)


@design("a deep copy has the same functions and other variables")
def a_deep_copy_shares_functions_and_no_variables() -> None:
    model = sb.Sequential([jnp.sin, nn.Dense(3)]).build((2, 3))
    made = copy.deepcopy(model)
    assert made[0].entry is jnp.sin
    made[1].kernel.assign(jnp.zeros((3, 3)))
    assert bool(model[1].kernel.value.any())


@design("a frozen copy that is gone leaves the stream of keys its name and its lock")
def a_frozen_copy_that_is_gone_leaves_the_stream_alone() -> None:
    model = small()
    stream = model.vars()["(Sequential).rng"]
    lock = stream.lock
    frozen = sb.freeze(model, (2, 3))
    assert frozen(X).shape == (2, 3)
    del frozen
    gc.collect()
    assert stream.name == "(Sequential).rng"
    assert stream.lock is lock
    made = copy.deepcopy(model)
    assert made.vars()["(Sequential).rng"].name == "(Sequential).rng"


@design("a compiled function keeps no model alive")
def a_compiled_function_keeps_no_model_alive() -> None:
    predict = sb.jit(lambda model, x: model(x))
    model = sb.Sequential([jnp.tanh])
    predict(model, X)
    me = weakref.ref(model)
    del model
    gc.collect()
    assert me() is None


@design("what was handed out is gone after a step that donates, and the model isn't")
def a_donating_step_invalidates_what_was_handed_out() -> None:
    model = small()
    mean = model[1].mean.value
    step = sb.jit(model)
    step(X, training=True)
    assert not mean.is_deleted()
    mean, params = model[1].mean.value, model[0].kernel.value
    sb.jit(model, donate=True)(X, training=True)
    assert mean.is_deleted()
    assert not params.is_deleted()  # it doesn't change
    assert not model[1].mean.value.is_deleted()


@design("one array in two variables is donated once")
def one_array_in_two_variables_is_donated_once() -> None:
    array = jnp.ones(3)
    a, b = (sb.Variable(array, kind="state", name=name) for name in "ab")
    sb.jit(lambda a, b: (a.assign(a + 1), b.assign(b + 2)), donate=True)(a, b)
    assert (float(a.value[0]), float(b.value[0])) == (2.0, 3.0)


@design(
    "an array of NumPy that was assigned is the caller's own, and so is a dict that was handed out"
)
def arrays_and_dicts_of_the_caller_are_copied() -> None:
    model = small()
    mine = np.zeros(3, np.float32)
    model[0].bias.assign(mine)
    mine += 1
    assert not model[0].bias.value.any()
    variables = model.variables
    variables["params"].clear()
    assert len(model.variables["params"]) == 4


@pytest.mark.parametrize("row", table, ids=name_of)
def test_faults(row: Row, tmp_path: Path) -> None:
    row.check(tmp_path)
