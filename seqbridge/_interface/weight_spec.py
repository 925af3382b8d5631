"""Meaning of the weights inside a layer.

A `Part` says which kind of layer weights belong to, and each `Weight` how its arrays become the one
canonical layout and how they come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from seqbridge._interface.paths import Path


def _read_unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _write_unchanged(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Weight:
    """One weight in the canonical layout, and the arrays of a library that it is made of.

    Args:
        paths: The paths of these arrays: `(("params", "kernel"),)`.
        read: From the arrays, as NumPy has them, to the canonical one.
        write: `write(canonical, *shapes)` returns the arrays again, as a tuple if there are
            several. The shapes are those that the arrays must have.
        text: The transformation that `read` does, as it stands in a plan. Empty: none.

    Examples:
        >>> import numpy as np
        >>> weight = Weight.transposed(("params", "weight"), (1, 0))
        >>> weight.read(np.zeros((2, 3))).shape, weight.write(np.zeros((3, 2)), (2, 3)).shape
        ((3, 2), (2, 3))
        >>> weight.text
        'transposed (1, 0)'
    """

    paths: tuple[Path, ...]
    read: Callable[..., np.ndarray] = _read_unchanged
    write: Callable[..., Any] = _write_unchanged
    text: str = ""

    @classmethod
    def at(cls, *path: str) -> Weight:
        """Return a weight that is an array as it is."""
        return cls((path,))

    @classmethod
    def transposed(cls, path: Path, axes: Sequence[int]) -> Weight:
        """Return a weight that is an array with its axes in another order."""
        inverse = np.argsort(axes)

        def read(array: np.ndarray) -> np.ndarray:
            return array.transpose(axes)

        def write(canonical: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
            return canonical.transpose(inverse)

        return cls((path,), read, write, f"transposed ({', '.join(str(axis) for axis in axes)})")

    @classmethod
    def flipped(cls, path: Path, space: int) -> Weight:
        """Return the kernel of a transposed convolution, kept as that of the convolution itself.

        Args:
            path: The path of the array.
            space: The number of spatial axes, which stand before the last two.
        """

        def flip(array: np.ndarray, *_: Any) -> np.ndarray:
            return np.flip(array, tuple(range(-2 - space, -2))).swapaxes(-1, -2)

        return cls((path,), flip, flip, "flipped, last axes swapped")

    @classmethod
    def reshaped(cls, path: Path, shape: tuple[int, ...]) -> Weight:
        """Return a weight that is an array with its axes split or merged.

        Args:
            path: The path of the array.
            shape: The canonical shape, in which one axis may be -1.
        """

        def read(array: np.ndarray) -> np.ndarray:
            return array.reshape(shape)

        def write(canonical: np.ndarray, own: tuple[int, ...]) -> np.ndarray:
            return canonical.reshape(own)

        return cls((path,), read, write, "reshaped")


@dataclass(frozen=True)
class Part:
    """One layer with weights, such as a convolution, in terms that no library owns.

    The kinds, their weights and their options are those of the table in `adapters/README.md`.

    Args:
        kind: `"linear"`, `"conv"`, `"batch_norm"`, ...
        weights: By canonical name: `"kernel"`, `"bias"`, ... Those that a layer lacks are left out.
        options: Settings beside the weights that change the results, such as `epsilon`. Those that
            aren't known are left out.
        channels_first: Whether the channels of an input come before its spatial axes.
        assumed: Whether the options are merely the defaults of the library.
        refused: Why these weights can't be converted for another layer. Empty: they can.

    Examples:
        >>> part = Part("rms_norm", {"scale": Weight.at("params", "scale")}, {"epsilon": 1e-6})
        >>> part.weights["scale"].paths
        (('params', 'scale'),)
    """

    kind: str
    weights: Mapping[str, Weight]
    options: Mapping[str, Any] = field(default_factory=dict)
    channels_first: bool = False
    assumed: bool = False
    refused: str = ""


class Untyped(NamedTuple):
    """Weights of one layer of a file that names arrays and doesn't say what they belong to.

    Attributes:
        name: The name of the layer.
        paths: The paths of all of its arrays.
        as_kind: `as_kind(kind, options)` returns the part that they are if the layer is of that
            kind and has the options of the layer that wants them; None: they can't be.
    """

    name: str
    paths: tuple[Path, ...]
    as_kind: Callable[[str, Mapping[str, Any]], Part | None]


def explicit(
    padding: Any,
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int] | None = None,
    *,
    transposed: bool = False,
) -> Any:
    """Return the padding of a convolution as pairs of numbers, which libraries can be compared by.

    Args:
        padding: `"VALID"`, `"SAME"`, `"SAME_LOWER"`, `"CAUSAL"`, a number, a number for each axis,
            or pairs of numbers.
        window: The sizes of the kernel.
        strides: The strides. With others than 1, `"SAME"` depends on the size of the input and
            stays a string.
        dilation: The dilation of the kernel.
        transposed: Whether the convolution is transposed. Then strings mean what they mean to
            `jax.lax.conv_transpose`, and the numbers are those that
            `jax.lax.conv_general_dilated` takes.

    Examples:
        >>> explicit("valid", (3, 3), (2, 2)), explicit(1, (3,), (1,))
        (((0, 0), (0, 0)), ((1, 1),))
        >>> explicit("SAME", (3, 4), (1, 1))
        ((1, 1), (1, 2))
        >>> explicit("same", (3, 3), (2, 2))
        'SAME'
        >>> explicit("SAME", (3,), (2,), transposed=True)
        ((2, 1),)
    """
    dilation = dilation or [1] * len(window)
    if isinstance(padding, str):
        # The window as it lies on the input, with the gaps of its dilation.
        sizes = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
        return _explicit_word(padding.upper(), sizes, strides, transposed=transposed)
    if isinstance(padding, int):
        padding = [padding] * len(window)
    pairs: list[tuple[int, int]] = []
    for one in padding:
        low, high = (one, one) if isinstance(one, int) else (one[0], one[1])
        pairs.append((int(low), int(high)))
    return tuple(pairs)


def _explicit_word(
    word: str, sizes: Sequence[int], strides: Sequence[int], *, transposed: bool
) -> Any:
    """Return the pairs of numbers that a word stands for, or the word if the input decides."""
    if transposed and word in ("SAME", "VALID"):
        pairs = zip(sizes, strides, strict=True)
        return tuple(_transposed_pair(word, size, stride) for size, stride in pairs)
    if word == "VALID":
        return tuple((0, 0) for _ in sizes)
    totals = [size - 1 for size in sizes]
    if word == "CAUSAL" and len(totals) == 1:
        return ((totals[0], 0),)
    if any(stride != 1 for stride in strides):
        return word
    if word == "SAME":
        return tuple((total // 2, total - total // 2) for total in totals)
    if word == "SAME_LOWER":
        return tuple((total - total // 2, total // 2) for total in totals)
    return word


def _transposed_pair(word: str, size: int, stride: int) -> tuple[int, int]:
    """Return the padding of one axis of a transposed convolution."""
    if word == "VALID":
        total = size + stride - 2 + max(size - stride, 0)
        first = size - 1
    else:
        total = size + stride - 2
        first = size - 1 if stride > size - 1 else -(-total // 2)
    return first, total - first
