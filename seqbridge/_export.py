"""The way out into other libraries, and the way back for values that were trained there."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from seqbridge._collection import check_names
from seqbridge._functional import FLAT, Form, Parts, built_layouts
from seqbridge._layer import Layer
from seqbridge._neutral import Snapshot, as_model, neutral, readable
from seqbridge._registry import Export, exporter
from seqbridge._sequential import Sequential
from seqbridge._stateful import Locks
from seqbridge._structure import Structure
from seqbridge._trace import commit
from seqbridge._variable import Variable, cast

Model = TypeVar("Model", bound="Structure | Layer")
_VALUES = "seqbridge_variables"  # the method by which an exported object that holds values says them

_ARGS = """\
    x: A `Sequential`, a `Layer` or an entry of any library.
    *inputs: What to build it for, if it isn't built, as for `Sequential.build`.
    training: The mode of calls that say none.
"""


class Pure(NamedTuple):
    """A model as a pair of pure functions.

    Attributes:
        init: `init(key, *inputs, **keywords)` returns `{"params": {name: array}, "state": {name: array}}`.
        apply: `apply(variables, *inputs, rng=key, training=True, **keywords)` returns the outputs, and the variables
            after the call.
    """

    init: Callable[..., Parts]
    apply: Callable[..., tuple[Any, Parts]]


def to_pure(x: Any, /, *inputs: Any, training: bool | None = None) -> Pure:
    """A model as a pair of pure functions, `(init, apply)`, for whoever wants no library at all.

    What was built hands over its values: `init` returns them, whatever the key. What comes later, to the model or in
    it, doesn't show in the pair.

    Args:
        x: A `Sequential`, a `Layer` or an entry of any library.
        *inputs: What to build it for, if it isn't built: as for `Sequential.build`.
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
    model, _ = _built_for(x, inputs)
    shot = Snapshot(model, FLAT, training)

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Parts:
        return shot.init(key, inputs, keywords)

    def apply(variables: Any, /, *inputs: Any, rng: Any = None, **keywords: Any) -> tuple[Any, Parts]:
        return shot.apply(variables, rng, inputs, keywords)[:2]

    return Pure(init, apply)


def way_out(name: str) -> Callable[..., Any]:
    """`to_<name>`: makes an object of a library of a model, a layer or an entry.

    Raises:
        AttributeError: No adapter has that way out.
        ImportError: The library isn't installed.
    """
    return _way_out(name, exporter(name))


@functools.cache
def _way_out(name: str, export: Export) -> Callable[..., Any]:
    def way_out(x: Any, /, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        model, single = _built_for(x, inputs)
        return export(neutral(model, single=single, training=training), **options)

    way_out.__name__ = way_out.__qualname__ = f"to_{name}"
    way_out.__doc__ = re.sub(r"    layer: .*\n", _ARGS, inspect.cleandoc(export.__doc__ or ""))
    return way_out


def _built_for(x: Any, inputs: tuple[Any, ...]) -> tuple[Structure, bool]:
    model, single = as_model(x)
    if inputs:
        assert isinstance(model, Sequential)
        model.build(*inputs)
    return model, single


def from_native(model: Model, native: Any, /) -> Model:
    """Brings values home that were trained in another library, all of them, or none.

    Args:
        model: What was exported, or one like it: a `Sequential` or a `Layer`, built.
        native: What the library trained: the variables of linen, `(params, state)` or `params` of Haiku, an NNX module
            or its state, an Equinox module or `(module, state)`, a Keras layer or its list of weights, the parameters
            of stax, or what `to_pure` returns. A tree in which they stand further inside will do, and so will the
            parameters without the state.

    Returns:
        The model.

    Raises:
        RuntimeError: The model isn't built, so nothing is known to check the values against.
        KeyError: Names are missing, or unknown.
        ValueError: A wrong shape.
        TypeError: A wrong dtype.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = jnp.eye(2)
        >>> layer = Layer(lambda x, w=w: x @ w)
        >>> from_native(layer, {"params": {"w": 2 * w}}).w.value
        Array([[2., 0.],
               [0., 2.]], dtype=float32)
    """
    holder, single = as_model(model)
    if not holder.built:
        raise RuntimeError("the model isn't built: call model.build(...) first, then from_native")
    table, kinds = {}, {}
    for naming in (readable(single), FLAT):
        form = Form(holder, built_layouts(holder), naming)
        for layer, own in form.names.items():
            for (name, kind), variable in zip(own, layer._variables, strict=True):
                table[tuple(name.split("/")) if naming is not FLAT else (name,)] = variable
                kinds.setdefault(variable, "params" if kind == "params" else "state")
    found = _found(native, table, sorted(kinds, key=kinds.__getitem__))
    given = {kinds[variable] for variable in found}
    check_names("from_native", (v.name for v in found), (v.name for v in kinds if kinds[v] in given or not given))
    with Locks(found):
        commit({v: cast(v.name, _whole(jnp.asarray(new), v.value), v.value) for v, new in found.items()})
    return model


def _found(native: Any, table: dict[tuple[str, ...], Variable], in_order: list[Variable]) -> dict[Variable, Any]:
    """The arrays of a tree of another library, by the variables that they are values of.

    An array belongs to the variable whose name its path ends with, so that it doesn't matter what a library puts before
    the name, and in how many parts it writes it.
    """
    head, *rest = native if type(native) is tuple and native and hasattr(native[0], _VALUES) else (native,)
    if hasattr(head, _VALUES):
        native = getattr(head, _VALUES)(*rest)
    if type(native) is list and all(hasattr(leaf, "shape") for leaf in native):  # which has no names
        params = [variable for variable in in_order if variable.kind == "params"]
        if len(native) not in (len(in_order), len(params)):
            raise ValueError(f"from_native: got a list of {len(native)} arrays for {len(in_order)} variables")
        return dict(zip(in_order, native, strict=False))
    found: dict[Variable, Any] = {}
    unknown = []
    for path, leaf in _leaves(native):
        parts = path[-1:] if path[-1:] in table else tuple(part for p in path for part in re.split("[/.]", p))
        variable = next((table[parts[n:]] for n in range(len(parts)) if parts[n:] in table), None)
        if variable is None:
            unknown.append("/".join(parts))
        elif variable in found:
            raise ValueError(f"from_native: two arrays for {variable.name}, the second at {'/'.join(path)}")
        else:
            found[variable] = leaf
    if unknown:
        check_names("from_native", unknown, ("/".join(parts) for parts in table if len(parts) > 1))
    return found


def _whole(new: Any, old: Any) -> Any:
    """Integers that a library without any has kept as floats."""
    is_float, is_whole = jnp.issubdtype(new.dtype, jnp.floating), not jnp.issubdtype(old.dtype, jnp.inexact)
    return new.astype(old.dtype) if is_float and is_whole and bool((new == jnp.round(new)).all()) else new


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        # What stands beside a PRNG key is a stream of keys, and no variable.
        if not any(hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jax.dtypes.prng_key) for v in tree.values()):
            for name, inner in tree.items():
                yield from _leaves(inner, (*path, str(name)))
    elif isinstance(tree, list | tuple):
        for i, inner in enumerate(tree):
            yield from _leaves(inner, (*path, str(i)))
    elif tree is not None:
        yield path, tree
