"""`save` and `load`, for whatever holds variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import SUFFIXES, WeightsError, file_path, read_safetensors, write_safetensors
from seqbridge._interface import check_flags
from seqbridge._state import Stateful, Variable, commit, locked, refuse_in_trace
from seqbridge._variables.matching import Rename, Report, is_key, match_stored

FORMAT = 1


class VariableHolder(Stateful):
    """Holder whose variables can be frozen, saved in a file and loaded from one."""

    __slots__ = ()

    internal_names: ClassVar[frozenset[str]] = Stateful.internal_names | {"built_variables"}

    @property
    def trainable(self) -> bool:
        """Whether any variable is trained; can be set, for all parameters that are there."""
        return any(variable.trainable for variable in self.own_variables())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if not getattr(self, "built", True):
            raise RuntimeError(
                "this isn't built, so nothing is there to freeze: call build(...) first"
            )
        if isinstance(self, Mapping) and not self:
            raise ValueError(
                "this collection is empty: print(model.vars()) shows what variables are called"
            )
        for variable in self.own_variables():
            if variable.kind == "params":
                variable.trainable = value

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write all variables into one file, in the safetensors format, by name, each once.

        The file is whole, or what it was before, whatever happens meanwhile. It has the kind of
        each variable, and a checksum of everything. PRNG keys are in it; the entries themselves
        aren't.

        Args:
            path: The file, `"model.safetensors"`.

        Raises:
            RuntimeError: Something isn't built, is spread over several processes, or this is a JAX
                transform.
            ValueError: The name is that of a file of another format.
            OSError: The file can't be written.

        Examples:
            >>> import tempfile, jax.numpy as jnp
            >>> from seqbridge import Sequential
            >>> model = Sequential([lambda x, w=jnp.eye(2): x @ w])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(f"{folder}/model.safetensors")
            ...     model[0].w.assign(jnp.zeros((2, 2)))
            ...     print(model.load(f"{folder}/model.safetensors"))
            loaded 1 variables
            >>> float(model[0].w.value.sum())
            2.0
        """
        refuse_in_trace("saving")
        path = file_path(path)
        if SUFFIXES.get(os.path.splitext(path)[1].lower(), "safetensors") != "safetensors":
            raise ValueError(
                f"what is saved is a safetensors file, and {path} isn't called like one: "
                ".safetensors"
            )
        first: dict[Variable, str] = {}
        arrays: dict[str, np.ndarray] = {}
        notes: dict[str, dict[str, Any]] = {}
        # Locked until the arrays are on the host: another thread may donate them to a program.
        with locked(lambda: [self]):
            for name, variable in self.built_variables("save").items():
                if variable in first:
                    notes[first[variable]].setdefault("also", []).append(name)
                    continue
                first[variable] = name
                arrays[name] = _on_host(name, variable.value)
                notes[name] = described(variable)
        versions = {name: version(name) for name in ("seqbridge", "jax")}
        write_safetensors(
            path, arrays, {"format": FORMAT, "versions": versions, "variables": notes}
        )

    def load(
        self,
        path: str | os.PathLike[str],
        /,
        *,
        strict: bool = True,
        rename: Rename | None = None,
        cast: bool = False,
    ) -> Report:
        """Load the values of a file that `save` has written.

        Any safetensors file with the same names will do; the names of classes in them needn't be
        the same. Everything is read and checked first. Then all variables change at once, or none
        does.

        Args:
            path: The file.
            strict: Whether every variable must get an array, and every array must have a variable.
                False: what fits is loaded, and the report says what didn't.
            rename: From names in the file to names of variables: a dict, whose keys may be compiled
                regular expressions, and whose values may be None for what is to be left out; a pair
                of a regular expression and what replaces it, or a list of them; or a function.
            cast: Whether an array may be of another dtype, even if that loses precision. Without it
                a dtype may be wider than the one in the file.

        Returns:
            A report of what was loaded, and what wasn't.

        Raises:
            WeightsError: The file is damaged; or it doesn't fit, and the message is the report; or
                none of it fits.
            OSError: The file can't be read.
            RuntimeError: Something isn't built, or this is a JAX transform.
        """
        refuse_in_trace("loading")
        check_flags(strict=strict, cast=cast)
        self.built_variables("load")
        path = file_path(path)
        stored, aliases = stored_in(path)
        with locked(lambda: [self]):
            table = self.built_variables("load")
            changes, report = match_stored(
                table, stored, rename=rename, aliases=aliases, lossy=cast
            )
            if (strict and not report.whole) or (table and not changes):
                cure = "rename= may help"
                if strict and report.loaded:
                    cure = "strict=False loads what fits; rename= says what is called otherwise"
                raise WeightsError(
                    f"{path} doesn't fit, and nothing was loaded\n{report.refused}\n{cure}"
                )
            commit(changes)
        return report

    def built_variables(self, action: str) -> Mapping[str, Variable]:
        """Return the variables by name.

        Args:
            action: What is to be done with them, as it stands in the error: `"save"`.

        Raises:
            RuntimeError: This isn't built.
        """
        if not getattr(self, "built", True):
            raise RuntimeError(
                "this isn't built, so it has no variables yet: call build(...) first, then "
                f"{action}"
            )
        return self.variables_by_name()


def stored_in(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays and keys of a file that `save` has written, by name, and their aliases.

    Raises:
        WeightsError: The file is damaged.
    """
    arrays, about = read_safetensors(path)
    check_format(path, about)
    try:
        notes = about.get("variables", {})
        stored = {name: restored(array, notes.get(name, {})) for name, array in arrays.items()}
        aliases = {name: note["also"] for name, note in notes.items() if "also" in note}
        return stored, aliases
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # not as `save` writes it
        raise WeightsError(f"{path} says of itself what can't be: {error}") from error


def check_format(where: str, about: Mapping[str, Any]) -> None:
    """Raise a `WeightsError` if a later version has written this in a format of its own."""
    if about.get("format", FORMAT) not in range(1, FORMAT + 1):
        by = about.get("versions", {}).get("seqbridge", "of another version")
        raise WeightsError(f"{where} was saved by seqbridge {by}: install that, or later")


def described(variable: Variable) -> dict[str, Any]:
    """Return the note that is stored with the array of a variable."""
    value = variable.value
    note: dict[str, Any] = {
        "kind": variable.kind,
        "dtype": str(value.dtype),
        "shape": value.shape,
    }
    if is_key(value):
        note["key"] = str(jax.random.key_impl(value))
    return note


def storable(value: Any) -> Any:
    """Return an array of plain numbers: the array itself, or the data of its PRNG keys.

    Whatever stores keys as such does so in its own way, which changes with its version.
    """
    return jax.random.key_data(value) if is_key(value) else value


def restored(array: Any, note: Mapping[str, Any]) -> Any:
    """Return the array that `storable` and `described` were called with."""
    if "key" not in note:
        return array
    data = array if isinstance(array, jax.Array) else jnp.array(array)
    return jax.random.wrap_key_data(data, impl=note["key"])


def _on_host(name: str, value: jax.Array) -> np.ndarray:
    """Return an array as a file takes it."""
    if value.is_deleted():
        raise RuntimeError(
            f"the array of {name} was donated and is gone: assign it, or load the model"
        )
    if not value.is_fully_addressable:
        raise RuntimeError(
            f"{name} is spread over several processes: save it by sb.Checkpoint, which each of "
            "them calls"
        )
    return np.asarray(storable(value))
