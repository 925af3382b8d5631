"""`from_native`: load the values that were trained in an exported object."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard, TypeVar

import jax
import jax.numpy as jnp

from seqbridge._entries import objects_inside
from seqbridge._export.snapshot import readable
from seqbridge._interface import Path, check_names, nearest
from seqbridge._layers import Layer, LayerList
from seqbridge._model import as_model
from seqbridge._passes import FLAT, Form, built_layouts
from seqbridge._state import Locks, Variable, cast, commit, owned

Model = TypeVar("Model", bound="LayerList | Layer")
_VALUES = "seqbridge_variables"  # the method by which an exported object hands over its values
_MOST_ERRORS = 8

# The values of each tree that names of the model stand in, by the path before the names.
_Trees: TypeAlias = dict[Path, dict[Variable, Any]]


def from_native(model: Model, native: Any, /) -> Model:
    """Load values that were trained in another library, all of them or none.

    Args:
        model: What was exported, or one like it: a `Sequential` or a `Layer`, built.
        native: What the library trained: an object that a `to_...` made, or its values as the
            library has them, by name in nested dicts, lists and tuples, or a list of all arrays in
            the library's order; or what `to_pure` returns. The tree of a bigger model, in which
            they stand further inside, will do, and so will the parameters without the state.

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
    by_path = _variables_by_path(holder, single)
    variables = list(dict.fromkeys(by_path.values()))
    found = _match(native, by_path, variables)
    # Parameters will do without the state, and the state without them; each must be complete.
    kinds = {_is_param(variable) for variable in found} or {True, False}
    wanted = [variable.name for variable in variables if _is_param(variable) in kinds]
    check_names("from_native", [variable.name for variable in found], wanted)
    with Locks(found):
        changes: dict[Variable, jax.Array] = {}
        for variable, array in found.items():
            old = variable.value
            changes[variable] = cast(variable.name, _restore_integers(owned(array), old), old)
        commit(changes)
    return model


def _variables_by_path(model: LayerList, single: bool) -> dict[Path, Variable]:
    """Return the variables by their paths in exported trees, and by their names in the model."""
    by_path: dict[Path, Variable] = {}
    for naming in (readable(single), FLAT):
        form = Form(model, built_layouts(model), naming)
        for layer, names in form.names.items():
            for (name, _), variable in zip(names, layer.own_variables(), strict=True):
                path = (name,) if naming is FLAT else tuple(name.split("/"))
                by_path[path] = variable
    return by_path


def _is_param(variable: Variable) -> bool:
    return variable.kind == "params"


def _match(
    native: Any, by_path: dict[Path, Variable], variables: list[Variable]
) -> dict[Variable, Any]:
    """Return the arrays of a tree of another library, by the variables whose values they are.

    An array belongs to the variable whose name its path ends with, so that it doesn't matter what a
    library puts before the name, and in how many parts it writes it. A tree that has them all is
    the model's; arrays beside it belong to something else.
    """
    values = _exported_values(native)
    in_order = sorted(variables, key=_rank)
    if _is_list_of_arrays(values):
        return _match_in_order(values, in_order)
    trees, unknown = _split(values, by_path)
    found: dict[Variable, Any] = {}
    chosen: set[Path] = set()
    params = [variable for variable in in_order if variable.kind == "params"]
    others = [variable for variable in in_order if variable.kind != "params"]
    for wanted in (params, others):
        for prefix in _prefixes_to_search(trees, wanted):
            for variable in wanted:
                if variable not in trees[prefix]:
                    continue
                if variable in found:
                    raise ValueError(
                        f"from_native: two arrays for {variable.name}, the second in "
                        f"{'/'.join(prefix)}: give the tree of the one model alone"
                    )
                found[variable] = trees[prefix][variable]
                chosen.add(prefix)
    _check_unknown(unknown, chosen, by_path)
    return found


def _is_list_of_arrays(values: Any) -> TypeGuard[list[Any]]:
    """Whether the values are a list of arrays, which have no names."""
    if type(values) is not list or not values:
        return False
    return all(hasattr(leaf, "shape") for leaf in values)


def _rank(variable: Variable) -> int:
    """Return a variable's place in a library's list of arrays, where trained ones come first."""
    return int(not _is_param(variable)) + int(not variable.trainable)


