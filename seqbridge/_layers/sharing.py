"""Sharing: layers of one entry are one layer, in whatever models they stood before."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax

from seqbridge._layers.layer import Layer
from seqbridge._layers.module_tree import Item, leaves
from seqbridge._state import Variable

Undo = Callable[[], None]


def share(items: list[Any], own: Sequence[Item], undo: list[Undo]) -> None:
    """Make one layer of those of one entry, and one variable of those of one object behind them.

    Two that both have values of their own by now stay two.

    Args:
        items: What a model will hold; changed in place.
        own: What it held before: of two layers, the one that was there stays.
        undo: Gets what undoes each step, before the step is taken.
    """
    held_before = set(leaves(own))

    def new_last(layer: Layer) -> bool:
        return layer not in held_before

    _unify_layers(items, sorted(leaves(items), key=new_last), undo)
    _share_variables(sorted(leaves(items), key=new_last), undo)


def _unify_layers(items: list[Item], layers: Iterable[Layer], undo: list[Undo]) -> None:
    """Give a list, and the models in it, one layer for each entry: the first that is built."""
    chosen: dict[Hashable, Layer] = {}
    for layer in layers:
        known = chosen.get(layer.entry_key)
        if known is None or (layer.built and not known.built):
            chosen[layer.entry_key] = layer

    def unified(held: Iterable[Item]) -> list[Item]:
        new: list[Item] = []
        for item in held:
            if isinstance(item, Layer) and not _differ(item, chosen[item.entry_key]):
                new.append(chosen[item.entry_key])
            else:
                new.append(item)
        return new

    models: list[Any] = []
    for item in items:
        if not isinstance(item, Layer):
            models += [item, *item.nested_models()]
    before = list(items)
    held_by = [(model, list(model)) for model in models]

    def restore() -> None:
        items[:] = before
        for model, held in held_by:
            model.swap_layers(held)

    undo.append(restore)
    items[:] = unified(items)
    for model, held in held_by:
        model.swap_layers(unified(held))


def _share_variables(layers: Iterable[Layer], undo: list[Undo]) -> None:
    """Give the layers one variable for each tie."""
    first: dict[Hashable, Variable] = {}
    for layer in layers:
        held = layer.own_variables()
        shared = list(held)
        for i, (tie, variable) in enumerate(layer.tied_variables()):
            known = first.setdefault(tie, variable)
            same = known is variable
            if not same and (known.stored is variable.stored or _untouched(layer, i)):
                undo.append(_restore_trainable(known))
                known.trainable = known.trainable and variable.trainable
                shared[i] = known
        if any(new is not old for new, old in zip(shared, held, strict=True)):
            undo.append(_restore_variables(layer))
            layer.share_variables(shared)


def _restore_trainable(variable: Variable) -> Undo:
    before = variable.trainable

    def restore() -> None:
        variable.trainable = before

    return restore


def _restore_variables(layer: Layer) -> Undo:
    before = layer.own_variables()
    return lambda: layer.share_variables(before)


def _untouched(layer: Layer, i: int) -> bool:
    """Whether a variable still has the value that its entry came with."""
    ready = layer.pure.ready
    return ready is not None and layer.own_variables()[i].stored is jax.tree.leaves(ready)[i]


def _differ(layer: Layer, other: Layer) -> bool:
    """Whether both are built, with values of their own."""
    if not layer.built:
        return False
    if layer.pure.ready is not None and _holds(layer, jax.tree.leaves(layer.pure.ready)):
        return False
    return not _holds(layer, [variable.stored for variable in other.own_variables()])


def _holds(layer: Layer, arrays: Iterable[Any]) -> bool:
    pairs = zip(layer.own_variables(), arrays, strict=False)
    return all(variable.stored is array for variable, array in pairs)
