"""What it takes to carry one part into another: the new arrays, and whatever would make a difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from seqbridge._interface import Part, Weight
from seqbridge._port.match import DEFAULTS
from seqbridge._port.sides import Piece
from seqbridge._state import Variable, category

# Options that no weights can make up for.
_REFUSED = {
    "reset_after": "the reset gate of one is applied before the matrix product, that of the other after it",
}


class Row(NamedTuple):
    """One line of a plan.

    Attributes:
        source: What the arrays are called that are read.
        target: What the variables are called that are written.
        weight: What they are: `"conv kernel"`.
        shape: In the canonical layout.
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
        about: What a person may accept it by; None: nobody can.
        text: What it is.
    """

    about: str | None
    text: str


def carry(
    source: Piece, target: Piece, part: Part, flatten: Sequence[int] | None, *, from_first: bool
) -> tuple[list[Row], dict[Variable, np.ndarray], list[Problem]]:
    """Carries one piece.

    Args:
        source: The piece of the source.
        target: That of the target.
        part: What the source is.
        flatten: The sizes `(channels, *space)` of what was flattened to be the input of a linear
            layer, if the two sides have their channels at different ends.
        from_first: Whether the source has its channels first.
    """
    own = target.part
    assert isinstance(own, Part)
    for refused, piece in ((part.refused, source), (own.refused, target)):
        if refused:
            return [], {}, [Problem(None, f"{piece.name} can't be carried: {refused}")]
    problems = list(_options(source, target, part, own))
    given = source.canonical(part)
    if flatten is not None:
        for name, array in given.items():
            if name != "bias" or own.kind != "linear":
                given[name] = _reordered(array, flatten, from_first=from_first)
    now = target.canonical(own)
    rows: list[Row] = []
    new: dict[Variable, np.ndarray] = {}
    for name, array in given.items():
        if name not in now and (array != DEFAULTS[name]).any():
            problems.append(
                Problem(
                    None,
                    f"{target.name} has no {name}, and that of {source.name} isn't "
                    f"{DEFAULTS[name]}",
                )
            )
    for name, weight in own.weights.items():
        array = given.get(name)
        if array is None:
            array = np.full(now[name].shape, DEFAULTS[name])
        try:
            out = weight.write(array, *(target.arrays[path].shape for path in weight.paths))
        except ValueError as error:  # what the layer has no place for
            problems.append(Problem(None, f"{target.name}: {error}"))
            continue
        for path, value in zip(
            weight.paths, out if isinstance(out, tuple) else (out,), strict=True
        ):
            box = target.boxes[path]
            problem = _dtype(target.names[path], value, box.value)
            problems += [problem] if problem else []
            new[box] = np.asarray(value).astype(box.value.dtype).reshape(box.value.shape)
        rows.append(_row(name, array, source, target, part, own, flatten))
    return rows, new, problems


def _row(
    name: str,
    array: np.ndarray,
    source: Piece,
    target: Piece,
    part: Part,
    own: Part,
    flatten: Sequence[int] | None,
) -> Row:
    there = own.weights[name]
    names = (
        [source.names[path] for path in part.weights[name].paths] if name in part.weights else ["-"]
    )
    read = (
        _text(part.weights[name], source, array)
        if name in part.weights
        else f"filled with {DEFAULTS[name]:g}"
    )
    write = _text(there, target, array)
    turned = "reordered" if flatten is not None and (name != "bias" or own.kind != "linear") else ""
    if read == write and not turned:
        read = write = ""  # there and back again
    text = "; ".join(filter(None, [read, turned, write and f"inverse of: {write}"])) or "as it is"
    kind = f"{own.kind} {name}".replace("_", " ")
    return Row(
        _names(names),
        _names([target.names[path] for path in there.paths]),
        kind,
        str(array.shape),
        text,
    )


def _text(weight: Weight, piece: Piece, array: np.ndarray) -> str:
    same = len(weight.paths) == 1 and piece.arrays[weight.paths[0]].shape == array.shape
    return "" if same and weight.text == Weight.reshaped((), ()).text else weight.text


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _options(source: Piece, target: Piece, part: Part, own: Part) -> Iterator[Problem]:
    """The options in which the two differ, as far as both are known."""
    for name in sorted(part.options.keys() & own.options.keys()):
        ours, theirs = part.options[name], own.options[name]
        if ours == theirs or (
            isinstance(ours, float) and isinstance(theirs, float) and _near(ours, theirs)
        ):
            continue
        where = f"{source.name} and {target.name}"
        if name in _REFUSED:
            yield Problem(None, f"{where}: {_REFUSED[name]}")
            continue
        by_default = " (what it takes if nobody says; the file doesn't)" if part.assumed else ""
        yield Problem(
            name, f"{where}: {name} is {ours}{by_default} in the source and {theirs} in the target"
        )


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))  # one of them may have been through float32


def _dtype(name: str, value: np.ndarray, like: Any) -> Problem | None:
    """What is lost if an array becomes one of the dtype that the variable has."""
    if value.dtype == like.dtype:
        return None
    text = f"{name} is {like.dtype}, and would take {value.dtype}"
    if category(value.dtype) > category(like.dtype):
        return Problem(None, text)
    back = value.astype(like.dtype).astype(value.dtype)
    same = np.array_equal(back, value, equal_nan=jnp.issubdtype(value.dtype, jnp.inexact))
    return None if same else Problem("dtype", f"{text}, which loses precision")


def _reordered(array: np.ndarray, sizes: Sequence[int], *, from_first: bool) -> np.ndarray:
    """A weight with an entry for each element of a flattened array, for the channels at the other end of that."""
    channels, *space = sizes
    rest = array.shape[1:]
    if from_first:
        return np.moveaxis(array.reshape(channels, *space, *rest), 0, len(space)).reshape(
            array.shape
        )
    return np.moveaxis(array.reshape(*space, channels, *rest), len(space), 0).reshape(array.shape)