def _match_in_order(arrays: list[Any], in_order: list[Variable]) -> dict[Variable, Any]:
    """Return the arrays of a list by their variables: all of them, or the trained ones alone."""
    trained = [variable for variable in in_order if _is_param(variable) and variable.trainable]
    if len(arrays) not in (len(in_order), len(trained)):
        raise ValueError(
            f"from_native: got a list of {len(arrays)} arrays for {len(in_order)} variables"
        )
    return dict(zip(in_order, arrays, strict=False))


def _split(values: Any, by_path: dict[Path, Variable]) -> tuple[_Trees, list[Path]]:
    """Return the trees that names of the model stand in, and the paths that end with none."""
    trees: _Trees = {}
    unknown: list[Path] = []
    for path, leaf in _leaves(values):
        if path[-1:] in by_path:
            trees.setdefault((), {})[by_path[path[-1:]]] = leaf
            continue
        parts = tuple(re.split("[/.]", "/".join(path)))
        length = _length_of_prefix(parts, by_path)
        if length is None:
            unknown.append(parts)
        else:
            trees.setdefault(parts[:length], {})[by_path[parts[length:]]] = leaf
    return trees, unknown


def _length_of_prefix(path: Path, by_path: dict[Path, Variable]) -> int | None:
    """Return how many parts stand before the longest name that the path ends with."""
    for length in range(len(path)):
        if path[length:] in by_path:
            return length
    return None


def _prefixes_to_search(trees: _Trees, wanted: list[Variable]) -> list[Path]:
    """Return where the trees stand that hold all wanted variables, or else where any stand."""
    complete = [prefix for prefix, values in trees.items() if values.keys() >= set(wanted)]
    return complete or list(trees)


def _check_unknown(unknown: list[Path], chosen: set[Path], by_path: dict[Path, Variable]) -> None:
    """Raise a `KeyError` for unknown paths that stand in a tree that was chosen."""
    names = ["/".join(path) for path in by_path]
    errors: list[str] = []
    for path in unknown:
        inside = any(path[: len(prefix)] == prefix for prefix in chosen)
        if inside or not chosen:
            name = "/".join(path)
            errors.append(f"unknown: {name}{nearest(name, names)}")
    if errors:
        more = "; ..." if len(errors) > _MOST_ERRORS else ""
        raise KeyError(f"from_native: {'; '.join(errors[:_MOST_ERRORS])}{more}")


def _exported_values(native: Any) -> Any:
    """Return the values that an exported object holds; other trees come back as they are.

    The module of a pair of module and state hands over the values of both.
    """
    if type(native) is tuple and native:
        holders = _value_holders(native[0])
        if len(holders) == 1:
            return getattr(holders[0], _VALUES)(*native[1:])
    if _holds_values(native):
        return getattr(native, _VALUES)()
    if isinstance(native, list | tuple | Mapping):
        return native
    holders = _value_holders(native)
    if len(holders) != 1:
        raise TypeError(
            f"from_native takes what one exported object holds, and finds {len(holders)} of them "
            f"in this {type(native).__name__}: give that object, or the library's tree of its "
            "values"
        )
    return getattr(holders[0], _VALUES)()


def _value_holders(tree: Any) -> list[Any]:
    """Return the exported objects that stand in a tree, or in a module of another library."""
    leaves = jax.tree.leaves(tree, is_leaf=_holds_values)
    found = [leaf for leaf in leaves if _holds_values(leaf)]
    return found or [obj for obj in objects_inside(tree) if _holds_values(obj)]


def _holds_values(node: Any) -> bool:
    return hasattr(type(node), _VALUES)


def _restore_integers(new: jax.Array, old: jax.Array) -> jax.Array:
    """Cast floats to the dtype of `old` where a library without integers has made floats of it."""
    was_integer = not jnp.issubdtype(old.dtype, jnp.inexact)
    if was_integer and jnp.issubdtype(new.dtype, jnp.floating) and (new == jnp.round(new)).all():
        return new.astype(old.dtype)
    return new


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the arrays of a tree with their paths, those of exported objects included."""
    if _holds_values(tree):
        yield from _leaves(getattr(tree, _VALUES)(), path)
    elif isinstance(tree, Mapping):
        # The count beside a PRNG key belongs to a stream of keys, and is no variable.
        if not any(_is_key(value) for value in tree.values()):
            for name, inner in tree.items():
                yield from _leaves(inner, (*path, str(name)))
    elif isinstance(tree, list | tuple):
        for i, inner in enumerate(tree):
            yield from _leaves(inner, (*path, str(i)))
    elif tree is not None:
        yield path, tree


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
