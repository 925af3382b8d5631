"""Exports: a model as an object of another library, or as a pair of pure functions."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from seqbridge._export.snapshot import Snapshot, as_pure_layer
from seqbridge._interface import Call, Export, Inputs, exporter, mode_of, nearest
from seqbridge._layers import LayerList
from seqbridge._model import as_model
from seqbridge._passes import FLAT, Parts, check_inputs, check_sizes

# Stands in the docstring of `to_<name>` where that of an adapter's export describes its layer.
_ARGS = """\
    x: A `Sequential`, a `Layer` or an entry of any library.
    *inputs: The inputs that it is for, if it isn't built, as for `Sequential.build`; it stays as
        it is.
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
    """Return a model as a pair of pure functions, `(init, apply)`, for use without any library.

    If the model is built, `init` returns its values, whatever the key. Later edits, assignments and
    training of the model don't reach the pair.

    Args:
        x: A `Sequential`, a `Layer` or an entry of any library.
        *inputs: The inputs that it is for, if it isn't built, as for `Sequential.build`; without
            them, `init` must be given some.
        training: The mode of calls that say none.

    Returns:
        A named tuple of `init` and `apply`, which take and return the same as those of a
        `Sequential`.

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
    _check_inputs(model, inputs)
    snapshot = Snapshot(model, FLAT, training, inputs)

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Parts:
        return snapshot.init(key, inputs, keywords)

    def apply(
        variables: Mapping[str, Mapping[str, Any]],
        /,
        *inputs: Any,
        rng: Any = None,
        **keywords: Any,
    ) -> tuple[Any, Parts]:
        outputs, after, _ = snapshot.apply(variables, rng, inputs, keywords)
        return outputs, after

    return Pure(init, apply)


def export_function(name: str) -> Callable[..., Any]:
    """Return `to_<name>`, which makes an object of a library from a model, a layer or an entry.

    Raises:
        AttributeError: No adapter exports under this name.
    """
    try:
        return _export_function(name, exporter(name))
    except ImportError as error:
        # Only a call may fail for this: `help` and whatever lists the module ask for every name.
        notes = getattr(error, "__notes__", ())
        return _unavailable_export(name, " ".join([f"isn't there: {error}.", *notes]))


def _unavailable_export(name: str, reason: str) -> Callable[..., Any]:
    """Return a `to_<name>` that raises the `ImportError` of its library when it is called."""

    def export_model(x: Any, /, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        # Imports again: the library may have been installed since.
        function = _export_function(name, exporter(name))
        return function(x, *inputs, training=training, **options)

    export_model.__name__ = export_model.__qualname__ = f"to_{name}"
    export_model.__doc__ = reason
    return export_model


@functools.cache
def _export_function(name: str, export: Export) -> Callable[..., Any]:
    parameters = inspect.signature(export).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def export_model(x: Any, /, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        model, single = as_model(x)
        _check_inputs(model, inputs)
        for option in options:
            if option not in known and not takes_any:
                raise TypeError(f"to_{name} takes no {option!r}{nearest(option, known)}")
        layer = as_pure_layer(model, single=single, training=mode_of(training), inputs=inputs)
        return export(layer, **options)

    export_model.__name__ = export_model.__qualname__ = f"to_{name}"
    export_model.__doc__ = re.sub(r"    layer: .*\n", _ARGS, inspect.cleandoc(export.__doc__ or ""))
    return export_model


def _check_inputs(model: LayerList, inputs: Inputs) -> None:
    """Raise if a model that isn't built can't be built for these inputs."""
    if inputs and not model.built:
        check_inputs(inputs)
        check_sizes(model, inputs, Call())
