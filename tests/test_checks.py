"""JAX's own checks over a model of layers of every library, in all that is done with it.

What they find in code of others is said beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import objax
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax

import seqbridge as sb
from helpers import mean_square, predict, train_step

# Which Haiku's BatchNorm, stax, Keras and Objax need.
pytestmark = pytest.mark.usefixtures("usual_promotion")


# An array of the device: what is on the host would be transferred.
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
LIBRARIES: dict[str, Callable[[], list[Any]]] = {
    "linen": lambda: [nn.Dense(3), nn.BatchNorm(momentum=0.5), nn.Dropout(0.5)],
    "nnx": lambda: [
        nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5),
    ],
    "haiku": lambda: [partial(hk.Linear, 3), partial(hk.BatchNorm, True, True, 0.5)],
    "equinox": lambda: [partial(eqx.nn.Linear, 3, 3), eqx.nn.Dropout(0.5)],
    "stax": lambda: [stax.Dense(3), stax.Dropout(0.5)],
    "keras": lambda: [keras.layers.Dense(3), keras.layers.Dropout(0.5)],
    "objax": lambda: [objax.nn.Linear(3, 3)],
    "functions": lambda: [jnp.tanh, partial(jnp.multiply, jnp.array([[1.0, 2.0, 3.0]]))],
}


OPTIONS: list[Any] = [{}, {"donate": True}, {"pack": True}, {"pack": True, "donate": True}]


def live(entries: list[Any], options: list[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is done with a model, in each way."""
    model = sb.Sequential(entries)
    yield "a first call", lambda: model(X, training=True)
    yield "a call", lambda: model(X, training=False)
    optimizer = sb.Optimizer(model, optax.sgd(0.125, momentum=0.5))
    for given in options:
        compiled, trained = sb.jit(predict, **given), sb.jit(train_step, **given)
        yield f"a compiled call, {given}", lambda compiled=compiled: compiled(model, X)
        yield f"a compiled step, {given}", lambda trained=trained: trained(model, optimizer, X)
    yield "a step", lambda: train_step(model, optimizer, X)
    if not jax.config.jax_debug_key_reuse:  # pyright: ignore  (which takes what `jax.checkpoint` does again for reuse)
        yield "a rematerialized step", lambda: sb.value_and_grad(sb.remat(mean_square))(model, X)
    yield (
        "a loop",
        lambda: sb.scan(lambda c, x: (c, mean_square(model, x)), None, X[None], vars=model),
    )
    frozen, variables = sb.freeze(model, (4, 3)), model.variables
    yield "a frozen call", lambda: frozen(X)
    yield "the pure form", lambda: model.apply(variables, X, training=False)


def repeated() -> Iterator[tuple[str, Callable[[], Any]]]:
    block = sb.Sequential([nn.Dense(3), partial(hk.Linear, 3), nn.BatchNorm(), nn.Dropout(0.5)])
    model = sb.Sequential([sb.Repeat(block, 3)]).build((4, 3))
    optimizer, trained = sb.Optimizer(model, optax.sgd(0.125)), sb.jit(train_step, donate=True)
    yield "repeated", lambda: model(X, training=True)
    yield "repeated, compiled", lambda: trained(model, optimizer, X)


def entries(*libraries: str) -> list[Any]:
    return [entry for name in libraries or LIBRARIES for entry in LIBRARIES[name]()]


def run(lives: Iterator[tuple[str, Callable[[], Any]]], times: int = 2) -> None:
    for what, do in lives:
        for _ in range(times):
            try:
                jax.block_until_ready(do())
            except Exception as error:
                error.add_note(f"in {what}")
                raise


CHECKS = {
    "no tracer is left": jax.checking_leaks,
    "no number is none": lambda: jax.debug_nans(True),
    "no key is used twice": lambda: jax.debug_key_reuse(True),
}


# First, while there are few objects that could keep a tracer: JAX looks at all of them.
def test_the_checks_can_fail() -> None:
    side: list[Any] = []
    bad: dict[str, tuple[Any, str]] = {
        "no tracer is left": (sb.Sequential([lambda x, side=side: side.append(x) or x]), "Leaked"),
        "no number is none": (sb.Sequential([lambda x: jnp.log(x - 5)]), "nan"),
        "no key is used twice": (
            sb.Sequential(
                [
                    lambda x, rng: (
                        x + jax.random.normal(rng, x.shape) * jax.random.uniform(rng, x.shape)
                    )
                ]
            ),
            "[Kk]ey",
        ),
    }
    for check, (model, words) in bad.items():
        with CHECKS[check](), pytest.raises(Exception, match=words):
            jax.block_until_ready(sb.jit(model)(X))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed"):
        jnp.sin(3.0)


@pytest.mark.parametrize("check", CHECKS)
def test_checks_of_jax_find_nothing(check: str) -> None:
    with CHECKS[check]():
        # This traces everything again at each call: some libraries, and one program.
        if check == "no tracer is left":
            run(live(entries("linen", "haiku", "functions"), OPTIONS[-1:]), times=1)
        else:  # with `debug_nans` JAX donates nothing, as it may want to run a program again
            run(live(entries(), OPTIONS))
            run(repeated())


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_library_leaves_a_tracer(library: str) -> None:
    model = sb.Sequential(entries(library)).build((4, 3))
    with jax.checking_leaks():
        jax.block_until_ready(sb.jit(mean_square)(model, X))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_compiled_call_moves_nothing_between_host_and_device(options: Any) -> None:
    """Once it is compiled: eager operations take Python's numbers to the device, as JAX does."""
    model = sb.Sequential(entries("linen", "haiku", "equinox")).build((4, 3))
    optimizer = sb.Optimizer(model, optax.sgd(0.125, momentum=0.5))
    compiled, trained = sb.jit(predict, **options), sb.jit(train_step, **options)
    frozen = sb.freeze(model, (4, 3))
    for guard in ("allow", "allow", "disallow_explicit"):
        with jax.transfer_guard(guard):
            for _ in range(2):
                compiled(model, X)
                trained(model, optimizer, X)
                frozen(X)
    # To read and to assign what is packed says at what place, explicitly.
    for guard in ("allow", "disallow"):
        with jax.transfer_guard(guard):
            model[0].kernel.assign(model[0].kernel.value)
            model.assign(model.variables)
            compiled(model, X)


def test_jax_takes_its_own_rematerialization_for_reuse_of_a_key() -> None:
    """When this fails, the exception above has become needless."""

    def draw(x: Any, key: Any) -> Any:
        return (x * jax.random.normal(jax.random.split(key)[0], x.shape)).sum()

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.grad(jax.checkpoint(draw))(X, jax.random.key(0))
