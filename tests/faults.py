"""A table of faults: what a person does wrong, the error that is owed, and that nothing has changed by it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


def scale(x: Any, factor: float = 1.0) -> Any:
    return x * factor


class Kept:
    """A model, and all of it that a failure must leave as it was."""

    def __init__(self, model: sb.Sequential, x: Any = X):
        self.model, self._x = model, x
        self._traces = 0

        @sb.jit
        def call(model: sb.Sequential, x: Any) -> Any:
            self._traces += 1
            return model(x, training=False)

        self._call = call
        self._before = self._take()

    def _take(self) -> dict[str, Any]:
        out = self._call(self.model, self._x)
        variables = self.model.vars()
        return {
            "text": repr(self.model),
            "layers": [id(item) for item in self.model],
            "names of layers": self.model.names,
            "variables": [(name, id(v), v.kind, v.trainable) for name, v in variables.items()],
            "values": {name: bits(array) for name, array in variables.tensors().items()},
            "output": bits(out),
            "programs": self._traces,
        }

    def check(self) -> None:
        after = self._take()
        for what, before in self._before.items():
            assert after[what] == before, f"the failure has changed: {what}"


def bits(array: Any) -> tuple[Any, ...]:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return array.shape, str(array.dtype), np.asarray(array).tobytes()


def filled(model: sb.Sequential) -> sb.Sequential:
    """The model with parameters of which none is zero, so that none can be left out without its showing."""
    for variable in model.vars().subset(lambda v: jnp.issubdtype(v.dtype, jnp.floating)).values():
        variable.assign(jnp.linspace(0.5, 1.5, variable.size).reshape(variable.shape))
    return model


@functools.cache
def shared() -> Kept:
    """The model of all rows that must leave it as it is, and so can share it."""
    layers = [
        nn.Dense(3), scale, partial(hk.Linear, 3), nn.BatchNorm(), nn.Dropout(0.5),
        eqx.nn.Linear(3, 3, key=jax.random.key(0)),
    ]  # fmt: skip
    return Kept(filled(sb.Sequential(layers).build((2, 3))))


class Row(NamedTuple):
    """One fault.

    Attributes:
        name: What was done, in words.
        error: What it raises; None: it is no error, and the trigger asserts what it does instead.
        words: Regular expressions, all of which are found in the message with its notes.
        trigger: Does it. If it takes a `model`, it gets the shared one, and has to leave it as it
            was.
    """

    name: str
    error: type[BaseException] | None
    words: tuple[str, ...]
    trigger: Callable[..., Any]

    def check(self, folder: Path) -> None:
        wanted = inspect.signature(self.trigger).parameters
        given: dict[str, Any] = {"folder": folder} if "folder" in wanted else {}
        kept = shared() if "model" in wanted else None
        try:
            if kept is not None:
                given["model"] = kept.model
            if self.error is None:
                self.trigger(**given)
            else:
                with pytest.raises(self.error) as caught:
                    self.trigger(**given)
                text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
                for words in self.words:
                    assert re.search(words, text, re.DOTALL), f"{words!r} isn't said by\n{text}"
            if kept is not None:
                kept.check()
        except BaseException:
            shared.cache_clear()  # the next row gets a whole one
            raise


class Table(list[Row]):
    """The rows, in the order in which they are written."""

    def fault(
        self, name: str, error: type[BaseException], *words: str
    ) -> Callable[[Callable[..., Any]], Any]:
        """A row that raises."""
        return lambda trigger: self.append(Row(name, error, words, trigger))

    def design(self, name: str) -> Callable[[Callable[..., Any]], Any]:
        """A row that is no error; what happens instead is asserted."""
        return lambda trigger: self.append(Row(name, None, (), trigger))


def name_of(row: Row) -> str:
    return row.name.replace(" ", "-")
