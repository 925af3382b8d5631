"""One pass through the layers of a model, by which everything is done: a call, the pure form, a build.

`traverse` knows the order, the keywords, the mode, the keys and the errors. What happens at each
layer is up to the `Visitor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from seqbridge._interface import Call, Variables, check_taken, nearest, shape_text, shapes_text
from seqbridge._layers import Layer, Structure, walk
from seqbridge._passes.call import apply, key_for, look_for_parameters
from seqbridge._state import Keys, lost


class Visitor(Protocol):
    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        mode: bool | None,
        /,
    ) -> Any:
        """The layer's outputs."""
        ...

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        """Called before a nested model."""


class Run:
    """The visitor of a call: runs each layer on its variables and collects the new states.

    Args:
        tree: The variables of a layer.
    """

    def __init__(self, tree: Callable[[Layer], Variables]):
        self._tree = tree
        self.states: dict[Layer, Variables] = {}

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        mode: bool | None,
        /,
    ) -> Any:
        variables = self.states.get(layer) or self._tree(layer)
        key = key_for(layer, keys, variables, args, keywords, mode)
        out, state = apply(layer, variables, key, args, keywords)
        look_for_parameters(layer, variables, args, keywords, mode)
        if state and mode is not False and not _empty(args):
            self.states[layer] = {**variables, **state}
        return out

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        pass


def check_plain(model: Any) -> None:
    """Raises a `TypeError` if a class of the user's runs a model in its own way: only its own call would do that."""
    if type(model).__call__ is not type(model)._in_order:
        raise TypeError(
            f"{type(model).__name__} has a __call__ of its own, which is seen only by who calls "
            f"it: not by a model "
            "around it, nor by apply, trace, freeze or an export. Put what it does into the list, "
            "as a function"
        )


def traverse(
    model: Structure,
    args: tuple[Any, ...],
    call: Call,
    visit: Visitor,
    keys: Keys,
    *,
    plain: bool = True,
) -> Any:
    """The outputs of the last layer.

    Args:
        model: The model.
        args: Its inputs.
        call: What the call gives beside them.
        visit: What is done with each layer.
        keys: The keys of the call.
        plain: Whether the model must be one that runs its layers in order, and does no more.

    Raises:
        TypeError: A keyword that no layer takes, an argument that a layer misses, a mode that
            nothing decides.
        Exception: What a layer raises, with a note that says which layer, and what reached it.
    """
    if plain:
        check_plain(model)
    check_keywords(model, args, call)
    out = run_through(model, args, call, visit, keys)
    unused = [k for k in call.keywords if k not in call.used]
    if unused and len(model):
        raise TypeError(
            f"the keyword {unused[0]!r} names what the inputs fill already, so no layer gets it"
        )
    return out


def run_through(
    model: Structure,
    args: tuple[Any, ...],
    call: Call,
    visit: Visitor,
    keys: Keys,
    prefix: str = "",
) -> Any:
    """`traverse` without the check that some layer takes each keyword."""
    if not args and not len(model):
        raise TypeError("an empty Sequential returns its input, and got none")
    out: Any = args if len(args) != 1 else args[0]
    per_layer = _by_position(model, call.per_layer)
    for i, (place, layer) in enumerate(model._placed()):
        here = call.of(per_layer.get(i, {}))
        if not isinstance(layer, Layer):
            visit.enter(layer, args, here)
            with jax.named_scope(f"{place}({type(layer).__name__})"):
                out = run_through(layer, args, here, visit, keys.child(i), prefix + place)
        else:
            out = _visit(model, layer, keys.child(i), args, here, visit, prefix, place)
        args = out if type(out) is tuple else (out,)  # a namedtuple is one value
    return out


