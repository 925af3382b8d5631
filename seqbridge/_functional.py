"""The pure form of a model: the same pass through its layers, with the variables in plain dicts."""

from __future__ import annotations

from collections.abc import Mapping
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
from seqbridge._structure import Structure, leaves, walk
from seqbridge._trace import commit
from seqbridge._variable import cast

Parts: TypeAlias = dict[str, dict[str, Any]]
Layouts: TypeAlias = Mapping[Layer, Layout]
Arrays: TypeAlias = Mapping[Layer, list[Any]]


def init(model: Structure, key: jax.Array, inputs: tuple[Any, ...], call: Call) -> Parts:
    """Fresh variables of all layers, built or not."""
    build = Build(fresh=True)
    traverse(model, specs(inputs), call.map(specs, training=True), build, Keys(lambda: key))
    return _parts(model, {layer: layout.arrays for layer, layout in build.layouts.items()}, build.layouts)


def apply(
    model: Structure, variables: Mapping[str, Mapping[str, Any]], args: tuple[Any, ...], call: Call, rng: Any
) -> tuple[Any, Parts]:
    """Outputs, and the variables after the call."""
    layouts = _layouts(model, args, call)
    names = _names(model, layouts)
    given = {name: array for part in variables.values() for name, array in part.items()}
    check_names("apply", given, names)
    arrays: dict[Layer, list[Any]] = {}
    for name, (layer, _) in names.items():
        arrays.setdefault(layer, []).append(given[name])

    def tree(layer: Layer) -> Variables:
        return layouts[layer].tree(arrays.get(layer, []))

    def no_key() -> jax.Array:
        raise TypeError("a layer draws random numbers: give a key, model.apply(variables, x, rng=key)")

    run = Run(tree)
    out = traverse(model, args, call, run, Keys(no_key if rng is None else lambda: as_key(rng)))
    after = {layer: layouts[layer].flatten("the state after the call", new) for layer, new in run.states.items()}
    return out, _parts(model, arrays | after, layouts)


def read(model: Structure) -> Parts:
    """The arrays now.

    Raises:
        RuntimeError: The model isn't built.
    """
    if not model.built:
        raise RuntimeError("the model isn't built: it has variables after model.build(...) or the first call")
    layouts = _built(model)
    return _parts(model, {layer: [v.value for v in layer._variables] for layer in layouts}, layouts)


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


def _names(model: Structure, layouts: Layouts) -> dict[str, tuple[Layer, str]]:
    """Every variable once, by its first name: its layer and its kind, in the order of the layer's arrays."""
    first: dict[Layer, str] = {}
    for prefix, layer in walk(model):
        first.setdefault(layer, prefix)
    return {f"{prefix}.{s.shown}": (layer, s.kind) for layer, prefix in first.items() for s in layouts[layer].slots}


def _parts(model: Structure, arrays: Arrays, layouts: Layouts) -> Parts:
    parts: Parts = {"params": {}, "state": {}}
    each = {layer: iter(own) for layer, own in arrays.items()}
    for name, (layer, kind) in _names(model, layouts).items():
        parts["params" if kind == "params" else "state"][name] = next(each[layer])
    return parts
