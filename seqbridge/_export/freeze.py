"""`freeze`: a model for inference, with its variables as constants of the compiled program."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import jax

from seqbridge._export.snapshot import Snapshot
from seqbridge._interface import Inputs, Keywords, call_of
from seqbridge._layers import FROZEN
from seqbridge._model import as_model
from seqbridge._passes import FLAT, Parts, check_inputs, check_keywords, specs
from seqbridge._transforms import combine, partition


class Frozen:
    """A pure, compiled function of the inputs of a model, as `freeze` returns it.

    `jax.export.export` takes it, and so does every transform of JAX.
    """

    holds_constants = True  # its arrays aren't parameters that would be lost

    def __init__(self, snapshot: Snapshot, keywords: Keywords):
        self._snapshot = snapshot
        self._variables = snapshot.init(None, (), {})
        self._keywords = dict(keywords)
        self._programs: dict[Hashable, jax.stages.Wrapped] = {}

    def __call__(self, /, *inputs: Any, **keywords: Any) -> Any:
        """Return the outputs. New shapes are compiled first, as `jax.jit` does it.

        Args:
            *inputs: As for a call of the model.
            **keywords: Likewise; those that `freeze` was given hold where nothing else is said
                here.
        """
        program, arrays = self._prepare(inputs, keywords)
        return program(arrays)

    def lower(self, /, *inputs: Any, **keywords: Any) -> jax.stages.Lowered:
        """Return the program for these inputs, or shapes, as JAX' `Lowered`."""
        program, arrays = self._prepare(inputs, keywords)
        return program.lower(arrays)

    def trace(self, /, *inputs: Any, **keywords: Any) -> jax.stages.Traced:
        """Return the program for these inputs, or shapes, as JAX' `Traced`."""
        return self._jitted().trace(*inputs, **keywords)

    def eval_shape(self, /, *inputs: Any, **keywords: Any) -> Any:
        """Return the shapes and dtypes of the outputs."""
        return self._jitted().eval_shape(*inputs, **keywords)

    def _jitted(self) -> Any:
        """Return the compiled function of the inputs as they are.

        The result of tracing or exporting it is called with inputs of the same form.
        """

        def run(*inputs: Any, **keywords: Any) -> Any:
            return self._run(inputs, {**self._keywords, **keywords})

        run.__name__ = FROZEN
        return jax.jit(run)

    def _prepare(self, inputs: Inputs, keywords: Keywords) -> tuple[jax.stages.Wrapped, list[Any]]:
        """Return the program for a call, and the arrays that it takes."""
        keywords = {**self._keywords, **keywords} if keywords else self._keywords
        signature, arrays, _ = partition(inputs, keywords)
        program = self._programs.get(signature)
        if program is None:
            program = self._programs[signature] = self._compiled(signature)
        return program, arrays

    def _compiled(self, signature: Hashable) -> jax.stages.Wrapped:
        # A strong reference would close a cycle, which would keep the variables in memory.
        reference = weakref.ref(self)

        def run(arrays: list[Any]) -> Any:
            frozen = reference()
            assert frozen is not None
            inputs, keywords = combine(signature, arrays, ())
            return frozen._run(inputs, keywords)

        run.__name__ = FROZEN
        return jax.jit(run)

    def _run(self, inputs: Inputs, keywords: Keywords) -> Any:
        outputs, after, changed = self._snapshot.apply(self._variables, None, inputs, keywords)
        if changed:
            names = ", ".join(_changed_names(self._variables, after))
            raise TypeError(
                f"the call would change {names}: constants here. Freeze the model for "
                "training=False, or, if that changes them too, keep them as they are: "
                "sb.Layer(entry, freeze_state=True)"
            )
        return outputs

    def __repr__(self) -> str:
        model = " ".join(repr(self._snapshot.model).split())
        return f"sb.freeze({model})"


def _changed_names(before: Parts, after: Parts) -> list[str]:
    names: list[str] = []
    for kind, arrays in after.items():
        for name, array in arrays.items():
            if array is not before[kind][name]:
                names.append(name)
    return names


def freeze(x: Any, /, *inputs: Any, training: bool | None = False, **keywords: Any) -> Frozen:
    """Return a model as it is now, as a compiled function of its inputs alone.

    Its variables are constants of the program, so that a call costs what its inputs cost, and the
    compiler may compute with them beforehand. Later edits, assignments and training of the model
    don't reach it.

    Args:
        x: A `Sequential`, a `Layer` or an entry of any library that has its values.
        *inputs: The inputs to compile it for at once: arrays, `jax.ShapeDtypeStruct`s or shapes, as
            for `Sequential.build`. Others are compiled when they come.
        training: The mode of calls that say none.
        **keywords: Keywords of each call that doesn't give them itself. Bools, strings and the like
            are static, arrays and numbers are traced, as in `jit`.

    Returns:
        A callable; with `lower`, `trace` and `eval_shape` as `jax.jit` has them, so that
        `jax.export.export` takes it.

    Raises:
        RuntimeError: `x` isn't built.
        TypeError: A call would change a variable (see `Layer`'s `freeze_state`), or draws random
            numbers and isn't given `rng=`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from seqbridge import Sequential
        >>> model = Sequential([lambda x, w=jnp.eye(2): x @ w])
        >>> predict = freeze(model, (4, 2))
        >>> predict(jnp.ones((4, 2))).shape
        (4, 2)
        >>> exported = jax.export.export(predict)(jax.ShapeDtypeStruct((4, 2), jnp.float32))
        >>> exported.call(jnp.ones((4, 2))).shape
        (4, 2)
    """
    model, _ = as_model(x)
    if not model.built:
        raise RuntimeError(
            "a model that isn't built has no values to freeze: sb.Sequential([...]).build(shape) "
            "has some"
        )
    if inputs:
        check_inputs(inputs)
    for_layers = {name: value for name, value in keywords.items() if name != "rng"}
    check_keywords(model, inputs, call_of(for_layers))
    frozen = Frozen(Snapshot(model, FLAT, training), keywords)
    if inputs:
        frozen.lower(*specs(inputs)).compile()
    return frozen
