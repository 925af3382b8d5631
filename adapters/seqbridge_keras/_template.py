"""A built copy of a Keras layer, which runs with whatever values it is given and keeps none."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras

from seqbridge import Annotated, Variables, nest, unnest
from seqbridge_keras._names import Path, former_names, name_weights, sublayers

_SEED = "seed_generator_state"  # what Keras calls the variable of a `keras.random.SeedGenerator`
_random_lock = threading.RLock()


class Template:
    """A built layer, and the names of its weights.

    Args:
        layer: A built layer that nobody else changes, or one whose flags `trainable` are not to be
            looked into.
        copy: A copy of it that may be changed, to find which weights could be trained at all.

    Attributes:
        layer: The layer.
        places: Where each of its weights stands in the variables, in Keras' order.
        shapes: The shapes of the weights, by their places.
        draws: Whether the layer draws random numbers.
    """

    def __init__(self, layer: keras.Layer, copy: keras.Layer | None = None):
        self.layer = layer
        paths, former = name_weights(layer), former_names(layer)
        frozen = [not variable.trainable for variable in layer.weights]
        trainable = _find_trainable(copy or layer, thaw=copy is not None)
        self.places: list[Path] = []
        self.shapes: dict[Path, tuple[int, ...]] = {}
        self._former: list[str] = []
        self._frozen: list[bool] = []  # of each weight, whether it could be trained and isn't
        for i, variable in enumerate(layer.weights):
            collection = "params" if trainable[i] else "state"
            place = (collection, *paths[id(variable)])
            self.places.append(place)
            self.shapes[place] = tuple(variable.shape)
            self._frozen.append(trainable[i] and frozen[i])
            self._former.append(former[id(variable)])
        self.draws = bool(_seed_variables(layer))

    def values(self) -> Variables:
        """Return the weights now; their notes say in which order Keras has them."""
        values = {}
        for i, (place, variable) in enumerate(zip(self.places, self.layer.weights, strict=True)):
            values[place] = Annotated(
                variable.value, i, trainable=not self._frozen[i], former=self._former[i]
            )
        return nest(values)

    def fits(self, variables: Variables) -> bool:
        """Whether these could be the variables of this layer."""
        return {place: array.shape for place, array in unnest(variables).items()} == self.shapes

    def call(
        self,
        variables: Variables,
        key: jax.Array | None,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> tuple[Any, Variables]:
        """Return the outputs and the state after a call of the layer with these variables."""
        arrays = unnest(variables)
        weights = list(zip(self.places, self.layer.weights, strict=True))
        values = [(variable, arrays[place]) for place, variable in weights]
        seeds = _seed_variables(self.layer)
        if seeds and key is not None:
            bits = jax.random.bits(key, (len(seeds), *seeds[0].shape), "uint32")
            values += zip(seeds, bits, strict=True)
        # Not `stateless_call`, which hands `training` to no layer inside and casts no inputs.
        with keras.StatelessScope(values) as scope:
            out = self.layer(*args, **keywords)
        state = {}
        for place, variable in weights:
            if place[0] == "state":
                state[place] = scope.get_current_value(variable)
        return out, nest(state)


def build(
    make: Callable[[], keras.Layer],
    key: jax.Array,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
) -> Template:
    """Make a layer, and build it for inputs of these shapes, with values that the key decides."""
    # Nothing of a trace may stay in the layer.
    with jax.ensure_compile_time_eval(), _seeded_by(key):
        layer = make()
        inputs, options = jax.tree.map(_as_symbol, (args, keywords))
        layer(*inputs, **options)
        return Template(layer, layer)


def clone(layer: keras.Layer) -> keras.Layer:
    """Return a new layer like this one, which isn't built.

    Raises:
        TypeError: Keras can't make one.
    """
    name = type(layer).__name__
    try:
        if isinstance(layer, keras.Sequential):
            # Its own configuration can't hold classes that aren't registered.
            layers = [clone(inner) for inner in layer.layers]
            cls: Any = type(layer)
            return cls(layers, name=layer.name, trainable=layer.trainable)
        if isinstance(layer, keras.layers.Lambda):
            # Nor can one hold a function that can't be imported.
            return keras.layers.Lambda(layer.function, arguments=layer.arguments, name=layer.name)
        return type(layer).from_config(layer.get_config())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            f"{name} isn't built, and seqbridge builds a copy, which Keras can't make: give "
            f"partial({name}, ...), or the layer after layer.build(...), or give its class "
            "get_config() and **kwargs"
        ) from error


def _find_trainable(layer: keras.Layer, *, thaw: bool) -> list[bool]:
    """Return for each weight of a layer whether it can be trained.

    Args:
        layer: The layer.
        thaw: Whether its flags `trainable` may be set for this moment. Otherwise what is frozen
            counts as what can't be trained.
    """
    before = [(inner, inner.trainable) for inner in sublayers(layer)]
    if thaw and not all(flag for _, flag in before):
        layer.trainable = True
    trainable = [variable.trainable for variable in layer.weights]
    for inner, flag in before:
        if inner.trainable != flag:
            inner.trainable = flag
    return trainable


@contextlib.contextmanager
def _seeded_by(key: jax.Array) -> Iterator[None]:
    """Let a key decide the seeds that Keras draws, from Python's generator, if it is given none."""
    seed = int(jax.random.bits(key))
    with _random_lock:
        before = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)


def _seed_variables(layer: keras.Layer) -> list[keras.Variable]:
    return [variable for variable in layer.variables if variable.path.endswith(_SEED)]


def _as_symbol(value: Any) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return keras.KerasTensor(value.shape, str(value.dtype))
    return value
