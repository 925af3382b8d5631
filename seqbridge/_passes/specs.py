"""Shapes in place of arrays: what `build` and its relatives take, and what errors say of it."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._interface import Call, Inputs
from seqbridge._layers import LayerList, leaves

_NUMBERS = int, float, np.generic


def specs(tree: Any, size: int | None = 1) -> Any:
    """Return shapes in place of arrays, shape tuples and the like; everything else as it is.

    Args:
        tree: Arrays, `jax.ShapeDtypeStruct`s, shapes (a tuple of ints, where None may be anything;
            float32), or nested containers of them.
        size: What None stands for. None: a shape that has one stays as it is.

    Examples:
        >>> specs(((None, 3), jnp.zeros(2, jnp.int32)))
        (ShapeDtypeStruct(shape=(1, 3), dtype=float32), ShapeDtypeStruct(shape=(2,), dtype=int32))
    """
    if type(tree) is tuple and not tree:
        return ()  # no inputs, and no shape
    return jax.tree.map(lambda value: _spec(value, size), tree, is_leaf=_is_shape)


def keyword_specs(tree: Any) -> Any:
    """Return shapes in place of the arrays of a keyword.

    There a tuple of numbers alone, as in `axis=(0, 1)`, is a value and no shape.
    """
    return jax.tree.map(lambda value: _spec(value, 1), tree, is_leaf=_is_open)


def _spec(value: Any, size: int | None) -> Any:
    if size is None and _is_open(value):
        return value
    if _is_shape(value) or _is_open(value):
        sizes = tuple(size if n is None else int(n) for n in _sizes(value))
        return jax.ShapeDtypeStruct(sizes, getattr(value, "dtype", jnp.float32))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        # Keys have an extended dtype.
        dtype = jax.dtypes.canonicalize_dtype(value.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(value.shape, dtype)
    return value


def _is_shape(value: Any) -> TypeGuard[tuple[int | None, ...]]:
    return type(value) is tuple and all(n is None or _is_whole(n) for n in value)


def _is_whole(n: Any) -> bool:
    return isinstance(n, int | np.integer) and not isinstance(n, bool)


def _is_open(value: Any) -> bool:
    return any(n is None for n in _sizes(value))


def _sizes(value: Any) -> tuple[Any, ...]:
    """The sizes that a shape says, or none."""
    if isinstance(value, jax.ShapeDtypeStruct | types.SimpleNamespace):
        return getattr(value, "shape", ())
    return value if _is_shape(value) else ()


def has_open_sizes(inputs: Any) -> bool:
    """Whether a shape in `inputs` has a None."""
    return any(_is_open(value) for value in jax.tree.leaves(inputs, is_leaf=_is_shape))


def are_known(inputs: Inputs, call: Call) -> bool:
    """Whether a call gives arrays, and no shapes in their place."""
    values = jax.tree.leaves(inputs, is_leaf=_is_shape)
    for keywords in (call.keywords, *call.per_layer.values()):
        for name, value in keywords.items():
            if name != "per_layer":
                values += jax.tree.leaves(value, is_leaf=_is_open)
    return not any(_is_shape_of_array(value) for value in values)


def _is_shape_of_array(value: Any) -> bool:
    return _is_shape(value) or _is_open(value) or isinstance(value, jax.ShapeDtypeStruct)


def has_inner_open_sizes(inputs: Any) -> bool:
    """Whether a shape has a None behind its first axis, which is no batch then."""
    shapes = jax.tree.leaves(inputs, is_leaf=_is_shape)
    return any(None in _sizes(shape)[1:] for shape in shapes)


def starts_without_inputs(model: LayerList) -> bool:
    """Whether the first layer takes none, as one that holds a latent or a first token."""
    for first in leaves(model):
        called = first.call_parameters
        given = {*called.flags, called.key_name}
        needed = set(called.positional) & set(called.required) - given
        if first.pure.signature is None or needed:
            return False
        parameters = first.pure.signature.parameters.values()
        return all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    return False


def check_inputs(inputs: Inputs, model: LayerList | None = None) -> None:
    """Raise if an input of `build` is no array and no shape, or if a model needs one.

    Args:
        inputs: The inputs.
        model: The model, if it may be one that takes none.
    """
    if not inputs and model is not None and starts_without_inputs(model):
        return
    for value in inputs or (None,):
        if _is_shape(value):
            if any(n is not None and n < 0 for n in value):
                raise ValueError(
                    f"a size that may be anything is None, not -1: got the shape {value}"
                )
        elif value is None or isinstance(value, (str, *_NUMBERS)) or _is_row_of_numbers(value):
            got = repr(value) if inputs else "nothing"
            raise TypeError(
                "a shape or an array is wanted for each input, model.build((None, 28, 28, 1)); "
                f"got {got}"
            )


def _is_row_of_numbers(value: Any) -> bool:
    """Whether a list or a tuple holds numbers, and may have been meant as a shape."""
    if not isinstance(value, list | tuple):
        return False
    return all(n is None or isinstance(n, _NUMBERS) for n in value)


def check_arrays(inputs: Inputs) -> None:
    """Raise if an input of a call is a shape."""
    for value in inputs:
        if _is_shape(value) and value:
            raise TypeError(
                f"a call takes arrays, and got the shape {value}: model.build({value}) takes shapes"
            )


@contextlib.contextmanager
def explained(inputs: Inputs) -> Iterator[None]:
    """Add to an error what was made of the inputs, where that may be what is wrong."""
    try:
        yield
    except (TypeError, ValueError) as error:
        notes = getattr(error, "__notes__", ())
        if any(map(_is_shape, inputs)) and "integer" in str(error):
            error.add_note(
                "a shape is that of floats; for other inputs: jax.ShapeDtypeStruct((1, 8), "
                "jnp.int32)"
            )
        elif has_open_sizes(inputs) and any(note.startswith("in layer") for note in notes):
            error.add_note("the inputs above have 1 in place of None")
        raise
