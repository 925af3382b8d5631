"""The pure form of a model: the same pass through its layers, with the variables in plain dicts."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from seqbridge._interface import Call, Inputs, check_names, nearest
from seqbridge._layers import Layer, LayerList, Layout, full_name, leaves, walk
from seqbridge._passes.build import Build, NewLayers, find_initial, install
from seqbridge._passes.forward import Run, traverse
from seqbridge._passes.specs import has_open_sizes, keyword_specs, specs
from seqbridge._state import Keys, Variable, as_key, cast, commit, locked

Parts: TypeAlias = dict[str, dict[str, Any]]
Layouts: TypeAlias = Mapping[Layer, Layout]
Arrays: TypeAlias = Mapping[Layer, list[Any]]


class Naming(NamedTuple):
    """A way to call the variables of a model.

    Attributes:
        places: Each place of the tree that holds a layer.
        join: The name of a variable at a place.
        apart: Other names for some, where not all of them can stand in one tree.
    """

    places: Callable[[LayerList], Iterable[tuple[str, Layer]]]
    join: Callable[[str, str], str]
    apart: Callable[[Iterable[str]], Mapping[str, str]] | None = None


FLAT = Naming(walk, full_name)


class Form:
    """The variables of a model in plain dicts, by name.

    A variable that stands at several places has its first name at all of them.

    Args:
        model: The model.
        layouts: The structure of each of its layers.
        naming: How the variables are called.

    Attributes:
        layouts: `layouts`.
        names: For each layer the names and kinds of its variables.
    """

    def __init__(self, model: LayerList, layouts: Layouts, naming: Naming = FLAT):
        self._model = model
        self.layouts = layouts
        self.names: dict[Layer, list[tuple[str, str]]] = {}
        first: dict[Hashable, str] = {}
        for place, layer in naming.places(model):
            if layer in self.names:
                continue
            self.names[layer] = named = []
            slots = layouts[layer].slots
            for slot, tie in zip(slots, layer.variable_ties(layouts[layer]), strict=True):
                name = first.setdefault(tie, naming.join(place, slot.shown))
                named.append((name, slot.kind))
        names = list(first.values())
        if naming.apart is not None:
            other = naming.apart(names)
            names = [other.get(name, name) for name in names]
            for layer, named in self.names.items():
                self.names[layer] = [(other.get(name, name), kind) for name, kind in named]
        for name, often in Counter(names).items():
            if often > 1:
                raise ValueError(f"two variables would be called {name}: give their layers names")

    def parts(self, arrays: Arrays) -> Parts:
        """Return the arrays by name, in the order of the names.

        Where layers share one, that of the last layer in `arrays` counts.
        """
        parts: Parts = {"params": {}, "state": {}}
        for layer in (*self.names, *arrays):
            for (name, kind), array in zip(self.names[layer], arrays[layer], strict=True):
                parts["params" if kind == "params" else "state"][name] = array
        return parts

    def run(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        args: Inputs,
        call: Call,
        keys: Keys,
    ) -> tuple[Any, Parts, bool]:
        """Return the outputs, the variables after the call, and whether it has changed any."""
        _check_form("apply", variables)
        given = {}
        for part in variables.values():
            for name, array in part.items():
                given[name] = array.value if isinstance(array, Variable) else array
        wanted = [name for named in self.names.values() for name, _ in named]
        check_names("apply", given, dict.fromkeys(wanted))
        arrays: dict[Layer, list[Any]] = {}
        for layer, named in self.names.items():
            arrays[layer] = [given[name] for name, _ in named]
        run = Run(lambda layer: self.layouts[layer].tree(arrays[layer]))
        out = traverse(self._model, args, call, run, keys)
        after = {}
        changed = False
        for layer, state in run.states.items():
            what = f"the state of {layer!r} after the call"
            after[layer] = self.layouts[layer].flatten(what, state)
            pairs = zip(after[layer], arrays[layer], strict=True)
            changed = changed or any(new is not old for new, old in pairs)
        return out, self.parts(arrays | after), changed


def _check_form(what: str, variables: Any) -> None:
    got = type(variables).__name__
    if isinstance(variables, Mapping):
        if all(isinstance(part, Mapping) for part in variables.values()):
            return
        got = f"a flat {got}"
    raise TypeError(
        f'{what} takes {{"params": {{name: array}}, "state": {{name: array}}}}, as init returns '
        f"it; got {got}"
    )


def init(model: LayerList, key: jax.Array, inputs: Inputs, call: Call) -> Parts:
    """Return fresh variables of all layers, built or not."""
    new = find_initial(model, inputs, call, Keys(lambda: key), fresh=True)
    layouts = new.layouts
    kept = []
    for place, layer in walk(model):
        if layer.pure.init is None and layer.pure.ready:
            kept.append(place)
    if kept:
        warnings.warn(
            f"init keeps the values that {', '.join(kept)} came with: new ones can be drawn for a "
            "class, partial(Class, ...), but not for an object that was made before",
            stacklevel=3,
        )
    # Of variables that are tied, the first stays.
    arrays = {layer: layouts[layer].arrays for layer in reversed(layouts)}
    parts = Form(model, layouts).parts(arrays)
    for layout in layouts.values():
        layout.arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in layout.arrays]
    model.known_structure = new
    return parts


def apply(
    model: LayerList,
    variables: Mapping[str, Mapping[str, Any]],
    args: Inputs,
    call: Call,
    rng: Any,
) -> tuple[Any, Parts]:
    """Return the outputs, and the variables after the call."""
    form = Form(model, layouts_of(model, args, call))
    out, after, _ = form.run(variables, args, call, Keys(lazy_key(rng)))
    return out, after


def lazy_key(key: Any) -> Callable[[], jax.Array]:
    """Return a function that makes the key of a call.

    Args:
        key: A key, a function that makes one, or None.
    """

    def make() -> jax.Array:
        if key is None:
            raise TypeError("a layer draws random numbers: give a key, rng=key")
        return as_key(key() if callable(key) else key)

    return make


def check_sizes(model: LayerList, inputs: Inputs, call: Call) -> None:
    """Raise a `ValueError` if the shape of a variable depends on what stands for None."""
    if not has_open_sizes(inputs):
        return
    one = _fresh_shapes(model, specs(inputs, 1), call)
    two = _fresh_shapes(model, specs(inputs, 2), call)
    for name, shape in one.items():
        if two.get(name, shape) != shape:
            raise ValueError(f"a size given as None decides the shape of {name}: give that size")


def _fresh_shapes(model: LayerList, args: Inputs, call: Call) -> dict[str, tuple[int, ...]]:
    """The shapes that fresh variables would have, as far as the layers can be traced."""
    build = Build(fresh=True, abstract=True)
    with contextlib.suppress(Exception):  # the build itself will say what is wrong
        traverse(model, args, call, build, Keys(lambda: jax.random.key(0)), check_plain=False)
    shapes = {}
    for place, layer in walk(model):
        layout = build.new.layouts.get(layer)
        if layout is not None:
            for slot, array in zip(layout.slots, layout.arrays, strict=True):
                shapes[full_name(place, slot.shown)] = array.shape
    return shapes


def read(model: LayerList) -> Parts:
    """Return the arrays now.

    Raises:
        RuntimeError: The model isn't built.
    """
    if not model.built:
        raise RuntimeError(
            "the model isn't built: it has variables after model.build(...) or the first call"
        )
    with locked(lambda: [model]):
        layouts = built_layouts(model)
        arrays = {}
        for layer in layouts:
            arrays[layer] = [variable.value for variable in layer.own_variables()]
        return Form(model, layouts).parts(arrays)


def assign(model: LayerList, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Take all of `variables`, or raise and take none."""
    _check_form("assign", variables)
    for kind in variables:
        if kind not in ("params", "state"):
            near = nearest(kind, ("params", "state"))
            raise KeyError(f"assign: there is no {kind!r}{near}; there are params and state")
    if not model.built:
        _assign_first(model, variables)
        return
    changes = {}
    with locked(lambda: [model]):
        table = model.variables_by_name()
        for kind, now in read(model).items():
            if kind not in variables:
                continue
            check_names("assign", variables[kind], now)
            for name, old in now.items():
                changes[table[name]] = cast(name, variables[kind][name], old)
        commit(changes)


