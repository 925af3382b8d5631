"""The way out: a layer as a Keras layer."""

from __future__ import annotations

import base64
import functools
import importlib
import inspect
import pickle
import random
import uuid
import warnings
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import jax
import keras

from seqbridge import PureLayer, Variables, nest, unnest

Path: TypeAlias = tuple[str, ...]
_alive: WeakValueDictionary[str, PureLayer] = (
    WeakValueDictionary()
)  # by the names that configurations give them


@keras.saving.register_keras_serializable("seqbridge")
class SeqbridgeLayer(keras.Layer):
    """A layer of other libraries. `sb.to_keras` makes it.

    Args:
        layer: Its neutral form.
        seed: What initial values, if it has none, and random draws start from.
        **options: What every Keras layer takes: `name`, `trainable`, `dtype`.
    """

    def __init__(self, layer: PureLayer, seed: int | None = None, **options: Any):
        # Before Keras looks at what a call takes, which depends on the layer.
        object.__setattr__(self, "call", _call_of(self, layer))
        super().__init__(**options)
        # As Keras draws its own, so that `keras.utils.set_random_seed` decides.
        self.seed = random.randint(1, 10**9) if seed is None else seed
        self.layer = layer
        self.key = uuid.uuid4().hex
        _alive[self.key] = layer
        self._own: dict[Path, Any] = {}  # its weights
        self._inputs: Any = None
        self._seeds = keras.random.SeedGenerator(self.seed) if layer.takes_key else None
        if layer.ready is not None or layer.inputs:
            self._make(layer.inputs, {})
            self.built = True

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if not self.built:
            self._note(jax.tree.map(_spec, (_spread(self.layer, args), keywords)))
        return super().__call__(*args, **keywords)

    def build(self, *shapes: Any, **named: Any) -> None:
        """Makes the weights for inputs of these shapes, floats unless the layer was called with others."""
        given = [shape for shape in (*shapes, *named.values()) if shape is not None]
        floats = [
            keras.tree.map_shape_structure(lambda s: _spec(keras.KerasTensor(s)), shape)
            for shape in given
        ]
        self._note(self._inputs or (_spread(self.layer, tuple(floats)), {}))
        args, keywords = self._inputs
        self._make(args, {k: v for k, v in keywords.items() if k != "training"})

    def get_build_config(self) -> dict[str, Any]:
        """What the layer was built for.

        Raises:
            TypeError: An entry can't be pickled, so that no other process could make the layer
                again.
        """
        if isinstance(pickled := _pickled(self.layer), Exception):
            raise TypeError(
                f"the entries of {self.name} can't be pickled, so it can't be saved in a model's "
                f"file: {pickled}. Save "
                "the weights, model.save_weights(...), and load them into a model that is made "
                "again; or install "
                "cloudpickle"
            ) from pickled
        args, _ = self._inputs or ((), {})
        return {"inputs": [[a.shape, a.dtype.name] for a in jax.tree.leaves(args)]}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer for the same."""
        if not self.built:
            self._note(
                (tuple(jax.ShapeDtypeStruct(tuple(s), dtype) for s, dtype in config["inputs"]), {})
            )
            self.build()

    def _note(self, inputs: Any) -> None:
        """Remembers what the layer is for; past Keras, which makes something else of a dict."""
        object.__setattr__(self, "_inputs", inputs)

    def _make(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        init = self.layer.init
        if self._own or init is None:
            return

        @functools.cache  # drawn once, and not before Keras asks for a value
        def values() -> dict[Path, Any]:
            with jax.ensure_compile_time_eval():
                return unnest(init(jax.random.key(self.seed), *args, **keywords))

        for path, like in unnest(init(None, *args, **keywords)).items():
            learned = path[0] == "params"
            as_it_is = self.variable_dtype == "float32" or not learned
            self._own[path] = self.add_weight(
                name=".".join(path[1:]),
                shape=like.shape,
                dtype=str(like.dtype) if as_it_is else None,
                initializer=lambda shape, dtype, path=path: values()[path].astype(dtype),
                trainable=learned and path not in self.layer.frozen(),
                autocast=learned,
            )

    def _run(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if keywords.get("training") is None:
            keywords = {k: v for k, v in keywords.items() if k != "training"} | _default_mode(
                self.layer
            )
        if (
            not self.trainable
        ):  # as in Keras' BatchNormalization: what is frozen learns no statistics
            keywords = {**keywords, "training": False}

        def key() -> jax.Array:
            if self._seeds is None:  # whatever was known of the model, it drew nothing
                raise TypeError(
                    "a layer draws random numbers here, but drew none when the model was built"
                )
            return self._seeds.next()

        args = _as_built_for(self.layer, _spread(self.layer, args))
        given = {path: weight.value for path, weight in self._own.items()}
        out, new = self.layer.apply(
            {"params": {}, "state": {}, **nest(given)}, key, *args, **keywords
        )
        for path, value in unnest(new).items():
            self._own[path].assign(value)
        return out if self.compute_dtype == "float32" else jax.tree.map(self._computed, out)

    def _computed(self, value: Any) -> Any:
        return (
            value.astype(self.compute_dtype)
            if jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
            else value
        )

    def compute_output_spec(self, *args: Any, **keywords: Any) -> Any:
        """What a call returns, by a trace of it."""
        return keras.Operation.compute_output_spec(self, *args, **keywords)

    def compute_output_shape(self, *shapes: Any, **named: Any) -> Any:
        """The shape of what a call returns for inputs of these shapes, floats."""
        symbols = (
            keras.tree.map_shape_structure(keras.KerasTensor, s) for s in (*shapes, *named.values())
        )
        return jax.tree.map(lambda symbol: symbol.shape, self.compute_output_spec(*symbols))

    def seqbridge_variables(self) -> Variables:
        """The weights now, for `seqbridge.from_native`."""
        return nest({path: weight.value for path, weight in self._own.items()})

    def get_config(self) -> dict[str, Any]:
        """How to make the layer again, here or, by a pickle of its entries, in another process."""
        pickled = _pickled(self.layer)
        text = None if isinstance(pickled, Exception) else base64.b64encode(pickled).decode()
        return {**super().get_config(), "seed": self.seed, "key": self.key, "pickled": text}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SeqbridgeLayer:
        """The layer again.

        Raises:
            ValueError: It comes from another process, and Keras loads in its safe mode, which
                unpickles nothing.
        """
        pickled, layer = config.pop("pickled"), _alive.get(config.pop("key"))
        if layer is None:
            _refuse_in_safe_mode()
            function, args = pickle.loads(base64.b64decode(pickled))
            layer = function(*args)
        return cls(layer, **config)


def _pickled(layer: PureLayer) -> bytes | Exception:
    """By pickle, or by cloudpickle, if it is installed and pickle can't."""
    try:
        return pickle.dumps(layer.reduce)
    except Exception as error:
        try:
            return importlib.import_module("cloudpickle").dumps(layer.reduce)
        except Exception:
            return error


