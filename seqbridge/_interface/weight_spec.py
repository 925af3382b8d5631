"""What the weights inside a layer are: the kind of layer that they belong to, and their one canonical layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from seqbridge._interface.paths import Path


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _back(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Weight:
    """One weight in the canonical layout, and the arrays of a library that it is made of.

    Args:
        paths: Where these arrays stand: `(("params", "kernel"),)`.
        read: From the arrays, as NumPy has them, to the canonical one.
        write: `write(canonical, *shapes)` returns the arrays again, as a tuple if there are
            several. The shapes are those that the arrays must have.
        text: What is done to get the one from the others, as it stands in a plan. Empty: nothing.

    Examples:
        >>> import numpy as np
        >>> weight = Weight.transposed(("params", "weight"), (1, 0))
        >>> weight.read(np.zeros((2, 3))).shape, weight.write(np.zeros((3, 2)), (2, 3)).shape
        ((3, 2), (2, 3))
        >>> weight.text
        'transposed (1, 0)'
    """

    paths: tuple[Path, ...]
    read: Callable[..., np.ndarray] = _same
    write: Callable[..., Any] = _back
    text: str = ""

    @classmethod
    def at(cls, *path: str) -> Weight:
        """The array as it is."""
        return cls((path,))

    @classmethod
    def transposed(cls, path: Path, axes: Sequence[int]) -> Weight:
        """The array with its axes in another order."""
        back = np.argsort(axes)
        text = f"transposed ({', '.join(map(str, axes))})"
        return cls((path,), lambda a: a.transpose(axes), lambda c, shape: c.transpose(back), text)

    @classmethod
    def flipped(cls, path: Path, space: int) -> Weight:
        """The kernel of a transposed convolution that its library keeps as that of the convolution itself.

        Args:
            path: Where it stands.
            space: How many axes of space it has, before the last two.
        """

        def flip(a: np.ndarray, *_: Any) -> np.ndarray:
            return np.flip(a, tuple(range(-2 - space, -2))).swapaxes(-1, -2)

        return cls((path,), flip, flip, "flipped, last axes swapped")

    @classmethod
    def reshaped(cls, path: Path, shape: tuple[int, ...]) -> Weight:
        """The array with its axes split or merged: `shape` is the canonical one, where -1 is what is left."""
        return cls((path,), lambda a: a.reshape(shape), lambda c, own: c.reshape(own), "reshaped")


@dataclass(frozen=True)
class Part:
    """One layer with weights, such as a convolution, in terms that no library owns.

    The kinds, their weights and their options are those of the table in `adapters/README.md`.

    Args:
        kind: `"linear"`, `"conv"`, `"batch_norm"`, ...
        weights: By canonical name: `"kernel"`, `"bias"`, ... What a layer does without is left out.
        options: What changes the results beside the weights, such as `epsilon`. What isn't known is
            left out.
        channels_first: Whether the features of what the layer takes come before its axes of space.
        assumed: Whether the options are only what its library takes if nobody says.
        refused: Why these weights can't be carried into another layer.

    Examples:
        >>> Part("rms_norm", {"scale": Weight.at("params", "scale")}, {"epsilon": 1e-6}).weights["scale"].paths
        (('params', 'scale'),)
    """

    kind: str
    weights: Mapping[str, Weight]
    options: Mapping[str, Any] = field(default_factory=dict)
    channels_first: bool = False
    assumed: bool = False
    refused: str = ""


class Untyped(NamedTuple):
    """The weights of one layer of a file that names arrays and doesn't say what they belong to.

    Attributes:
        name: The name of the layer.
        paths: All of its arrays.
        as_kind: `as_kind(kind, options)` is the part that they are if the layer is of that kind and
            has the options of the layer that wants them; None: they can't be.
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
    """The padding of a convolution as pairs of numbers, so that two libraries' words for one thing are equal.

    Args:
        padding: `"VALID"`, `"SAME"`, `"SAME_LOWER"`, `"CAUSAL"`, a number, a number for each axis,
            or pairs of numbers.
        window: The sizes of the kernel.
        strides: The strides. With others than 1, `"SAME"` depends on the size of the input and
            stays a word.
        dilation: The dilation of the kernel.
        transposed: Whether it is that of a transposed convolution, where the words mean what they
            mean to `jax.lax.conv_transpose` and the numbers are those that
            `jax.lax.conv_general_dilated` takes.

    Examples:
        >>> explicit("valid", (3, 3), (2, 2)), explicit("SAME", (3, 4), (1, 1)), explicit(1, (3,), (1,))
        (((0, 0), (0, 0)), ((1, 1), (1, 2)), ((1, 1),))
        >>> explicit("same", (3, 3), (2, 2))
        'SAME'
        >>> explicit("SAME", (3,), (2,), transposed=True)
        ((2, 1),)
    """
    dilation = dilation or [1] * len(window)
    if isinstance(padding, str):
        padding = padding.upper()
        if transposed and padding in ("SAME", "VALID"):
            sizes = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
            return tuple(_words(padding, k, s) for k, s in zip(sizes, strides, strict=True))
        if padding == "VALID":
            return tuple((0, 0) for _ in window)
        total = [d * (k - 1) for k, d in zip(window, dilation, strict=True)]
        if padding == "CAUSAL" and len(window) == 1:
            return ((total[0], 0),)
        if padding in ("SAME", "SAME_LOWER") and all(stride == 1 for stride in strides):
            pairs = [(n // 2, n - n // 2) for n in total]
            return tuple(pair if padding == "SAME" else pair[::-1] for pair in pairs)
        return padding
    if isinstance(padding, int):
        padding = [padding] * len(window)
    return tuple(
        (int(p), int(p)) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding
    )


def _words(padding: str, size: int, stride: int) -> tuple[int, int]:
    total = size + stride - 2 + (max(size - stride, 0) if padding == "VALID" else 0)
    first = size - 1 if padding == "VALID" or stride > size - 1 else -(-total // 2)
    return first, total - first
