"""A table of faults: a mistake, the error that it must raise, and that it changes nothing."""

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
import pytest

import seqbridge as sb
from helpers import bits, scale

Trigger = Callable[..., Any]
Decorator = Callable[[Trigger], Trigger]

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


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


def filled(model: sb.Sequential) -> sb.Sequential:
    """Fill all floats of a model with values that aren't zero, so that a lost one would show."""
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
    trigger: Trigger

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

    def fault(self, name: str, error: type[BaseException], *words: str) -> Decorator:
        """Add a row that raises."""
        return self._row(name, error, words)

    def design(self, name: str) -> Decorator:
        """Add a row that is no error; its function asserts what happens instead."""
        return self._row(name, None, ())

    def _row(
        self, name: str, error: type[BaseException] | None, words: tuple[str, ...]
    ) -> Decorator:
        def add(trigger: Trigger) -> Trigger:
            self.append(Row(name, error, words, trigger))
            return trigger

        return add


def name_of(row: Row) -> str:
    return row.name.replace(" ", "-")
