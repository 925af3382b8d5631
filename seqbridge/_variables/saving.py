"""`save` and `load`, for whatever holds variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._files import SUFFIXES, WeightsError, file_path, read_safetensors, write_safetensors
from seqbridge._interface import check_flags
from seqbridge._state import Stateful, Variable, commit, locked, refuse_in_trace
from seqbridge._variables.matching import Rename, Report, fit

FORMAT = 1


class VariableHolder(Stateful):
    """Something whose variables can be saved in a file and loaded from one."""

    __slots__ = ()

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
        """Writes all variables into one file, in the safetensors format, by name, each once.

        The file is whole or what it was before, whatever happens meanwhile. It says of each
        variable what kind it is, and has a checksum of everything. Keys of random numbers are in
        it; the entries themselves aren't.

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
                f".safetensors"
            )
        first: dict[Variable, str] = {}
        arrays, about = {}, {}
        with locked(
            lambda: [self]
        ):  # until they are on the host: another thread may donate the arrays to a program
            for name, variable in self._table("save").items():
                if variable in first:
                    about[first[variable]].setdefault("also", []).append(name)
                    continue
                first[variable] = name
                arrays[name], about[name] = _stored(name, variable.value), described(variable)
        versions = {name: version(name) for name in ("seqbridge", "jax")}
        write_safetensors(
            path, arrays, {"format": FORMAT, "versions": versions, "variables": about}
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
        """Takes the values of a file that `save` has written, or of any safetensors file with the same names.

        Everything is read and checked first. Then all variables change at once, or none does. The
        names of classes in a name needn't be the same.

        Args:
            path: The file.
            strict: Whether every variable must get its array, and every array must have its
                variable. False: what fits is loaded, and the report says what didn't.
            rename: From names in the file to names of variables: a dict, whose keys may be compiled
                regular expressions, and whose values may be None for what is to be left out; a pair
                of a regular expression and what replaces it, or a list of them; or a function.
            cast: Whether an array may be of another dtype, even if that loses precision. Without it
                a dtype may be wider than the one in the file.

        Returns:
            What was loaded, and what wasn't.

        Raises:
            WeightsError: The file is damaged; or it doesn't fit, and the message is the report; or
                none of it fits.
            OSError: The file can't be read.
            RuntimeError: Something isn't built, or this is a JAX transform.
        """
        refuse_in_trace("loading")
        check_flags(strict=strict, cast=cast)
        self._table("load")
        path = file_path(path)
        stored, also = stored_in(path)
        with locked(lambda: [self]):
            table = self._table("load")
            changes, report = fit(table, stored, rename=rename, also=also, loose=cast)
            if (strict and not report.whole) or (not changes and table):
                raise WeightsError(
                    f"{path} doesn't fit, and nothing was "
                    f"loaded\n{report.refused}{_hint(report, strict=strict)}"
                )
            commit(changes)
        return report

    def _table(self, what: str) -> Mapping[str, Variable]:
        if not getattr(self, "built", True):
            raise RuntimeError(
                f"this isn't built, so it has no variables yet: call build(...) first, then {what}"
            )
        return self.variables_by_name()


def stored_in(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and keys of a file that `save` has written, by name, and the other names that some of them have.

    Raises:
        WeightsError: The file is damaged.
    """
    arrays, about = read_safetensors(path)
    check_format(path, about)
    try:
        notes = about.get("variables", {})
        stored = {name: restored(array, notes.get(name, {})) for name, array in arrays.items()}
        return stored, {name: note["also"] for name, note in notes.items() if "also" in note}
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # not as `save` writes it
        raise WeightsError(f"{path} says of itself what can't be: {error}") from error


def check_format(where: str, about: Mapping[str, Any]) -> None:
    """Raises a `WeightsError` if a later version has written this, in a way that this one doesn't know."""
    if about.get("format", FORMAT) not in range(1, FORMAT + 1):
        by = about.get("versions", {}).get("seqbridge", "of another version")
        raise WeightsError(f"{where} was saved by seqbridge {by}: install that, or later")


def described(variable: Variable) -> dict[str, Any]:
    """What is to be known of a stored array, so that the variable can be told from it."""
    value = variable.value
    note = {"kind": variable.kind, "dtype": str(value.dtype), "shape": value.shape}
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return note | ({"key": str(jax.random.key_impl(value))} if is_key else {})


def bare(value: Any) -> Any:
    """The numbers of an array, of which keys are made otherwise in each version of whatever stores them."""
    return jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


def restored(array: Any, note: Mapping[str, Any]) -> Any:
    """The inverse of `bare`, by what `described` has said."""
    if "key" not in note:
        return array
    return jax.random.wrap_key_data(
        array if isinstance(array, jax.Array) else jnp.array(array), impl=note["key"]
    )


def _stored(name: str, value: Any) -> np.ndarray:
    """The array as a file takes it."""
    if value.is_deleted():
        raise RuntimeError(
            f"the array of {name} was donated and is gone: assign it, or load the model"
        )
    if not value.is_fully_addressable:
        raise RuntimeError(
            f"{name} is spread over several processes: save it by sb.Checkpoint, which each of "
            f"them calls"
        )
    return np.asarray(bare(value))


def _hint(report: Report, *, strict: bool) -> str:
    fits = strict and report.loaded
    return (
        "\nstrict=False loads what fits; rename= says what is called otherwise"
        if fits
        else "\nrename= may help"
    )
