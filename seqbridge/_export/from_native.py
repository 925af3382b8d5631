"""The way home for values that were trained in another library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from seqbridge._export.snapshot import readable
from seqbridge._interface import Path, check_names, nearest
from seqbridge._layers import Layer, LayerList
from seqbridge._model import as_model
from seqbridge._passes import FLAT, Form, built_layouts
from seqbridge._state import Locks, Variable, cast, commit, owned

Model = TypeVar("Model", bound="LayerList | Layer")
_VALUES = (
    "seqbridge_variables"  # the method by which an exported object that holds values says them
)


def from_native(model: Model, native: Any, /) -> Model:
    """Brings values home that were trained in another library, all of them, or none.

    Args:
        model: What was exported, or one like it: a `Sequential` or a `Layer`, built.
        native: What the library trained: an object that a `to_...` made, or its values as the
            library has them, by name in nested dicts, lists and tuples, or a list of all arrays in
            the library's order; or what `to_pure` returns. A tree of a bigger model, in which they
            stand further inside, will do, and so will the parameters without the state.

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
    table: dict[Path, Variable] = {}
    kinds: dict[Variable, str] = {}
    for naming in (readable(single), FLAT):
        form = Form(holder, built_layouts(holder), naming)
        for layer, own in form.names.items():
            for (name, kind), variable in zip(own, layer.own_variables(), strict=True):
                table[tuple(name.split("/")) if naming is not FLAT else (name,)] = variable
                kinds.setdefault(variable, "params" if kind == "params" else "state")
    # As a library has them that tells apart what is trained and what isn't.
    in_order = sorted(kinds, key=lambda v: (kinds[v] == "state") + (not v.trainable))
    found = _found(native, table, in_order)
    given = {kinds[variable] for variable in found}
    check_names(
        "from_native",
        (v.name for v in found),
        (v.name for v in kinds if kinds[v] in given or not given),
    )
    with Locks(found):
        commit({v: cast(v.name, _whole(owned(new), v.value), v.value) for v, new in found.items()})
    return model


def _found(
    native: Any, table: dict[Path, Variable], in_order: list[Variable]
) -> dict[Variable, Any]:
    """The arrays of a tree of another library, by the variables that they are values of.

    An array belongs to the variable whose name its path ends with, so that it doesn't matter what a
    library puts before the name, and in how many parts it writes it. A tree that has them all is
    the model's, and what stands beside it somebody else's.
    """
    native = _said(native)
    if (
        type(native) is list and native and all(hasattr(leaf, "shape") for leaf in native)
    ):  # which has no names
        trained = [
            variable for variable in in_order if variable.kind == "params" and variable.trainable
        ]
        if len(native) not in (len(in_order), len(trained)):
            raise ValueError(
                f"from_native: got a list of {len(native)} arrays for {len(in_order)} variables"
            )
        return dict(zip(in_order, native, strict=False))
    homes: dict[
        Path, dict[Variable, Any]
    ] = {}  # of each tree in which names of the model stand, what it has
    unknown: list[Path] = []
    for path, leaf in _leaves(native):
        parts = (
            path[-1:]
            if path[-1:] in table
            else tuple(part for p in path for part in re.split("[/.]", p))
        )
        n = next((n for n in range(len(parts)) if parts[n:] in table), None)
        if n is None:
            unknown.append(parts)
        else:
            homes.setdefault(parts[:n], {})[table[parts[n:]]] = leaf
    found: dict[Variable, Any] = {}
    chosen: set[Path] = set()
    for of_params in (True, False):
        wanted = [v for v in in_order if (v.kind == "params") is of_params]
        whole = [home for home, values in homes.items() if wanted and values.keys() >= set(wanted)]
        for home in whole or homes:
            for variable in wanted:
                if variable in homes[home]:
                    if variable in found:
                        raise ValueError(
                            f"from_native: two arrays for {variable.name}, the second in "
                            f"{'/'.join(home)}: give the "
                            "tree of the one model alone"
                        )
                    found[variable] = homes[home][variable]
                    chosen.add(home)
    unknown = [
        parts
        for parts in unknown
        if not chosen or any(parts[: len(home)] == home for home in chosen)
    ]
    if unknown:
        names = ["/".join(parts) for parts in table]
        lines = [
            f"unknown: {'/'.join(parts)}{nearest('/'.join(parts), names)}" for parts in unknown
        ]
        raise KeyError("from_native: " + "; ".join(lines[:8]) + ("; ..." if len(lines) > 8 else ""))
    return found


def _said(native: Any) -> Any:
    """What exported objects say of their values; of a pair of module and state, what the module says of both."""
    if type(native) is tuple and native:
        inside = jax.tree.leaves(native[0], is_leaf=_says)
        if len(holders := [leaf for leaf in inside if _says(leaf)]) == 1:
            return getattr(holders[0], _VALUES)(*native[1:])
    if _says(native):
        return getattr(native, _VALUES)()
    if isinstance(native, list | tuple | Mapping):
        return native
    holders = [leaf for leaf in jax.tree.leaves(native, is_leaf=_says) if _says(leaf)]
    if len(holders) != 1:
        raise TypeError(
            f"from_native takes what one exported object holds, and finds {len(holders)} of them "
            f"in this "
            f"{type(native).__name__}: give that object, or the library's tree of its values"
        )
    return getattr(holders[0], _VALUES)()


def _says(node: Any) -> bool:
    return hasattr(type(node), _VALUES)


def _whole(new: Any, old: Any) -> Any:
    """Integers that a library without any has kept as floats."""
    is_float, is_whole = (
        jnp.issubdtype(new.dtype, jnp.floating),
        not jnp.issubdtype(old.dtype, jnp.inexact),
    )
    return (
        new.astype(old.dtype)
        if is_float and is_whole and bool((new == jnp.round(new)).all())
        else new
    )


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if _says(tree):
        yield from _leaves(getattr(tree, _VALUES)(), path)
    elif isinstance(tree, Mapping):
        # What stands beside a PRNG key is a stream of keys, and no variable.
        if not any(
            hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jax.dtypes.prng_key)
            for v in tree.values()
        ):
            for name, inner in tree.items():
                yield from _leaves(inner, (*path, str(name)))
    elif isinstance(tree, list | tuple):
        for i, inner in enumerate(tree):
            yield from _leaves(inner, (*path, str(i)))
    elif tree is not None:
        yield path, tree
