"""What layers have in common: those of one entry are one layer, in whatever models they stood before."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax

from seqbridge._layers.layer import Layer
from seqbridge._layers.module_tree import Item, Structure, leaves
from seqbridge._state import Variable


def share(items: list[Item], own: list[Item]) -> Callable[[], None]:
    """Makes one layer of those of one entry, and one variable of those of one object of the entries' library.

    Two that both have values of their own by now stay two.

    Args:
        items: What a model will hold.
        own: What it held before: of two layers, the one that was there stays.

    Returns:
        How to undo it.
    """
    held_before = set(leaves(own))
    lists = _unify(items, held_before)
    attributes = _tie(sorted(leaves(items), key=lambda layer: layer not in held_before))

    def undo() -> None:
        for layers, held in lists:
            layers[:] = held
        for owner, name, held in reversed(attributes):
            setattr(owner, name, held)

    return undo


def _tie(layers: Iterable[Layer]) -> list[tuple[Layer | Variable, str, Any]]:
    """Gives the layers shared variables, and returns which attributes it changed, each with what it held before."""
    found: dict[Hashable, Variable] = {}
    changed: list[tuple[Layer | Variable, str, Any]] = []
    for layer in layers:
        boxes = list(layer._variables)
        for i, (tie, box) in enumerate(layer._tied_variables()):
            first = found.setdefault(tie, box)
            if first is not box and (first.stored is box.stored or _untouched(layer, i)):
                changed.append((first, "_trainable", first._trainable))
                first.trainable = first.trainable and box.trainable
                boxes[i] = first
        if any(a is not b for a, b in zip(boxes, layer._variables, strict=True)):
            changed.append((layer, "_variables", layer._variables))
            layer._variables = tuple(boxes)
    return changed


def _untouched(layer: Layer, i: int) -> bool:
    """Whether a variable still has the value that its entry came with."""
    return (
        layer.pure.ready is not None
        and layer._variables[i].stored is jax.tree.leaves(layer.pure.ready)[i]
    )


def _unify(items: list[Item], held_before: set[Layer]) -> list[tuple[list[Item], list[Item]]]:
    """Gives models one layer for each entry, and returns the lists that it changed, each with what it held before."""
    found: dict[Hashable, Layer] = {}
    for layer in sorted(leaves(items), key=lambda layer: layer not in held_before):
        if layer._key not in found or (layer.built and not found[layer._key].built):
            found[layer._key] = layer
    owners = [
        owner for item in items if isinstance(item, Structure) for owner in (item, *item._lists())
    ]
    before = [(layers, list(layers)) for layers in (items, *(owner._layers for owner in owners))]
    for layers, held in before:
        layers[:] = [
            i if isinstance(i, Structure) or _differ(i, found[i._key]) else found[i._key]
            for i in held
        ]
    return before


def _differ(layer: Layer, other: Layer) -> bool:
    """Whether both are built, with values of their own."""
    if not layer.built or (
        layer.pure.ready is not None and _same(layer, jax.tree.leaves(layer.pure.ready))
    ):
        return False
    return not _same(layer, [v.stored for v in other._variables])


def _same(layer: Layer, arrays: list[Any]) -> bool:
    return all(v.stored is a for v, a in zip(layer._variables, arrays, strict=False))
