"""`diff`: which variables differ between two models, or a model and a file, and by how much."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import file_path, format_of, read
from seqbridge._interface import Column, filled, path_text, plain, shown, table, to_html
from seqbridge._state import Locks, Stateful, refuse_in_trace
from seqbridge._variables.saving import bare, stored_in

_COLUMNS = (
    Column("variable", least=30),
    Column("difference", least=12),
    Column("numbers that differ", right=True),
    Column("largest", right=True),
    Column("relative", right=True),
)


@dataclass(frozen=True)
class Different:
    """One variable that differs.

    Attributes:
        name: Its name, in the first of the two where it stands in both.
        what: `"value"`, `"value, 3 not finite"` (`largest` is of the rest), `"shape (2, 3), (3,
            2)"`, `"dtype float32, bfloat16"`, `"another key"`, `"only in the first"` or `"only in
            the second"`.
        changed: How many of its numbers differ.
        size: How many it has.
        largest: The largest absolute difference.
        relative: The norm of the difference over that of the first.
    """

    name: str
    what: str
    changed: int = 0
    size: int = 0
    largest: float = 0.0
    relative: float = 0.0


class Differences(Sequence[Different]):
    """What `diff` has found. It prints itself as a table, and is false if there is no difference.

    Attributes:
        compared: How many variables were compared.
    """

    def __init__(self, found: Sequence[Different], compared: int):
        self._found = tuple(found)
        self.compared = compared

    @overload
    def __getitem__(self, index: int) -> Different: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Different, ...]: ...
    def __getitem__(self, index: int | slice) -> Different | tuple[Different, ...]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variables that differ."""
        return tuple(row.name for row in self._found)

    def __str__(self) -> str:
        return shown(*self._table(), self._footer()) if self else self._footer()[0]

    __repr__ = __str__

    def text(self) -> str:
        """The table as plain text, as wide as it need be."""
        return "\n".join([table(*self._table()), *self._footer()])

    def _repr_html_(self) -> str:
        return to_html(*self._table(), self._footer())

    def _footer(self) -> list[str]:
        return [
            f"{len(self) or 'none'} of {self.compared} variables "
            f"differ{'s' if len(self) == 1 else ''}"
        ]

    def _table(self) -> tuple[list[Column], list[list[str]]]:
        return filled(_COLUMNS, [_cells(row) for row in self._found], 2)


def _cells(row: Different) -> list[str]:
    numbers = [f"{row.changed:,} of {row.size:,}", f"{row.largest:.3g}", f"{row.relative:.3g}"]
    return [row.name, row.what, *(numbers if row.changed else [""] * 3)]


def diff(
    a: Any, b: Any, /, *, atol: float = 0.0, rtol: float = 0.0, allow_pickle: bool = False
) -> Differences:
    """Which variables differ, by name, and by how much.

    Variables are compared by their names; those of classes in a name needn't be the same.

    Args:
        a: A model, a layer, a collection, an optimizer; the pure form or another tree of arrays; or
            the path of a file of weights.
        b: Likewise.
        atol: Numbers that differ by no more are taken for the same.
        rtol: Likewise, relative to the second.
        allow_pickle: See `read`.

    Raises:
        WeightsError, OSError: What `read` raises.
        RuntimeError: A model isn't built.
        TypeError: Something else is given.

    Examples:
        >>> import copy, jax.numpy as jnp
        >>> from seqbridge import Sequential
        >>> model = Sequential([lambda x, w=jnp.ones(4): x * w, lambda x, b=jnp.ones(4): x + b])
        >>> trained = copy.deepcopy(model)
        >>> trained[0].w.assign([1.0, 1.0, 1.0, 1.5])
        >>> print(diff(model, trained))
        variable                     difference  numbers that differ  largest  relative
        -------------------------------------------------------------------------------
        (Sequential)[0](<lambda>).w  value                    1 of 4      0.5      0.25
        1 of 2 variables differs
        >>> bool(diff(model, model))
        False
    """
    refuse_in_trace("a comparison")
    first, second = (_Side(x, allow_pickle) for x in (a, b))
    found = []
    matched = {}
    for name, array in first.arrays.items():
        other = second.find(name)
        if other is None:
            found.append(Different(name, "only in the first"))
            continue
        matched[other] = name
        if row := _compared(name, array, second.arrays[other], atol, rtol):
            found.append(row)
    found += [
        Different(name, "only in the second") for name in second.arrays if name not in matched
    ]
    return Differences(found, len(first.arrays) + len(second.arrays) - len(matched))


