"""The adapter of Keras 3 on its JAX backend: any `keras.Layer`, a model among them, becomes a layer."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import jax

try:
    import keras
except ImportError as error:  # Keras asks for TensorFlow where nobody says otherwise
    error.add_note(
        'seqbridge runs Keras on JAX: set os.environ["KERAS_BACKEND"] = "jax" before keras is '
        "imported"
    )
    raise

from seqbridge import Annotated, Part, PureLayer, Variables, call_text, nest, signature_of
from seqbridge_keras._export import export as export
from seqbridge_keras._files import read_h5 as read_h5
from seqbridge_keras._files import read_weights
from seqbridge_keras._parts import parts
from seqbridge_keras._template import Template, build, clone, sublayers

# Built copies of each entry, kept so that a copy of a model needs none of its own. One for each set
# of shapes.
_templates: WeakKeyDictionary[Any, list[Template]] = WeakKeyDictionary()


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of a Keras layer or model, or of `partial(Class, ...)`.

    A layer that isn't built stays so: seqbridge builds a copy. One that is built brings its
    weights.

    Raises:
        TypeError: A layer class, a layer that can't be copied, or Keras on another backend.
    """
    if isinstance(entry, type):
        if issubclass(entry, keras.Layer):
            raise TypeError(f"got the class {entry.__name__}: give a layer, {entry.__name__}(...)")
        return None
    if isinstance(entry, functools.partial):
        layer = entry() if issubclass(entry.func, keras.Layer) else None  # pyright: ignore[reportArgumentType]
    else:
        layer = entry if isinstance(entry, keras.Layer) else None
    if isinstance(entry, keras.KerasTensor) or isinstance(layer, keras.layers.InputLayer):
        raise TypeError(
            "an input of Keras is no layer: leave it out, and say model.build((None, ...))"
        )
    if layer is None:
        return None
    if any(getattr(inner, "stateful", False) for inner in sublayers(layer)):
        raise TypeError(
            f"this {type(layer).__name__} is stateful: Keras keeps its state where no functional "
            f"call sees it. Leave "
            "stateful out, and hand the state over (return_state, initial_state)"
        )
    if keras.config.backend() != "jax":
        raise TypeError(
            f'Keras runs on {keras.config.backend()}: set os.environ["KERAS_BACKEND"] = "jax" '
            f"before keras is imported"
        )
    return _layer(entry, layer)


def _layer(entry: Any, layer: keras.Layer) -> PureLayer:
    built = layer.built and layer is entry
    now = threading.local()  # the template that has run last
    templates = _templates.setdefault(entry, [])
    if built:
        # In a list of its own: behind a weak key nothing may stand that holds the entry, or it
        # would live for ever.
        templates = templates or [Template(layer, _copy_of(layer))]
    elif layer is entry:
        clone(layer)  # if that can't be done, it is better known now

    def make() -> keras.Layer:
        return clone(layer) if layer is entry else entry()

    signature = _signature(layer)
    places = sum(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in signature.parameters.values()
    )
    most = (
        None if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()) else places
    )

    def packed(args: tuple[Any, ...]) -> tuple[Any, ...]:
        # Several inputs are one list to a layer that merges them, and to a model.
        return args if most is None or len(args) <= most else (list(args),)

    def init(key: Any, /, *args: Any, **keywords: Any) -> Variables:
        template = build(make, key, packed(args), keywords)
        if all(t.shapes != template.shapes for t in templates):
            templates.append(template)
        return template.values()

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        for template in templates:
            if template.fits(variables):
                now.template = template
                return template.call(variables, key, packed(args), keywords)
        with jax.ensure_compile_time_eval():
            init(jax.random.key(0), *_specs(args), **_specs(keywords))
        if not templates[-1].fits(variables):
            raise ValueError(
                f"the weights don't fit what {type(layer).__name__} makes for inputs of this shape"
            )
        return templates[-1].call(variables, key, packed(args), keywords)

    def from_native(tree: Any) -> Variables:
        weights = [v.value for v in tree.weights] if isinstance(tree, keras.Layer) else list(tree)
        if not templates:
            raise RuntimeError(
                f"the order of this {type(layer).__name__}'s weights isn't known before its first "
                f"call"
            )
        for template in templates:
            if [jax.numpy.shape(w) for w in weights] == list(template.shapes.values()):
                return nest(dict(zip(template.places, weights, strict=True)))
        wanted = list(templates[-1].shapes.values())
        raise ValueError(
            f"the weights have shapes {[jax.numpy.shape(w) for w in weights]}, and should have "
            f"{wanted}"
        )

    def parts_of(run: Callable[[], Any]) -> Iterator[Part]:
        if len(templates) == 1:
            return parts(templates[0])
        run()
        return parts(now.template)

    return PureLayer(
        init=None if built else init,
        apply=apply,
        signature=signature,
        label=type(layer).__name__,
        ecosystem="keras",
        text=_text(entry, layer),
        takes_key=templates[0].draws if built else True,
        traceable=False,
        held=tuple(_functions(layer)),
        method=_no_method,
        to_native=_to_native,
        from_native=from_native,
        parts=parts_of,
        read=lambda path, native: read_weights(path, [t.layer for t in reversed(templates)]),
        ready=templates[0].values() if built else None,
        sources=dict(zip(templates[0].places, layer.weights, strict=True)) if built else {},
    )


