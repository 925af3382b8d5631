"""What a call costs beyond its arithmetic: `sb.jit` beside `jax.jit`, linen, Haiku, NNX and Equinox.

Proves that a `Sequential` of modules, called through `sb.jit`, takes hardly longer than a function that a person wrote
by hand over a flat list of arrays. All systems run one multi-layer perceptron with the same numbers in it, which is so
small that what is timed is the way into the compiled program and out of it. Before anything is timed, what each system
returns is compared with what the hand-written function returns.

    python benchmarks/dispatch.py --sizes 4,100,1000 --rounds 40 --json dispatch.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import seqbridge as sb

WIDTH, BATCH = 16, 8
SGD = optax.sgd(1e-3)
TURN = 0.01  # seconds that a system runs before it is the next one's turn
FLOOR = "hand-written jax.jit"

Start: TypeAlias = list[tuple[jax.Array, jax.Array]]  # kernel and bias of each layer
Call: TypeAlias = Callable[[], jax.Array]


class Calls(NamedTuple):
    """One system, ready to be called: `inference` returns outputs, `training` takes a step and returns its loss."""

    inference: Call
    training: Call


def loss_of(outputs: jax.Array) -> jax.Array:
    return jnp.mean(outputs**2)


def chain(layers: Iterable[Callable[[Any], Any]], x: Any) -> Any:
    first, *rest = layers
    return functools.reduce(lambda x, layer: layer(jax.nn.relu(x)), rest, first(x))


def repeated(step: Callable[..., Any], params: Any, opt_state: Any, x: jax.Array) -> Call:
    """Train with a pure step, whose results are what the next call starts from."""

    def train() -> jax.Array:
        nonlocal params, opt_state
        params, opt_state, loss = step(params, opt_state, x)
        return loss

    return train


# The systems


def pure(apply: Callable[[Any, jax.Array], Any], params: Any, x: jax.Array) -> Calls:
    """Train and run a pure function under `jax.jit`, as users of linen and of Haiku do, too."""
    infer = jax.jit(apply)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(lambda params: loss_of(apply(params, x)))(params)
        updates, opt_state = SGD.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return Calls(lambda: infer(params, x), repeated(step, params, SGD.init(params), x))


def by_hand(start: Start, x: jax.Array) -> Calls:
    def apply(params: list[jax.Array], x: jax.Array) -> jax.Array:
        for i in range(0, len(params), 2):
            x = (jax.nn.relu(x) if i else x) @ params[i] + params[i + 1]
        return x

    return pure(apply, [array for pair in start for array in pair], x)


def entries(start: Start) -> list[Any]:
    return [entry for _ in start for entry in (nn.relu, nn.Dense(WIDTH))][1:]


def linen(start: Start, x: jax.Array) -> Calls:
    params = {f"layers_{2 * i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(start)}
    return pure(nn.Sequential(entries(start)).apply, {"params": params}, x)


def haiku(start: Start, x: jax.Array) -> Calls:
    model = hk.without_apply_rng(hk.transform(lambda x: chain([hk.Linear(WIDTH) for _ in start], x)))
    params = {f"linear_{i}" if i else "linear": {"w": kernel, "b": bias} for i, (kernel, bias) in enumerate(start)}
    return pure(model.apply, params, x)


class _NNXMLP(nnx.Module):
    def __init__(self, start: Start):
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)) for _ in start])
        for layer, (kernel, bias) in zip(self.layers, start, strict=True):
            layer.kernel, layer.bias = nnx.Param(kernel), nnx.Param(bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        return chain(self.layers, x)


def flax_nnx(start: Start, x: jax.Array) -> Calls:
    infer = nnx.jit(lambda model, x: model(x))

    @nnx.jit
    def step(model: _NNXMLP, optimizer: nnx.Optimizer[_NNXMLP], x: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: loss_of(model(x)))(model)
        optimizer.update(model, grads)
        return loss

    model, trained = _NNXMLP(start), _NNXMLP(start)
    optimizer = nnx.Optimizer(trained, SGD, wrt=nnx.Param)
    return Calls(lambda: infer(model, x), lambda: step(trained, optimizer, x))


class _EquinoxMLP(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self, start: Start):
        blank = eqx.nn.Linear(WIDTH, WIDTH, key=jax.random.key(0))
        self.layers = [eqx.tree_at(lambda n: (n.weight, n.bias), blank, (kernel.T, bias)) for kernel, bias in start]

    def __call__(self, x: jax.Array) -> jax.Array:
        return chain(self.layers, x)


def equinox(start: Start, x: jax.Array) -> Calls:
    infer = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))

    @eqx.filter_jit
    def step(model: _EquinoxMLP, opt_state: Any, x: jax.Array) -> Any:
        loss, grads = eqx.filter_value_and_grad(lambda model: loss_of(jax.vmap(model)(x)))(model)
        updates, opt_state = SGD.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    model = _EquinoxMLP(start)
    opt_state = SGD.init(eqx.filter(model, eqx.is_array))
    return Calls(lambda: infer(model, x), repeated(step, model, opt_state, x))


def seqbridge(start: Start, x: jax.Array) -> Calls:
    def build() -> sb.Sequential:
        model = sb.Sequential(entries(start)).build(x)
        for layer, (kernel, bias) in zip(list(model)[::2], start, strict=True):
            layer.vars().assign({"kernel": kernel, "bias": bias})
        return model

    infer = sb.jit(lambda model, x: model(x))

    @sb.jit
    def step(model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array) -> jax.Array:
        loss, grads = sb.value_and_grad(lambda model: loss_of(model(x)))(model)
        optimizer.update(grads)
        return loss

    model, trained = build(), build()
    optimizer = sb.Optimizer(trained, SGD)
    return Calls(lambda: infer(model, x), lambda: step(trained, optimizer, x))


SYSTEMS: dict[str, Callable[[Start, jax.Array], Calls]] = {
    FLOOR: by_hand,
    "linen apply, jax.jit": linen,
    "Haiku apply, jax.jit": haiku,
    "nnx.jit": flax_nnx,
    "eqx.filter_jit": equinox,
    "sb.jit": seqbridge,
}


# The clock


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    # Of a training step the loss alone: waiting for each parameter would charge the systems that return them.
    call().block_until_ready()
    return time.perf_counter() - begin


def interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Time the systems in turns, in another order each round, so that noise meets all of them alike."""
    often = {name: max(1, round(TURN / min(seconds(call) for _ in range(3)))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            seconds(calls[name])  # the system before has left its own data in the caches
            times[name] += [seconds(calls[name]) for _ in range(often[name])]
    return times


def measure(size: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each work and system, or raise `AssertionError` if a system computes something else."""
    normal = np.random.default_rng(0).normal
    pairs = [(normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH)), normal(0, 0.1, WIDTH)) for _ in range(size // 2)]
    start = [(jnp.asarray(kernel, "float32"), jnp.asarray(bias, "float32")) for kernel, bias in pairs]
    x = jnp.asarray(normal(size=(BATCH, WIDTH)), "float32")
    systems = {name: make(start, x) for name, make in SYSTEMS.items()}
    rows = []
    for work in Calls._fields:
        calls: dict[str, Call] = {name: getattr(system, work) for name, system in systems.items()}
        expected = [calls[FLOOR]() for _ in range(3)]
        for name in calls.keys() - {FLOOR}:
            results = [calls[name]() for _ in expected]
            np.testing.assert_allclose(results, expected, rtol=1e-3, atol=1e-6, err_msg=f"{work}: {name}")
        times = interleaved(calls, rounds)
        least, median = (function(times[FLOOR]) for function in (min, statistics.median))
        for name, own in times.items():
            numbers = {"min_us": min(own) * 1e6, "med_us": statistics.median(own) * 1e6}
            ratios = {"x_min": min(own) / least, "x_med": statistics.median(own) / median}
            rows.append({"work": work, "variables": size, "system": name, "calls": len(own), **numbers, **ratios})
    return rows


def main() -> None:
    """Measure and print; see `--help`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="4,100,1000", help="numbers of variables, even ones; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=40, help="turns that each system gets; default: %(default)s")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        # On one core the program runs in the calling thread; else calls wait for another thread to wake, or don't.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    versions = {module.__name__: module.__version__ for module in (jax, flax, hk, eqx, optax)}
    print(*(f"{name} {version}" for name, version in versions.items()), "on", jax.devices()[0].device_kind, sep=" ")
    rows: list[dict[str, Any]] = []
    for size in map(int, options.sizes.split(",")):
        for i, row in enumerate(measure(size, options.rounds)):
            if i % len(SYSTEMS) == 0:
                print(f"\n{row['work']}, {size} variables\n")
                print("| system               |    min us |    med us |  x_min |  x_med |")
                print("|----------------------|----------:|----------:|-------:|-------:|")
            numbers = f"{row['min_us']:9.1f} | {row['med_us']:9.1f} | {row['x_min']:6.2f} | {row['x_med']:6.2f}"
            print(f"| {row['system']:<20} | {numbers} |", flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