class _Side:
    """The arrays of one side, by name."""

    def __init__(self, given: Any, allow_pickle: bool):
        self.arrays = _arrays(given, allow_pickle)
        often = Counter(map(plain, self.arrays))
        self._plain = {plain(name): name for name in self.arrays if often[plain(name)] == 1}

    def find(self, name: str) -> str | None:
        return name if name in self.arrays else self._plain.get(plain(name))


def _arrays(given: Any, allow_pickle: bool) -> dict[str, Any]:
    if isinstance(given, Stateful):
        if not getattr(given, "built", True):
            raise RuntimeError(
                "this isn't built, so it has no variables yet: call build(...) first, then diff"
            )
        table = given.variables_by_name()
        with Locks(table.values()):
            return {name: box.value for name, box in table.items()}
    if isinstance(given, str | os.PathLike):
        path = file_path(given)
        if format_of(path) == "safetensors":
            return stored_in(path)[0]
        given = read(path, allow_pickle=allow_pickle)
    if isinstance(given, Mapping) and given and given.keys() <= {"params", "state"}:
        given = {name: array for part in given.values() for name, array in part.items()}
    leaves = jax.tree_util.tree_leaves_with_path(given)
    if given is None or any(not path or isinstance(leaf, Stateful) for path, leaf in leaves):
        got = "a tree with a model in it" if leaves and leaves[0][0] else type(given).__name__
        raise TypeError(
            f"diff takes models, layers, collections, trees of arrays and paths; got {got}"
        )
    arrays = {
        ".".join(path_text(path)): leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        for path, leaf in leaves
    }
    if strange := next(
        (name for name, array in arrays.items() if str(array.dtype)[:2] in ("ob", "<U", "|S")), None
    ):
        raise TypeError(f"diff compares numbers, and {strange} holds none")
    return arrays


def _compared(name: str, a: Any, b: Any, atol: float, rtol: float) -> Different | None:
    if a.shape != b.shape:
        return Different(name, f"shape {a.shape}, {b.shape}")
    dtypes = f"dtype {a.dtype}, {b.dtype}" if a.dtype != b.dtype else ""
    if any(
        jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in (a, b)
    ):  # of which no number means anything
        same = not dtypes and np.array_equal(bare(a), bare(b))
        return None if same else Different(name, dtypes or "another key")
    a, b = np.asarray(a), np.asarray(b)
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    one, two = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        same = (one == two if dtypes else a == b) | (np.isnan(one) & np.isnan(two))
        apart = np.where(
            same, 0.0, np.abs(_minus(a, b) if not dtypes and a.dtype.kind in "iu" else one - two)
        )
        near = np.isfinite(two) & (
            apart <= atol + rtol * np.where(np.isfinite(two), np.abs(two), 0.0)
        )
    far = ~same & ~near if atol or rtol else ~same
    if far.any():
        strange = far & ~np.isfinite(apart)
        if not strange[far].all():  # what can be measured is, whatever else there is
            apart = np.where(strange, 0.0, apart)
        norm = float(np.linalg.norm(one[np.isfinite(one)]))
        relative = float(np.linalg.norm(apart.ravel())) / norm if norm else float("inf")
        notes = [f"{int(strange.sum()):,} not finite"] if strange.any() else []
        what = ", ".join(["value", *notes, *filter(None, [dtypes])])
        return Different(name, what, int(far.sum()), a.size, float(apart.max()), relative)
    return Different(name, dtypes) if dtypes else None


def _minus(a: Any, b: Any) -> Any:
    """The difference of integers, of which floats don't hold all."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