def _visit(
    model: Structure,
    layer: Layer,
    keys: Keys,
    args: tuple[Any, ...],
    call: Call,
    visit: Visitor,
    prefix: str,
    place: str,
) -> Any:
    where = prefix + place
    try:
        keywords, mode = layer.call_parameters.route(call, len(args))
    except LookupError:
        undecided = [
            f"{place} ({text.pure.ecosystem})"
            for place, text in walk(model)
            if text.call_parameters.undecided(call)
        ]
        raise TypeError(
            f"training or evaluation? It makes a difference to {', '.join(undecided) or where}. "
            f"Say "
            "model(x, training=True) or training=False, or set the mode in the layer's constructor."
        ) from None
    missing = layer.call_parameters.missing(keywords, len(args))
    if missing:
        near = nearest(missing[0], call.keywords).replace("did you mean", "you gave")
        raise TypeError(
            f"layer {where} ({layer!r}) needs {', '.join(map(repr, missing))}: give it by keyword, "
            f"{missing[0]}=...{near if near or keys.path != (0,) else ', or as one more input'}"
        )
    try:
        with jax.named_scope(
            f"{place}({layer.pure.label})"
        ):  # as profiles and dumped programs show it
            return visit(layer, keys, args, keywords, mode)
    except Exception as error:
        given = (
            f"; keywords: {', '.join(f'{k}={shape_text(v)}' for k, v in keywords.items())}"
            if keywords
            else ""
        )
        note = f"in layer {where} {layer!r}; inputs: {shapes_text(args) or 'none'}{given}{_more(layer, args)}"
        if note not in getattr(error, "__notes__", ()):  # once, however often a layer calls itself
            error.add_note(note)
        raise


def check_keywords(model: Structure, args: tuple[Any, ...], call: Call) -> None:
    """Raises a `TypeError` if the call gives a keyword that no layer takes."""
    if call.keywords:
        layers = dict(walk(model))
        first = next(iter(layers), None)
        parameters = {_place(name): layer.call_parameters for name, layer in layers.items()}
        check_taken(call.keywords, parameters, {} if first is None else {_place(first): len(args)})
    for i, own in _by_position(model, call.per_layer).items():
        layer = model._layers[i]
        keywords = [k for k in own if k not in ("training", "per_layer")]
        if isinstance(layer, Layer):
            check_taken(
                keywords,
                {f"{model._placed()[i][0]}({layer.pure.label})": layer.call_parameters},
                only=True,
            )
        else:
            check_taken(keywords, {_place(n): inner.call_parameters for n, inner in walk(layer)})


def _place(name: str) -> str:
    return name.partition(")")[2]


def _by_position(model: Structure, per_layer: Mapping[Any, Any]) -> dict[int, Mapping[str, Any]]:
    found = {}
    for key, own in per_layer.items():
        if isinstance(key, str) and key not in model.names:
            raise KeyError(
                f"per_layer: no layer is called {key!r}{nearest(key, filter(None, model.names))}"
            )
        if not isinstance(key, str) and key not in range(-len(model), len(model)):
            raise IndexError(f"per_layer: there is no layer {key!r}; the model has {len(model)}")
        i = model.names.index(key) if isinstance(key, str) else range(len(model))[key]
        if i in found:
            raise TypeError(f"per_layer: {key!r} is a layer that stands in it already")
        if not isinstance(own, Mapping):
            raise TypeError(
                f"per_layer: {key!r} needs a dict of keywords, got {type(own).__name__}"
            )
        found[i] = own
    return found


def _more(layer: Layer, args: tuple[Any, ...]) -> str:
    """What else may be wrong: inputs of other shapes than the variables were made for, or variables that are gone."""
    built_for = resized(layer, args)
    text = (
        ""
        if built_for is None
        else f"; its variables were made for: {shapes_text(built_for) or 'none'}"
    )
    if any(isinstance(arg, bool) for arg in args):
        text += "; the mode of a call is given by name: training=True"
    gone = lost(layer._variables)
    return (
        f"{text}; the arrays of {gone} were donated and are gone: assign them, or load the model"
        if gone
        else text
    )


def resized(layer: Layer, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The inputs that the variables of a layer were made for, if those were of other shapes."""
    built_for = layer._layout.inputs if layer._layout is not None else None
    return built_for[0] if built_for is not None and _sizes(args) != _sizes(built_for[0]) else None


def _sizes(args: tuple[Any, ...]) -> list[Any]:
    """The shapes of arrays, but for the size of a batch."""
    shapes = [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(args)]
    return [shape and (len(shape), *shape[1:]) for shape in shapes]


def _empty(args: tuple[Any, ...]) -> bool:
    """Whether there are no examples: what most libraries take for their statistics is then NaN, for good."""
    return any(getattr(leaf, "size", 1) == 0 for leaf in jax.tree.leaves(args))
