"""The adapter of `toy_layers`, by somebody else: it knows `seqbridge` by its public names only."""

from __future__ import annotations

from typing import Any

import jax

import toy_layers
from seqbridge import PureLayer, Variables, call_text, signature_of


def adapt(entry: Any) -> PureLayer | None:
    if not isinstance(entry, toy_layers.ToyLayer):
        return None
    switched = isinstance(entry, toy_layers.Center)

    def init(key: Any, /, x: Any, **keywords: Any) -> Variables:
        weights, memory = entry.start(key, x.shape[-1])
        return {"params": weights, "memory": memory}

    def apply(
        variables: Variables, key: Any, /, x: Any, *, training: bool = False
    ) -> tuple[Any, Variables]:
        out, memory = entry.run(
            variables["params"], variables["memory"], x, learning=training, noise=key
        )
        return out, {"memory": memory}

    def call(x: Any, *, training: bool) -> Any: ...

    def call_without_mode(x: Any) -> Any: ...

    return PureLayer(
        init=init,
        apply=apply,
        signature=signature_of(call if switched else call_without_mode),
        label=type(entry).__name__,
        ecosystem="toy",
        text=call_text(type(entry).__name__, (), vars(entry)),
        takes_key=switched,
        to_native=lambda variables: (variables["params"], variables["memory"]),
        from_native=lambda tree: dict(zip(("params", "memory"), tree, strict=True)),
    )


class Exported(toy_layers.ToyLayer):
    """A layer of another library in this one's clothes."""

    def __init__(self, layer: PureLayer):
        self.layer = layer

    def start(self, key: Any, width: int) -> Any:
        assert self.layer.init is not None
        variables = self.layer.init(key, jax.ShapeDtypeStruct((1, width), "float32"))
        return variables["params"], variables["state"]

    def run(self, weights: Any, memory: Any, x: Any, *, learning: bool, noise: Any = None) -> Any:
        before = {"params": weights, "state": memory}
        out, after = self.layer.apply(before, noise, x, training=learning)
        return out, after.get("state", memory)


def export(layer: PureLayer) -> toy_layers.ToyLayer:
    """A model as a toy layer.

    Args:
        layer: The neutral form of what goes out.
    """
    return Exported(layer)
