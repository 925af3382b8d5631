"""A whole model as one `PureLayer`: the form in which it goes out into other libraries."""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seqbridge._interface import (
    MODE_FLAGS,
    Call,
    PureLayer,
    Variables,
    call_of,
    nest,
    training_of,
    unnest,
)
from seqbridge._layers import Layer, LayerList, leaves
from seqbridge._passes import (
    Build,
    Form,
    Naming,
    Parts,
    built_layouts,
    check_inputs,
    keyword_specs,
    layouts_of,
    lazy_key,
    specs,
    traverse,
)
from seqbridge._state import Keys, Tracer, locked

_ANY = inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)


def readable(single: bool) -> Naming:
    """Names as paths of identifiers: `"Conv_0/kernel"`, and in a single layer `"kernel"`."""

    def places(model: LayerList) -> Iterator[tuple[str, Layer]]:
        return iter([("", next(leaves(model)))]) if single else _places(model)

    def join(place: str, shown: str) -> str:
        return "/".join(filter(None, [place, *map(_identifier, shown.split("."))]))

    return Naming(places, join, _apart)


def _apart(names: Iterable[str]) -> dict[str, str]:
    """Other names for variables that are called like a module beside them."""
    paths = [name.split("/") for name in names]
    modules = {"/".join(path[:n]) for path in paths for n in range(1, len(path))}
    return {name: f"{name}_" for name in modules.intersection("/".join(path) for path in paths)}


def _places(model: LayerList, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for i, (name, item) in enumerate(zip(model.names, model, strict=True)):
        label = item.pure.label if isinstance(item, Layer) else type(item).__name__
        place = prefix + (name or f"{_identifier(label)}_{i}")
        if isinstance(item, Layer):
            yield place, item
        else:
            yield from _places(item, f"{place}/")


def _identifier(part: str) -> str:
    return re.sub(r"\W+", "_", part).strip("_") or part if re.search(r"\W", part) else part


class Snapshot:
    """A model as it is now, as pure functions. Edits and values that come later don't show in it.

    Args:
        model: The model.
        naming: How its variables are called.
        training: The mode of a call that says none.
        inputs: What the model is for, if it isn't built.
    """

    def __init__(
        self,
        model: LayerList,
        naming: Naming,
        training: bool | None = None,
        inputs: tuple[Any, ...] = (),
    ):
        model.check_plain_call()
        with locked(lambda: [model]):
            self._take(model)
        built_for = model.known_inputs
        inputs = inputs or (built_for[0] if built_for else ())
        self.inputs: tuple[Any, ...] = specs(inputs) if inputs else ()
        self._naming = naming
        self._training = training
        self._form: tuple[Form, frozenset[str]] | None = None
        if self.model.built:
            self._form_of((), Call())

    def _take(self, model: LayerList) -> None:
        kept = [layer for layer in leaves(model) if layer.built]
        streams = [
            m.key_stream for m in (model, *model.nested_models()) if m.key_stream is not None
        ]
        # The same layers in lists of their own; those that aren't built are copies, which nobody
        # builds.
        self.model: LayerList = copy.deepcopy(model, {id(x): x for x in (*kept, *streams)})
        # Copies, here and at each `init`: whoever trains the one may donate its arrays, and the
        # other keeps its own.
        self._values = {layer: [_copy(v.value) for v in layer.own_variables()] for layer in kept}

    def init(self, key: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Parts:
        """The values of layers that have some, and fresh ones of the others, or without a key their shapes."""
        values = self._values
        if key is not None:
            values = {layer: [jnp.copy(a) for a in arrays] for layer, arrays in values.items()}
        if self.model.built:
            return self._form_of((), Call())[0].parts(values)
        args = args or self.inputs
        check_inputs(args)
        build = Build(abstract=key is None)
        call = self._call(keywords).map(keyword_specs, training=True)
        traverse(self.model, specs(args), call, build, Keys(lazy_key(0 if key is None else key)))
        arrays = values | {
            layer: layout.arrays for layer, layout in reversed(build.new.layouts.items())
        }
        layouts = built_layouts(self.model) | build.new.layouts
        for layout in build.new.layouts.values():  # so that nothing of a trace stays
            layout.arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in layout.arrays]
        form = Form(self.model, layouts, self._naming)
        self._form = self._form or (form, _frozen(form))
        return form.parts(arrays)

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        key: Any,
        args: tuple[Any, ...],
        keywords: Mapping[str, Any],
    ) -> tuple[Any, Parts, bool]:
        """Outputs, the variables after the call, and whether it has changed any."""
        call = self._call(keywords)
        form, frozen = self._form_of(args, call)
        params = variables.get("params", {})
        key = keywords.get("rng", key)
        if isinstance(params, Mapping):
            fixed = {name: jax.lax.stop_gradient(params[name]) for name in frozen & params.keys()}
            variables = {**variables, "params": {**params, **fixed}}
        return form.run(variables, args, call, Keys(lazy_key(key)))

    def frozen(self) -> frozenset[str]:
        """The parameters that get no gradients, as far as they are known."""
        return self._form[1] if self._form else frozenset()

    def _form_of(self, args: tuple[Any, ...], call: Call) -> tuple[Form, frozenset[str]]:
        if (
            self._form is None
        ):  # of a model that isn't built, the first call says what reaches the layers
            form = Form(self.model, layouts_of(self.model, args, call), self._naming)
            self._form = form, _frozen(form)
        return self._form

    def _call(self, keywords: Mapping[str, Any]) -> Call:
        """The call that these keywords make. Without `training`, any mode flag is the mode of the whole."""
        rest = {k: v for k, v in keywords.items() if k not in ("training", "rng")}
        training = keywords.get("training")
        if training is None and (training := training_of(rest)) is not None:
            rest = {k: v for k, v in rest.items() if k not in MODE_FLAGS}
        return call_of({**rest, "training": self._training if training is None else training})


