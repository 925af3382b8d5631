"""Threads: whatever two of them do with one model, it is as if one had done it after the other.

One thread stops in the middle of what it does, inside of a layer or between two lines of the
library, until the other is done or waits for a lock; so nothing here depends on time. Without locks
the same checks fail, as is shown, too.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import Tracer
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file

import seqbridge as sb
from seqbridge._export import snapshot as _neutral
from seqbridge._layers import layer_list as _list
from seqbridge._port import plan as _plan
from seqbridge._state import packing as _pack
from seqbridge._state import version
from seqbridge._transforms import optimizer as _optimizer
from seqbridge._transforms import program as _program
from seqbridge._variables import checkpoint as _checkpoint
from seqbridge._variables import collection as _collection
from seqbridge._variables import saving as _saving

X = jnp.ones((2, 3))
LONG = 60  # seconds, after which something hangs


class Lock:
    """A lock that tells when a thread has to wait for it. Or one that locks nothing."""

    def __init__(self, real: bool = True):
        self._lock = threading.RLock() if real else None
        self.waiting = lambda: None

    def acquire(self) -> bool:
        if self._lock is not None and not self._lock.acquire(blocking=False):
            self.waiting()
            self._lock.acquire()
        return True

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Gate:
    """A place where the first of two threads stops, once, until the second is done or waits."""

    thread: threading.Thread | None = None

    def __init__(self) -> None:
        self.inside, self.free = threading.Event(), threading.Event()

    def __call__(self, *results: Any) -> Any:
        if threading.current_thread() is self.thread and not self.inside.is_set():
            self.inside.set()
            assert self.free.wait(LONG)
        return results[0] if results else None

    @contextlib.contextmanager
    def at(self, where: Any, name: str, *, before: bool = False) -> Iterator[None]:
        """Stops at a function of the library, before or after it has run."""
        function = getattr(where, name)

        def stopping(*args: Any, **keywords: Any) -> Any:
            if before:
                self()
            out = function(*args, **keywords)
            return out if before else self(out)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(where, name, stopping)
            yield


GATE = Gate()  # of the layer below, which is found by its name


def gate(x: Any) -> Any:
    return GATE(x)


def counter() -> sb.PureLayer:
    """Return a layer that counts its calls in training, twice."""

    def init(key: Any, x: Any, training: bool = True) -> Any:
        return {"state": {"a": jnp.zeros(()), "b": jnp.zeros(())}}

    def apply(variables: Any, key: Any, x: Any, training: bool = True) -> Any:
        state = variables["state"]
        if training:
            state = {name: value + 1 for name, value in state.items()}
        return x, {"state": state}

    signature = sb.signature_of(lambda x, training=True: x)
    return sb.PureLayer(
        init=init, apply=apply, signature=signature, label="counter", ecosystem="test"
    )


def made() -> sb.Sequential:
    model = sb.Sequential([counter(), gate, nn.Dense(3)]).build((2, 3))
    model[2].kernel.assign(jnp.full((3, 3), 0.5))
    return model


def locked(model: sb.Sequential, lock: Any) -> None:
    for variable in model.own_variables():
        variable.lock = lock
    for part in (model, *model.nested_models()):
        part.edit_lock = lock
    version.bump()


def train(model: Any, x: Any) -> Any:
    return model(x, training=True).sum()


def together(
    first: Callable[[], Any], second: Callable[[], Any], lock: Any = None, gate: Gate = GATE
) -> bool:
    """Start the second when the first has stopped inside. Return whether the first has stopped."""
    errors: list[BaseException] = []

    def run(function: Callable[[], Any], after: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)
        finally:
            after()

    gate.inside.clear()
    gate.free.clear()
    one = threading.Thread(target=run, args=(first, gate.inside.set), daemon=True)
    two = threading.Thread(target=run, args=(second, gate.free.set), daemon=True)
    gate.thread = one
    if lock is not None:
        lock.waiting = gate.free.set
    one.start()
    assert gate.inside.wait(LONG)
    stopped = one.is_alive()
    two.start()
    for thread in (one, two):
        thread.join(LONG)
        assert not thread.is_alive(), "they wait for each other"
    gate.thread = None
    if errors:
        raise errors[0]
    return stopped


# All pairs


class Way(NamedTuple):
    """Something to do with a model.

    Attributes:
        run: Does it, and returns counts that must be of one moment, if it reads some.
        effect: What it does to the count.
        stop: Where the thread stops meanwhile; None: in the layer.
        version: How many layers it adds.
    """

    run: Callable[[sb.Sequential, Path], Any]
    effect: Callable[[float], float] = lambda n: n
    stop: tuple[Any, str, bool] | None = None
    version: int = 0


def one_more(n: float) -> float:
    return n + 1


def compiled(**options: Any) -> Way:
    step = sb.jit(train, **options)
    return Way(lambda model, _: step(model, X), one_more, (_program, "store", True))


def counts(model: sb.Sequential) -> list[float]:
    return [float(model[0].a.value), float(model[0].b.value)]


def saved(model: sb.Sequential, folder: Path) -> list[float]:
    model.save(folder / "saved")
    return [
        float(array) for name, array in load_file(folder / "saved").items() if "counter" in name
    ]


def assigned(model: sb.Sequential, _: Path) -> None:
    model.vars().assign({name: jnp.full(v.shape, 100.0) for name, v in model.vars().items()})


def read(model: sb.Sequential, _: Path) -> None:
    assert not any(isinstance(v.value, Tracer) for v in model.vars().values())


def pickled(model: sb.Sequential, _: Path) -> None:
    assert len(pickle.dumps(list(model.vars().values())))  # each whole, if not all of one moment


MESH = jax.make_mesh((1,), ("data",))
PURE = {"state": {f"(Sequential)[0](counter).{name}": jnp.full((), 30.0) for name in "ab"}}
WAYS = {
    "call": Way(lambda model, _: train(model, X), one_more),
    "traced": Way(lambda model, _: model.trace(X, training=True), one_more),
    "compiled first": Way(lambda model, _: sb.jit(lambda m, x: train(m, x))(model, X), one_more),
    "compiled": compiled(),
    "packed": compiled(pack=True),
    "donated": compiled(donate=True),
    "packed, donated": compiled(pack=True, donate=True),
    "spread": compiled(mesh=jax.make_mesh((1,), ("data",))),
    "compiled, prepared": compiled()._replace(stop=(_program.Jitted, "_prepare", False)),
    "donated, prepared": compiled(donate=True)._replace(stop=(_program.Jitted, "_prepare", False)),
    "gradients": Way(lambda model, _: sb.value_and_grad(train)(model, X), one_more),
    "rematerialized": Way(lambda model, _: sb.remat(train)(model, X), one_more),
    "scanned": Way(
        lambda model, _: sb.scan(lambda c, x: (c, train(model, x)), None, X[None], vars=model),
        one_more,
    ),
    "mapped": Way(
        lambda model, _: sb.vmap(lambda m, x: m(x[None], training=False), in_axes=(None, 0))(
            model, X
        )
    ),
    "saved": Way(saved, stop=(_saving, "_on_host", True)),
    "loaded": Way(
        lambda model, folder: model.load(folder / "50"),
        lambda n: 50.0,
        (_saving, "match_stored", False),
    ),
    "assigned": Way(assigned, lambda n: 100.0, (_collection, "cast", False)),
    "assigned, pure": Way(lambda model, _: model.assign(PURE), lambda n: 30.0),
    "copied": Way(lambda model, _: counts(copy.deepcopy(model)), stop=(jnp, "copy", False)),
    "frozen": Way(lambda model, _: sb.freeze(model, (2, 3)), stop=(_neutral, "_copy", False)),
    "variables": Way(lambda model, _: list(model.variables["state"].values())),
    "tensors": Way(
        lambda model, _: [a for n, a in model.vars().tensors().items() if "counter" in n]
    ),
    "pickled": Way(pickled),
    "read": Way(read),
    "summarized": Way(lambda model, _: str(model.summary())),
    "shown": Way(lambda model, _: (repr(model), str(model.vars()))),
    "laid out": Way(lambda model, _: model.shard(MESH), stop=(_list, "put", False)),
    "appended": Way(
        lambda model, _: model.append(jnp.tanh), stop=(_list, "share", True), version=1
    ),
    "added": Way(
        lambda model, _: model.__setitem__(slice(3, 3), [jnp.sin]),
        stop=(_list, "share", True),
        version=1,
    ),
    "sliced": Way(lambda model, _: model[:1] * 2),
}  # fmt: skip
STOPPING = [name for name, way in WAYS.items() if way.stop is not None or way.effect is one_more]


def outcome(model: sb.Sequential, folder: Path, names: tuple[str, str], lock: Any) -> str:
    """Return what is wrong after two threads have done it; nothing, if all is well."""
    ways = [WAYS[name] for name in names]
    read: list[Any] = []
    model.vars().assign(
        {name: jnp.full(v.shape, 0.5 if v.ndim else 0.0) for name, v in model.vars().items()}
    )
    stop = ways[0].stop
    with (
        GATE.at(stop[0], stop[1], before=stop[2]) if stop is not None else contextlib.nullcontext()
    ):
        stopped = together(
            *(lambda way=way: read.append(way.run(model, folder)) for way in ways), lock=lock
        )
    if not stopped:
        return "it didn't stop"
    first, second = (way.effect for way in ways)
    after, layers = counts(model), len(model)
    del model[3:]
    if after[0] != after[1] or after[0] not in (first(second(0.0)), second(first(0.0))):
        return f"the counts are {after}"
    if layers != 3 + sum(way.version for way in ways):
        return f"it has {layers} layers"
    seen = [values for values in read if isinstance(values, list)]
    return "".join(f"{values} was read" for values in seen if len(set(map(float, values))) != 1)


@pytest.fixture(scope="module")
def model() -> sb.Sequential:
    return made()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: sb.Sequential) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    model.vars().assign({name: jnp.full(v.shape, 50.0) for name, v in model.vars().items()})
    model.save(folder / "50")
    return folder


@pytest.mark.parametrize("first", STOPPING)
def test_two_threads_do_one_after_the_other(first: str, model: sb.Sequential, folder: Path) -> None:
    lock = Lock()
    locked(model, lock)
    for second in WAYS:
        assert outcome(model, folder, (first, second), lock) == "", second


TORN = {
    "call": "call", "traced": "call", "compiled first": "call", "compiled": "packed",
    "packed": "call", "gradients": "call", "rematerialized": "compiled", "saved": "donated",
    "appended": "added", "copied": "call",
}  # fmt: skip


@pytest.mark.parametrize(("first", "second"), TORN.items())
def test_without_locks_that_fails(first: str, second: str, folder: Path) -> None:
    model, lock = made(), Lock(real=False)
    locked(model, lock)
    try:
        found = outcome(model, folder, (first, second), lock)
    except RuntimeError as error:
        found = str(error)
    assert found not in ("", "it didn't stop")


# What isn't a pair of the table


def test_a_first_call_in_two_threads_builds_once() -> None:
    model, lock = sb.Sequential([counter(), gate, nn.Dense(3), nn.Dropout(0.5)]), Lock()
    model.edit_lock = lock  # pyright: ignore[reportAttributeAccessIssue]
    boxes: list[Any] = []
    assert together(
        *[lambda: boxes.append((train(model, X), model[2].kernel, model.key_stream))] * 2, lock=lock
    )
    assert counts(model) == [2.0, 2.0]
    (_, kernel, stream), (_, other, own) = boxes
    assert kernel is other
    assert stream is own is model.vars()["(Sequential).rng"]


def test_a_stream_of_keys_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lock = sb.Sequential([nn.Dropout(0.5)]).build((2, 3)), Lock()
    model.key_stream = None
    version.bump()
    monkeypatch.setattr(version, "lock", lock)
    found: list[Any] = []
    with GATE.at(_list, "stream"):
        assert together(*[lambda: found.append(next(iter(model.vars().values())))] * 2, lock=lock)
    assert found[0] is found[1] is model.key_stream


@pytest.mark.parametrize("options", [{}, {"donate": True}, {"pack": True, "donate": True}])
def test_one_function_is_compiled_by_two_threads_at_once(options: Any) -> None:
    waiting: set[threading.Thread] = set()
    tracing, done = threading.Barrier(2), threading.Barrier(2)

    def both(x: Any) -> Any:
        if (me := threading.current_thread()) in waiting:
            waiting.remove(me)
            tracing.wait(LONG)
        return x

    models = [sb.Sequential([counter(), both]).build((2, 3)) for _ in range(2)]
    step = sb.jit(train, **options)

    def work(model: sb.Sequential) -> None:
        step(model, X)
        done.wait(LONG)
        for other in (*models, *reversed(models)):
            step(other, X)

    threads = [threading.Thread(target=work, args=(model,), daemon=True) for model in models]
    waiting.update(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert not waiting
    assert [counts(model) for model in models] == [[5.0, 5.0]] * 2


def test_a_thread_that_traces_stops_nobody_who_calls_another_model() -> None:
    tracing, other = made(), made()
    free = threading.Event()

    def call() -> None:
        train(other, X)
        sb.jit(train)(other, X)
        other.append(jnp.tanh)
        assert not any(isinstance(v.value, Tracer) for v in other.vars().values())
        free.set()

    assert together(lambda: sb.jit(train)(tracing, X), call)
    assert free.is_set()
    assert (counts(tracing), counts(other)) == ([1.0, 1.0], [2.0, 2.0])


def test_models_that_share_layers_in_both_orders_wait_for_nobody_for_ever() -> None:
    one, two = (sb.Sequential([counter(), gate]).build((2, 3)) for _ in range(2))
    models = sb.Sequential([one[0], two[0]]), sb.Sequential([two[0], one[0]])
    inner = sb.Sequential([counter()])
    outer = sb.Sequential([inner, two[0]]).build((2, 3)).shard(MESH)
    step = sb.jit(lambda a, b, x: train(a, x) + train(b, x))
    start = threading.Barrier(4)
    errors: list[BaseException] = []

    def run(*work: Callable[[], Any]) -> None:
        try:
            start.wait(LONG)
            for do in [*work] * 10:
                do()
        except BaseException as error:
            errors.append(error)

    first, second = models
    threads = [
        threading.Thread(target=run, args=work, daemon=True)
        for work in (
            (lambda: train(first, X), lambda: step(first, second, X)),
            (lambda: train(second, X), lambda: step(second, first, X)),
            (
                lambda: train(outer, X),
                lambda: sb.value_and_grad(train, vars=second.vars(), wrt=lambda v: True),
            ),
            (lambda: inner.append(nn.Dense(3)), lambda: inner.pop(), lambda: train(inner, X)),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert not errors
    assert [float(m[0].a.value) for m in (one, two, inner)] == [60.0, 70.0, 20.0]


def test_an_edit_of_a_nested_model_waits_for_a_call_of_the_outer_one() -> None:
    inner = sb.Sequential([jnp.tanh])
    outer, lock = sb.Sequential([counter(), gate, inner]).build((2, 3)), Lock()
    locked(outer, lock)
    out: list[Any] = []
    assert together(
        lambda: out.append(outer(X, training=True)), lambda: inner.append(jnp.zeros_like), lock=lock
    )
    assert np.array_equal(out[0], jnp.tanh(X))
    assert not outer(X, training=True).any()


def test_two_optimizers_of_one_model_lose_no_step() -> None:
    model = sb.Sequential([nn.Dense(3)]).build((2, 3))
    model[0].kernel.assign(jnp.zeros((3, 3)))
    optimizers = [sb.Optimizer(model, optax.sgd(rate)) for rate in (1.0, 16.0)]
    step = sb.jit(
        lambda model, optimizer, x: optimizer.update(sb.grad(lambda m: m(x).sum())(model)),
        donate=True,
    )
    ways: tuple[Callable[[sb.Optimizer], Any], ...] = (
        lambda optimizer: step(model, optimizer, X),
        lambda optimizer: optimizer.update(sb.grad(lambda m: m(X).sum())(model)),
    )
    total, lock = 0.0, Lock()
    locked(model, lock)
    for first, second in itertools.product(ways, ways):
        for way in ways:  # they are compiled, and their state lies under the lock
            way(optimizers[0])
            way(optimizers[1])
            total += 17.0
        stop = (_program, "store") if first is ways[0] else (_optimizer, "commit")
        with GATE.at(*stop, before=True):
            pair = [
                lambda way=way, own=own: way(own)
                for way, own in zip((first, second), optimizers, strict=True)
            ]
            assert together(*pair, lock=lock)
        total += 17.0
        assert float(model[0].kernel.value[0, 0]) == -2.0 * total


def test_a_copy_of_an_optimizer_is_of_one_moment() -> None:
    model = sb.Sequential([counter(), nn.Dense(3)]).build((2, 3))
    optimizer, lock = sb.Optimizer(model, optax.sgd(1.0, momentum=1.0)), Lock()
    ones = {name: jnp.ones_like(v.value) for name, v in model.vars().subset("params").items()}
    model[1].kernel.assign(jnp.zeros((3, 3)))
    locked(model, lock)
    copies: list[Any] = []
    with GATE.at(jnp, "copy"):
        assert together(
            lambda: copies.append(copy.deepcopy(optimizer)),
            lambda: optimizer.update(ones),
            lock=lock,
        )
    assert [float(v.value.sum()) for v in copies[0].vars().values()] == [0.0, 0.0]
    assert float(copies[0]._model[1].kernel.value.sum()) == 0.0
    assert float(model[1].kernel.value.sum()) == -9.0


def test_a_checkpoint_is_of_one_moment_though_the_arrays_are_donated(tmp_path: Path) -> None:
    model, lock = made(), Lock()
    step = sb.jit(train, donate=True)
    step(model, X)
    locked(model, lock)
    with sb.Checkpoint(tmp_path, model=model) as checkpoint:
        with GATE.at(_checkpoint, "digests"):
            assert together(lambda: checkpoint.save(1), lambda: step(model, X), lock=lock)
        assert counts(model) == [2.0, 2.0]
        checkpoint.restore()
        assert counts(model) == [1.0, 1.0]


def test_a_value_that_is_read_while_it_is_assigned_does_not_stay() -> None:
    """A variable in a pack keeps what it has taken out of the array."""
    model = made()
    sb.jit(train, pack=True)(model, X)
    a = model[0].a
    with GATE.at(_pack, "_take"):
        assert together(lambda: a.value, lambda: a.assign(7.0))
    sb.jit(train, pack=True)(model, X)
    assert float(a.value) == 8.0


def test_a_checkpoint_is_restored_at_one_moment(tmp_path: Path) -> None:
    model, lock = made(), Lock()
    with sb.Checkpoint(tmp_path, model=model) as checkpoint:
        checkpoint.save(1)
        train(model, X)
        locked(model, lock)
        with GATE.at(_checkpoint, "match_stored"):
            assert together(checkpoint.restore, lambda: train(model, X), lock=lock)
    assert counts(model) == [1.0, 1.0]


def test_an_assignment_of_one_variable_waits_for_a_call() -> None:
    model, lock = made(), Lock()
    locked(model, lock)
    assert together(lambda: train(model, X), lambda: model[0].a.assign(100.0), lock=lock)
    assert counts(model) == [100.0, 1.0]


def test_an_export_and_a_port_are_of_one_moment() -> None:
    model, lock = made(), Lock()
    locked(model, lock)
    forms: list[Any] = []
    with GATE.at(_neutral, "_copy"):
        assert together(lambda: forms.append(sb.to_pure(model)), lambda: train(model, X), lock=lock)
    state = forms[0][0](jax.random.key(0))["state"]
    assert {float(value) for value in jax.tree.leaves(state)} == {0.0}
    target = sb.Sequential([nn.Dense(3)], seed=1).build((2, 3))
    source = sb.Sequential([nn.Dense(3)], seed=2).build((2, 3))
    lock = Lock()
    locked(target, lock)
    zeros = {name: jnp.zeros(v.shape) for name, v in target.vars().items()}
    with GATE.at(_plan, "cast"):
        assert together(
            lambda: sb.port(source, target), lambda: target.vars().assign(zeros), lock=lock
        )
    assert not any(v.value.any() for v in target.vars().values())


def test_a_layer_alone_has_one_stream() -> None:
    layer, lock = sb.Layer(nn.Dropout(0.5)), Lock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(version, "lock", lock)
        with GATE.at(_list, "share"):
            assert together(*[lambda: layer.model_of_one()] * 2, lock=lock)
    assert layer.model_of_one() is layer.model_of_one()


def test_a_rule_holds_for_a_layer_that_comes_while_the_model_is_laid_out() -> None:
    model, lock = made(), Lock()
    locked(model, lock)
    rules = {"kernel$": PartitionSpec(None, "data")}
    with GATE.at(_list, "put"):
        assert together(
            lambda: model.shard(MESH, rules), lambda: model.append(nn.Dense(3)), lock=lock
        )
    assert model[3].kernel.value.sharding.spec == PartitionSpec(None, "data")
