"""The way out: a layer as an Equinox module."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from seqbridge import PureLayer, Variables, as_method, training_of


class Exported(eqx.nn.StatefulLayer):
    """A layer of other libraries. Its arrays stand by their names in `params`, and in the `eqx.nn.State`."""

    params: dict[str, Any]
    index: eqx.nn.StateIndex | None = eqx.field(repr=False)
    layer: PureLayer = eqx.field(static=True, repr=False)
    axis_name: Hashable = eqx.field(static=True)

    def is_stateful(self) -> bool:
        """Whether a call takes and returns a state."""
        return self.index is not None

    def seqbridge_variables(self, state: eqx.nn.State | None = None) -> Variables:
        """The arrays, for `seqbridge.from_native`."""
        if self.index is None or state is None:
            return {"params": self.params}
        return {"params": self.params, "state": state.get(self.index)}

    def _run(self, args: Sequence[Any], state: Any, key: Any, keywords: dict[str, Any]) -> Any:
        if args and isinstance(args[-1], eqx.nn.State):
            *args, state = args
        if (
            training_of(keywords) is None
            and (inference := getattr(self, "inference", None)) is not None
        ):
            keywords = {**keywords, "training": not inference}
        if self.index is not None and state is None:
            raise TypeError(
                f"this {type(self).__name__} has a state: module, state = "
                f"eqx.nn.make_with_state(lambda: module)(), "
                "and then out, state = module(x, state)"
            )
        variables = {
            "params": self.params,
            "state": {} if self.index is None else state.get(self.index),
        }
        if self.axis_name is None:
            out, new = self.layer.apply(variables, _key(key), *args, **keywords)
        elif _bound(
            self.axis_name
        ):  # one example of a batch: the whole batch is computed, by all of them together
            args = [
                jax.tree.map(lambda a: jax.lax.all_gather(a, self.axis_name), arg) for arg in args
            ]
            key = None if key is None else _first(key, self.axis_name)
            out, new = self.layer.apply(variables, _key(key), *args, **keywords)
            here = jax.lax.axis_index(self.axis_name)
            out = jax.tree.map(lambda a: a[here], out)
        elif self.index is not None and training_of(keywords) is not False:
            raise NameError(
                f"in training this {type(self).__name__} looks at the whole batch: map it by "
                f"jax.vmap(module, "
                f"axis_name={self.axis_name!r}, in_axes=(0, None), out_axes=(0, None))"
            )
        else:  # one example alone
            args = [jax.tree.map(lambda a: a[None], arg) for arg in args]
            out, new = self.layer.apply(variables, _key(key), *args, **keywords)
            out = jax.tree.map(lambda a: a[0], out)
        if self.index is not None and new:
            state = state.set(self.index, new["state"])
        return out if state is None else (out, state)


class _Switched(Exported):
    inference: bool


def _key(key: Any) -> Any:
    def missing() -> Any:
        raise TypeError("a layer draws random numbers: give a key, module(x, key=key)")

    return missing if key is None else key


def _bound(axis_name: Hashable) -> bool:
    try:
        jax.lax.axis_index(axis_name)
    except NameError:
        return False
    return True


def _first(key: Any, axis_name: Hashable) -> jax.Array:
    """The key of the first example, raw."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return jax.lax.all_gather(data, axis_name)[0]


def export(layer: PureLayer, *, axis_name: Hashable = None, key: Any = None) -> Exported:
    """A model, a layer or an entry of any library as an Equinox module.

    It is a pytree of its arrays like any other module, for `eqx.filter_jit`, `eqx.filter_grad`,
    `eqx.tree_serialise_leaves`, and as a field of other modules. With state it is called as
    `module(x, state, key=key)` and returns `(out, state)`, where `module, state =
    eqx.nn.make_with_state(lambda: module)()`; otherwise as `module(x, key=key)`. `inference`
    switches the mode, as in Equinox' own layers; it starts in training.

    It takes a batch. With `axis_name`, it takes one example, as Equinox' own layers do, and is
    mapped over the batch by `jax.vmap(module, axis_name=axis_name)`; statistics and random numbers
    are those of the batch all the same.

    Args:
        layer: The neutral form of what goes out.
        axis_name: The name of the axis that the module is mapped over. None: it takes a batch.
        key: What the values start from of a model that isn't built, in place of its seed; it may be
            traced.

    Returns:
        An `equinox.Module`.

    Raises:
        TypeError: `x` is no entry, or isn't built.

    Examples:
        >>> import flax.linen as nn, jax.numpy as jnp, seqbridge as sb
        >>> module = sb.to_equinox([jnp.tanh, nn.Dense(3)], (None, 4))  # (batch, features)
        >>> module(jnp.ones((2, 4))).shape, module.params["Dense_1"]["kernel"].shape
        ((2, 3), (4, 3))
    """
    if layer.init is None or not (layer.ready or layer.inputs):
        raise TypeError(
            f"an Equinox module has values from the start, and this {layer.label} isn't built: "
            f"call model.build(...) "
            "before, or give the shapes, sb.to_equinox(x, (None, 28, 28, 1))"
        )

    values = layer.ready or layer.init(layer.seed if key is None else key)

    def call(
        self: Exported, *args: Any, state: Any = None, key: Any = None, **keywords: Any
    ) -> Any:
        return self._run(args, state, key, keywords)

    mode = layer.signature.parameters.get("training") if layer.signature else None
    base: type = Exported if mode is None else _Switched
    stateful = ["*rest", "state"] if values["state"] else []
    as_method(call, layer, *stateful, *(["key"] if layer.takes_key else []))
    cls: Any = type(layer.label, (base,), {"__call__": call, "__module__": __name__})
    state = values["state"]
    fields = {} if mode is None else {"inference": mode.default is False}
    index = eqx.nn.StateIndex(state) if state else None
    layer = dataclasses.replace(layer, ready=None)  # which the module has
    return cls(params=values["params"], index=index, layer=layer, axis_name=axis_name, **fields)
