"""A built copy of a Keras layer, which runs with whatever values it is given and keeps none."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras

from seqbridge import Annotated, Variables, nest, unnest

_SEED = "seed_generator_state"  # what Keras calls the variable of a `keras.random.SeedGenerator`
_random = threading.RLock()


class Template:
    """A built layer, and the names of its weights.

    Args:
        layer: A built layer that nobody else changes, or one whose flags `trainable` are not to be
            looked into.
        clone: A copy of it that may be changed, to find which weights could be trained at all.
    """

    def __init__(self, layer: keras.Layer, clone: keras.Layer | None = None):
        self.layer = layer
        names = _names(layer)
        frozen = [not v.trainable for v in layer.weights]
        with _thawed(clone or layer, allowed=clone is not None) as thawed:
            able = [v.trainable for v in thawed.weights]
        self.places: list[tuple[str, ...]] = [
            ("params" if a else "state", *names[id(v)])
            for a, v in zip(able, layer.weights, strict=True)
        ]
        self._frozen = [a and f for a, f in zip(able, frozen, strict=True)]
        self.shapes = {p: tuple(v.shape) for p, v in zip(self.places, layer.weights, strict=True)}
        self.draws = any(v.path.endswith(_SEED) for v in layer.variables)

    def values(self) -> Variables:
        """The weights now; their notes say in which order Keras has them."""
        weights = zip(self.places, self.layer.weights, self._frozen, strict=True)
        return nest(
            {p: Annotated(v.value, i, trainable=not f) for i, (p, v, f) in enumerate(weights)}
        )

    def fits(self, variables: Variables) -> bool:
        """Whether these could be the variables of this layer."""
        return {place: array.shape for place, array in unnest(variables).items()} == self.shapes

    def call(
        self, variables: Variables, key: Any, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """`(outputs, state)`."""
        given = unnest(variables)
        weights = list(zip(self.places, self.layer.weights, strict=True))
        values = [(v, given[place]) for place, v in weights]
        seeds = [v for v in self.layer.variables if v.path.endswith(_SEED)]
        if seeds and key is not None:
            values += zip(
                seeds, jax.random.bits(key, (len(seeds), *seeds[0].shape), "uint32"), strict=True
            )
        # Not `stateless_call`, which hands `training` to no layer inside and casts no inputs.
        with keras.StatelessScope(values) as scope:
            out = _run(self.layer, args, keywords)
        return out, nest(
            {place: scope.get_current_value(v) for place, v in weights if place[0] == "state"}
        )


def build(
    make: Callable[[], keras.Layer], key: Any, args: tuple[Any, ...], keywords: dict[str, Any]
) -> Template:
    """A new layer, built for inputs of these shapes, with initial values that only the key decides."""
    with (
        jax.ensure_compile_time_eval(),
        _drawing_from(key),
    ):  # so that nothing of a trace stays in the layer
        layer = make()
        inputs, options = jax.tree.map(_symbol, (args, keywords))
        _run(layer, inputs, options)
        return Template(layer, layer)


def clone(layer: keras.Layer) -> keras.Layer:
    """A new layer like this one, which isn't built.

    Raises:
        TypeError: Keras can't make one.
    """
    name = type(layer).__name__
    try:
        if isinstance(
            layer, keras.Sequential
        ):  # its own configuration can't hold classes that aren't registered
            made: Any = type(layer)
            return made(
                [clone(inner) for inner in layer.layers], name=layer.name, trainable=layer.trainable
            )
        if isinstance(
            layer, keras.layers.Lambda
        ):  # nor can one hold a function that can't be imported
            return keras.layers.Lambda(layer.function, arguments=layer.arguments, name=layer.name)
        return type(layer).from_config(layer.get_config())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            f"{name} isn't built, and seqbridge builds a copy, which Keras can't make: give "
            f"partial({name}, ...), or "
            "the layer after layer.build(...), or give its class get_config() and **kwargs"
        ) from error


def sublayers(layer: keras.Layer) -> Iterator[keras.Layer]:
    """The layer, and all layers inside, outermost first."""
    seen: dict[int, keras.Layer] = {}
    waiting = [layer]
    while waiting:
        now = waiting.pop(0)
        if id(now) not in seen:
            seen[id(now)] = now
            waiting += [
                v
                for v in keras.tree.flatten(list(vars(now).values()))
                if isinstance(v, keras.Layer)
            ]
    return iter(seen.values())


@contextlib.contextmanager
def _thawed(layer: keras.Layer, *, allowed: bool) -> Iterator[keras.Layer]:
    """The layer with everything trainable that can be."""
    before = [(inner, inner.trainable) for inner in sublayers(layer)]
    if allowed and not all(flag for _, flag in before):
        layer.trainable = True
    yield layer
    for inner, flag in before:
        if inner.trainable != flag:
            inner.trainable = flag


@contextlib.contextmanager
def _drawing_from(key: Any) -> Iterator[None]:
    """Lets a key decide the seeds that Keras draws, for whatever has none, from Python's own generator."""
    seed = int(jax.random.bits(key))
    with _random:
        before = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)


def _run(layer: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return layer(*args, **keywords)


def _symbol(value: Any) -> Any:
    return (
        keras.KerasTensor(value.shape, str(value.dtype))
        if isinstance(value, jax.ShapeDtypeStruct)
        else value
    )


def _names(layer: keras.Layer) -> dict[int, tuple[str, ...]]:
    """The path of each weight below the layer, without the numbers that Keras counts in the whole process."""
    classes: dict[Any, str] = {inner.path: type(inner).__name__ for inner in sublayers(layer)}
    found: dict[tuple[str, ...], int] = {}
    shown: dict[str, str] = {}  # of each full path, its last part
    names = {}
    for variable in layer.weights:
        parts = variable.path.split("/")
        path: tuple[str, ...] = ()
        for i in range(1, len(parts)):
            full = "/".join(parts[: i + 1])
            if full not in shown:
                base = re.sub(r"_\d+$", "", parts[i])
                auto = _snake_case(classes.get(full, "Variable"))
                part = base if base == auto else parts[i]
                n = found[(*path, part)] = found.get((*path, part), -1) + 1
                shown[full] = f"{part}_{n}" if n else part
            path = (*path, shown[full])
        names[id(variable)] = path or (parts[0],)
    return names


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
