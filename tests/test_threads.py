"""Threads: whatever two of them do with one model, it is as if one had done it after the other.

One thread stops in the middle of what it does, inside of a layer or between two lines of the library, until the other
is done or waits for a lock; so nothing here depends on time. Without locks the same checks fail, as is shown, too.
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
from seqbridge import _collection, _list, _neutral, _optimizer, _program, _saving, _structure
from seqbridge._stateful import edits

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
    """Where the first of two threads stops, once, until the second is done or waits."""

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
    """Counts its calls in training, twice."""

    def init(key: Any, x: Any) -> Any:
        return {"state": {"a": jnp.zeros(()), "b": jnp.zeros(())}}

    def apply(variables: Any, key: Any, x: Any) -> Any:
        return x, {"state": {name: value + 1 for name, value in variables["state"].items()}}

    return sb.PureLayer(init=init, apply=apply, signature=sb.signature_of(gate), label="counter", ecosystem="test")


def made() -> sb.Sequential:
    model = sb.Sequential([counter(), gate, nn.Dense(3)]).build((2, 3))
    model[2].kernel.assign(jnp.full((3, 3), 0.5))
    return model


def locked(model: sb.Sequential, lock: Any) -> None:
    for variable in model.vars().values():
        variable._lock = lock
    for part in (model, *model._lists()):
        part._lock = lock
    edits.note()


def train(model: Any, x: Any) -> Any:
    return model(x, training=True).sum()


def together(first: Callable[[], Any], second: Callable[[], Any], lock: Any = None, gate: Gate = GATE) -> bool:
    """Starts the second when the first has stopped inside. Returns whether the first has stopped at all."""
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
        edits: How many layers it adds.
    """

    run: Callable[[sb.Sequential, Path], Any]
    effect: Callable[[float], float] = lambda n: n
    stop: tuple[Any, str, bool] | None = None
    edits: int = 0


def one_more(n: float) -> float:
    return n + 1


def compiled(**options: Any) -> Way:
    step = sb.jit(train, **options)
    return Way(lambda model, _: step(model, X), one_more, (_program, "store", True))


def counts(model: sb.Sequential) -> list[float]:
    return [float(model[0].a.value), float(model[0].b.value)]


def saved(model: sb.Sequential, folder: Path) -> list[float]:
    model.save(folder / "saved")
    return [float(array) for name, array in load_file(folder / "saved").items() if "counter" in name]


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
        lambda model, _: sb.scan(lambda c, x: (c, train(model, x)), None, X[None], vars=model), one_more
    ),
    "mapped": Way(lambda model, _: sb.vmap(lambda m, x: m(x[None], training=False), in_axes=(None, 0))(model, X)),
    "saved": Way(saved, stop=(_saving, "_stored", True)),
    "loaded": Way(lambda model, folder: model.load(folder / "50"), lambda n: 50.0, (_saving, "fit", False)),
    "assigned": Way(assigned, lambda n: 100.0, (_collection, "cast", False)),
    "assigned, pure": Way(lambda model, _: model.assign(PURE), lambda n: 30.0),
    "copied": Way(lambda model, _: counts(copy.deepcopy(model)), stop=(jnp, "copy", False)),
    "frozen": Way(lambda model, _: sb.freeze(model, (2, 3)), stop=(_neutral, "_copy", False)),
    "variables": Way(lambda model, _: list(model.variables["state"].values())),
    "pickled": Way(pickled),
    "read": Way(read),
    "summarized": Way(lambda model, _: str(model.summary())),
    "shown": Way(lambda model, _: (repr(model), str(model.vars()))),
    "laid out": Way(lambda model, _: model.shard(MESH), stop=(_structure, "put", False)),
    "appended": Way(lambda model, _: model.append(jnp.tanh), stop=(_list, "share", True), edits=1),
    "added": Way(lambda model, _: model.__setitem__(slice(3, 3), [jnp.sin]), stop=(_list, "share", True), edits=1),
    "sliced": Way(lambda model, _: model[:1] + [jnp.sin]),
}  # fmt: skip
STOPPING = [name for name, way in WAYS.items() if way.stop is not None or way.effect is one_more]


def outcome(model: sb.Sequential, folder: Path, names: tuple[str, str], lock: Any) -> str:
    """What is wrong after two threads have done it; nothing, if all is well."""
    ways = [WAYS[name] for name in names]
    read: list[Any] = []
    model.vars().assign({name: jnp.full(v.shape, 0.5 if v.ndim else 0.0) for name, v in model.vars().items()})
    stop = ways[0].stop
    with GATE.at(stop[0], stop[1], before=stop[2]) if stop is not None else contextlib.nullcontext():
        stopped = together(*(lambda way=way: read.append(way.run(model, folder)) for way in ways), lock=lock)
    if not stopped:
        return "it didn't stop"
    first, second = (way.effect for way in ways)
    after, layers = counts(model), len(model)
    del model[3:]
    if after[0] != after[1] or after[0] not in (first(second(0.0)), second(first(0.0))):
        return f"the counts are {after}"
    if layers != 3 + sum(way.edits for way in ways):
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
    "call": "call", "traced": "call", "compiled first": "call", "compiled": "packed", "packed": "call",
    "gradients": "call", "rematerialized": "compiled", "saved": "donated",
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
