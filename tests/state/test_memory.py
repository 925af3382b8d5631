"""Memory: what isn't used any more is freed, mostly at once, and nothing grows.

In processes of their own, where nobody else's arrays are counted. Each says what it has counted;
nothing is timed.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from helpers import run_python

COMMON = """
import gc, json, os, sys, tempfile, warnings, weakref
from functools import partial
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np, optax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", os.environ.get("SEQBRIDGE_COMPILED"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
import equinox as eqx, flax.linen as nn, haiku as hk
import seqbridge as sb

X = jnp.ones((4, 3))

def make(seed=0):
    layers = [
        nn.Dense(4), nn.BatchNorm(), partial(hk.Linear, 4), partial(eqx.nn.Linear, 4, 2),
        nn.Dropout(0.5),
    ]
    return sb.Sequential(layers, seed=seed).build((4, 3))

def small(seed=0):
    return sb.Sequential([nn.Dense(2), nn.Dropout(0.5)], seed=seed).build((4, 3))

OURS = (sb.Sequential, sb.Layer, sb.Variable, sb.VarCollection, sb.Optimizer)

def ours():
    return sum(isinstance(o, OURS) for o in gc.get_objects()) + len(weakref.finalize._registry)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def count():
    return {"arrays": len(jax.live_arrays()), "objects": ours(), "resident": resident()}

def loss(model, x):
    return (model(x, training=True) ** 2).mean()
"""

# How many megabytes a process may grow by: allocators keep some, and pages that were never touched
# are touched.
SLACK = 24


def run(code: str) -> Any:
    done = run_python(COMMON + textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def assert_no_more(before: dict[str, float], after: dict[str, float], slack: int = SLACK) -> None:
    """Check that there is no array or object more, and no more memory than allocators keep."""
    assert after["arrays"] <= before["arrays"]
    assert after["objects"] <= before["objects"]
    assert after["resident"] <= before["resident"] + slack


STEPS = """
def train(how, n):
    model = make()
    optimizer = sb.Optimizer(model, optax.sgd(1e-3, momentum=0.9))

    @sb.jit(**how)
    def step(model, optimizer, x):
        value, grads = sb.value_and_grad(lambda m: loss(m, x))(model)
        optimizer.update(grads)
        return value

    for i in range(n):
        step(model, optimizer, X)
        if i == 100:
            print(json.dumps(count()), flush=True)
    print(json.dumps(count() | {"programs": len(step._programs)}))

gc.disable()  # nothing waits for a collection
for how in ({}, {"pack": True}, {"donate": True}, {"pack": True, "donate": True}):
    train(how, 2500)
    gc.collect()
"""


def test_ten_thousand_steps_hold_what_one_holds() -> None:
    counts = run(STEPS)
    assert len(counts) == 8
    for before, after in zip(counts[::2], counts[1::2], strict=True):
        assert_no_more(before, after)
        assert after["programs"] <= 2  # of what isn't packed yet, and of what is


EDITS = """
chance = np.random.default_rng(0)
model = make()
predict = sb.jit(lambda model, x: model(x, training=False))

def edit(i):
    which = i % 10
    if which == 0:
        model.append(jnp.tanh)
    elif which == 1:
        model.pop()
    elif which == 2:
        model[0] = nn.Dense(4)
    elif which == 3:
        model.insert(1, nn.Dense(4))
    elif which == 4:
        del model[1]
    elif which == 5:
        model[3] = partial(hk.Linear, 4)
    elif which == 6:
        model.extend([jnp.tanh, nn.Dense(2)])
    elif which == 7:
        del model[-2:]
    elif which == 8:
        model[1:3] = [nn.BatchNorm(), nn.Dropout(0.5)]
    else:
        model.reverse()
        model.reverse()

gc.disable()
for i in range(1000):
    edit(i)
    if i % 10 == 8:
        model(X, training=True)
    if i % 100 == 99:
        predict(model, X)
        print(json.dumps(count() | {"programs": len(predict._programs)}))
"""


def test_a_thousand_edits_of_a_model_leave_nothing_behind() -> None:
    counts = run(EDITS)
    assert len(counts) == 10
    assert_no_more(counts[3], counts[-1])
    assert all(found["programs"] <= 64 for found in counts)


MODELS = """
import copy
warnings.filterwarnings("ignore", "sb.jit")  # of more than 64 programs, which is what this is about
shared = sb.jit(lambda model, x: model(x, training=True))
packed = sb.jit(lambda model, x: model(x, training=True), pack=True, donate=True)
folder = tempfile.mkdtemp()
ways = (sb.to_linen, sb.to_nnx, sb.to_equinox, sb.to_haiku, sb.to_stax)