def _default_mode(layer: PureLayer) -> dict[str, bool]:
    """Evaluation, as in Keras' own layers, unless a mode was chosen; nothing if there is no difference."""
    return {p.name: p.default is True for p in _parameters(layer) if p.name == "training"}


def _as_built_for(layer: PureLayer, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Integers where the model was built for some: Keras makes floats of them by itself."""
    if jax.tree.structure(args) != jax.tree.structure(layer.inputs):
        return args

    def cast(value: Any, like: Any) -> Any:
        floats = jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
        return (
            value.astype(like.dtype)
            if floats and jax.numpy.issubdtype(like.dtype, jax.numpy.integer)
            else value
        )

    return jax.tree.map(cast, args, layer.inputs)


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
        layer: The neutral form of what goes out.
        seed: What initial values, if it has none, and random draws start from.
        **options: `name`, `trainable`, `dtype`, as for every Keras layer.

    Returns:
        A `keras.Layer`.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import flax.linen as nn, jax.numpy as jnp, seqbridge as sb
        >>> layer = sb.to_keras([jnp.tanh, nn.Dense(3)])
        >>> layer(jnp.ones((2, 4))).shape, [weight.name for weight in layer.weights]  # (batch, features)
        ((2, 3), ['Dense_1.bias', 'Dense_1.kernel'])
    """
    return SeqbridgeLayer(layer, seed, **options)


def _call_of(made: SeqbridgeLayer, layer: PureLayer) -> Any:
    """The method `call` of a layer, which tells Keras by its signature what can be given."""

    def call(*args: Any, **keywords: Any) -> Any:
        return made._run(args, keywords)

    parameters = [
        p for p in _parameters(layer) if p.name != "mask" or p.default is p.empty
    ]  # Keras would give its own
    for i, p in enumerate(parameters):
        if p.name == "training":
            parameters[i] = p.replace(
                default=p.default is True
            )  # evaluation, as in Keras' own layers
        elif i and p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD:
            parameters[i] = p.replace(default=None)  # since the first may be a list of all
    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def _parameters(layer: PureLayer) -> list[inspect.Parameter]:
    return list(layer.signature.parameters.values()) if layer.signature else []


def _spread(layer: PureLayer, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Several inputs, which may come as one list."""
    several = sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in _parameters(layer)
    )
    if len(args) == 1 and isinstance(args[0], list | tuple) and several > 1:
        return tuple(args[0])
    return args


def _spec(value: Any) -> Any:
    """A shape in place of an array or of one of Keras' symbols."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return value
    shape = tuple(1 if n is None else n for n in value.shape)
    return jax.ShapeDtypeStruct(shape, keras.backend.standardize_dtype(value.dtype))


def _refuse_in_safe_mode() -> None:
    """Raises if Keras loads a model in its safe mode, in which it makes no lambda."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a lambda isn't safe
        try:
            keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(lambda: None))
        except ValueError as error:
            raise ValueError(
                "the entries of a SeqbridgeLayer are kept by pickle, which can run any code. If "
                "you trust the file, "
                "load it with safe_mode=False"
            ) from error
