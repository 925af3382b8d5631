"""Checkpoints of a training: models, optimizers and their keys, written in the background, laid out on any mesh."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import weakref
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import WeightsError
from seqbridge._interface import nearest
from seqbridge._state import Variable, commit, locked, refuse_in_trace
from seqbridge._variables.matching import Rename, Report, fit
from seqbridge._variables.saving import (
    FORMAT,
    VariableHolder,
    bare,
    check_format,
    described,
    restored,
)


class Checkpoint:
    """A folder of numbered checkpoints, by Orbax, of all that a training needs to go on as if it had not stopped.

    Each variable lies in the checkpoint once, in parts where it is spread over devices, and comes
    back laid out as the variable is then: on other devices, on more or on fewer, in more processes
    or in one. Every array has a checksum that doesn't depend on that. Several processes all make
    the same calls. Several of one folder in a process take turns, as where a cell of a notebook
    runs again, or an evaluation reads what a training writes.

    Args:
        folder: Where the checkpoints are; made if it isn't there.
        max_to_keep: How many of the latest are kept; None: all.
        **parts: What is saved: models, layers, optimizers, collections, each with a name.

    Raises:
        NotADirectoryError: The folder is a file.
        WeightsError: What says when a checkpoint that is there was made is damaged.

    Examples:
        >>> import tempfile, jax.numpy as jnp, optax
        >>> from seqbridge import Optimizer, Sequential
        >>> model = Sequential([lambda x, w=jnp.eye(2): x @ w])
        >>> optimizer = Optimizer(model, optax.adam(1e-3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoint(folder, model=model, optimizer=optimizer) as checkpoint:
        ...         checkpoint.restore() is None
        ...         checkpoint.save(100)
        ...     with Checkpoint(folder, model=model, optimizer=optimizer) as checkpoint:
        ...         checkpoint.restore()
        True
        100
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        /,
        *,
        max_to_keep: int | None = None,
        **parts: VariableHolder,
    ):
        import orbax.checkpoint as ocp  # late: it takes longer to import than all of this package

        for name, part in parts.items():
            if not isinstance(part, VariableHolder):
                raise TypeError(
                    f"{name}= takes a model, a layer, an optimizer or a collection, not "
                    f"{type(part).__name__}"
                )
        if not parts:
            raise TypeError(
                "name what is to be saved: Checkpoint(folder, model=model, optimizer=optimizer)"
            )
        if max_to_keep is not None and (not isinstance(max_to_keep, int) or max_to_keep < 1):
            raise ValueError(
                f"max_to_keep= is how many are kept, 1 or more, or None for all; got "
                f"{max_to_keep!r:.60}"
            )
        folder = os.fspath(folder)
        self._folder = folder if "://" in folder else os.path.abspath(os.path.expanduser(folder))
        if os.path.exists(self._folder) and not os.path.isdir(self._folder):
            raise NotADirectoryError(
                f"{self._folder} is a file, and checkpoints need a folder: give another name"
            )
        self._parts = parts
        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep)
        self._made = functools.partial(ocp.CheckpointManager, self._folder, options=options)
        try:
            self._manager = self._made()
        except OSError:
            raise
        except Exception as error:  # it looks into those that are there
            raise WeightsError(f"a checkpoint in {self._folder} is damaged: {error}") from error
        self._closed = False
        _open.add(self)
        self.reports: dict[str, Report] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the checkpoints that are there."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, /) -> None:
        """Saves everything as it is now, under a number. Returns when it is copied; it is written in the background.

        Args:
            step: A whole number, higher than those that are there.

        Raises:
            RuntimeError: Something isn't built, or this is a JAX transform, or the `Checkpoint` is
                closed.
            TypeError, ValueError: The number is none, or it isn't higher.
        """
        refuse_in_trace("saving")
        step = _number(step)
        self._take_turn()
        if self.steps and step <= self.steps[-1]:
            raise ValueError(
                f"step {step} can't be saved after step {self.steps[-1]}, which is in "
                f"{self._folder}"
            )
        state, about = {}, {}
        with locked(
            self._parts.values
        ):  # until they are copied: another thread may donate the arrays to a program
            tables = {name: part._table("save") for name, part in self._parts.items()}
            seen: dict[Variable, tuple[str, str]] = {}
            for part, table in tables.items():
                state[part], about[part] = {}, {}
                for name, variable in table.items():
                    if variable in seen:
                        where, first = seen[variable]
                        about[where][first].setdefault("also", []).append([part, name])
                    else:
                        seen[variable] = part, name
                        state[part][name], about[part][name] = (
                            bare(variable.value),
                            described(variable),
                        )
            sums = digests(state)
            for part, notes in about.items():
                for name, note in notes.items():
                    note["sum"] = sums[part][name]
            said = {
                "format": FORMAT,
                "versions": {n: version(n) for n in ("seqbridge", "jax")},
                "variables": about,
            }
            said["sum"] = _sum(said)
            args = self._args.Composite(
                state=self._args.StandardSave(_filled(state)), about=self._args.JsonSave(said)
            )
            try:
                self._manager.save(step, args=args)
            except BaseException:  # Ctrl-C, after which Orbax may take for saved what isn't
                with contextlib.suppress(Exception):
                    self._manager.close()
                self._manager = self._made()
                raise

    def restore(
        self,
        step: int | None = None,
        /,
        *,
        strict: bool = True,
        rename: Rename | None = None,
        cast: bool = False,
    ) -> int | None:
        """Takes the values of a checkpoint, all of them, or raises and takes none.

        Args:
            step: Its number; None: the latest.
            strict: As for `load`; `reports` has what was loaded then, for each part.
            rename: As for `load`, for the names of all parts.
            cast: As for `load`.

        Returns:
            The number; None if there is no checkpoint and none was asked for.

        Raises:
            WeightsError: The checkpoint is damaged, or doesn't fit; the message is the report.
            FileNotFoundError: There is none of this number.
            RuntimeError: Something isn't built, or this is a JAX transform, or the `Checkpoint` is
                closed.
        """
        refuse_in_trace("loading")
        step = None if step is None else _number(step)
        self._take_turn()
        self.wait()
        if step is None:
            step = self._manager.latest_step()
            if step is None:
                return None
        if step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise FileNotFoundError(
                f"there is no checkpoint {step} in {self._folder}: there are {there}"
            )
        where = f"checkpoint {step} in {self._folder}"
        tables = {name: part._table("load") for name, part in self._parts.items()}
        stored, also = self._read(step, where, tables)
        reports, changes = {}, {}
        with locked(self._parts.values):
            for name, part in self._parts.items():
                table = part._table("load")
                if name not in stored:
                    raise WeightsError(
                        f"{where} has no {name}{nearest(name, stored)}; it has {', '.join(stored)}"
                    )
                new, report = fit(table, stored[name], rename=rename, also=also[name], loose=cast)
                if (strict and not report.whole) or (table and not new):
                    raise WeightsError(
                        f"{where} doesn't fit {name}, and nothing was loaded\n{report.refused}"
                    )
                reports[name] = report
                changes |= new
            commit(changes)
            self.reports = reports
        return step

    def _read(
        self, step: int, where: str, tables: Mapping[str, Mapping[str, Variable]]
    ) -> tuple[Any, Any]:
        """The arrays of each part by name, and the other names that they had."""
        try:
            said = self._manager.restore(
                step, args=self._args.Composite(about=self._args.JsonRestore())
            )["about"]
            check_format(where, said)
            if said.pop("sum") != _sum(said):
                raise WeightsError(
                    f"{where} is damaged: what it says of its arrays has another checksum"
                )
            notes = said["variables"]
            takers = {part: _takers(of, tables.get(part, {})) for part, of in notes.items()}
            like = {
                part: {n: _like(note, takers[part].get(n)) for n, note in of.items()}
                for part, of in notes.items()
            }
            args = self._args.Composite(state=self._args.StandardRestore(_filled(like)))
            state = self._manager.restore(step, args=args)["state"]
            for part, of in like.items():
                state[part] |= {
                    n: jnp.zeros(a.shape, a.dtype, device=a.sharding)
                    for n, a in of.items()
                    if not a.size
                }
        except WeightsError:
            raise
        except Exception as error:  # a zoo, of which not all say what was read
            raise WeightsError(
                f"{where} is damaged, or was written by something else: {error}"
            ) from error
        sums = digests(state)
        also: dict[str, dict[str, list[str]]] = {part: {} for part in notes}
        for part, of in notes.items():
            for name, note in of.items():
                if sums[part][name] != note["sum"]:
                    raise WeightsError(
                        f"{where} is damaged: {part} {name} has another checksum than it was saved "
                        f"with"
                    )
                array = state[part][name]
                # Where no variable has said what it lies on, whoever takes it decides.
                state[part][name] = restored(
                    array if name in takers[part] else np.asarray(array), note
                )
                for other, alias in note.get("also", ()):
                    if other == part:
                        also[part].setdefault(name, []).append(alias)
                    else:  # what two parts share is stored with the first
                        state[other][alias] = state[part][name]
        return state, also

    def _take_turn(self) -> None:
        """Waits for what others of this process write here, and looks at what is there then."""
        if self._closed:
            raise RuntimeError(f"this Checkpoint of {self._folder} is closed: make another one")
        others = [
            c for c in list(_open) if c is not self and c._folder == self._folder and not c._closed
        ]
        for other in others:
            other.wait()
        if others:
            self._manager.reload()

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and gives back what writes in the background."""
        if not self._closed:
            self._closed = True
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        steps = ", ".join(map(str, self.steps)) or "none"
        return f"Checkpoint({self._folder!r}, {', '.join(self._parts)}; steps: {steps})"


# Two that write into one folder at once would wait for each other for ever.
_open: weakref.WeakSet[Checkpoint] = weakref.WeakSet()


def _number(step: Any) -> int:
    """The number of a checkpoint. Of others, Orbax would write files that it doesn't find again."""
    try:
        number = None if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = None
    if number is None or number < 0:
        kind = TypeError if number is None else ValueError
        raise kind(f"the number of a checkpoint is 0, 1, 2, ..., not {step!r:.60}")
    return number


