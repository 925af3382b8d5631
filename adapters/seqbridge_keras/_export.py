"""Export of a layer to a Keras layer."""

from __future__ import annotations

import base64
import functools
import importlib
import inspect
import pickle
import random
import uuid
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import jax
import keras

from seqbridge import PureLayer, Variables, nest, unnest
from seqbridge_keras._template import Path

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named inputs of a call, as shapes."""

# The layers that are alive, by the keys that configurations have of them.
_alive: WeakValueDictionary[str, PureLayer] = WeakValueDictionary()


@keras.saving.register_keras_serializable("seqbridge")
class SeqbridgeLayer(keras.Layer):
    """A layer of other libraries. `sb.to_keras` makes it.

    Args:
        layer: Its `PureLayer`.
        seed: What initial values, if it has none, and random draws start from.
        **options: What every Keras layer takes: `name`, `trainable`, `dtype`.
    """

    def __init__(self, layer: PureLayer, seed: int | None = None, **options: Any):
        # Before Keras looks at what a call takes, which depends on the layer.
        object.__setattr__(self, "call", _make_call(self, layer))
        super().__init__(**options)
        # As Keras draws its own, so that `keras.utils.set_random_seed` decides.
        self.seed = random.randint(1, 10**9) if seed is None else seed
        self.layer = layer
        self.key = uuid.uuid4().hex
        _alive[self.key] = layer
        self._own: dict[Path, keras.Variable] = {}  # the weights by their places
        self._inputs: Inputs | None = None  # what the layer is for
        self._seeds = keras.random.SeedGenerator(self.seed) if layer.takes_key else None
        if layer.ready is not None or layer.inputs:
            self._add_weights(layer.inputs, {})
            self.built = True

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if not self.built:
            inputs = (_unpack_inputs(self.layer, args), keywords)
            self._remember_inputs(jax.tree.map(_as_spec, inputs))
        return super().__call__(*args, **keywords)

    def build(self, *shapes: Any, **named: Any) -> None:
        """Make the weights for inputs of these shapes.

        They are floats unless the layer was called with others.
        """
        if not self._inputs:
            floats = []
            for shape in (*shapes, *named.values()):
                if shape is not None:
                    floats.append(keras.tree.map_shape_structure(_float_spec, shape))
            self._remember_inputs((_unpack_inputs(self.layer, tuple(floats)), {}))
        assert self._inputs is not None
        args, keywords = self._inputs
        self._add_weights(args, {k: v for k, v in keywords.items() if k != "training"})

    def get_build_config(self) -> dict[str, Any]:
        """Return what the layer was built for.

        Raises:
            TypeError: An entry can't be pickled, so that no other process could make the layer
                again.
        """
        pickled = _pickle(self.layer)
        if isinstance(pickled, Exception):
            raise TypeError(
                f"the entries of {self.name} can't be pickled, so it can't be saved in a model's "
                f"file: {pickled}. Save the weights, model.save_weights(...), and load them into "
                "a model that is made again; or install cloudpickle"
            ) from pickled
        args, _ = self._inputs or ((), {})
        return {"inputs": [[spec.shape, spec.dtype.name] for spec in jax.tree.leaves(args)]}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build the layer for the same."""
        if not self.built:
            specs = [jax.ShapeDtypeStruct(tuple(s), dtype) for s, dtype in config["inputs"]]
            self._remember_inputs((tuple(specs), {}))
            self.build()

    def _remember_inputs(self, inputs: Inputs) -> None:
        # Past Keras, which makes something else of a dict.
        object.__setattr__(self, "_inputs", inputs)

    def _add_weights(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        init = self.layer.init
        if self._own or init is None:
            return

        @functools.cache  # drawn once, and not before Keras asks for a value
        def initial_values() -> dict[Path, jax.Array]:
            with jax.ensure_compile_time_eval():
                return unnest(init(jax.random.key(self.seed), *args, **keywords))

        for path, spec in unnest(init(None, *args, **keywords)).items():
            self._own[path] = self._add_weight(path, spec, initial_values)

    def _add_weight(
        self, path: Path, spec: Any, initial_values: Callable[[], dict[Path, jax.Array]]
    ) -> keras.Variable:
        def initialize(shape: Any, dtype: Any) -> jax.Array:
            return initial_values()[path].astype(dtype)

        learned = path[0] == "params"
        keeps_dtype = self.variable_dtype == "float32" or not learned
        return self.add_weight(
            name=".".join(path[1:]),
            shape=spec.shape,
            dtype=str(spec.dtype) if keeps_dtype else None,
            initializer=initialize,
            trainable=learned and path not in self.layer.frozen(),
            autocast=learned,
        )

    def _run(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        keywords = dict(keywords)
        if keywords.get("training") is None:
            keywords.pop("training", None)
            keywords |= _default_mode(self.layer)
        if not self.trainable:  # as Keras' BatchNormalization: frozen, it learns no statistics
            keywords["training"] = False
        args = _restore_integers(self.layer, _unpack_inputs(self.layer, args))
        variables = {"params": {}, "state": {}, **self.seqbridge_variables()}
        out, new = self.layer.apply(variables, self._next_key, *args, **keywords)
        for path, value in unnest(new).items():
            self._own[path].assign(value)
        return out if self.compute_dtype == "float32" else jax.tree.map(self._cast_output, out)

    def _next_key(self) -> jax.Array:
        if self._seeds is None:  # whatever was known of the model, it drew nothing
            raise TypeError(
                "a layer draws random numbers here, but drew none when the model was built"
            )
        return self._seeds.next()

    def _cast_output(self, value: Any) -> Any:
        if jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            return value.astype(self.compute_dtype)
        return value

    def compute_output_spec(self, *args: Any, **keywords: Any) -> Any:
        """Return what a call returns, by a trace of it."""
        return keras.Operation.compute_output_spec(self, *args, **keywords)

    def compute_output_shape(self, *shapes: Any, **named: Any) -> Any:
        """Return the shape of what a call returns for inputs of these shapes, floats."""
        symbols = []
        for shape in (*shapes, *named.values()):
            symbols.append(keras.tree.map_shape_structure(keras.KerasTensor, shape))
        return jax.tree.map(lambda symbol: symbol.shape, self.compute_output_spec(*symbols))

    def seqbridge_variables(self) -> Variables:
        """Return the weights now, for `seqbridge.from_native`."""
        return nest({path: weight.value for path, weight in self._own.items()})

    def get_config(self) -> dict[str, Any]:
        """Return how to make the layer again, here or, by a pickle, in another process."""
        pickled = _pickle(self.layer)
        text = None if isinstance(pickled, Exception) else base64.b64encode(pickled).decode()
        return {**super().get_config(), "seed": self.seed, "key": self.key, "pickled": text}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SeqbridgeLayer:
        """Make the layer again.

        Raises:
            ValueError: It comes from another process, and Keras loads in its safe mode, which
                unpickles nothing.
        """
        pickled = config.pop("pickled")
        layer = _alive.get(config.pop("key"))
        if layer is None:
            _refuse_in_safe_mode()
            function, args = pickle.loads(base64.b64decode(pickled))
            layer = function(*args)
        return cls(layer, **config)


def _pickle(layer: PureLayer) -> bytes | Exception:
    """Return a pickle, by cloudpickle if only that can make one, or why there is none."""
    try:
        return pickle.dumps(layer.reduce)
    except Exception as error:
        try:
            return importlib.import_module("cloudpickle").dumps(layer.reduce)
        except Exception:
            return error


def _default_mode(layer: PureLayer) -> dict[str, bool]:
    """Return evaluation, as in Keras' own layers, unless a mode was chosen.

    Nothing if there is no difference.
    """
    for parameter in _parameters(layer):
        if parameter.name == "training":
            return {"training": parameter.default is True}
    return {}


def _restore_integers(layer: PureLayer, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return integers where the model was built for some: Keras makes floats of them by itself."""
    if jax.tree.structure(args) != jax.tree.structure(layer.inputs):
        return args

    def restore(value: Any, spec: Any) -> Any:
        is_float = jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
        was_integer = jax.numpy.issubdtype(spec.dtype, jax.numpy.integer)
        return value.astype(spec.dtype) if is_float and was_integer else value

    return jax.tree.map(restore, args, layer.inputs)


def export(layer: PureLayer, *, seed: int | None = None, **options: Any) -> keras.Layer:
    """A model, a layer or an entry of any library as a Keras layer.

    It is a layer like any other: in `keras.Sequential` and the functional API, for `fit`,
    `summary`, `save_weights`. Several inputs may be a list, as in Keras. Parameters are trainable
    weights and state is not; each has its readable name. Keras' `training` decides on the mode.

    `model.save` keeps the entries by pickle. `keras.saving.load_model` in another process wants
    `import seqbridge_keras` and, since that unpickles them, `safe_mode=False`. What can't be
    pickled, such as lambdas, wants cloudpickle to be installed, or is made again by its code, and
    gets its values by `load_weights`.

    A layer that isn't trainable runs in evaluation: it keeps its statistics, and drops nothing.

    Args:
        layer: The `PureLayer` of what goes out.
        seed: What initial values, if it has none, and random draws start from.
        **options: `name`, `trainable`, `dtype`, as for every Keras layer.

    Returns:
        A `keras.Layer`.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import flax.linen as nn, jax.numpy as jnp, seqbridge as sb
        >>> layer = sb.to_keras([jnp.tanh, nn.Dense(3)])
        >>> layer(jnp.ones((2, 4))).shape  # (batch, features)
        (2, 3)
        >>> [weight.name for weight in layer.weights]
        ['Dense_1.bias', 'Dense_1.kernel']
    """
    return SeqbridgeLayer(layer, seed, **options)


def _make_call(made: SeqbridgeLayer, layer: PureLayer) -> Callable[..., Any]:
    """Return the method `call` of a layer, whose signature tells Keras what can be given."""

    def call(*args: Any, **keywords: Any) -> Any:
        return made._run(args, keywords)

    parameters: list[inspect.Parameter] = []
    for parameter in _parameters(layer):
        default = parameter.default
        is_required = default is parameter.empty
        if parameter.name == "mask" and not is_required:
            continue  # Keras would give its own
        if parameter.name == "training":
            default = default is True  # evaluation, as in Keras' own layers
        elif parameters and is_required and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            default = None  # since the first may be a list of all
        parameters.append(parameter.replace(default=default))
    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def _parameters(layer: PureLayer) -> list[inspect.Parameter]:
    return list(layer.signature.parameters.values()) if layer.signature is not None else []


def _unpack_inputs(layer: PureLayer, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return several inputs one by one, which may come as one list."""
    required = 0
    for parameter in _parameters(layer):
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            required += parameter.default is parameter.empty
    if len(args) == 1 and isinstance(args[0], list | tuple) and required > 1:
        return tuple(args[0])
    return args


def _as_spec(value: Any) -> Any:
    """Return a shape in place of an array or of one of Keras' symbols."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return value
    shape = tuple(1 if n is None else n for n in value.shape)
    return jax.ShapeDtypeStruct(shape, keras.backend.standardize_dtype(value.dtype))


def _float_spec(shape: tuple[int | None, ...]) -> jax.ShapeDtypeStruct:
    return _as_spec(keras.KerasTensor(shape))


def _refuse_in_safe_mode() -> None:
    """Raise if Keras loads a model in its safe mode, in which it makes no lambda."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a lambda isn't safe
        try:
            keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(lambda: None))
        except ValueError as error:
            raise ValueError(
                "the entries of a SeqbridgeLayer are kept by pickle, which can run any code. If "
                "you trust the file, load it with safe_mode=False"
            ) from error
