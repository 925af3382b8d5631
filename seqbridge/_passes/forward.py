"""One pass through the layers of a model: a call, the pure form and a build are each one.

`traverse` knows the order, the keywords, the mode, the keys and the errors. What happens at each
layer is up to the `Visitor`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from seqbridge._interface import (
    Call,
    Inputs,
    Keywords,
    Parameters,
    Variables,
    check_taken,
    nearest,
    shape_text,
    shapes_text,
)
from seqbridge._layers import Layer, LayerList, walk
from seqbridge._passes.call import (
    apply,
    check_after_call,
    check_before_call,
    key_for,
    state_after,
)
from seqbridge._state import Keys, lost


class Visitor(Protocol):
    """The action at each layer."""

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: Inputs,
        keywords: Keywords,
        /,
    ) -> Any:
        """Return the layer's outputs."""
        ...

    def enter(self, model: LayerList, args: Inputs, call: Call, /) -> None:
        """Called before a nested model."""


class Run:
    """The visitor of a call: run each layer on its variables and collect the new states.

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
        args: Inputs,
        keywords: Keywords,
        /,
    ) -> Any:
        variables = self.states.get(layer) or self._tree(layer)
        # Before it runs, so that what it keeps of a call is of the call itself.
        seen = check_before_call(layer, variables, args, keywords)
        key = key_for(layer, keys, variables, args, keywords)
        out, state = apply(layer, variables, key, args, keywords)
        if not seen:
            check_after_call(layer, variables, args, keywords)
        after = state_after(layer, variables, state, args, keywords)
        if after is not None and not _is_empty(args):
            self.states[layer] = after
        return out

    def enter(self, model: LayerList, args: Inputs, call: Call, /) -> None:
        pass


def traverse(
    model: LayerList,
    args: Inputs,
    call: Call,
    visit: Visitor,
    keys: Keys,
    *,
    check_plain: bool = True,
) -> Any:
    """Run the layers in order. Return the outputs of the last one.

    Args:
        model: The model.
        args: Its inputs.
        call: What the call gives beside them.
        visit: What is done with each layer.
        keys: The keys of the call.
        check_plain: Whether the model must be one that runs its layers in order, and does no more.

    Raises:
        TypeError: A keyword that no layer takes, an argument that a layer misses, a mode that
            nothing decides.
        Exception: What a layer raises, with a note that says which layer, and what reached it.
    """
    if check_plain:
        model.check_plain_call()
    check_keywords(model, args, call)
    out = run_through(model, args, call, visit, keys)
    for name in call.keywords:
        if name not in call.used and len(model):
            raise TypeError(
                f"the keyword {name!r} names what the inputs fill already, so no layer gets it"
            )
    return out


def run_through(
    model: LayerList,
    args: Inputs,
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
    before = ""  # the place of the layer that the inputs come from
    for i, (place, item) in enumerate(model.named_children()):
        here = call.of(per_layer.get(i, {}))
        if isinstance(item, Layer):
            try:
                out = _visit(model, item, keys.child(i), args, here, visit, prefix, place)
            except TypeError as error:
                if before and not _takes_inputs(item, len(args)):
                    error.add_note(
                        f"layer {prefix}{before} returned a tuple of {len(args)}, and each value "
                        f"is an input of layer {prefix}{place}; a list or a namedtuple is one value"
                    )
                raise
        else:
            visit.enter(item, args, here)
            with jax.named_scope(f"{place}({type(item).__name__})"):
                out = run_through(item, args, here, visit, keys.child(i), prefix + place)
        args = out if type(out) is tuple else (out,)  # a namedtuple is one value
        before = place if type(out) is tuple else ""
    return out


def _takes_inputs(layer: Layer, count: int) -> bool:
    """Whether a layer takes so many inputs, and no more, as far as its signature says."""
    if layer.pure.signature is None:
        return True
    kinds = [parameter.kind for parameter in layer.pure.signature.parameters.values()]
    names = layer.call_parameters.positional
    flags = layer.call_parameters.flags
    needed = [n for n in names if n in layer.call_parameters.required and n not in flags]
    most = count if inspect.Parameter.VAR_POSITIONAL in kinds else len(names)
    return len(needed) <= count <= most


def _visit(
    model: LayerList,
    layer: Layer,
    keys: Keys,
    args: Inputs,
    call: Call,
    visit: Visitor,
    prefix: str,
    place: str,
) -> Any:
    where = prefix + place
    try:
        keywords = layer.call_parameters.route(call, len(args))
    except LookupError:
        raise TypeError(_undecided_text(model, call, where)) from None
    missing = layer.call_parameters.missing(keywords, len(args))
    if missing:
        raise TypeError(_missing_text(layer, where, missing, call, keys))
    try:
        with jax.named_scope(f"{place}({layer.pure.label})"):  # as profiles and programs show it
            return visit(layer, keys, args, keywords)
    except Exception as error:
        note = _error_note(layer, where, args, keywords)
        if note not in getattr(error, "__notes__", ()):  # once, however often a layer calls itself
            error.add_note(note)
        raise


def _undecided_text(model: LayerList, call: Call, where: str) -> str:
    undecided = []
    for place, layer in walk(model):
        if layer.call_parameters.undecided(call):
            undecided.append(f"{place} ({layer.pure.ecosystem})")
    return (
        "pass training=True or training=False: the mode decides what "
        f"{', '.join(undecided) or where} do. Or set the mode in the layer's constructor."
    )


def _missing_text(layer: Layer, where: str, missing: Sequence[str], call: Call, keys: Keys) -> str:
    cure = nearest(missing[0], call.keywords).replace("did you mean", "you gave")
    if not cure and keys.path == (0,):  # the first layer gets the inputs of the model
        cure = ", or as one more input"
    names = ", ".join(map(repr, missing))
    return f"layer {where} ({layer!r}) needs {names}: give it by keyword, {missing[0]}=...{cure}"


def _error_note(layer: Layer, where: str, args: Inputs, keywords: Keywords) -> str:
    """Say which layer raised, what reached it, and what else may be wrong."""
    parts = [f"in layer {where} {layer!r}", f"inputs: {shapes_text(args) or 'none'}"]
    if keywords:
        given = ", ".join(f"{name}={shape_text(value)}" for name, value in keywords.items())
        parts.append(f"keywords: {given}")
    if (built_for := resized(layer, args)) is not None:
        parts.append(f"its variables were made for: {shapes_text(built_for) or 'none'}")
    if any(isinstance(arg, bool) for arg in args):
        parts.append("the mode of a call is given by name: training=True")
    if gone := lost(layer.own_variables()):
        parts.append(
            f"the arrays of {gone} were donated and are gone: assign them, or load the model"
        )
    return "; ".join(parts)


def check_keywords(model: LayerList, args: Inputs, call: Call) -> None:
    """Raise a `TypeError` if the call gives a keyword that no layer takes."""
    if call.keywords:
        taken = _parameters_by_place(model)
        inputs = {place: len(args) for place in list(taken)[:1]}  # the first layer gets them all
        check_taken(call.keywords, taken, inputs)
    for i, own in _by_position(model, call.per_layer).items():
        place, item = model.named_children()[i]
        keywords = [name for name in own if name not in ("training", "per_layer")]
        if isinstance(item, Layer):
            taken = {f"{place}({item.pure.label})": item.call_parameters}
            check_taken(keywords, taken, only=True)
        else:
            check_taken(keywords, _parameters_by_place(item))


def _parameters_by_place(model: LayerList) -> dict[str, Parameters]:
    """Parameters of each layer, by its place without the class of the model: `"[0](Conv)"`."""
    return {name.partition(")")[2]: layer.call_parameters for name, layer in walk(model)}


def _by_position(model: LayerList, per_layer: Mapping[Any, Any]) -> dict[int, Mapping[str, Any]]:
    """The keywords of single layers, which a call may give by name or position.

    Raises:
        KeyError, IndexError: There is no such layer.
        TypeError: A layer is named twice, or its keywords are no dict.
    """
    found = {}
    for key, own in per_layer.items():
        if isinstance(key, str):
            if key not in model.names:
                near = nearest(key, [name for name in model.names if name])
                raise KeyError(f"per_layer: no layer is called {key!r}{near}")
            i = model.names.index(key)
        else:
            if key not in range(-len(model), len(model)):
                raise IndexError(
                    f"per_layer: there is no layer {key!r}; the model has {len(model)}"
                )
            i = range(len(model))[key]
        if i in found:
            raise TypeError(f"per_layer: {key!r} is a layer that stands in it already")
        if not isinstance(own, Mapping):
            raise TypeError(
                f"per_layer: {key!r} needs a dict of keywords, got {type(own).__name__}"
            )
        found[i] = own
    return found


def resized(layer: Layer, args: Inputs) -> tuple[Any, ...] | None:
    """The inputs that the variables of a layer were made for, if those were of other shapes."""
    if layer.native_layout is None or layer.native_layout.inputs is None:
        return None
    built_for = layer.native_layout.inputs[0]
    return built_for if _sizes(args) != _sizes(built_for) else None


def _sizes(args: Inputs) -> list[Any]:
    """The shapes of arrays, but for the size of a batch."""
    sizes = []
    for leaf in jax.tree.leaves(args):
        shape = getattr(leaf, "shape", None)
        sizes.append((len(shape), *shape[1:]) if shape else shape)
    return sizes


def _is_empty(args: Inputs) -> bool:
    """Whether there are no examples.

    What most libraries take for their statistics is then NaN, for good.
    """
    return any(getattr(leaf, "size", 1) == 0 for leaf in jax.tree.leaves(args))
