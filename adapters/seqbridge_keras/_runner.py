"""A Keras layer run by built copies of it, one for each set of shapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import jax
import keras

from seqbridge import Annotated, Part, Variables, nest
from seqbridge_keras._files import read_weights
from seqbridge_keras._names import sublayers
from seqbridge_keras._parts import parts
from seqbridge_keras._template import Template, build, clone

# Built copies of each entry, kept so that a copy of a model needs none of its own.
_templates: WeakKeyDictionary[Any, list[Template]] = WeakKeyDictionary()


class Runner:
    """The functions of a `PureLayer` that build and run a Keras layer.

    Args:
        entry: The entry: the layer, or a `partial` that makes such a layer.
        layer: The layer. It is changed by nothing here.
        max_inputs: How many inputs a call takes by position. None: any number.

    Attributes:
        built: Whether the entry came with its weights.
        takes_key: Whether the layer may draw random numbers.

    Raises:
        TypeError: The layer isn't built, and can't be copied.
    """

    def __init__(self, entry: Any, layer: keras.Layer, max_inputs: int | None):
        self._entry = entry
        self._layer = layer
        self._max_inputs = max_inputs
        self._last = threading.local()  # `template` is the one that has run last
        self._templates = _templates.setdefault(entry, [])
        self.built: bool = layer.built and layer is entry
        if self.built:
            # In a list of its own: behind a weak key nothing may stand that holds the entry, or it
            # would live for ever.
            self._templates = self._templates or [Template(layer, _copy_frozen(layer))]
        elif layer is entry:
            clone(layer)  # if that can't be done, it is better known now
        self.takes_key = self._templates[0].draws if self.built else True

    def init(self, key: jax.Array, /, *args: Any, **keywords: Any) -> Variables:
        """Return initial values for inputs of these shapes."""
        template = build(self._make, key, self._pack(args), keywords)
        if all(known.shapes != template.shapes for known in self._templates):
            self._templates.append(template)
        return template.values()

    def apply(
        self, variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        """Return the outputs and the new state.

        Raises:
            ValueError: The variables are those of inputs of other shapes.
        """
        for template in self._templates:
            if template.fits(variables):
                self._last.template = template
                return template.call(variables, key, self._pack(args), keywords)
        with jax.ensure_compile_time_eval():
            self.init(jax.random.key(0), *_as_specs(args), **_as_specs(keywords))
        template = self._templates[-1]
        if not template.fits(variables):
            raise ValueError(
                f"the weights don't fit what {type(self._layer).__name__} makes for inputs of "
                "this shape"
            )
        return template.call(variables, key, self._pack(args), keywords)

    def values(self) -> Variables:
        """Return the values that a built layer has."""
        return self._templates[0].values()

    def sources(self) -> dict[tuple[str, ...], keras.Variable]:
        """Return the variables of a built layer by their places."""
        if not self.built:
            return {}
        return dict(zip(self._templates[0].places, self._layer.weights, strict=True))

    def from_native(self, tree: Any) -> Variables:
        """Return the variables that a layer has, or that a list of weights are.

        Raises:
            RuntimeError: The layer isn't built.
            ValueError: The weights have other shapes.
        """
        if isinstance(tree, keras.Layer):
            weights = [variable.value for variable in tree.weights]
        else:
            weights = list(tree)
        if not self._templates:
            raise RuntimeError(
                f"the order of this {type(self._layer).__name__}'s weights isn't known before its "
                "first call"
            )
        shapes = [jax.numpy.shape(weight) for weight in weights]
        for template in self._templates:
            if shapes == list(template.shapes.values()):
                return nest(dict(zip(template.places, weights, strict=True)))
        wanted = list(self._templates[-1].shapes.values())
        raise ValueError(f"the weights have shapes {shapes}, and should have {wanted}")

    def parts(self, run: Callable[[], object]) -> Iterator[Part]:
        """Return what the weights are, of the copy for the inputs that `run` calls the layer on."""
        if len(self._templates) == 1:
            return parts(self._templates[0])
        run()
        return parts(self._last.template)

    def read(self, path: str, native: object) -> list[Any]:
        """Return the weights of the layer in a file."""
        return read_weights(path, [template.layer for template in reversed(self._templates)])

    def _make(self) -> keras.Layer:
        """Return a new layer, which isn't built."""
        return clone(self._layer) if self._layer is self._entry else self._entry()

    def _pack(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return several inputs as one list, as a layer that merges them takes it, or a model."""
        if self._max_inputs is None or len(args) <= self._max_inputs:
            return args
        return (list(args),)


def to_native(variables: Variables) -> list[Any]:
    """Return what `layer.get_weights()` returns, and `layer.set_weights` takes."""
    leaves = jax.tree.leaves(variables, is_leaf=lambda leaf: isinstance(leaf, Annotated))
    return [leaf.value for leaf in sorted(leaves, key=lambda leaf: leaf.note)]


def _copy_frozen(layer: keras.Layer) -> keras.Layer | None:
    """Return a built copy to look into, if anything is frozen and Keras can make one."""
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


def _as_specs(tree: Any) -> Any:
    """Return a tree with shapes in place of arrays."""

    def as_spec(value: Any) -> Any:
        has_shape = hasattr(value, "shape")
        return jax.ShapeDtypeStruct(value.shape, value.dtype) if has_shape else value

    return jax.tree.map(as_spec, tree)
