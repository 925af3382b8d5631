"""Conversion of one layer's weights, and whatever would make its results differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._interface import Part, Weight
from seqbridge._port.match import DEFAULTS, Pair
from seqbridge._port.weights import LayerWeights
from seqbridge._state import Variable, category

# Options that no weights can make up for.
_REFUSED = {
    "reset_after": (
        "the reset gate of one is applied before the matrix product, that of the other after it"
    ),
}
_RESHAPED = Weight.reshaped((), ()).text


class PlannedWeight(NamedTuple):
    """One line of a plan.

    Attributes:
        source: The names of the arrays that are read.
        target: The names of the variables that are written.
        weight: What they are: `"conv kernel"`.
        shape: The shape in the canonical layout.
        text: What is done on the way.
    """

    source: str
    target: str
    weight: str
    shape: str
    text: str


class Problem(NamedTuple):
    """Something that would make the results differ.

    Attributes:
        about: The name that it may be accepted by; None: it can't be accepted.
        text: What it is.
    """

    about: str | None
    text: str


@dataclass
class Conversion:
    """Result of a conversion.

    Attributes:
        rows: The weights, as a plan shows them.
        new: The new arrays of variables.
        problems: What would make the results differ, or can't be done.
    """

    rows: list[PlannedWeight] = field(default_factory=list)
    new: dict[Variable, np.ndarray] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: Conversion) -> None:
        """Add another result to this one."""
        self.rows += other.rows
        self.new |= other.new
        self.problems += other.problems


def convert(pair: Pair, flatten: Sequence[int] | None, *, from_first: bool) -> Conversion:
    """Convert the weights of one layer.

    Args:
        pair: The layer of the source, and that of the target.
        flatten: The sizes `(channels, *space)` of the image that was flattened to be the input of
            the layer, if the two sides have their channels at different ends.
        from_first: Whether the source has its channels first.
    """
    source, target, part = pair
    own = target.known_part
    made = Conversion()
    for refused, layer in ((part.refused, source), (own.refused, target)):
        if refused:
            made.problems.append(Problem(None, f"{layer.name} can't be converted: {refused}"))
            return made
    made.problems += _different_options(pair)

    given = source.canonical(part)
    if flatten is not None:
        for name, array in given.items():
            if _is_reordered(name, own, flatten):
                given[name] = _reordered(array, flatten, from_first=from_first)
    now = target.canonical(own)
    for name, array in given.items():
        if name not in now and (array != DEFAULTS[name]).any():
            text = f"{target.name} has no {name}, and that of {source.name} isn't {DEFAULTS[name]}"
            made.problems.append(Problem(None, text))
    for name, weight in own.weights.items():
        array = given.get(name)
        if array is None:
            array = np.full(now[name].shape, DEFAULTS[name])
        shapes = [target.arrays[path].shape for path in weight.paths]
        try:
            written = weight.write(array, *shapes)
        except ValueError as error:  # the layer has no place for these values
            made.problems.append(Problem(None, f"{target.name}: {error}"))
            continue
        values = written if isinstance(written, tuple) else (written,)
        for path, value in zip(weight.paths, values, strict=True):
            variable = target.variables[path]
            like = variable.value
            problem = _lossy_dtype(target.names[path], value, like)
            if problem is not None:
                made.problems.append(problem)
            made.new[variable] = np.asarray(value).astype(like.dtype).reshape(like.shape)
        made.rows.append(_row(name, array, pair, flatten))
    return made


def _row(name: str, array: np.ndarray, pair: Pair, flatten: Sequence[int] | None) -> PlannedWeight:
    source, target, part = pair
    own = target.known_part
    weight = own.weights[name]
    if name in part.weights:
        read_names = _abridged([source.names[path] for path in part.weights[name].paths])
        read = _transformation(part.weights[name], source, array)
    else:
        read_names = "-"
        read = f"filled with {DEFAULTS[name]:g}"
    write = _transformation(weight, target, array)
    steps = [read, f"inverse of: {write}" if write else ""]
    if _is_reordered(name, own, flatten):
        steps.insert(1, "reordered")
    elif read == write:
        steps = []  # there and back again
    return PlannedWeight(
        source=read_names,
        target=_abridged([target.names[path] for path in weight.paths]),
        weight=f"{own.kind} {name}".replace("_", " "),
        shape=str(array.shape),
        text="; ".join(step for step in steps if step) or "as it is",
    )


def _transformation(weight: Weight, layer: LayerWeights, array: np.ndarray) -> str:
    """Return what is done to the arrays of a layer to get the canonical one; empty: nothing."""
    same_shape = len(weight.paths) == 1 and layer.arrays[weight.paths[0]].shape == array.shape
    if same_shape and weight.text == _RESHAPED:
        return ""
    return weight.text


def _abridged(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _different_options(pair: Pair) -> Iterator[Problem]:
    """Yield the options in which two layers differ, as far as both are known."""
    part, own = pair.part, pair.target.known_part
    where = f"{pair.source.name} and {pair.target.name}"
    for name in sorted(part.options.keys() & own.options.keys()):
        theirs, ours = part.options[name], own.options[name]
        if _equal_options(theirs, ours):
            continue
        if name in _REFUSED:
            yield Problem(None, f"{where}: {_REFUSED[name]}")
            continue
        by_default = " (what it takes if nobody says; the file doesn't)" if part.assumed else ""
        text = f"{where}: {name} is {theirs}{by_default} in the source and {ours} in the target"
        yield Problem(name, text)


def _equal_options(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))  # one may have been stored as float32
    return False


def _lossy_dtype(name: str, value: np.ndarray, like: jax.Array) -> Problem | None:
    """Return what is lost if an array takes the dtype of a variable's."""
    if value.dtype == like.dtype:
        return None
    text = f"{name} is {like.dtype}, and would take {value.dtype}"
    if category(value.dtype) > category(like.dtype):
        return Problem(None, text)
    back = value.astype(like.dtype).astype(value.dtype)
    if np.array_equal(back, value, equal_nan=jnp.issubdtype(value.dtype, jnp.inexact)):
        return None
    return Problem("dtype", f"{text}, which loses precision")


def _is_reordered(name: str, part: Part, flatten: Sequence[int] | None) -> bool:
    """Return whether a weight has an entry for each element of the flattened input."""
    if flatten is None:
        return False
    return name != "bias" or part.kind != "linear"


def _reordered(array: np.ndarray, sizes: Sequence[int], *, from_first: bool) -> np.ndarray:
    """Return a weight for a flattened input whose channels stand at the other end.

    Args:
        array: The weight, with an entry for each element of the input on its first axis.
        sizes: The sizes of the input: `(channels, *space)`.
        from_first: Whether the channels came first.
    """
    channels, *space = sizes
    rest = array.shape[1:]
    if from_first:
        image = array.reshape(channels, *space, *rest)
        return np.moveaxis(image, 0, len(space)).reshape(array.shape)
    image = array.reshape(*space, channels, *rest)
    return np.moveaxis(image, len(space), 0).reshape(array.shape)
