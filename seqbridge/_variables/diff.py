"""`diff`: the variables that differ between two models, or a model and a file, and by how much."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import jax
import numpy as np

from seqbridge._files import file_path, format_of, read
from seqbridge._interface import Column, filled, path_text, plain, shown, table, to_html
from seqbridge._state import Locks, Stateful, refuse_in_trace
from seqbridge._variables.matching import is_key
from seqbridge._variables.saving import storable, stored_in

_COLUMNS = (
    Column("variable", least=30),
    Column("difference", least=12),
    Column("numbers that differ", right=True),
    Column("largest", right=True),
    Column("relative", right=True),
)


@dataclass(frozen=True)
class Different:
    """Variable that differs.

    Attributes:
        name: Its name, in the first of the two where it stands in both.
        what: The kind of difference: `"value"`, `"value, 3 not finite"` (`largest` is of the
            rest), `"shape (2, 3), (3, 2)"`, `"dtype float32, bfloat16"`, `"another key"`, `"only in
            the first"` or `"only in the second"`.
        changed: How many of its numbers differ.
        size: How many numbers it has.
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
    """Result of `diff`: a table when it is printed, and false if there is no difference.

    Attributes:
        compared: The number of variables that were compared.
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
        if not self:
            return self._footer()[0]
        return shown(*self._table(), self._footer())

    __repr__ = __str__

    def text(self) -> str:
        """Return the table as plain text, as wide as it need be."""
        return "\n".join([table(*self._table()), *self._footer()])

    def _repr_html_(self) -> str:
        return to_html(*self._table(), self._footer())

    def _footer(self) -> list[str]:
        count = len(self) or "none"
        verb = "differs" if len(self) == 1 else "differ"
        return [f"{count} of {self.compared} variables {verb}"]

    def _table(self) -> tuple[list[Column], list[list[str]]]:
        return filled(_COLUMNS, [_cells(row) for row in self._found], 2)


def _cells(row: Different) -> list[str]:
    if not row.changed:
        return [row.name, row.what, "", "", ""]
    changed = f"{row.changed:,} of {row.size:,}"
    return [row.name, row.what, changed, f"{row.largest:.3g}", f"{row.relative:.3g}"]


def diff(
    a: Any, b: Any, /, *, atol: float = 0.0, rtol: float = 0.0, allow_pickle: bool = False
) -> Differences:
    """Compare the variables of two models, and say which differ, and by how much.

    Variables are compared by their names; the names of classes in them needn't be the same.

    Args:
        a: A model, a layer, a collection, an optimizer; the pure form or another tree of arrays; or
            the path of a file of weights.
        b: Likewise.
        atol: Numbers that differ by no more than this count as the same.
        rtol: Likewise, relative to the second number.
        allow_pickle: See `read`.

    Raises:
        WeightsError: A file is damaged, or holds no weights.
        OSError: A file can't be read.
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
    first, second = _arrays_of(a, allow_pickle), _arrays_of(b, allow_pickle)
    by_plain_name = _by_plain_name(second)
    found: list[Different] = []
    matched: set[str] = set()
    for name, array in first.items():
        other = name if name in second else by_plain_name.get(plain(name))
        if other is None:
            found.append(Different(name, "only in the first"))
            continue
        matched.add(other)
        row = _compared(name, array, second[other], atol, rtol)
        if row is not None:
            found.append(row)
    for name in second:
        if name not in matched:
            found.append(Different(name, "only in the second"))
    return Differences(found, len(first) + len(second) - len(matched))


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return names by their plain names, where these mean one of them only."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain(name), []).append(name)
    return {short: same[0] for short, same in found.items() if len(same) == 1}


def _arrays_of(given: Any, allow_pickle: bool) -> dict[str, Any]:
    """Return the arrays of whatever `diff` takes, by name."""
    if isinstance(given, Stateful):
        return _arrays_of_holder(given)
    if isinstance(given, str | os.PathLike):
        path = file_path(given)
        if format_of(path) == "safetensors":
            return stored_in(path)[0]
        given = read(path, allow_pickle=allow_pickle)
    return _arrays_of_tree(given)


def _arrays_of_holder(holder: Stateful) -> dict[str, Any]:
    if not getattr(holder, "built", True):
        raise RuntimeError(
            "this isn't built, so it has no variables yet: call build(...) first, then diff"
        )
    table = holder.variables_by_name()
    with Locks(table.values()):
        return {name: variable.value for name, variable in table.items()}


def _arrays_of_tree(tree: Any) -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree and tree.keys() <= {"params", "state"}:
        # The pure form of a model, whose names don't begin with the collection.
        tree = {**tree.get("params", {}), **tree.get("state", {})}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if tree is None or any(not path or isinstance(leaf, Stateful) for path, leaf in leaves):
        got = "a tree with a model in it" if leaves and leaves[0][0] else type(tree).__name__
        raise TypeError(
            f"diff takes models, layers, collections, trees of arrays and paths; got {got}"
        )
    arrays: dict[str, Any] = {}
    for path, leaf in leaves:
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        arrays[".".join(path_text(path))] = array
    for name, array in arrays.items():
        if str(array.dtype).startswith(("ob", "<U", "|S")):
            raise TypeError(f"diff compares numbers, and {name} holds none")
    return arrays


def _compared(name: str, a: Any, b: Any, atol: float, rtol: float) -> Different | None:
    """Return how two arrays differ, or None."""
    if a.shape != b.shape:
        return Different(name, f"shape {a.shape}, {b.shape}")
    dtypes = f"dtype {a.dtype}, {b.dtype}" if a.dtype != b.dtype else ""
    if is_key(a) or is_key(b):  # single numbers of keys mean nothing
        if dtypes:
            return Different(name, dtypes)
        same_key = np.array_equal(storable(a), storable(b))
        return None if same_key else Different(name, "another key")

    a, b = np.asarray(a), np.asarray(b)
    is_complex = "c" in (a.dtype.kind, b.dtype.kind)
    wide = np.complex128 if is_complex else np.float64
    wide_a, wide_b = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        equal = wide_a == wide_b if dtypes else a == b
        same = equal | (np.isnan(wide_a) & np.isnan(wide_b))
        integers = a.dtype.kind in "iu" and not dtypes
        minus = _minus(a, b) if integers else wide_a - wide_b
        apart = np.where(same, 0.0, np.abs(minus))
        finite = np.isfinite(wide_b)
        near = finite & (apart <= atol + rtol * np.where(finite, np.abs(wide_b), 0.0))
    far = ~same
    if atol or rtol:
        far &= ~near
    if not far.any():
        return Different(name, dtypes) if dtypes else None

    infinite = far & ~np.isfinite(apart)
    if not infinite[far].all():  # the rest can be measured
        apart = np.where(infinite, 0.0, apart)
    norm = float(np.linalg.norm(wide_a[np.isfinite(wide_a)]))
    relative = float(np.linalg.norm(apart.ravel())) / norm if norm else float("inf")
    what = "value"
    if infinite.any():
        what += f", {int(infinite.sum()):,} not finite"
    if dtypes:
        what += f", {dtypes}"
    return Different(name, what, int(far.sum()), a.size, float(apart.max()), relative)


def _minus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the difference of integers, which floats can't all hold."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
