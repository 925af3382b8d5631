"""The ways out into other libraries."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from seqbridge._export.snapshot import Snapshot, as_pure_layer
from seqbridge._interface import Call, Export, exporter, mode_of, nearest
from seqbridge._layers import LayerList
from seqbridge._model import as_model
from seqbridge._passes import FLAT, Parts, check_inputs, check_sizes

_ARGS = """\
    x: A `Sequential`, a `Layer` or an entry of any library.
    *inputs: What it is for, if it isn't built, as for `Sequential.build`; it stays as it is.
    training: The mode of calls that say none.
"""


class Pure(NamedTuple):
    """A model as a pair of pure functions.

    Attributes:
        init: `init(key, *inputs, **keywords)` returns `{"params": {name: array}, "state": {name:
            array}}`.
        apply: `apply(variables, *inputs, rng=key, training=True, **keywords)` returns the outputs,
            and the variables after the call.
    """

    init: Callable[..., Parts]
    apply: Callable[..., tuple[Any, Parts]]


def to_pure(x: Any, /, *inputs: Any, training: bool | None = None) -> Pure:
    """A model as a pair of pure functions, `(init, apply)`, for whoever wants no library at all.

    What was built hands over its values: `init` returns them, whatever the key. What comes later,
    to the model or in it, doesn't show in the pair.

    Args:
        x: A `Sequential`, a `Layer` or an entry of any library.
        *inputs: What it is for, if it isn't built, as for `Sequential.build`; without them, `init`
            wants to know.
        training: The mode of calls that say none.

    Returns:
        A named tuple of `init` and `apply`, which take and return what those of a `Sequential` do.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = jnp.eye(2)
        >>> init, apply = to_pure(lambda x, w=w: x @ w)
        >>> variables = init(0, (1, 2))
        >>> apply(variables, jnp.ones((1, 2)))[0]
        Array([[1., 1.]], dtype=float32)
    """
    model, _ = as_model(x)
    _check(model, inputs)
    shot = Snapshot(model, FLAT, training, inputs)

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Parts:
        return shot.init(key, inputs, keywords)

    def apply(
        variables: Any, /, *inputs: Any, rng: Any = None, **keywords: Any
    ) -> tuple[Any, Parts]:
        return shot.apply(variables, rng, inputs, keywords)[:2]

    return Pure(init, apply)


def way_out(name: str) -> Callable[..., Any]:
    """`to_<name>`: makes an object of a library of a model, a layer or an entry.

    Raises:
        AttributeError: No adapter has that way out.
    """
    try:
        return _way_out(name, exporter(name))
    except (
        ImportError
    ) as error:  # which only a call is owed: `help` and whoever lists the module ask for every name
        return _missing(
            name, " ".join([f"isn't there: {error}.", *getattr(error, "__notes__", ())])
        )


def _missing(name: str, why: str) -> Callable[..., Any]:
    def way_out(x: Any, /, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        return _way_out(name, exporter(name))(
            x, *inputs, training=training, **options
        )  # raises, or has been installed

    way_out.__name__ = way_out.__qualname__ = f"to_{name}"
    way_out.__doc__ = why
    return way_out


@functools.cache
def _way_out(name: str, export: Export) -> Callable[..., Any]:
    def way_out(x: Any, /, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        model, single = as_model(x)
        _check(model, inputs)
        for option in options:
            if option not in known and not any_option:
                raise TypeError(f"to_{name} takes no {option!r}{nearest(option, known)}")
        return export(
            as_pure_layer(model, single=single, training=mode_of(training), inputs=inputs),
            **options,
        )

    signature = inspect.signature(export)
    known = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    any_option = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    way_out.__name__ = way_out.__qualname__ = f"to_{name}"
    way_out.__doc__ = re.sub(r"    layer: .*\n", _ARGS, inspect.cleandoc(export.__doc__ or ""))
    return way_out


def _check(model: LayerList, inputs: tuple[Any, ...]) -> None:
    if inputs and not model.built:
        check_inputs(inputs)
        check_sizes(model, inputs, Call())
