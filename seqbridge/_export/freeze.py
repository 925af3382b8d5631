"""`freeze`: a model for inference, with its variables as constants of the compiled program."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax

from seqbridge._export.snapshot import Snapshot
from seqbridge._interface import call_of
from seqbridge._layers import FROZEN
from seqbridge._model import as_model
from seqbridge._passes import FLAT, check_inputs, check_keywords, specs
from seqbridge._transforms import combine, partition


class Frozen:
    """What `freeze` returns: a pure, compiled function of the inputs.

    `jax.export.export` takes it, and so does every transform of JAX.
    """

    holds_constants = True  # to whoever looks for parameters that would be lost

    def __init__(self, shot: Snapshot, keywords: Mapping[str, Any]):
        self._shot = shot
        self._variables = shot.init(None, (), {})
        self._keywords = dict(keywords)
        self._programs: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, /, *inputs: Any, **keywords: Any) -> Any:
        """The outputs. Shapes that are new are compiled first, as `jax.jit` does it.

        Args:
            *inputs: As for a call of the model.
            **keywords: Likewise; what `freeze` was given holds where nothing else is said here.
        """
        program, arrays = self._prepare(inputs, keywords)
        return program(arrays)

    def lower(self, /, *inputs: Any, **keywords: Any) -> jax.stages.Lowered:
        """The program for these inputs, or shapes, as JAX' `Lowered`."""
        program, arrays = self._prepare(inputs, keywords)
        return program.lower(arrays)

    def trace(self, /, *inputs: Any, **keywords: Any) -> jax.stages.Traced:
        """The program for these inputs, or shapes, as JAX' `Traced`."""
        return self._jitted().trace(*inputs, **keywords)

    def eval_shape(self, /, *inputs: Any, **keywords: Any) -> Any:
        """The shapes and dtypes of the outputs."""
        return self._jitted().eval_shape(*inputs, **keywords)

    def _jitted(self) -> Any:
        # Of the inputs as they are: whoever traces or exports it wants to call the result with
        # these.
        def run(*inputs: Any, **keywords: Any) -> Any:
            return self._run(inputs, {**self._keywords, **keywords})

        run.__name__ = FROZEN
        return jax.jit(run)

    def _prepare(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, list[Any]]:
        signature, arrays, _ = partition(
            inputs, {**self._keywords, **keywords} if keywords else self._keywords
        )
        program = self._programs.get(signature)
        if program is None:
            me = weakref.ref(
                self
            )  # which has what is compiled of this: a cycle, which would hold the variables

            def run(arrays: list[Any]) -> Any:
                found = me()
                assert found is not None
                return found._run(*combine(signature, arrays, ()))

            run.__name__ = FROZEN
            program = self._programs[signature] = jax.jit(run)
        return program, arrays

    def _run(self, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        out, after, changed = self._shot.apply(self._variables, None, inputs, keywords)
        if changed:
            old = {name: array for part in self._variables.values() for name, array in part.items()}
            new = {name: array for part in after.values() for name, array in part.items()}
            names = ", ".join(name for name in new if new[name] is not old[name])
            raise TypeError(
                f"the call would change {names}: constants here, so freeze it for training=False"
            )
        return out

    def __repr__(self) -> str:
        return f"sb.freeze({' '.join(repr(self._shot.model).split())})"


def freeze(x: Any, /, *inputs: Any, training: bool | None = False, **keywords: Any) -> Frozen:
    """A model as it is now, as a compiled function of its inputs alone.

    Its variables are constants of the program, so that a call costs what its inputs cost, and the
    compiler may compute with them beforehand. Later edits, assignments and training of the model
    don't reach it.

    Args:
        x: A `Sequential`, a `Layer` or an entry of any library that has its values.
        *inputs: What to compile it for at once: arrays, `jax.ShapeDtypeStruct`s or shapes, as for
            `Sequential.build`. Others are compiled when they come.
        training: The mode of calls that say none.
        **keywords: What each call is to be given, as far as it doesn't say otherwise. Bools,
            strings and the like are static, arrays and numbers are traced, as in `jit`.

    Returns:
        A callable; with `lower`, `trace` and `eval_shape` as `jax.jit` has them, so that
        `jax.export.export` takes it.

    Raises:
        RuntimeError: `x` isn't built.
        TypeError: A call would change a variable, or draws random numbers and isn't given `rng=`.

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
            "what isn't built has no values to freeze: sb.Sequential([...]).build(shape) has some"
        )
    if inputs:
        check_inputs(inputs)
    check_keywords(
        model, inputs, call_of({name: value for name, value in keywords.items() if name != "rng"})
    )
    frozen = Frozen(Snapshot(model, FLAT, training), keywords)
    if inputs:
        frozen.lower(*specs(inputs)).compile()
    return frozen