def live(i):
    model = make(i) if i % 20 == 0 else small(i)
    model(X, training=True)
    if i % 2:
        shared(model, X)
    if i % 20 == 0:
        packed(model, X)
    model.save(folder + "/f")
    model.load(folder + "/f")
    copy.deepcopy(model)
    if i % 5 == 0:
        str(model.summary())
        ways[i // 5 % len(ways)](model)

for i in range(200):
    live(i)
    if i % 20 == 19:
        gc.collect()
        print(json.dumps(count() | {"programs": max(len(shared._programs), len(packed._programs))}))
"""


def test_two_hundred_models_come_and_go() -> None:
    counts = run(MODELS)
    assert len(counts) == 10
    # JAX keeps what it has traced, some hundred kilobytes a model, up to a limit.
    assert_no_more(counts[4], counts[-1], 150)
    assert all(found["programs"] <= 64 for found in counts)


DROPPED = """
import copy

def three(seed=0):
    layers = [nn.Dense(2), partial(hk.Linear, 2), partial(eqx.nn.Linear, 2, 2), nn.Dropout(0.5)]
    return sb.Sequential(layers, seed=seed).build((4, 3))

folder = tempfile.mkdtemp()
shared = sb.jit(lambda model, x: model(x, training=True))
packed = sb.jit(lambda model, x: model(x, training=True), pack=True)

def optimized(model):
    optimizer = sb.Optimizer(model, optax.sgd(0.1, momentum=0.9))
    optimizer.update(sb.value_and_grad(lambda m: loss(m, X))(model)[1])

def saved(model):
    model.save(folder + "/f")
    model.load(folder + "/f")

uses = {
    "nothing": lambda model: None,
    "a call": lambda model: model(X, training=True),
    "jit": lambda model: shared(model, X),
    "a packed jit": lambda model: packed(model, X),
    "a jit of its own": lambda model: sb.jit(model)(X, training=True),
    "an optimizer": optimized,
    "a file": saved,
    "copies": lambda model: (copy.copy(model), copy.deepcopy(model)),
    "a table": lambda model: str(model.summary()),
    "names": lambda model: (repr(model), model.variables, model.vars(), model[0].native),
    "a slice": lambda model: model[:2](X, training=True),
    "an edit": lambda model: (model.append(nn.Dense(2)), model.pop(0)),
    "a trace": lambda model: model.trace(X, training=False),
    "the pure form": lambda model: model.apply(model.init(jax.random.key(0), X), X, training=False),
    "constants": lambda model: sb.freeze(model, (4, 3))(X),
    "a mesh": lambda model: model.shard(jax.make_mesh((1,), ("data",))),
    "a port": lambda model: sb.port(model, three(1)),
    "Equinox": sb.to_equinox,
    "stax": sb.to_stax,
}
for name, use in uses.items():
    # the first time, it is compiled, and what was compiled keeps constants
    for again in (False, True):
        gc.collect()
        gc.disable()
        before = len(jax.live_arrays())
        model = three()
        use(model)
        dead = [weakref.ref(v) for v in model.vars().values()]
        dead += [weakref.ref(model), *map(weakref.ref, model)]
        del model
        said = {"use": name, "objects": sum(ref() is not None for ref in dead)}
        said["arrays"] = len(jax.live_arrays()) - before
        gc.enable()
    print(json.dumps(said))
"""


def test_a_model_that_is_dropped_is_gone_at_once() -> None:
    """No cycle holds its arrays, which would stay on the device until Python looks for cycles."""
    counts = run(DROPPED)
    assert len(counts) == 19
    assert [found for found in counts if found["objects"] or found["arrays"] > 0] == []


COLLECTED = """
import keras, objax
from flax import nnx
from jax.example_libraries import stax

def built(layer):
    layer.build((None, 3))
    return layer

def frozen():
    layer = built(keras.layers.Dense(2))
    layer.trainable = False
    return layer

entries = {
    "linen": lambda: nn.Dense(2),
    "Haiku": lambda: hk.transform(lambda x: hk.Linear(2)(x)),
    "Equinox": lambda: eqx.nn.Linear(3, 2, key=jax.random.key(0)),
    "NNX": lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
    "stax": lambda: stax.Dense(2),
    "Objax": lambda: objax.nn.Linear(3, 2),
    "Keras": lambda: keras.layers.Dense(2),
    "Keras, built": lambda: built(keras.layers.Dense(2)),
    "Keras, frozen": frozen,
    "Keras, random": lambda: keras.layers.Dropout(0.5),
    "a Keras model": lambda: keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)]
    ),
    "a function": lambda: lambda x, w=jnp.ones((3, 2)): x @ w,
}

def live(make):
    entry = make()
    model = sb.Sequential([entry]).build((4, 3))
    model(X, training=True)
    dead = [weakref.ref(o) for o in (model, model[0], *model.vars().values())]
    if isinstance(entry, keras.Layer | nnx.Module):
        dead.append(weakref.ref(entry))
    return dead

def collect():
    gc.collect()
    gc.collect()  # what a table of weak keys has held for what was collected

for again in (False, True):  # the first time, it is compiled, and what was compiled keeps constants
    collect()
    before = len(jax.live_arrays())
    dead = {name: live(make) for name, make in entries.items()}
    collect()
    left = {name: sum(ref() is not None for ref in refs) for name, refs in dead.items()}
left = {name: count for name, count in left.items() if count}
print(json.dumps({"arrays": len(jax.live_arrays()) - before, "left": left}))
"""


def test_an_entry_that_is_dropped_is_gone() -> None:
    """After a collection, where its library holds it in cycles."""
    assert run(COLLECTED) == [{"arrays": 0, "left": {}}]
