"""A whole model as one `PureLayer`, the form in which other libraries get it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqbridge._interface import (
    MODE_FLAGS,
    Call,
    Inputs,
    Keywords,
    PureLayer,
    Variables,
    call_of,
    nest,
    parts_of,
    training_of,
    unnest,
)
from seqbridge._layers import Child, FirstPlaces, Layer, LayerList, leaves, sharing_keys
from seqbridge._passes import (
    Form,
    Naming,
    Parts,
    built_layouts,
    check_inputs,
    find_initial,
    layouts_of,
    lazy_key,
    specs,
)
from seqbridge._state import Keys, Tracer, Variable, locked

_ANY_INPUTS = inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)


def readable(single: bool) -> Naming:
    """Return names that are paths of identifiers.

    Args:
        single: Whether the model stands for its only layer: `"kernel"`, not `"Conv_0/kernel"`.
    """

    def places(model: LayerList) -> Iterator[tuple[str, Layer]]:
        if single:
            yield "", next(leaves(model))
        else:
            yield from _places(model)

    def join(place: str, shown: str) -> str:
        parts = [place, *(_identifier(part) for part in parts_of(shown))]
        return "/".join(part for part in parts if part)

    return Naming(places, join, _rename_clashes)


def _places(model: LayerList, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for i, (name, item) in enumerate(zip(model.names, model, strict=True)):
        place = prefix + (name or f"{_identifier(_label(item))}_{i}")
        if isinstance(item, Layer):
            yield place, item
        else:
            yield from _places(item, f"{place}/")


def _rename_clashes(names: Iterable[str]) -> dict[str, str]:
    """Return new names for variables that are called like a module beside them."""
    names = list(names)
    modules: set[str] = set()
    for name in names:
        path = name.split("/")
        modules.update("/".join(path[:n]) for n in range(1, len(path)))
    return {name: f"{name}_" for name in names if name in modules}


def _identifier(text: str) -> str:
    if re.search(r"\W", text) is None:
        return text
    return re.sub(r"\W+", "_", text).strip("_") or text


def _label(item: Child) -> str:
    return item.pure.label if isinstance(item, Layer) else type(item).__name__


class _NamedForm(NamedTuple):
    """The variables of a model under their names.

    Attributes:
        form: The pure form of the model.
        frozen: The names of parameters that get no gradients.
    """

    form: Form
    frozen: frozenset[str]


class Snapshot:
    """A model as it is now, as pure functions. Later edits and values don't show in it.

    Args:
        model: The model.
        naming: How its variables are called.
        training: The mode of a call that says none.
        inputs: The inputs that the model is for, if it isn't built.
    """

    def __init__(
        self,
        model: LayerList,
        naming: Naming,
        training: bool | None = None,
        inputs: Inputs = (),
    ):
        model.check_plain_call()
        with locked(lambda: [model]):
            self._copy_from(model)
        if not inputs and model.known_inputs:
            inputs, _ = model.known_inputs
        self.inputs: Inputs = specs(inputs) if inputs else ()
        self._naming = naming
        self._training = training
        self._known: _NamedForm | None = None
        if self.model.built:
            self._form((), Call())

    def _copy_from(self, model: LayerList) -> None:
        # The copied model has the same built layers in lists of its own. The other layers are
        # copied, and the copies are never built.
        shared: dict[int, Layer | Variable] = {}
        # The values are copied here and at each `init`: whoever trains one of these copies may
        # donate its arrays, and the others keep theirs.
        self._values: dict[Layer, list[jax.Array]] = {}
        for layer in leaves(model):
            if layer.built:
                shared[id(layer)] = layer
                self._values[layer] = [_copy(variable.value) for variable in layer.own_variables()]
        for nested in (model, *model.nested_models()):
            if nested.key_stream is not None:
                shared[id(nested.key_stream)] = nested.key_stream
        self.model: LayerList = copy.deepcopy(model, shared)

    def init(self, key: Any, args: Inputs, keywords: Keywords) -> Parts:
        """Return the variables: the values of built layers, and fresh ones of the others.

        Args:
            key: A PRNG key, or a function that makes one. None: layers that aren't built give
                shapes in place of values.
            args: The inputs. Empty: those that the snapshot was taken for.
            keywords: The keywords of a call.
        """
        values = self._values
        if key is not None:
            values = {layer: [jnp.copy(a) for a in arrays] for layer, arrays in values.items()}
        if self.model.built:
            return self._form((), Call()).form.parts(values)
        args = args or self.inputs
        check_inputs(args, self.model)
        keys = Keys(lazy_key(0 if key is None else key))
        call = self._call(keywords)
        layouts = find_initial(self.model, args, call, keys, abstract=key is None).layouts
        # In reverse: of a shared variable, the array of the last layer given to `parts` stays.
        fresh = {layer: layout.arrays for layer, layout in reversed(layouts.items())}
        for layout in layouts.values():
            # The layouts are kept, and must keep nothing of a trace.
            layout.arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in layout.arrays]
        form = Form(self.model, built_layouts(self.model) | layouts, self._naming)
        if self._known is None:
            self._known = _NamedForm(form, _frozen_names(form))
        return form.parts(values | fresh)

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        key: Any,
        args: Inputs,
        keywords: Keywords,
    ) -> tuple[Any, Parts, bool]:
        """Return the outputs, the variables after the call, and whether it has changed any."""
        call = self._call(keywords)
        form, frozen = self._form(args, call)
        key = keywords.get("rng", key)
        params = variables.get("params", {})
        if isinstance(params, Mapping):
            stopped = dict(params)
            for name in frozen & params.keys():
                stopped[name] = jax.lax.stop_gradient(params[name])
            variables = {**variables, "params": stopped}
        return form.run(variables, args, call, Keys(lazy_key(key)))

    def frozen(self) -> frozenset[str]:
        """Return the parameters that get no gradients, as far as they are known."""
        return frozenset() if self._known is None else self._known.frozen

    def _form(self, args: Inputs, call: Call) -> _NamedForm:
        if self._known is None:
            # The first call of a model that isn't built says what reaches its layers.
            form = Form(self.model, layouts_of(self.model, args, call), self._naming)
            self._known = _NamedForm(form, _frozen_names(form))
        return self._known

    def _call(self, keywords: Keywords) -> Call:
        """Return the call that these keywords make.

        Without `training`, the mode flag of any library decides the mode of the whole model.
        """
        given = dict(keywords)
        given.pop("rng", None)
        training = given.pop("training", None)
        if training is None:
            training = training_of(given)
            if training is not None:
                for flag in MODE_FLAGS:
                    given.pop(flag, None)
        if training is None:
            training = self._training
        return call_of({**given, "training": training})


def as_pure_layer(
    model: LayerList,
    *,
    single: bool = False,
    training: bool | None = None,
    inputs: Inputs = (),
) -> PureLayer:
    """Return a model as it is now, as one layer.

    Its variables are `{"params": ..., "state": ...}`, nested by readable names. `init` returns the
    values of layers that have some, and draws the others; without a key it returns their shapes. A
    key may also be a function that makes one, which is called if and only if a layer draws.

    Args:
        model: The model.
        single: Whether it stands for its only layer, so that names need not say which.
        training: The mode of a call that says none.
        inputs: The inputs that the model is for, if it isn't built: arrays,
            `jax.ShapeDtypeStruct`s or shapes.
    """
    snapshot = Snapshot(model, readable(single), training, inputs)
    layers = list(leaves(model))

    def init(key: Any, /, *args: Any, **keywords: Any) -> Variables:
        return _nested(snapshot.init(key, args, keywords))

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        outputs, after, changed = snapshot.apply(_flat(variables), key, args, keywords)
        return outputs, {"state": _nested(after)["state"]} if changed else {}

    if single and layers:
        label = layers[0].pure.label
        ecosystem = layers[0].pure.ecosystem
        text = " ".join(repr(layers[0]).split())
    else:
        label = type(model).__name__
        ecosystem = "seqbridge"
        text = f"{label}({', '.join(_texts(model))})"
    return PureLayer(
        init=init,
        apply=apply,
        signature=_signature(model, training),
        label=_identifier(label),
        ecosystem=ecosystem,
        text=text,
        traceable=all(layer.built or layer.pure.traceable for layer in layers),
        takes_key=any(_may_draw(layer) for layer in layers),
        ready=init(None) if model.built else None,
        reduce=(_unpickle, (snapshot.model, single, training, snapshot.inputs)),
        inputs=snapshot.inputs,
        seed=model.start_seed,
        inside=None if single else (snapshot.model, 1),
        frozen=lambda: [("params", *name.split("/")) for name in snapshot.frozen()],
    )


def _texts(model: LayerList) -> Iterator[str]:
    """Yield what stands at each place of a model, and with which it shares its variables."""
    places = FirstPlaces()
    for place, item in model.named_children():
        keys: dict[Hashable, None] = {}
        for layer in leaves([item]):
            keys.update(dict.fromkeys(sharing_keys(layer)))
        yield " ".join([_label(item), places.add((place,), keys)]).rstrip()


def _may_draw(layer: Layer) -> bool:
    return layer.is_random if layer.built else layer.pure.takes_key


def _unpickle(model: LayerList, single: bool, training: bool | None, inputs: Inputs) -> PureLayer:
    return as_pure_layer(model, single=single, training=training, inputs=inputs)


def _copy(value: jax.Array) -> jax.Array:
    if isinstance(value, Tracer):
        return value
    with jax.ensure_compile_time_eval():  # a trace around it must leave nothing in the copy
        return jnp.copy(value)


def _nested(parts: Parts) -> Variables:
    """Return variables as nested dicts, from their names by kind."""
    nested: Variables = {}
    for kind, arrays in parts.items():
        nested[kind] = nest({tuple(name.split("/")): array for name, array in arrays.items()})
    return nested


def _flat(variables: Variables) -> Parts:
    """Return variables by kind and name, from nested dicts."""
    flat: Parts = {}
    for kind, tree in variables.items():
        flat[kind] = {"/".join(path): array for path, array in unnest(tree).items()}
    return flat


def _frozen_names(form: Form) -> frozenset[str]:
    """Return the names of parameters that get no gradients."""
    frozen: set[str] = set()
    for layer, names in form.names.items():
        slots = layer.own_variables() or form.layouts[layer].slots
        # Variables of a built layer have taken its option over; slots know nothing of it.
        trained = layer.built or layer.entry_options.trainable
        for (name, kind), slot in zip(names, slots, strict=True):
            if kind == "params" and not (trained and slot.trainable):
                frozen.add(name)
    return frozenset(frozen)


def _signature(model: LayerList, training: bool | None) -> inspect.Signature:
    """Return the signature of a whole model.

    It has the inputs of the first layer, the keywords of all, and one mode flag if the mode makes a
    difference.
    """
    layers = list(leaves(model))
    first = _input_parameters(layers[0].pure) if layers else [_ANY_INPUTS]
    found = {parameter.name: parameter for parameter in first}
    for layer in layers:
        for parameter in _keyword_parameters(layer):
            found.setdefault(parameter.name, parameter)
    mode = _mode_parameter(model, layers, training)
    if mode is not None:
        found[mode.name] = mode
    if any(layer.call_parameters.any for layer in layers):
        found["keywords"] = inspect.Parameter("keywords", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature(sorted(found.values(), key=lambda parameter: parameter.kind))


def _input_parameters(pure: PureLayer) -> list[inspect.Parameter]:
    """Return the parameters that a layer takes by position, up to a mode flag or a key."""
    if pure.signature is None:
        return [_ANY_INPUTS]
    found: list[inspect.Parameter] = []
    for parameter in pure.signature.parameters.values():
        if parameter.kind > parameter.VAR_POSITIONAL:
            break
        is_flag = parameter.name in MODE_FLAGS or parameter.name in pure.mode_flags
        if is_flag or parameter.name == pure.key_name:
            break
        found.append(parameter)
    return found


def _keyword_parameters(layer: Layer) -> Iterator[inspect.Parameter]:
    """Yield the keywords of a layer beside its first input, its mode flags and its key."""
    signature = layer.pure.signature
    if signature is None:
        return
    flags = MODE_FLAGS.keys() | layer.call_parameters.flags.keys()
    names = layer.call_parameters.names - flags - {layer.pure.key_name}
    for parameter in list(signature.parameters.values())[1:]:
        default = parameter.default
        # A default that is an array is a variable, and no value to repeat at every call.
        if parameter.name not in names or isinstance(default, jax.Array):
            continue
        if default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            default = None
        yield parameter.replace(kind=parameter.KEYWORD_ONLY, default=default)


def _mode_parameter(
    model: LayerList, layers: list[Layer], training: bool | None
) -> inspect.Parameter | None:
    """Return the parameter `training`, or None if the mode makes no difference."""
    modes = {layer.call_parameters.default_mode for layer in layers if layer.call_parameters.flags}
    undecided = None in modes or len(modes) > 1
    # Where no layer has a mode flag, the mode still says whether state may change.
    has_state = any(variable.kind == "state" for variable in model.own_variables())
    if model.built and not undecided and not has_state:
        return None
    default = training
    if default is None and not undecided:
        default = False not in modes
    return inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=default)