def _takers(notes: Mapping[str, Any], table: Mapping[str, Variable]) -> dict[str, Variable]:
    """The variables that stored arrays fit as they are, by name."""
    return {
        n: v for n, v in table.items() if n in notes and v.value.shape == tuple(notes[n]["shape"])
    }


def _like(note: Mapping[str, Any], taker: Variable | None) -> jax.ShapeDtypeStruct:
    """What Orbax is to restore: the stored array, laid out as the variable is that will take it."""
    shape = tuple(note["shape"])
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = first if taker is None else taker.value.sharding
    if "key" in note:
        numbers = bare(jax.random.key(0, impl=note["key"]))
        return jax.ShapeDtypeStruct(shape + numbers.shape, numbers.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(note["dtype"]), sharding=sharding)


def _sum(said: Mapping[str, Any]) -> int:
    """A checksum of what is said of the arrays."""
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _filled(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The arrays that have items. Orbax takes no others, and what is said of those is all that there is of them."""
    return {
        part: {name: array for name, array in of.items() if array.size}
        for part, of in state.items()
    }


def digests(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """A checksum of each array, which is the same wherever its parts lie."""
    sums = {
        part: {name: _digest(array) for name, array in arrays.items()}
        for part, arrays in state.items()
    }
    return jax.tree.map(int, sums)


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
    """The sum of all words, each times an odd number of its own: one bit changes it, and so does a swap."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize == 8:
        width = min(8 * array.dtype.itemsize, 32)
        array = jax.lax.bitcast_convert_type(
            array, jnp.dtype(f"uint{width}")
        )  # of 64 bits: two words
    words = array.astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return (words * (index * jnp.uint32(2) + jnp.uint32(1))).sum(dtype=jnp.uint32)