def _no_method(method: Any) -> PureLayer:
    raise TypeError(
        f"Keras runs a layer by its call, which {method!r} isn't: give the layer itself"
    )


def _copy_of(layer: keras.Layer) -> keras.Layer | None:
    """A built copy to look into, if the layer is frozen anywhere and Keras can make one."""
    if all(inner.trainable for inner in sublayers(layer)):
        return None
    try:
        made = clone(layer)
        config = layer.get_build_config()
        if config is not None and not made.built:
            made.build_from_config(config)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return made if len(made.weights) == len(layer.weights) else None


def _to_native(variables: Variables) -> list[Any]:
    """What `layer.get_weights()` returns, and `layer.set_weights` takes."""
    leaves = jax.tree.leaves(variables, is_leaf=lambda v: isinstance(v, Annotated))
    return [leaf.value for leaf in sorted(leaves, key=lambda leaf: leaf.note)]


def _functions(layer: keras.Layer) -> Iterator[Any]:
    """The functions that a layer was given: Keras itself puts others in place of the methods of its class."""
    for inner in sublayers(layer):
        yield from (
            v
            for n, v in vars(inner).items()
            if callable(v) and not hasattr(type(inner), n) and _foreign(v)
        )


def _foreign(value: Any) -> bool:
    modules = (
        type(value).__module__,
        getattr(value, "__module__", None) or "",
    )  # training leaves Keras' own functions
    return not isinstance(value, keras.Layer) and not any(
        module.startswith("keras.") for module in modules
    )


def _specs(tree: Any) -> Any:
    return jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype) if hasattr(v, "shape") else v, tree
    )


def _signature(layer: keras.Layer) -> inspect.Signature:
    """What `layer.call` takes, and `training`, which Keras hands down to the layers inside."""
    signature = signature_of(layer.call)
    parameters = dict(signature.parameters) if signature else {}
    if isinstance(layer, keras.Model) and type(layer).call.__module__.startswith(
        "keras."
    ):  # what it takes is fixed
        parameters = {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    depends = any(_differs(inner) for inner in sublayers(layer))
    if "mask" in parameters:  # never by position, since that is where inputs go
        parameters["mask"] = parameters["mask"].replace(kind=inspect.Parameter.KEYWORD_ONLY)
    default = inspect.Parameter.empty if depends else False
    parameters["training"] = inspect.Parameter(
        "training", inspect.Parameter.KEYWORD_ONLY, default=default
    )
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))


def _differs(layer: keras.Layer) -> bool:
    """Whether training makes a difference to a layer itself, not only to those inside."""
    if "training" not in inspect.signature(layer.call).parameters:
        return False
    if type(layer).call.__module__.startswith("keras."):
        if isinstance(layer, keras.layers.Lambda):
            signature = signature_of(layer.function)
            return signature is not None and "training" in signature.parameters
        if isinstance(layer, keras.Model | keras.layers.Dense | keras.layers.EinsumDense):
            return False
        if getattr(layer, "dropout", None) == 0:
            return getattr(layer, "recurrent_dropout", 0) != 0
    return True


def _text(entry: Any, layer: keras.Layer) -> str:
    if entry is not layer:
        return call_text(entry.func.__name__, entry.args, entry.keywords)
    try:
        config = layer.get_config()
    except (NotImplementedError, TypeError, ValueError):  # it needn't be one that Keras can save
        config = {}
    given = {
        k: v for k, v in config.items() if type(v) in (int, float) and k not in ("name", "seed")
    }
    return call_text(type(layer).__name__, (), given)
