"""`Outputs`: what every layer of a model returned in one call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import jax

from seqbridge._dispatch import Call
from seqbridge._forward import Visitor
from seqbridge._keys import Keys
from seqbridge._layer import Layer
from seqbridge._names import nearest, plain, shape_text
from seqbridge._structure import Structure


class Outputs(OrderedDict[str, Any]):
    """What every layer returned, by name, in order.

    The names are those in which the variables' names start, `"(Sequential)[0](Conv)"`. The names of classes may be
    left out: `outputs["[0]"]`, `outputs["conv"]`, `outputs["encoder[2]"]`. To JAX it is a pytree.
    """

    def __missing__(self, name: object) -> Any:
        short = {plain(full).removeprefix("."): full for full in self}
        if name in short:
            return self[short[name]]  # pyright: ignore[reportArgumentType]
        hint = "; they have names, as the variables have" if isinstance(name, int) else nearest(name, short)
        raise KeyError(f"no layer is called {name!r}{hint}; there are {', '.join(short)}")

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {shape_text(out)}" for name, out in self.items())


def _flatten(outputs: Outputs) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    return [(jax.tree_util.DictKey(name), out) for name, out in outputs.items()], tuple(outputs)


def _unflatten(names: tuple[str, ...], outputs: Iterable[Any]) -> Outputs:
    return Outputs(zip(names, outputs, strict=True))


jax.tree_util.register_pytree_with_keys(Outputs, _flatten, _unflatten)


class Watched:
    """A visitor that does what another does, and notes what each layer returns."""

    def __init__(self, visitor: Visitor, outputs: list[Any]):
        self._visitor = visitor
        self._outputs = outputs

    def __call__(
        self, layer: Layer, keys: Keys, args: tuple[Any, ...], keywords: dict[str, Any], mode: bool | None, /
    ) -> Any:
        out = self._visitor(layer, keys, args, keywords, mode)
        self._outputs.append(out)
        return out

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        self._visitor.enter(model, args, call)
