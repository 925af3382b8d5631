"""Checkpoints of a training: models, optimizers and their keys.

They are written in the background, and read onto any mesh.
"""

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
from seqbridge._variables.matching import Rename, Report, match_stored
from seqbridge._variables.saving import (
    FORMAT,
    VariableHolder,
    check_format,
    described,
    restored,
    storable,
)


class Checkpoint:
    """Folder of numbered checkpoints, by Orbax, from which a training goes on as if never stopped.

    Each variable lies in the checkpoint once, in parts where it is spread over devices, and comes
    back laid out as the variable is then: on other devices, on more or on fewer, in more processes
    or in one. Every array has a checksum that doesn't depend on that. Several processes all make
    the same calls. Several `Checkpoint`s of one folder in a process take turns, as where a cell of
    a notebook runs again, or an evaluation reads what a training writes.

    Args:
        folder: The folder of the checkpoints; made if it isn't there.
        max_to_keep: How many of the latest are kept; None: all.
        **parts: Models, layers, optimizers and collections to save, each with a name.

    Raises:
        NotADirectoryError: The folder is a file.
        WeightsError: The date of a checkpoint that is there is damaged.

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
                "max_to_keep= is how many are kept, 1 or more, or None for all; got "
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
        self._make_manager = functools.partial(ocp.CheckpointManager, self._folder, options=options)
        try:
            self._manager = self._make_manager()
        except OSError:
            raise
        except Exception as error:  # Orbax reads the dates of the checkpoints that are there
            raise WeightsError(f"a checkpoint in {self._folder} is damaged: {error}") from error
        self._closed = False
        _open_checkpoints.add(self)
        self.reports: dict[str, Report] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the checkpoints that are there, in order."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, /) -> None:
        """Save everything as it is now, under a number.

        Returns as soon as everything is copied; it is written in the background.

        Args:
            step: A whole number, higher than those that are there.

        Raises:
            RuntimeError: Something isn't built, or this is a JAX transform, or the `Checkpoint` is
                closed.
            TypeError: The number isn't a whole one.
            ValueError: The number is negative, or not higher than those that are there.
        """
        refuse_in_trace("saving")
        step = _step_number(step)
        self._take_turn()
        if self.steps and step <= self.steps[-1]:
            raise ValueError(
                f"step {step} can't be saved after step {self.steps[-1]}, which is in "
                f"{self._folder}"
            )
        # Locked until the arrays are copied: another thread may donate them to a program.
        with locked(self._parts.values):
            state, notes = self._collect()
            sums = digests(state)
            for part, own in notes.items():
                for name, note in own.items():
                    note["sum"] = sums[part][name]
            about: dict[str, Any] = {
                "format": FORMAT,
                "versions": {name: version(name) for name in ("seqbridge", "jax")},
                "variables": notes,
            }
            about["sum"] = _json_checksum(about)
            args = self._args.Composite(
                state=self._args.StandardSave(_without_empty(state)),
                about=self._args.JsonSave(about),
            )
            try:
                self._manager.save(step, args=args)
            except BaseException:
                # After Ctrl-C, Orbax may believe that it has saved what it hasn't.
                with contextlib.suppress(Exception):
                    self._manager.close()
                self._manager = self._make_manager()
                raise

    def _collect(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Return the arrays to save and the notes on them, by part and name, each variable once."""
        tables = {part: holder.built_variables("save") for part, holder in self._parts.items()}
        state: dict[str, dict[str, Any]] = {part: {} for part in tables}
        notes: dict[str, dict[str, Any]] = {part: {} for part in tables}
        first: dict[Variable, tuple[str, str]] = {}
        for part, table in tables.items():
            for name, variable in table.items():
                if variable in first:
                    first_part, first_name = first[variable]
                    notes[first_part][first_name].setdefault("also", []).append([part, name])
                    continue
                first[variable] = part, name
                state[part][name] = storable(variable.value)
                notes[part][name] = described(variable)
        return state, notes

    def restore(
        self,
        step: int | None = None,
        /,
        *,
        strict: bool = True,
        rename: Rename | None = None,
        cast: bool = False,
    ) -> int | None:
        """Load the values of a checkpoint, all of them, or raise and load none.

        Args:
            step: The number of the checkpoint; None: the latest.
            strict: As for `load`; `reports` says for each part what was loaded.
            rename: As for `load`, for the names of all parts.
            cast: As for `load`.

        Returns:
            The number; None if there is no checkpoint and none was asked for.

        Raises:
            WeightsError: The checkpoint is damaged, or doesn't fit; the message is the report.
            FileNotFoundError: There is no checkpoint of this number.
            RuntimeError: Something isn't built, or this is a JAX transform, or the `Checkpoint` is
                closed.
        """
        refuse_in_trace("loading")
        if step is not None:
            step = _step_number(step)
        self._take_turn()
        self.wait()
        if step is None:
            step = self._manager.latest_step()
            if step is None:
                return None
        if step not in self.steps:
            there = ", ".join(str(number) for number in self.steps) or "none"
            raise FileNotFoundError(
                f"there is no checkpoint {step} in {self._folder}: there are {there}"
            )
        where = f"checkpoint {step} in {self._folder}"
        tables = {part: holder.built_variables("load") for part, holder in self._parts.items()}
        stored, aliases = self._read(step, where, tables)
        reports: dict[str, Report] = {}
        changes: dict[Variable, jax.Array] = {}
        with locked(self._parts.values):
            for part, holder in self._parts.items():
                table = holder.built_variables("load")
                if part not in stored:
                    raise WeightsError(
                        f"{where} has no {part}{nearest(part, stored)}; it has {', '.join(stored)}"
                    )
                new, report = match_stored(
                    table, stored[part], rename=rename, aliases=aliases[part], lossy=cast
                )
                if (strict and not report.whole) or (table and not new):
                    raise WeightsError(
                        f"{where} doesn't fit {part}, and nothing was loaded\n{report.refused}"
                    )
                reports[part] = report
                changes |= new
            commit(changes)
            self.reports = reports
        return step

    def _read(
        self, step: int, where: str, tables: Mapping[str, Mapping[str, Variable]]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[str]]]]:
        """Return the arrays of each part by name, and their aliases.

        Raises:
            WeightsError: The checkpoint is damaged.
        """
        try:
            notes = self._read_notes(step, where)
            takers = {part: _takers(own, tables.get(part, {})) for part, own in notes.items()}
            state = self._read_arrays(step, notes, takers)
        except WeightsError:
            raise
        except Exception as error:  # of any kind, and few of them say what was read
            raise WeightsError(
                f"{where} is damaged, or was written by something else: {error}"
            ) from error
        sums = digests(state)
        aliases: dict[str, dict[str, list[str]]] = {part: {} for part in notes}
        for part, own in notes.items():
            for name, note in own.items():
                if sums[part][name] != note["sum"]:
                    raise WeightsError(
                        f"{where} is damaged: {part} {name} has another checksum than it was saved "
                        "with"
                    )
                array = state[part][name]
                if name not in takers[part]:
                    # No variable has said where it lies, so the one that takes it decides.
                    array = np.asarray(array)
                array = state[part][name] = restored(array, note)
                for other, alias in note.get("also", ()):
                    if other == part:
                        aliases[part].setdefault(name, []).append(alias)
                    else:  # a variable that two parts share is stored with the first
                        state[other][alias] = array
        return state, aliases

    def _read_notes(self, step: int, where: str) -> dict[str, dict[str, Any]]:
        """Return the notes on the arrays, by part and name."""
        args = self._args.Composite(about=self._args.JsonRestore())
        about = self._manager.restore(step, args=args)["about"]
        check_format(where, about)
        if about.pop("sum") != _json_checksum(about):
            raise WeightsError(
                f"{where} is damaged: what it says of its arrays has another checksum"
            )
        return about["variables"]

    def _read_arrays(
        self,
        step: int,
        notes: Mapping[str, Mapping[str, Any]],
        takers: Mapping[str, Mapping[str, Variable]],
    ) -> dict[str, dict[str, Any]]:
        """Return the stored arrays by part and name, laid out as the variables that take them."""
        specs: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
        for part, own in notes.items():
            specs[part] = {name: _spec(note, takers[part].get(name)) for name, note in own.items()}
        args = self._args.Composite(state=self._args.StandardRestore(_without_empty(specs)))
        state = self._manager.restore(step, args=args)["state"]
        for part, own in specs.items():
            for name, spec in own.items():
                if not spec.size:
                    state[part][name] = jnp.zeros(spec.shape, spec.dtype, device=spec.sharding)
        return state

    def _take_turn(self) -> None:
        """Wait for what other `Checkpoint`s of this process write here, and look at the result."""
        if self._closed:
            raise RuntimeError(f"this Checkpoint of {self._folder} is closed: make another one")
        waited = False
        for other in list(_open_checkpoints):
            if other is not self and other._folder == self._folder and not other._closed:
                other.wait()
                waited = True
        if waited:
            self._manager.reload()

    def wait(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written, and stop what writes in the background."""
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
        steps = ", ".join(str(step) for step in self.steps) or "none"
        return f"Checkpoint({self._folder!r}, {', '.join(self._parts)}; steps: {steps})"


# Two that write into one folder at once would wait for each other forever.
_open_checkpoints: weakref.WeakSet[Checkpoint] = weakref.WeakSet()


def _step_number(step: Any) -> int:
    """Return the number of a checkpoint.

    Of other numbers, Orbax would write files that it doesn't find again.
    """
    message = f"the number of a checkpoint is 0, 1, 2, ..., not {step!r:.60}"
    if isinstance(step, bool):
        raise TypeError(message)
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(message) from None
    if number < 0:
        raise ValueError(message)
    return number


def _takers(notes: Mapping[str, Any], table: Mapping[str, Variable]) -> dict[str, Variable]:
    """Return the variables whose stored arrays have their name and shape."""
    takers: dict[str, Variable] = {}
    for name, variable in table.items():
        if name in notes and variable.value.shape == tuple(notes[name]["shape"]):
            takers[name] = variable
    return takers


def _spec(note: Mapping[str, Any], taker: Variable | None) -> jax.ShapeDtypeStruct:
    """Return what Orbax is to read: the stored array, laid out as the variable that takes it."""
    shape = tuple(note["shape"])
    if taker is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    else:
        sharding = taker.value.sharding
    if "key" in note:
        data = storable(jax.random.key(0, impl=note["key"]))
        return jax.ShapeDtypeStruct(shape + data.shape, data.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(note["dtype"]), sharding=sharding)


def _json_checksum(about: Mapping[str, Any]) -> int:
    """Return a checksum of the notes on the arrays."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _without_empty(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the arrays that have items.

    Orbax takes no others, and the notes on those say all that there is of them.
    """
    return {
        part: {name: array for name, array in own.items() if array.size}
        for part, own in state.items()
    }


def digests(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return a checksum of each array, which is the same wherever its parts lie."""
    sums: dict[str, dict[str, jax.Array]] = {}
    for part, arrays in state.items():
        sums[part] = {name: _digest(array) for name, array in arrays.items()}
    # All of them are computed before the first is waited for.
    return jax.tree.map(int, sums)


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
    """Return the sum of all words, each times an odd number of its own.

    One changed bit changes it, and so do two words that are swapped.
    """
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize == 8:
        width = min(8 * array.dtype.itemsize, 32)  # 64 bits become two words
        array = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}"))
    words = array.astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return (words * (index * jnp.uint32(2) + jnp.uint32(1))).sum(dtype=jnp.uint32)
