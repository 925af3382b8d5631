"""`Outputs`: what every layer of a model returned in one call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import jax

from seqbridge._interface import Call, Inputs, Keywords, nearest, plain, shape_text
from seqbridge._layers import Layer, LayerList
from seqbridge._passes.forward import Visitor
from seqbridge._state import Keys


class Outputs(OrderedDict[str, Any]):
    """Results of every layer by name, in order.

    The names are those in which the variables' names start, `"(Sequential)[0](Conv)"`. The names of
    classes may be left out: `outputs["[0]"]`, `outputs["conv"]`, `outputs["encoder[2]"]`; a nested
    model returns what its last layer
    does: `outputs["encoder"]`. To JAX it is a pytree.
    """

    def __missing__(self, name: object) -> Any:
        if (found := self._full(name)) is not None:
            return self[found]
        short = self._short()
        raise KeyError(
            f"no layer is called {name!r}{nearest(name, short) or '.'} There are {', '.join(short)}"
        )

    def __contains__(self, name: object) -> bool:
        return self._full(name) is not None

    def get(self, name: Any, default: Any = None) -> Any:
        """Return what the layer returned, or `default` if there is none of that name."""
        full = self._full(name)
        return default if full is None else self[full]

    def _short(self) -> dict[str, str]:
        return {plain(full).removeprefix("."): full for full in self}

    def _full(self, name: object) -> str | None:
        """The name in full of a layer, or of the last layer of a nested model."""
        if not isinstance(name, str):
            return None
        if super().__contains__(name):
            return name
        short = self._short()
        if name in short:
            return short[name]
        last = None
        for place, full in short.items():
            if place.startswith((f"{name}[", f"{name}.")):
                last = full
        return last

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {shape_text(out)}" for name, out in self.items())


def _flatten(outputs: Outputs) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    return [(jax.tree_util.DictKey(name), out) for name, out in outputs.items()], tuple(outputs)


def _unflatten(names: tuple[str, ...], outputs: Iterable[Any]) -> Outputs:
    return Outputs(zip(names, outputs, strict=True))


jax.tree_util.register_pytree_with_keys(Outputs, _flatten, _unflatten)


class Recorder:
    """A visitor that does what another does, and records what each layer returns."""

    def __init__(self, visitor: Visitor, outputs: list[Any]):
        self._visitor = visitor
        self._outputs = outputs

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: Inputs,
        keywords: Keywords,
        /,
    ) -> Any:
        out = self._visitor(layer, keys, args, keywords)
        self._outputs.append(out)
        return out

    def enter(self, model: LayerList, args: Inputs, call: Call, /) -> None:
        self._visitor.enter(model, args, call)
