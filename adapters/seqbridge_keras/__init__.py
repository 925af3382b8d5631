"""The adapter of Keras 3 on its JAX backend: any `keras.Layer`, models too, becomes a layer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

try:
    import keras
except ImportError as error:  # Keras asks for TensorFlow where nobody says otherwise
    error.add_note(
        'seqbridge runs Keras on JAX: set os.environ["KERAS_BACKEND"] = "jax" before keras is '
        "imported"
    )
    raise

from seqbridge import PureLayer, call_text, signature_of
from seqbridge_keras._export import export as export
from seqbridge_keras._files import read_h5 as read_h5
from seqbridge_keras._names import sublayers
from seqbridge_keras._runner import Runner, to_native


def adapt(entry: object) -> PureLayer | None:
    """Return the `PureLayer` of a Keras layer or model, or of `partial(Class, ...)`.

    A layer that isn't built stays so: seqbridge builds a copy. One that is built brings its
    weights.

    Raises:
        TypeError: A layer class, a layer that can't be copied, or Keras on another backend.
    """
    if isinstance(entry, type):
        if issubclass(entry, keras.Layer):
            raise TypeError(f"got the class {entry.__name__}: give a layer, {entry.__name__}(...)")
        return None
    layer: object = entry
    if isinstance(entry, functools.partial):
        if not isinstance(entry.func, type) or not issubclass(entry.func, keras.Layer):
            return None
        layer = entry()
    if isinstance(layer, keras.KerasTensor | keras.layers.InputLayer):
        raise TypeError(
            "an input of Keras is no layer: leave it out, and say model.build((None, ...))"
        )
    if not isinstance(layer, keras.Layer):
        return None
    if type(layer).call is keras.Layer.call and "call" not in vars(layer):
        name = type(layer).__name__
        raise TypeError(
            f"{name} can't be called: Keras runs a layer by its call(), which is missing"
        )
    if any(getattr(inner, "stateful", False) for inner in sublayers(layer)):
        raise TypeError(
            f"this {type(layer).__name__} is stateful: Keras keeps its state where no functional "
            "call sees it. Leave stateful out, and hand the state over (return_state, "
            "initial_state)"
        )
    if keras.config.backend() != "jax":
        raise TypeError(
            f'Keras runs on {keras.config.backend()}: set os.environ["KERAS_BACKEND"] = "jax" '
            "before keras is imported"
        )
    return _make_layer(entry, layer)


def _make_layer(entry: Any, layer: keras.Layer) -> PureLayer:
    """Return the `PureLayer` of an entry: a layer, or a `partial` that makes such a layer."""
    signature = _call_signature(layer)
    runner = Runner(entry, layer, _count_inputs(signature))
    return PureLayer(
        init=None if runner.built else runner.init,
        apply=runner.apply,
        signature=signature,
        label=type(layer).__name__,
        ecosystem="keras",
        text=_show_entry(entry, layer),
        takes_key=runner.takes_key,
        traceable=False,
        held=tuple(_given_functions(layer)),
        method=_refuse_method,
        to_native=to_native,
        from_native=runner.from_native,
        parts=runner.parts,
        read=runner.read,
        ready=runner.values() if runner.built else None,
        sources=runner.sources(),
    )


def _refuse_method(method: str | Callable[..., Any]) -> NoReturn:
    raise TypeError(
        f"Keras runs a layer by its call, which {method!r} isn't: give the layer itself"
    )


def _given_functions(layer: keras.Layer) -> Iterator[Callable[..., Any]]:
    """Yield the functions that a layer, or one inside, was given.

    Keras itself puts functions in place of the methods of a class.
    """
    for inner in sublayers(layer):
        for name, value in vars(inner).items():
            is_method = hasattr(type(inner), name)
            if callable(value) and not is_method and not _is_part_of_keras(value):
                yield value


def _is_part_of_keras(value: object) -> bool:
    """Whether a value is a layer, or of Keras' own, as training leaves functions in a layer."""
    if isinstance(value, keras.Layer):
        return True
    modules = (type(value).__module__, getattr(value, "__module__", None) or "")
    return any(module.startswith("keras.") for module in modules)


def _call_signature(layer: keras.Layer) -> inspect.Signature:
    """Return what `layer.call` takes, and `training`, which Keras hands down to layers inside."""
    signature = signature_of(layer.call)
    parameters = dict(signature.parameters) if signature is not None else {}
    if isinstance(layer, keras.Model) and _has_call_of_keras(layer):
        # What it takes is fixed, whatever its keywords are.
        for name, parameter in list(parameters.items()):
            if parameter.kind is parameter.VAR_KEYWORD:
                del parameters[name]
    if "mask" in parameters:  # never by position, since that is where inputs go
        parameters["mask"] = parameters["mask"].replace(kind=inspect.Parameter.KEYWORD_ONLY)
    has_mode = any(_depends_on_training(inner) for inner in sublayers(layer))
    parameters["training"] = inspect.Parameter(
        "training",
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if has_mode else False,
    )
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))


def _count_inputs(signature: inspect.Signature) -> int | None:
    """Return how many inputs are taken by position; None: any number."""
    count = 0
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return None
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            count += 1
    return count


def _has_call_of_keras(layer: keras.Layer) -> bool:
    return type(layer).call.__module__.startswith("keras.")


def _depends_on_training(layer: keras.Layer) -> bool:
    """Whether training makes a difference to a layer itself, not only to those inside."""
    if "training" not in inspect.signature(layer.call).parameters:
        return False
    if not _has_call_of_keras(layer):
        return True
    if isinstance(layer, keras.layers.Lambda):
        signature = signature_of(layer.function)
        return signature is not None and "training" in signature.parameters
    if isinstance(layer, keras.Model | keras.layers.Dense | keras.layers.EinsumDense):
        return False
    if getattr(layer, "dropout", None) == 0:
        return getattr(layer, "recurrent_dropout", 0) != 0
    return True


def _show_entry(entry: Any, layer: keras.Layer) -> str:
    """Return the call that made an entry, as far as it is known."""
    if entry is not layer:
        return call_text(entry.func.__name__, entry.args, entry.keywords)
    try:
        config = layer.get_config()
    except (NotImplementedError, TypeError, ValueError):  # it needn't be one that Keras can save
        config = {}
    numbers = {}
    for name, value in config.items():
        if type(value) in (int, float) and name not in ("name", "seed"):
            numbers[name] = value
    return call_text(type(layer).__name__, (), numbers)