def as_pure_layer(
    model: LayerList,
    *,
    single: bool = False,
    training: bool | None = None,
    inputs: tuple[Any, ...] = (),
) -> PureLayer:
    """A model as it is now, as one layer.

    Its variables are `{"params": ..., "state": ...}`, nested by readable names. `init` hands over
    the values of layers that have some, and draws the others; without a key it says their shapes. A
    key may also be a function that makes one, which is called if and only if a layer draws.

    Args:
        model: The model.
        single: Whether it stands for its only layer, so that names need not say which.
        training: The mode of a call that says none.
        inputs: What the model is for, if it isn't built: arrays, `jax.ShapeDtypeStruct`s or shapes.
    """
    shot = Snapshot(model, readable(single), training, inputs)
    first = next(leaves(model), None) if single else None

    def init(key: Any, /, *args: Any, **keywords: Any) -> Variables:
        return _nested(shot.init(key, args, keywords))

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        given = {
            kind: {"/".join(path): a for path, a in unnest(tree).items()}
            for kind, tree in variables.items()
        }
        out, after, changed = shot.apply(given, key, args, keywords)
        return out, {"state": _nested(after)["state"]} if changed else {}

    return PureLayer(
        init=init,
        apply=apply,
        signature=_signature(model, training),
        label=_identifier(first.pure.label if first else type(model).__name__),
        ecosystem=first.pure.ecosystem if first else "seqbridge",
        text=" ".join(repr(first).split()) if first else _text(model),
        traceable=all(layer.built or layer.pure.traceable for layer in leaves(model)),
        takes_key=any(
            layer.is_random if layer.built else layer.pure.takes_key for layer in leaves(model)
        ),
        ready=init(None) if model.built else None,
        reduce=(_again, (shot.model, single, training, shot.inputs)),
        inputs=shot.inputs,
        seed=model.start_seed,
        inside=None if single else (shot.model, 1),
        frozen=lambda: [("params", *name.split("/")) for name in shot.frozen()],
    )


def _text(model: LayerList) -> str:
    labels = (item.pure.label if isinstance(item, Layer) else type(item).__name__ for item in model)
    return f"{type(model).__name__}({', '.join(labels)})"


def _again(
    model: LayerList, single: bool, training: bool | None, inputs: tuple[Any, ...]
) -> PureLayer:
    return as_pure_layer(model, single=single, training=training, inputs=inputs)


def _copy(value: Any) -> Any:
    if isinstance(value, Tracer):
        return value
    with (
        jax.ensure_compile_time_eval()
    ):  # so that nothing of a trace stays in what is made inside it
        return jnp.copy(value)


def _nested(parts: Variables) -> Variables:
    return {
        kind: nest({tuple(name.split("/")): a for name, a in arrays.items()})
        for kind, arrays in parts.items()
    }


def _frozen(form: Form) -> frozenset[str]:
    found: set[str] = set()
    for layer, own in form.names.items():
        flags = [v.trainable for v in layer.own_variables()] or [
            s.trainable for s in form.layouts[layer].slots
        ]
        trained = (flag and (layer.built or layer.entry_options.trainable) for flag in flags)
        found |= {
            name
            for (name, kind), flag in zip(own, trained, strict=True)
            if kind == "params" and not flag
        }
    return frozenset(found)


def _signature(model: LayerList, training: bool | None) -> inspect.Signature:
    """The inputs of the first layer, the keywords of all, and one mode flag if it makes a difference."""
    layers = list(leaves(model))
    found = {p.name: p for p in (_inputs(layers[0].pure) if layers else [_ANY])}
    for layer in layers:
        parameters = dict(layer.pure.signature.parameters) if layer.pure.signature else {}
        for name, p in list(parameters.items())[1:]:
            lifted = isinstance(
                p.default, jax.Array
            )  # a variable, and no value to repeat at every call
            if (
                name in layer.call_parameters.names - MODE_FLAGS.keys() - {layer.pure.key_name}
                and not lifted
            ):
                default = (
                    None if p.kind is not p.KEYWORD_ONLY and p.default is p.empty else p.default
                )
                found.setdefault(name, p.replace(kind=p.KEYWORD_ONLY, default=default))
    modes = {layer.call_parameters.default_mode for layer in layers if layer.call_parameters.flags}
    undecided = None in modes or len(modes) > 1
    if undecided or not model.built or any(v.kind == "state" for v in model.own_variables()):
        # Where no layer knows a mode, it still says whether state may change.
        default = training if undecided or training is not None else False not in modes
        found["training"] = inspect.Parameter(
            "training", inspect.Parameter.KEYWORD_ONLY, default=default
        )
    if any(layer.call_parameters.any for layer in layers):
        found["keywords"] = inspect.Parameter("keywords", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature(sorted(found.values(), key=lambda p: p.kind))


def _inputs(pure: PureLayer) -> list[inspect.Parameter]:
    """What a layer takes by position, up to a mode flag or a key."""
    if pure.signature is None:
        return [_ANY]
    rest = (*MODE_FLAGS, pure.key_name)
    return list(
        itertools.takewhile(
            lambda p: p.kind <= p.VAR_POSITIONAL and p.name not in rest,
            pure.signature.parameters.values(),
        )
    )