def _assign_first(model: LayerList, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Build a model of variables that its `init` has returned."""
    known = model.known_structure
    waiting = [layer for layer in leaves(model) if not layer.built]
    if not isinstance(known, NewLayers) or any(layer not in known.layouts for layer in waiting):
        raise RuntimeError(
            "the model isn't built, and assign can't tell where these belong: call "
            "model.init(key, inputs) or model.build(inputs) first"
        )
    with locked(model.ancestor_models):
        layouts = {**known.layouts, **built_layouts(model)}
        given = {name: array for part in variables.values() for name, array in part.items()}
        names = Form(model, layouts).names
        check_names("assign", given, [name for named in names.values() for name, _ in named])
        new = NewLayers()
        new.inputs, new.origins = known.inputs, known.origins
        changes: dict[Variable, Any] = {}
        for layer, named in names.items():
            likes = [variable.value for variable in layer.own_variables()]
            values: list[Any] = []
            for (name, _), like in zip(named, likes or layouts[layer].arrays, strict=True):
                values.append(cast(name, given[name], like))
            if layer.built:
                changes.update(zip(layer.own_variables(), values, strict=True))
            else:
                new.layouts[layer] = layout = copy.copy(layouts[layer])
                layout.arrays = values
        install(model, new)
        commit(changes)


def built_layouts(model: LayerList) -> dict[Layer, Layout]:
    """The layout of each layer that is built."""
    layouts = {}
    for layer in leaves(model):
        if layer.native_layout is not None:
            layouts[layer] = layer.native_layout
    return layouts


def layouts_of(model: LayerList, args: Inputs, call: Call) -> Layouts:
    """The layout of every layer, found from shapes where a layer isn't built."""
    if model.built:
        return built_layouts(model)
    build = Build(abstract=True)
    keys = Keys(lambda: jax.random.key(0))
    call = call.map(keyword_specs, training=True)
    traverse(model, specs(args), call, build, keys, check_plain=False)
    return built_layouts(model) | build.new.layouts
