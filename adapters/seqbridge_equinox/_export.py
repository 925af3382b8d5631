"""Export of a layer to an Equinox module."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from seqbridge import PureLayer, Variables, as_method, training_of


class Exported(eqx.nn.StatefulLayer):
    """A layer of any library as an Equinox module.

    Its parameters stand by their names in `params`, its state in an `eqx.nn.State`.
    """

    params: dict[str, Any]
    index: eqx.nn.StateIndex[dict[str, Any]] | None = eqx.field(repr=False)
    layer: PureLayer = eqx.field(static=True, repr=False)
    axis_name: Hashable = eqx.field(static=True)

    def is_stateful(self) -> bool:
        """Whether a call takes and returns a state."""
        return self.index is not None

    def seqbridge_variables(self, state: eqx.nn.State | None = None) -> Variables:
        """Return the arrays, for `seqbridge.from_native`."""
        if self.index is None or state is None:
            return {"params": self.params}
        return {"params": self.params, "state": state.get(self.index)}

    def _run(
        self,
        inputs: Sequence[Any],
        state: eqx.nn.State | None,
        key: jax.Array | None,
        keywords: dict[str, Any],
    ) -> Any:
        if inputs and isinstance(inputs[-1], eqx.nn.State):
            *inputs, state = inputs
        inference = getattr(self, "inference", None)  # which has only what has a mode
        if inference is not None and training_of(keywords) is None:
            keywords = {**keywords, "training": not inference}
        if self.index is None:
            variables = {"params": self.params, "state": {}}
        elif state is None:
            raise TypeError(
                f"this {type(self).__name__} has a state: module, state = "
                "eqx.nn.make_with_state(lambda: module)(), and then out, state = module(x, state)"
            )
        else:
            variables = {"params": self.params, "state": state.get(self.index)}

        if self.axis_name is None:
            out, new = self._apply_to_batch(variables, key, inputs, keywords)
        elif _is_bound(self.axis_name):
            out, new = self._apply_across_axis(variables, key, inputs, keywords)
        elif self.index is not None and training_of(keywords) is not False:
            raise NameError(
                f"in training this {type(self).__name__} looks at the whole batch: map it by "
                f"jax.vmap(module, axis_name={self.axis_name!r}, in_axes=(0, None), "
                "out_axes=(0, None))"
            )
        else:
            out, new = self._apply_to_one(variables, key, inputs, keywords)
        if self.index is not None and state is not None and new:
            state = state.set(self.index, new["state"])
        return out if state is None else (out, state)

    def _apply_to_batch(
        self,
        variables: Variables,
        key: jax.Array | None,
        inputs: Sequence[Any],
        keywords: dict[str, Any],
    ) -> tuple[Any, Variables]:
        key_or_error = _raise_no_key if key is None else key
        return self.layer.apply(variables, key_or_error, *inputs, **keywords)

    def _apply_across_axis(
        self,
        variables: Variables,
        key: jax.Array | None,
        inputs: Sequence[Any],
        keywords: dict[str, Any],
    ) -> tuple[Any, Variables]:
        """Compute the whole batch by all of its examples together, and return one of them."""

        def gather(array: jax.Array) -> jax.Array:
            return jax.lax.all_gather(array, self.axis_name)

        inputs = [jax.tree.map(gather, x) for x in inputs]
        if key is not None:
            key = _key_of_first(key, self.axis_name)
        out, new = self._apply_to_batch(variables, key, inputs, keywords)
        here = jax.lax.axis_index(self.axis_name)
        return jax.tree.map(lambda array: array[here], out), new

    def _apply_to_one(
        self,
        variables: Variables,
        key: jax.Array | None,
        inputs: Sequence[Any],
        keywords: dict[str, Any],
    ) -> tuple[Any, Variables]:
        """Compute one example as a batch of one."""
        inputs = [jax.tree.map(lambda array: array[None], x) for x in inputs]
        out, new = self._apply_to_batch(variables, key, inputs, keywords)
        return jax.tree.map(lambda array: array[0], out), new


class _ExportedWithMode(Exported):
    """A layer whose mode is switched by `eqx.nn.inference_mode`, as that of Equinox' own layers."""

    inference: bool


def _raise_no_key() -> jax.Array:
    raise TypeError("a layer draws random numbers: give a key, module(x, key=key)")


def _is_bound(axis_name: Hashable) -> bool:
    try:
        jax.lax.axis_index(axis_name)
    except NameError:
        return False
    return True


def _key_of_first(key: jax.Array, axis_name: Hashable) -> jax.Array:
    """Return the key of the first example of the batch, raw."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return jax.lax.all_gather(key, axis_name)[0]


def export(
    layer: PureLayer, *, axis_name: Hashable = None, key: jax.Array | None = None
) -> Exported:
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
        layer: The `PureLayer` of what goes out.
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
            "call model.build(...) before, or give the shapes, sb.to_equinox(x, (None, 28, 28, 1))"
        )

    values = layer.ready or layer.init(layer.seed if key is None else key)
    state = values["state"]
    cls = _make_class(layer, stateful=bool(state))
    fields: dict[str, Any] = {
        "params": values["params"],
        "index": eqx.nn.StateIndex(state) if state else None,
        "layer": dataclasses.replace(layer, ready=None),  # the module has the values
        "axis_name": axis_name,
    }
    mode = layer.signature.parameters.get("training") if layer.signature else None
    if mode is not None:
        fields["inference"] = mode.default is False
    return cls(**fields)


def _make_class(layer: PureLayer, *, stateful: bool) -> type[Exported]:
    """Return a class of modules that is called as the layer is, and has its name."""

    def call(
        self: Exported,
        *args: Any,
        state: eqx.nn.State | None = None,
        key: jax.Array | None = None,
        **keywords: Any,
    ) -> Any:
        return self._run(args, state, key, keywords)

    more = []
    if stateful:
        more += ["*rest", "state"]
    if layer.takes_key:
        more.append("key")
    as_method(call, layer, *more)
    has_mode = layer.signature is not None and "training" in layer.signature.parameters
    base = _ExportedWithMode if has_mode else Exported
    cls: Any = type(layer.label, (base,), {"__call__": call, "__module__": __name__})
    return cls
