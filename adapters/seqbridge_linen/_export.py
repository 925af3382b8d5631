"""The way out: a layer as a linen module."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from seqbridge import PureLayer, as_method, training_of


class _Exported(nn.Module):
    """A layer of other libraries, which each class derived from this has one of: to linen, fields are there to copy."""

    layer: ClassVar[PureLayer]

    def _run(self, args: tuple[Any, ...], training: bool | None, keywords: dict[str, Any]) -> Any:
        given = {
            c: self.variables.get(own, {})
            for c, own in (("params", "params"), ("state", "batch_stats"))
        }
        first = self.is_initializing() and not any(given.values())
        if first and self.layer.init is not None:
            given = self.layer.init(lambda: self.make_rng("params"), *args, **keywords)
            for name, tree in given["params"].items():
                self.variable("params", name, lambda tree=tree: tree)
            for name, tree in given["state"].items():
                self.variable("batch_stats", name, lambda tree=tree: tree)
        if self.is_initializing() and training_of({"training": training, **keywords}) is None:
            training = False  # an output is asked for, and nobody has decided on a mode yet
        out, state = self.layer.apply(
            given, lambda: self.make_rng("dropout"), *args, training=training, **keywords
        )
        if not self.is_initializing():
            for name, tree in state.get("state", {}).items():
                if not _same(tree, given["state"][name]):
                    self.put_variable("batch_stats", name, tree)
        return out


def _same(a: Any, b: Any) -> bool:
    return all(x is y for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def export(layer: PureLayer, *, name: str | None = None) -> nn.Module:
    """A model, a layer or an entry of any library as a Flax linen module.

    It is a module like any other: `init`, `apply`, `bind`, `tabulate`, a submodule of others, under
    `nn.scan` and the like. Parameters stand in `params`, state in `batch_stats`, random numbers
    come from the stream `dropout`. What was built hands over its values: `init` returns them,
    whatever the key.

    Args:
        layer: The neutral form of what goes out.
        name: The name of the module, as for any linen module.

    Returns:
        A `flax.linen.Module`.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, seqbridge as sb
        >>> module = sb.to_linen([jnp.tanh, nn.Dense(3)])
        >>> variables = module.init(jax.random.key(0), jnp.ones((2, 4)))  # (batch, features)
        >>> module.apply(variables, jnp.ones((2, 4))).shape, variables["params"]["Dense_1"]["kernel"].shape
        ((2, 3), (4, 3))
    """

    @nn.compact
    def call(self: _Exported, *args: Any, training: bool | None = None, **keywords: Any) -> Any:
        return self._run(args, training, keywords)

    call.__name__ = "__call__"
    own = {"__call__": as_method(call, layer), "__module__": __name__, "layer": layer}
    cls: Any = type(layer.label, (_Exported,), own)
    return cls(name=name)
