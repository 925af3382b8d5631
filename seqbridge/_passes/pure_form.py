"""The pure form of a model: the same pass through its layers, with the variables in plain dicts."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from seqbridge._interface import Call, check_names, nearest
from seqbridge._layers import Layer, Layout, Structure, full_name, leaves, walk
from seqbridge._passes.build import Build, has_open_sizes, keyword_specs, specs
from seqbridge._passes.forward import Run, traverse
from seqbridge._state import Keys, Variable, as_key, cast, commit, locked

Parts: TypeAlias = dict[str, dict[str, Any]]
Layouts: TypeAlias = Mapping[Layer, Layout]
Arrays: TypeAlias = Mapping[Layer, list[Any]]


class Naming(NamedTuple):
    """How the variables of a model are called.

    Attributes:
        places: Each place of the tree that holds a layer.
        join: The name of a variable at a place.
        apart: Other names for some, where not all of them can stand in one tree.
    """

    places: Callable[[Structure], Iterable[tuple[str, Layer]]]
    join: Callable[[str, str], str]
    apart: Callable[[Iterable[str]], Mapping[str, str]] | None = None


FLAT = Naming(walk, full_name)


class Form:
    """The variables of a model in plain dicts, by name; one that stands at several places has its first name at all.

    Args:
        model: The model.
        layouts: The structure of each of its layers.
        naming: How the variables are called.
    """

    def __init__(self, model: Structure, layouts: Layouts, naming: Naming = FLAT):
        self._model = model
        self.layouts = layouts
        self.names: dict[Layer, list[tuple[str, str]]] = {}
        first: dict[Hashable, str] = {}
        for prefix, layer in naming.places(model):
            if layer not in self.names:
                places = zip(layouts[layer].slots, layer._ties(layouts[layer]), strict=True)
                named = [
                    (first.setdefault(tie, naming.join(prefix, slot.shown)), slot.kind)
                    for slot, tie in places
                ]
                self.names[layer] = named
        if naming.apart is not None:
            again = naming.apart(first.values())
            first = {tie: again.get(name, name) for tie, name in first.items()}
            self.names = {
                at: [(again.get(name, name), kind) for name, kind in own]
                for at, own in self.names.items()
            }
        if len(set(first.values())) != len(first):
            twice = next(name for name, n in Counter(first.values()).items() if n > 1)
            raise ValueError(f"two variables would be called {twice}: give their layers names")

    def parts(self, arrays: Arrays) -> Parts:
        """The arrays by name, in the order of the names; where layers share one, that of the last layer in `arrays`."""
        parts: Parts = {"params": {}, "state": {}}
        for layer in (*self.names, *arrays):
            for (name, kind), array in zip(self.names[layer], arrays[layer], strict=True):
                parts["params" if kind == "params" else "state"][name] = array
        return parts

    def run(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        args: tuple[Any, ...],
        call: Call,
        keys: Keys,
    ) -> tuple[Any, Parts, bool]:
        """Outputs, the variables after the call, and whether it has changed any."""
        _check_form("apply", variables)
        given = {
            n: a.value if isinstance(a, Variable) else a
            for part in variables.values()
            for n, a in part.items()
        }
        check_names(
            "apply", given, dict.fromkeys(name for own in self.names.values() for name, _ in own)
        )
        arrays = {layer: [given[name] for name, _ in own] for layer, own in self.names.items()}
        run = Run(lambda layer: self.layouts[layer].tree(arrays[layer]))
        out = traverse(self._model, args, call, run, keys)
        after = {
            layer: self.layouts[layer].flatten(f"the state of {layer!r} after the call", new)
            for layer, new in run.states.items()
        }
        changed = any(
            a is not b for layer in after for a, b in zip(after[layer], arrays[layer], strict=True)
        )
        return out, self.parts(arrays | after), changed


def _check_form(what: str, variables: Any) -> None:
    if not isinstance(variables, Mapping) or not all(
        isinstance(part, Mapping) for part in variables.values()
    ):
        got = (
            f"a flat {type(variables).__name__}"
            if isinstance(variables, Mapping)
            else type(variables).__name__
        )
        raise TypeError(
            f'{what} takes {{"params": {{name: array}}, "state": {{name: array}}}}, as init '
            f"returns it; got {got}"
        )


def init(model: Structure, key: jax.Array, inputs: tuple[Any, ...], call: Call) -> Parts:
    """Fresh variables of all layers, built or not."""
    build = Build(fresh=True)
    traverse(model, specs(inputs), call.map(keyword_specs, training=True), build, Keys(lambda: key))
    arrays = {
        layer: layout.arrays for layer, layout in reversed(build.layouts.items())
    }  # of a tie, the first stays
    if kept := [
        prefix for prefix, layer in walk(model) if layer.pure.init is None and layer.pure.ready
    ]:
        warnings.warn(
            f"init keeps the values that {', '.join(kept)} came with: new ones can be drawn for a "
            f"class, "
            "partial(Class, ...), but not for an object that was made before",
            stacklevel=3,
        )
    return Form(model, build.layouts).parts(arrays)


def apply(
    model: Structure,
    variables: Mapping[str, Mapping[str, Any]],
    args: tuple[Any, ...],
    call: Call,
    rng: Any,
) -> tuple[Any, Parts]:
    """Outputs, and the variables after the call."""
    form = Form(model, layouts_of(model, args, call))
    out, after, _ = form.run(variables, args, call, Keys(maker(rng)))
    return out, after


def maker(key: Any) -> Callable[[], jax.Array]:
    """What makes the key of a call, of a key, of a function that makes one, or of None."""

    def make() -> jax.Array:
        if key is None:
            raise TypeError("a layer draws random numbers: give a key, rng=key")
        return as_key(key() if callable(key) else key)

    return make


def shapes(model: Structure, args: tuple[Any, ...], call: Call) -> dict[str, tuple[int, ...]]:
    """The shapes that fresh variables would have, as far as the layers can be traced."""
    build = Build(fresh=True, abstract=True)
    with contextlib.suppress(Exception):  # the build itself will say what is wrong
        traverse(model, args, call, build, Keys(lambda: jax.random.key(0)), plain=False)
    return {
        full_name(prefix, slot.shown): array.shape
        for prefix, layer in walk(model)
        if layer in build.layouts
        for slot, array in zip(build.layouts[layer].slots, build.layouts[layer].arrays, strict=True)
    }


def check_sizes(model: Structure, inputs: tuple[Any, ...], call: Call) -> None:
    """Raises a `ValueError` if the shape of a variable depends on what stands for None."""
    if has_open_sizes(inputs):
        one, two = (shapes(model, specs(inputs, size), call) for size in (1, 2))
        if deciding := next(
            (name for name, shape in one.items() if shape != two.get(name, shape)), None
        ):
            raise ValueError(
                f"a size given as None decides the shape of {deciding}: give that size"
            )


def read(model: Structure) -> Parts:
    """The arrays now.

    Raises:
        RuntimeError: The model isn't built.
    """
    if not model.built:
        raise RuntimeError(
            "the model isn't built: it has variables after model.build(...) or the first call"
        )
    with locked(lambda: [model]):
        layouts = built_layouts(model)
        return Form(model, layouts).parts(
            {layer: [v.value for v in layer._variables] for layer in layouts}
        )


def assign(model: Structure, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Takes all of `variables`, or raises and takes none."""
    _check_form("assign", variables)
    for kind in variables:
        if kind not in ("params", "state"):
            raise KeyError(
                f"assign: there is no {kind!r}{nearest(kind, ('params', 'state'))}; there are "
                f"params and state"
            )
    changes = {}
    with locked(lambda: [model]):
        table = model.variables_by_name()
        for kind, now in read(model).items():
            if kind in variables:
                check_names("assign", variables[kind], now)
                changes |= {
                    table[name]: cast(name, variables[kind][name], old) for name, old in now.items()
                }
        commit(changes)


def built_layouts(model: Structure) -> dict[Layer, Layout]:
    return {layer: layer._layout for layer in leaves(model) if layer._layout is not None}


def layouts_of(model: Structure, args: tuple[Any, ...], call: Call) -> Layouts:
    """The layout of every layer, found from shapes where a layer isn't built."""
    if model.built:
        return built_layouts(model)
    build = Build(abstract=True)
    traverse(
        model,
        specs(args),
        call.map(keyword_specs, training=True),
        build,
        Keys(lambda: jax.random.key(0)),
        plain=False,
    )
    return built_layouts(model) | build.layouts
