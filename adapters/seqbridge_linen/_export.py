"""Export of a layer to a linen module."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from seqbridge import PureLayer, as_method, training_of


class _Exported(nn.Module):
    """A layer of any library as a linen module.

    The layer is an attribute of a class derived from this one: to linen, fields are there to copy.
    """

    layer: ClassVar[PureLayer]

    def _run(self, args: tuple[Any, ...], training: bool | None, keywords: dict[str, Any]) -> Any:
        starting = self.is_initializing()
        given = {
            "params": self.variables.get("params", {}),
            "state": self.variables.get("batch_stats", {}),
        }
        init = self.layer.init
        if starting and init is not None and not any(given.values()):
            given = init(lambda: self.make_rng("params"), *args, **keywords)
            _create_variables(self, "params", given["params"])
            _create_variables(self, "batch_stats", given["state"])
        elif init is not None and not given["state"] and self.is_mutable_collection("batch_stats"):
            # As any module makes the state that it isn't given.
            given["state"] = init(self._any_key, *args, **keywords)["state"]
            _create_variables(self, "batch_stats", given["state"])
        if starting and training_of({"training": training, **keywords}) is None:
            training = False  # an output is asked for, and nobody has decided on a mode yet
        out, new = self.layer.apply(
            given, lambda: self.make_rng("dropout"), *args, training=training, **keywords
        )
        if not starting:
            for name, tree in new.get("state", {}).items():
                if not _has_same_leaves(tree, given["state"][name]):
                    self.put_variable("batch_stats", name, tree)
        return out

    def _any_key(self) -> jax.Array:
        return self.make_rng("params") if self.has_rng("params") else jax.random.key(0)


def _create_variables(module: nn.Module, collection: str, values: dict[str, Any]) -> None:
    for name, tree in values.items():
        module.variable(collection, name, lambda tree=tree: tree)


def _has_same_leaves(tree: object, other: object) -> bool:
    """Whether the leaves of one tree are the very objects that those of another one are."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(a is b for a, b in pairs)


def export(layer: PureLayer, *, name: str | None = None) -> nn.Module:
    """A model, a layer or an entry of any library as a Flax linen module.

    It is a module like any other: `init`, `apply`, `bind`, `tabulate`, a submodule of others, under
    `nn.scan` and the like. Parameters stand in `params`, state in `batch_stats`, random numbers
    come from the stream `dropout`. What was built hands over its values: `init` returns them,
    whatever the key.

    Args:
        layer: The `PureLayer` of what goes out.
        name: The name of the module, as for any linen module.

    Returns:
        A `flax.linen.Module`.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, seqbridge as sb
        >>> module = sb.to_linen([jnp.tanh, nn.Dense(3)])
        >>> variables = module.init(jax.random.key(0), jnp.ones((2, 4)))  # (batch, features)
        >>> variables["params"]["Dense_1"]["kernel"].shape
        (4, 3)
        >>> module.apply(variables, jnp.ones((2, 4))).shape
        (2, 3)
    """

    @nn.compact
    def call(self: _Exported, *args: Any, training: bool | None = None, **keywords: Any) -> Any:
        return self._run(args, training, keywords)

    call.__name__ = "__call__"
    attributes = {"__call__": as_method(call, layer), "__module__": __name__, "layer": layer}
    cls: Any = type(layer.label, (_Exported,), attributes)
    return cls(name=name)
