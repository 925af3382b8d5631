"""The ways to run a network that are compared, each as its users write it.

A network is called, and takes steps of training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import optax
from flax import nnx
from libraries import (
    equinox_call,
    equinox_module,
    equinox_partition,
    haiku,
    haiku_in_linen,
    keras_model,
    keras_stateless,
    linen,
    linen_in_nnx,
    nnx_module,
    nnx_split,
    sequential,
)
from nets import Net, Pure, by_hand, loss_of

import seqbridge as sb

BASELINE = "hand-written, jax.jit"

Call: TypeAlias = Callable[[], Any]


class Rule(NamedTuple):
    """An optimizer by its name and rate, which optax and Keras each have of their own."""

    name: str
    rate: float

    @property
    def optax(self) -> optax.GradientTransformation:
        return {"SGD": optax.sgd, "Adam": optax.adam}[self.name](self.rate)

    @property
    def keras(self) -> Any:
        return getattr(keras.optimizers, self.name)(self.rate)


class Training(NamedTuple):
    """One system in training.

    Attributes:
        step: Takes a step and returns its loss.
        state: Reads what changed beside.
    """

    step: Call
    state: Callable[[], Any]


# Pure functions under jax.jit


def _call(make: Callable[[Net], Pure]) -> Callable[[Net, jax.Array], Call]:
    def start(net: Net, x: jax.Array) -> Call:
        apply, params, state = make(net)
        call = jax.jit(lambda params, x: apply(params, state, None, x)[0])
        return lambda: call(params, x)

    return start


def pure_step(apply: Callable[..., Any], rule: optax.GradientTransformation) -> Callable[..., Any]:
    """Return a function of everything that changes and of a batch.

    What changes is `(params, state, state of the optimizer, key)`.
    """

    def step(carry: Any, x: jax.Array) -> Any:
        params, state, opt_state, key = carry
        key, now = (None, None) if key is None else jax.random.split(key)

        def loss_fn(params: Any) -> Any:
            outputs, new = apply(params, state, now, x)
            return loss_of(outputs), new

        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = rule.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state, key), loss

    return step


def _steps(
    make: Callable[[Net], Pure], donate: bool = False
) -> Callable[[Net, jax.Array, Rule], Training]:
    def start(net: Net, x: jax.Array, rule: Rule) -> Training:
        apply, params, state = make(net)
        step = jax.jit(pure_step(apply, rule.optax), donate_argnums=0 if donate else ())
        return _carried(step, (params, state, rule.optax.init(params), net.key), x)

    return start


def _carried(step: Callable[..., Any], carry: Any, x: jax.Array) -> Training:
    """Training with a step that returns what the next one starts from."""

    def train() -> jax.Array:
        nonlocal carry
        carry, loss = step(carry, x)
        return loss

    return Training(train, lambda: carry[1])


def _constants(net: Net, x: jax.Array) -> Call:
    apply, params, state = by_hand(net)
    call = jax.jit(lambda x: apply(params, state, None, x)[0])
    return lambda: call(x)


# NNX


def _nnx_call(make: Callable[[Net], Any], cached: bool = False) -> Callable[[Net, jax.Array], Call]:
    def start(net: Net, x: jax.Array) -> Call:
        module = make(net)
        call = nnx.jit(lambda module, x: module(x))
        bound = nnx.cached_partial(call, module) if cached else partial(call, module)
        return lambda: bound(x)

    return start


def nnx_step(**keywords: Any) -> Any:
    """`nnx.jit` of a step of `(module, optimizer, x)`."""

    @nnx.jit
    def step(module: Any, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda module: loss_of(module(x, **keywords)))(module)
        optimizer.update(module, grads)
        return loss

    return step


def _nnx_steps(
    make: Callable[[Net], Any], cached: bool = False, **keywords: Any
) -> Callable[..., Training]:
    def start(net: Net, x: jax.Array, rule: Rule) -> Training:
        module, step = make(net), nnx_step(**keywords if net.blocks else {})
        optimizer = nnx.Optimizer(module, rule.optax, wrt=nnx.Param)
        bound = (
            nnx.cached_partial(step, module, optimizer)
            if cached
            else partial(step, module, optimizer)
        )
        return Training(lambda: bound(x), lambda: nnx.state(module, nnx.BatchStat))

    return start


# Equinox


def _equinox_call(net: Net, x: jax.Array) -> Call:
    module, state = equinox_module(net)
    call = eqx.filter_jit(lambda module, x: equinox_call(module, state, None, x)[0])
    return lambda: call(module, x)


def equinox_step(rule: optax.GradientTransformation) -> Any:
    """`eqx.filter_jit` of a step of `((module, state, state of the optimizer, key), x)`."""

    @eqx.filter_jit
    def step(carry: Any, x: jax.Array) -> Any:
        module, state, opt_state, key = carry
        key, now = (None, None) if key is None else jax.random.split(key)

        def loss_fn(module: Any) -> Any:
            outputs, new = equinox_call(module, state, now, x)
            return loss_of(outputs), new

        (loss, state), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(module)
        updates, opt_state = rule.update(grads, opt_state, eqx.filter(module, eqx.is_inexact_array))
        return (eqx.apply_updates(module, updates), state, opt_state, key), loss

    return step


def _equinox_steps(net: Net, x: jax.Array, rule: Rule) -> Training:
    module, state = equinox_module(net)
    opt_state = rule.optax.init(eqx.filter(module, eqx.is_inexact_array))
    return _carried(equinox_step(rule.optax), (module, state, opt_state, net.key), x)


# Keras


def _keras_call(net: Net, x: jax.Array) -> Call:
    model = keras_model(net)
    return lambda: model.predict_on_batch(x)


def _keras_steps(net: Net, x: jax.Array, rule: Rule) -> Training:
    model, ones = keras_model(net), jnp.ones((len(x), net.widths[-1]))
    model.compile(optimizer=rule.keras, loss="mse")
    return Training(
        lambda: model.train_on_batch(x, ones),
        lambda: [variable.value for variable in model.non_trainable_variables],
    )


# seqbridge


def _sequential_call(**options: Any) -> Callable[[Net, jax.Array], Call]:
    def start(net: Net, x: jax.Array) -> Call:
        model = sequential(net)
        call = sb.jit(lambda model, x: model(x), **options)
        return lambda: call(model, x)

    return start


def _frozen(net: Net, x: jax.Array) -> Call:
    call = sb.freeze(sequential(net), x)
    return lambda: call(x)


def sequential_step(net: Net, **options: Any) -> Any:
    """`sb.jit` of a step of `(model, optimizer, x)`."""
    mode = {"training": True} if net.blocks else {}

    @sb.jit(**options)
    def step(model: sb.Sequential, optimizer: sb.Optimizer, x: jax.Array) -> jax.Array:
        loss, grads = sb.value_and_grad(lambda model: loss_of(model(x, **mode)))(model)
        optimizer.update(grads)
        return loss

    return step


def _sequential_steps(**options: Any) -> Callable[..., Training]:
    def start(net: Net, x: jax.Array, rule: Rule) -> Training:
        model, step = sequential(net), sequential_step(net, **options)
        optimizer = sb.Optimizer(model, rule.optax)
        statistics = model.vars().subset(lambda variable: variable.kind == "state")
        return Training(
            lambda: step(model, optimizer, x), lambda: [v.value for v in statistics.values()]
        )

    return start


CALLS: dict[str, Callable[[Net, jax.Array], Call]] = {
    BASELINE: _call(by_hand),
    "hand-written, weights as constants": _constants,
    "linen apply, jax.jit": _call(linen),
    "Haiku apply, jax.jit": _call(haiku),
    "Haiku in linen (hk.experimental.flax), jax.jit": _call(haiku_in_linen),
    "nnx.jit": _nnx_call(nnx_module),
    "nnx.jit, cached_partial": _nnx_call(nnx_module, cached=True),
    "nnx split and merge, jax.jit": _call(nnx_split),
    "linen in NNX (bridge.ToNNX), nnx.jit": _nnx_call(linen_in_nnx),
    "eqx.filter_jit": _equinox_call,
    "eqx.partition, jax.jit": _call(equinox_partition),
    "Keras predict_on_batch": _keras_call,
    "Keras stateless_call, jax.jit": _call(keras_stateless),
    "sb.jit": _sequential_call(),
    "sb.jit(pack=True)": _sequential_call(pack=True),
    "sb.freeze": _frozen,
}

STEPS: dict[str, Callable[[Net, jax.Array, Rule], Training]] = {
    BASELINE: _steps(by_hand),
    "hand-written, donated": _steps(by_hand, donate=True),
    "linen apply, jax.jit": _steps(linen),
    "linen apply, donated": _steps(linen, donate=True),
    "Haiku apply, jax.jit": _steps(haiku),
    "Haiku apply, donated": _steps(haiku, donate=True),
    "Haiku in linen (hk.experimental.flax), jax.jit": _steps(haiku_in_linen),
    "nnx.jit": _nnx_steps(nnx_module),
    "nnx.jit, cached_partial": _nnx_steps(nnx_module, cached=True),
    "nnx split and merge, jax.jit": _steps(nnx_split),
    "linen in NNX (bridge.ToNNX), nnx.jit": _nnx_steps(linen_in_nnx, mutable=["batch_stats"]),
    "eqx.filter_jit": _equinox_steps,
    "eqx.partition, jax.jit": _steps(equinox_partition),
    "Keras train_on_batch": _keras_steps,
    "Keras stateless_call, jax.jit": _steps(keras_stateless),
    "sb.jit": _sequential_steps(),
    "sb.jit(donate=True)": _sequential_steps(donate=True),
    "sb.jit(pack=True)": _sequential_steps(pack=True),
    "sb.jit(pack=True, donate=True)": _sequential_steps(pack=True, donate=True),
}
