"""A case of the conformance suite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

import seqbridge as sb


@dataclass(frozen=True)
class Case:
    """One entry.

    Args:
        name: `ecosystem-what`.
        make: The entry.
        inputs: Shapes of its inputs, a batch first.
        native_init: `(key, inputs) -> native tree`, by hand.
        native: `(native tree, key, inputs, training) -> (outputs, native tree after the call)`, by
            hand.
        params: How many parameters there are.
        state: Whether training changes a state.
        moves: Whether evaluation changes it, too.
        mode: Whether training and evaluation differ.
        draws: Whether training draws random numbers.
        keywords: What the entry must be given at every call.
        refuses: The shape of an input that the entry can't take. None: it takes anything.
        strict: Whether the library's own code runs under strict promotion of dtypes and ranks.
        leaks: Whether the library keeps tracers by itself (`jax.checkpoint` does, in a cache), so
            that JAX' own check can't tell whose they are.
        given: Whether the entry comes with its values, so that a key can't draw others.
    """

    name: str
    make: Callable[[], Any]
    inputs: tuple[tuple[int, ...], ...]
    native_init: Callable[..., Any]
    native: Callable[..., Any]
    params: int
    state: bool = False
    moves: bool = False
    mode: bool = False
    draws: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)
    refuses: tuple[int, ...] | None = None
    strict: bool = True
    leaks: bool = False
    given: bool = False

    @property
    def ecosystem(self) -> str:
        return self.name.partition("-")[0]

    @property
    def recipe(self) -> bool:
        """Whether the entry makes its variables, rather than holding them."""
        entry = self.make()
        of_class = isinstance(entry, functools.partial) and isinstance(entry.func, type)
        return of_class or self.ecosystem in ("haiku", "stax")

    def model(self, **options: Any) -> sb.Sequential:
        """Return a built model of this entry alone, with no zero parameters to hide mistakes."""
        model = sb.Sequential([self.make()], **options).build(*self.inputs, **self.keywords)
        for variable in model.vars().subset("params").values():
            variable.assign(variable + 0.1)
        return model

    def arrays(self) -> tuple[jax.Array, ...]:
        return tuple(
            jax.random.normal(jax.random.key(i + 7), shape) for i, shape in enumerate(self.inputs)
        )
