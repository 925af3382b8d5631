"""The same network in each library, as its users write it, with the same values in it."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
from flax import nnx
from haiku.experimental.flax import Module as HaikuInLinen
from nets import EPSILON, MOMENTUM, Net, Pure, with_kernels

import seqbridge as sb

# Linen and Haiku, and each of them inside another library


def linen_module(net: Net) -> nn.Sequential:
    return nn.Sequential(
        net.layers(
            lambda n_in, n_out: nn.Dense(n_out),
            nn.relu,
            lambda n: nn.BatchNorm(use_running_average=False, momentum=MOMENTUM),
            lambda rate: nn.Dropout(rate, deterministic=False),
        )
    )


def linen(net: Net) -> Pure:
    return _linen(linen_module(net), net, "dropout")


def _linen(module: nn.Module, net: Net, stream: str) -> Pure:
    variables = module.init({"params": jax.random.key(0), stream: jax.random.key(1)}, net.batch(2))
    params, state = (
        variables["params"],
        {name: tree for name, tree in variables.items() if name != "params"},
    )

    def apply(params: Any, state: Any, key: Any, x: jax.Array) -> Any:
        rngs = None if key is None else {stream: key}
        return module.apply({"params": params, **state}, x, rngs=rngs, mutable=list(state))

    return Pure(apply, with_kernels(params, net), state)


def haiku_transform(net: Net) -> hk.TransformedWithState:
    def forward(x: jax.Array) -> jax.Array:
        layers = net.layers(
            lambda n_in, n_out: hk.Linear(n_out),
            jax.nn.relu,
            lambda n: partial(hk.BatchNorm(True, True, MOMENTUM), is_training=True),
            lambda rate: lambda x: hk.dropout(hk.next_rng_key(), rate, x),
        )
        for layer in layers:
            x = layer(x)
        return x

    return hk.transform_with_state(forward)


def haiku(net: Net) -> Pure:
    init, apply = haiku_transform(net)
    params, state = init(jax.random.key(0), net.batch(2))
    return Pure(apply, with_kernels(params, net), state)


def haiku_in_linen(net: Net) -> Pure:
    return _linen(HaikuInLinen(haiku_transform(net)), net, "apply")


def linen_in_nnx(net: Net) -> nnx.Module:
    """To be called with `mutable=["batch_stats"]` if it is made of blocks."""
    rngs = nnx.Rngs(params=0, dropout=1)
    return _nnx_with_kernels(
        nnx.bridge.ToNNX(linen_module(net), rngs=rngs).lazy_init(net.batch(2)), net
    )


# Libraries of objects


def nnx_module(net: Net) -> nnx.Sequential:
    rngs = nnx.Rngs(params=0, dropout=1)
    layers = net.layers(
        partial(nnx.Linear, rngs=rngs),
        nnx.relu,
        partial(nnx.BatchNorm, momentum=MOMENTUM, rngs=rngs),
        partial(nnx.Dropout, rngs=rngs),
    )
    return _nnx_with_kernels(nnx.Sequential(*layers), net)


def _nnx_with_kernels(module: Any, net: Net) -> Any:
    nnx.update(module, with_kernels(nnx.state(module, nnx.Param), net))
    return module


def nnx_split(net: Net) -> Pure:
    """Return an NNX module as NNX' guide to speed says.

    It is taken apart once, and put together while tracing.
    """
    graph, params, state = nnx.split(nnx_module(net), nnx.Param, ...)

    def apply(params: Any, state: Any, key: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        module = nnx.merge(
            graph, params, state, copy=True
        )  # else NNX refuses to change variables of another trace
        return module(x), nnx.state(module, nnx.Not(nnx.Param))

    return Pure(apply, params, state)


def equinox_module(net: Net) -> tuple[eqx.nn.Sequential, Any]:
    """A module of one example, and its state."""
    key = jax.random.key(0)

    def make() -> eqx.nn.Sequential:
        norm = partial(eqx.nn.BatchNorm, axis_name="batch", mode="batch", momentum=MOMENTUM)
        relu = eqx.nn.Lambda(jax.nn.relu)
        return eqx.nn.Sequential(
            net.layers(partial(eqx.nn.Linear, key=key), relu, norm, eqx.nn.Dropout)
        )

    module, state = eqx.nn.make_with_state(make)()
    linears = [i for i, layer in enumerate(module.layers) if isinstance(layer, eqx.nn.Linear)]
    values = [
        array
        for kernel in net.kernels()
        for array in (jnp.array(kernel.T), jnp.zeros(kernel.shape[1]))
    ]

    def places(module: Any) -> list[Any]:
        return [array for i in linears for array in (module[i].weight, module[i].bias)]

    return eqx.tree_at(places, module, values), state


def equinox_call(module: Any, state: Any, key: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    if key is None:
        return jax.vmap(module)(x), state
    mapped = jax.vmap(
        lambda x, key: module(x, state, key=key), axis_name="batch", out_axes=(0, None)
    )
    return mapped(x, jax.random.split(key, len(x)))


def equinox_partition(net: Net) -> Pure:
    module, state = equinox_module(net)
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return Pure(
        lambda params, *more: equinox_call(eqx.combine(params, static), *more), params, state
    )


def keras_model(net: Net) -> keras.Sequential:
    model = keras.Sequential(
        net.layers(
            lambda n_in, n_out: keras.layers.Dense(n_out),
            keras.layers.Activation("relu"),
            lambda n: keras.layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON),
            keras.layers.Dropout,
        )
    )
    model.build((None, net.widths[0]))
    for variable, value in zip(model.trainable_variables, keras_values(model, net), strict=True):
        variable.assign(value)
    return model


def keras_values(model: keras.Sequential, net: Net) -> list[jax.Array]:
    return with_kernels([variable.value for variable in model.trainable_variables], net)


def keras_stateless(net: Net) -> Pure:
    model = keras_model(net)

    def apply(params: Any, state: Any, key: Any, x: jax.Array) -> Any:
        return model.stateless_call(params, state, x, training=net.blocks)

    state = [jnp.array(variable.value) for variable in model.non_trainable_variables]
    return Pure(apply, keras_values(model, net), state)


# And seqbridge, over entries of three of them


def entries(net: Net, library: str = "linen") -> list[Any]:
    """No mode in them: `training=` says it at the call. Blocks are of linen."""
    if library == "nnx":
        return list(nnx_module(net).layers)
    if library == "haiku":
        return net.layers(
            lambda n_in, n_out: partial(hk.Linear, n_out), jax.nn.relu, _no_blocks, _no_blocks
        )
    return net.layers(
        lambda n_in, n_out: nn.Dense(n_out),
        nn.relu,
        lambda n: nn.BatchNorm(momentum=MOMENTUM),
        nn.Dropout,
    )


def _no_blocks(*args: Any) -> Any:
    raise NotImplementedError("only a perceptron")


def sequential(net: Net, library: str = "linen") -> sb.Sequential:
    model = sb.Sequential(entries(net, library)).build(net.batch(2))
    kernels = [variable for variable in model.vars().values() if variable.ndim == 2]
    for variable, value in zip(kernels, net.kernels(), strict=True):
        variable.assign(jnp.array(value))
    return model
