"""The libraries that a model goes out into, and how a person there runs what comes.

`run` uses the library's own calls only. `key` says which key the layers get when the library is
given `key`.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
from flax import nnx

import seqbridge as sb


class Target(Protocol):
    """One library."""

    def make(self, x: Any, *inputs: Any, **options: Any) -> Any:
        """The exported object."""
        ...

    def start(self, made: Any, inputs: Any, keywords: Any) -> Any:
        """The values that it comes with, in the library's own structure."""
        ...

    def run(
        self, made: Any, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        """Outputs, and the values after the call."""
        ...

    def grads(self, made: Any, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        """The gradients of the sum of the outputs, by the library's own transform."""
        ...

    def key(self, key: Any) -> Any: ...


class Pure:
    def make(self, x: Any, *inputs: Any, **options: Any) -> Any:
        return sb.to_pure(x, *inputs, **options)

    def start(self, made: Any, inputs: Any, keywords: Any) -> Any:
        return made.init(jax.random.key(0), *inputs, **keywords)

    def run(
        self, made: Any, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        return made.apply(tree, *inputs, rng=key, training=training, **keywords)

    def grads(self, made: Any, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return self.run(made, {**tree, "params": params}, key, inputs, True, keywords)[0].sum()

        return {"params": jax.grad(loss)(tree["params"])}

    def key(self, key: Any) -> Any:
        return key


class Linen:
    def make(self, x: Any, *inputs: Any, **options: Any) -> nn.Module:
        return sb.to_linen(x, *inputs, **options)

    def start(self, made: nn.Module, inputs: Any, keywords: Any) -> Any:
        return made.init(jax.random.key(0), *inputs, **keywords)

    def run(
        self, made: nn.Module, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        out, state = made.apply(
            tree,
            *inputs,
            training=training,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            **keywords,
        )
        return out, {**tree, **state}

    def grads(self, made: nn.Module, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return self.run(made, {**tree, "params": params}, key, inputs, True, keywords)[0].sum()

        return {"params": jax.grad(loss)(tree.get("params", {}))}

    def key(self, key: Any) -> Any:
        class Asking(nn.Module):
            @nn.compact
            def __call__(self) -> Any:
                return self.make_rng("dropout")

        return Asking().apply({}, rngs={"dropout": key})


class Nnx:
    def make(self, x: Any, *inputs: Any, **options: Any) -> nnx.Module:
        return sb.to_nnx(x, *inputs, **options)

    def start(self, made: nnx.Module, inputs: Any, keywords: Any) -> Any:
        return nnx.state(made, nnx.Not(nnx.RngState))

    def _module(self, made: nnx.Module, tree: Any, training: bool) -> Any:
        module = nnx.clone(made)
        nnx.update(module, tree)
        if training:
            module.train()
        else:
            module.eval()
        return module

    def run(
        self, made: nnx.Module, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        module = self._module(made, tree, training)
        out = module(*inputs, rngs=nnx.Rngs(dropout=key), **keywords)
        return out, nnx.state(module, nnx.Not(nnx.RngState))

    def grads(self, made: nnx.Module, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        module = self._module(made, tree, True)
        return nnx.grad(
            lambda module: module(*inputs, rngs=nnx.Rngs(dropout=key), **keywords).sum()
        )(module)

    def key(self, key: Any) -> Any:
        return nnx.Rngs(dropout=key).dropout()


class Haiku:
    def make(self, x: Any, *inputs: Any, **options: Any) -> Any:
        return hk.transform_with_state(sb.to_haiku(x, *inputs, **options))

    def start(self, made: Any, inputs: Any, keywords: Any) -> Any:
        return made.init(jax.random.key(0), *inputs, **keywords)

    def run(
        self, made: Any, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        out, state = made.apply(*tree, key, *inputs, training=training, **keywords)
        return out, (tree[0], state)

    def grads(self, made: Any, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        return jax.grad(
            lambda params: self.run(made, (params, tree[1]), key, inputs, True, keywords)[0].sum()
        )(tree[0])

    def key(self, key: Any) -> Any:
        return hk.transform(hk.next_rng_key).apply({}, key)


class Equinox:
    def make(self, x: Any, *inputs: Any, **options: Any) -> Any:
        return sb.to_equinox(x, *inputs, **options)

    def start(self, made: Any, inputs: Any, keywords: Any) -> Any:
        return eqx.nn.make_with_state(lambda: made)() if made.is_stateful() else made

    def run(
        self, made: Any, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        module, state = tree if made.is_stateful() else (tree, None)
        running = eqx.nn.inference_mode(module, not training)
        if state is None:
            return running(*inputs, key=key, **keywords), tree
        # A copy that isn't used up.
        state = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))
        out, state = running(*inputs, state, key=key, **keywords)
        return out, (module, state)

    def grads(self, made: Any, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        module, *state = tree if made.is_stateful() else (tree,)

        def loss(module: Any) -> jax.Array:
            return self.run(
                made, (module, *state) if state else module, key, inputs, True, keywords
            )[0].sum()

        return eqx.filter_grad(loss)(module)

    def key(self, key: Any) -> Any:
        return key


class Keras:
    def make(self, x: Any, *inputs: Any, **options: Any) -> Any:
        return sb.to_keras(x, *inputs, **options)

    def start(self, made: Any, inputs: Any, keywords: Any) -> Any:
        # On shapes, as a call may move the state.
        shapes = [keras.KerasTensor(array.shape, str(array.dtype)) for array in inputs]
        made(*self._given(made, shapes), **self._mode(made, False), **keywords)
        return [weight.value for weight in made.weights]

    def run(
        self, made: Any, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        made.set_weights(tree)
        self._seed(made, key)
        out = made(*self._given(made, inputs), **self._mode(made, training), **keywords)
        return out, [jnp.copy(weight.value) for weight in made.weights]

    def grads(self, made: Any, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        made.set_weights(tree)
        self._seed(made, key)
        variables = made.trainable_variables, made.non_trainable_variables
        trained, fixed = ([variable.value for variable in part] for part in variables)

        def loss(trained: Any) -> jax.Array:
            return made.stateless_call(trained, fixed, *inputs, training=True, **keywords)[0].sum()

        return jax.grad(loss)(trained)

    def _mode(self, made: Any, training: bool) -> dict[str, bool]:
        return (
            {"training": training} if "training" in inspect.signature(made.call).parameters else {}
        )

    def _given(self, made: Any, inputs: Any) -> Any:
        """Several inputs by position, or else as one list, as the layer has it."""
        try:
            inspect.signature(made.call).bind_partial(*inputs)
        except TypeError:
            return [list(inputs)]
        return inputs

    def _seed(self, made: Any, key: Any) -> None:
        for variable in made.variables:
            if variable.path.endswith("seed_generator_state"):
                variable.assign(jax.random.key_data(key))

    def key(self, key: Any) -> Any:
        return key


class Stax:
    def make(self, x: Any, *inputs: Any, **options: Any) -> Any:
        return sb.to_stax(x, *inputs, **options)

    def start(self, made: Any, inputs: Any, keywords: Any) -> Any:
        init_fun, _ = made
        shapes = [x.shape for x in inputs]
        return init_fun(
            jax.random.key(0), tuple(shapes) if len(shapes) > 1 else shapes[0], **keywords
        )[1]

    def run(
        self, made: Any, tree: Any, key: Any, inputs: Any, training: bool, keywords: Any
    ) -> Any:
        _, apply_fun = made
        given = inputs if len(inputs) > 1 else inputs[0]
        out, after = apply_fun.with_state(tree, given, rng=key, training=training, **keywords)
        assert (apply_fun(tree, given, rng=key, training=training, **keywords) == out).all()
        return out, after

    def grads(self, made: Any, tree: Any, key: Any, inputs: Any, keywords: Any) -> Any:
        _, apply_fun = made
        given = inputs if len(inputs) > 1 else inputs[0]
        return jax.grad(
            lambda tree: apply_fun(tree, given, rng=key, training=True, **keywords).sum()
        )(tree)

    def key(self, key: Any) -> Any:
        return key


TARGETS: dict[str, Target] = {
    "linen": Linen(),
    "nnx": Nnx(),
    "haiku": Haiku(),
    "equinox": Equinox(),
    "keras": Keras(),
    "stax": Stax(),
    "pure": Pure(),
}
