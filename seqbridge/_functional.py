"""The pure form of a model: the same pass through its layers, with the variables in plain dicts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias

import jax

from seqbridge._build import Build, specs
from seqbridge._collection import check_names
from seqbridge._dispatch import Call
from seqbridge._forward import Run, traverse
from seqbridge._keys import Keys, as_key
from seqbridge._layer import Layer
from seqbridge._layout import Layout
from seqbridge._pure import Variables
from seqbridge._structure import Structure, full_name, leaves, walk
from seqbridge._trace import commit
from seqbridge._variable import cast

Parts: TypeAlias = dict[str, dict[str, Any]]
Layouts: TypeAlias = Mapping[Layer, Layout]
Arrays: TypeAlias = Mapping[Layer, list[Any]]
Names: TypeAlias = dict[Layer, list[tuple[str, str]]]


def init(model: Structure, key: jax.Array, inputs: tuple[Any, ...], call: Call) -> Parts:
    """Fresh variables of all layers, built or not."""
    build = Build(fresh=True)
    traverse(model, specs(inputs), call.map(specs, training=True), build, Keys(lambda: key))
    arrays = {layer: layout.arrays for layer, layout in reversed(build.layouts.items())}  # of a tie, the first stays
    if kept := [prefix for prefix, layer in walk(model) if layer.pure.init is None and layer.pure.ready]:
        warnings.warn(
            f"init keeps the values that {', '.join(kept)} came with: new ones can be drawn for a class, "
            "partial(Class, ...), but not for an object that was made before",
            stacklevel=3,
        )
    return _parts(_names(model, build.layouts), arrays)


def apply(
    model: Structure, variables: Mapping[str, Mapping[str, Any]], args: tuple[Any, ...], call: Call, rng: Any
) -> tuple[Any, Parts]:
    """Outputs, and the variables after the call."""
    if not all(isinstance(part, Mapping) for part in variables.values()):
        raise TypeError('apply takes {"params": {name: array}, "state": {name: array}}, as init returns it')
    layouts = _layouts(model, args, call)
    names = _names(model, layouts)
    given = {name: array for part in variables.values() for name, array in part.items()}
    check_names("apply", given, dict.fromkeys(name for own in names.values() for name, _ in own))
    arrays = {layer: [given[name] for name, _ in own] for layer, own in names.items()}

    def tree(layer: Layer) -> Variables:
        return layouts[layer].tree(arrays[layer])

    def no_key() -> jax.Array:
        raise TypeError("a layer draws random numbers: give a key, model.apply(variables, x, rng=key)")

    run = Run(tree)
    out = traverse(model, args, call, run, Keys(no_key if rng is None else lambda: as_key(rng)))
    after = {layer: layouts[layer].flatten("the state after the call", new) for layer, new in run.states.items()}
    return out, _parts(names, arrays | after)


def shapes(model: Structure, args: tuple[Any, ...], call: Call) -> dict[str, tuple[int, ...]]:
    """The shapes that fresh variables would have, as far as the layers can be traced."""
    build = Build(fresh=True, abstract=True)
    with contextlib.suppress(Exception):  # the build itself will say what is wrong
        traverse(model, args, call, build, Keys(lambda: jax.random.key(0)))
    return {
        full_name(prefix, slot.shown): array.shape
        for prefix, layer in walk(model)
        if layer in build.layouts
        for slot, array in zip(build.layouts[layer].slots, build.layouts[layer].arrays, strict=True)
    }


def read(model: Structure) -> Parts:
    """The arrays now.

    Raises:
        RuntimeError: The model isn't built.
    """
    if not model.built:
        raise RuntimeError("the model isn't built: it has variables after model.build(...) or the first call")
    layouts = _built(model)
    return _parts(_names(model, layouts), {layer: [v.value for v in layer._variables] for layer in layouts})


def assign(model: Structure, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Takes all of `variables`, or raises and takes none."""
    check_names("assign", (kind for kind in variables if kind not in ("params", "state")), ())
    changes = {}
    with model._locks():
        table = model._by_name()
        for kind, now in read(model).items():
            if kind in variables:
                check_names("assign", variables[kind], now)
                changes |= {table[name]: cast(name, variables[kind][name], old) for name, old in now.items()}
        commit(changes)


def _built(model: Structure) -> dict[Layer, Layout]:
    return {layer: layer._layout for layer in leaves(model) if layer._layout is not None}


def _layouts(model: Structure, args: tuple[Any, ...], call: Call) -> Layouts:
    """The layout of every layer, found from shapes where a layer isn't built."""
    if model.built:
        return _built(model)
    build = Build(abstract=True)
    traverse(model, specs(args), call.map(specs, training=True), build, Keys(lambda: jax.random.key(0)))
    return _built(model) | build.layouts


def _names(model: Structure, layouts: Layouts) -> Names:
    """Name and kind of each array of each layer; one that stands at several places has its first name at all."""
    names: Names = {}
    first: dict[Hashable, str] = {}
    for prefix, layer in walk(model):
        if layer not in names:
            places = zip(layouts[layer].slots, layer._ties(layouts[layer]), strict=True)
            names[layer] = [(first.setdefault(tie, full_name(prefix, slot.shown)), slot.kind) for slot, tie in places]
    return names


def _parts(names: Names, arrays: Arrays) -> Parts:
    """The arrays by name, in the order of the names; where layers share one, that of the last layer in `arrays`."""
    parts: Parts = {"params": {}, "state": {}}
    for layer in (*names, *arrays):
        for (name, kind), array in zip(names[layer], arrays[layer], strict=True):
            parts["params" if kind == "params" else "state"][name] = array
    return parts
