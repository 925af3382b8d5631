"""Cells: the arrays that a program passes for variables, and what comes back into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias, cast

import jax
import jax.numpy as jnp

from seqbridge._bare import Bare
from seqbridge._pack import Pack
from seqbridge._trace import Tracer, writer
from seqbridge._variable import Variable
from seqbridge._within import Within

Cell: TypeAlias = Variable | Pack | Bare


def cell_of(box: Variable) -> Cell:
    """What holds the array that a program takes for a variable."""
    place: Any = box._array
    return cast(Cell, place.holder) if type(place) is Within else box


def living(cell: Cell) -> list[Variable]:
    """The variables of a cell."""
    return [cell] if isinstance(cell, Variable) else cell.living()


@writer
def store(cells: Sequence[Cell], arrays: Mapping[int, Any]) -> None:
    """Writes the arrays of cells, by their numbers."""
    try:
        for i, array in arrays.items():
            cells[i]._array = array
    except BaseException:  # Ctrl-C, between two of them
        for i, array in arrays.items():
            cells[i]._array = array
        raise


def values(
    cells: Sequence[Cell], donated: Sequence[int] | None, kept: Sequence[int], arrays: Iterable[Any]
) -> tuple[list[Any], list[Any]]:
    """The arrays of donated and of other cells, checked: a donated buffer that is used twice kills JAX."""
    held = [cell._array for cell in cells]
    if not donated:
        return [], held
    if True in [value.is_deleted() for value in held]:
        name = next(
            cell.name for cell, value in zip(cells, held, strict=True) if value.is_deleted()
        )
        raise RuntimeError(
            f"the array of {name} was donated before and is gone: assign it, or load the model"
        )
    given = held if not kept else [held[i] for i in donated]
    others = [held[i] for i in kept]
    ids = set(map(id, held))
    if len(ids) < len(held) or not ids.isdisjoint(map(id, arrays)):
        given = list(given)
        seen = {*map(id, arrays), *map(id, others)}
        for n, value in enumerate(given):
            if id(value) in seen:
                given[n] = jnp.copy(value)
            seen.add(id(value))
    return given, others


def lost(cells: Sequence[Cell]) -> str:
    """The names of those whose array was donated to a program that failed, and is gone."""
    now = [cell_of(cell) if isinstance(cell, Variable) else cell for cell in cells]
    arrays = [cell._joined if isinstance(cell, Pack) else cell._array for cell in now]
    real = [isinstance(array, jax.Array) and not isinstance(array, Tracer) for array in arrays]
    gone = [
        c.name
        for c, array, known in zip(cells, arrays, real, strict=True)
        if known and array.is_deleted()
    ]
    return ", ".join(gone[:4]) + (f" and {len(gone) - 4} more" if len(gone) > 4 else "")


class Cells(tuple[Cell, ...]):
    """What a program passes: variables, and packs in place of those that lie in one."""

    inside: dict[int, dict[int, Variable]]

    def __new__(cls, boxes: Iterable[Variable]) -> Self:
        found: dict[Cell, dict[int, Variable]] = {}
        for box in boxes:
            cell = cell_of(box)
            members = found.setdefault(cell, {})
            if cell is not box:
                members[box._array.place] = box
        made = super().__new__(cls, found)
        made.inside = {n: members for n, members in enumerate(found.values()) if members}
        return made

    def values(self, held: Sequence[Any]) -> dict[Variable, Any]:
        """The value of each variable, of those of the cells."""
        found: dict[Variable, Any] = {}
        for n, (cell, value) in enumerate(zip(self, held, strict=True)):
            if not isinstance(cell, Variable):
                parts = cell.parts(value, self.inside[n])
                found |= {box: parts[i] for i, box in self.inside[n].items()}
            else:
                found[cell] = value
        return found

    def changed(self, held: Sequence[Any], changes: Mapping[Variable, Any]) -> dict[int, Any]:
        """The new values of the cells that changed, by their numbers."""
        found: dict[int, Any] = {}
        for n, (cell, value) in enumerate(zip(self, held, strict=True)):
            if not isinstance(cell, Variable):
                new = {i: changes[box] for i, box in self.inside[n].items() if box in changes}
                if new:
                    found[n] = cell.rejoined(value, new)
            elif cell in changes:
                found[n] = changes[cell]
        return found
