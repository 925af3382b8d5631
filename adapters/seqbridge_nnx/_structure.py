"""The structure of a module: its graph without arrays, and where each array stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqbridge import Annotated, Variables, nest, unnest

_COLLECTIONS = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
_PASSING = (
    nnx.Intermediate,
    nnx.Perturbation,
)  # what a call may leave in a module without its being state
_STREAM = 1 << 16  # how many keys a call may take from one stream before it meets those of the next


class Structure:
    """Where the arrays of a module stand.

    Args:
        module: A module, with arrays or with shapes in place of them.
    """

    def __init__(self, module: nnx.Module):
        _, state = nnx.split(module)
        self.arrays, self._treedef = jax.tree.flatten(state)
        self.kinds: dict[str, Any] = {}
        self._axes: dict[tuple[str, ...], tuple[Any, ...]] = {}
        self._places: dict[tuple[str, ...], int] = {}
        self._keys: dict[tuple[str, ...], int] = {}
        self._counts: dict[tuple[str, ...], int] = {}
        for i, (path, kind, _) in enumerate(_leaves(state)):
            if issubclass(kind, nnx.RngKey):
                self._keys[path[:-1]] = i
            elif issubclass(kind, nnx.RngState):
                self._counts[path[:-1]] = i
            else:
                collection = _COLLECTIONS.get(kind, kind.__name__)
                self.kinds[collection] = "params" if issubclass(kind, nnx.Param) else "state"
                self._places[(collection, *path)] = i
        for path, node in nnx.to_flat_state(state):
            if isinstance(node, nnx.Variable):  # which calls it by another name in each version
                told = node.get_metadata()
                axes = next(
                    (
                        told[n]
                        for n in ("out_sharding", "sharding_names", "sharding")
                        if told.get(n)
                    ),
                    (),
                )
                self._axes[tuple(map(str, path))] = tuple(axes)
        self.draws = bool(self._keys)
        for stream, i in self._keys.items():  # in a module of shapes, keys that hold a place
            if isinstance(self.arrays[i], jax.ShapeDtypeStruct):
                shape = self.arrays[i].shape
                self.arrays[i] = (
                    jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
                )
                self.arrays[self._counts[stream]] = jnp.zeros(shape, "uint32")

    def variables(self, arrays: list[Any]) -> Variables:
        """The arrays, with what NNX says of how they are to be split."""

        def said(place: tuple[str, ...], array: jax.Array) -> Any:
            axes = self._axes.get(place[1:])
            return Annotated(array, axes=axes) if axes else array

        return nest(
            {place: said(place, jnp.asarray(arrays[i])) for place, i in self._places.items()}
        )

    def sources(self, module: nnx.Module) -> dict[tuple[str, ...], Any]:
        """The `nnx.Variable`s of a module, by the places of their arrays."""
        found = {
            tuple(map(str, path)): node
            for path, node in nnx.iter_graph(module)
            if isinstance(node, nnx.Variable)
        }
        return {place: found[place[1:]] for place in self._places if place[1:] in found}

    def merge(self, graph: Any, variables: Variables, key: Any = None) -> Any:
        """A module of its own with these variables, whose streams of keys all start from `key`."""
        given = unnest(variables)
        arrays = list(self.arrays)
        for place, i in self._places.items():
            arrays[i] = given[place]
        for n, (stream, i) in enumerate(self._keys.items()):
            if key is None:
                break
            shape = jnp.shape(arrays[i])
            # One key and as many counters as there are streams, so that nothing is computed before
            # a key is drawn.
            arrays[i] = jax.random.split(jax.random.fold_in(key, n), shape) if shape else key
            arrays[self._counts[stream]] = jnp.full(shape, n * _STREAM, "uint32")
        return nnx.merge(graph, jax.tree.unflatten(self._treedef, arrays))

    def changes(self, module: nnx.Module, before: Variables) -> Variables:
        """The collections that a call of a module has changed.

        Raises:
            ValueError: The call made new variables.
        """
        after = {}
        for path, kind, array in _leaves(nnx.state(module)):
            place = (_COLLECTIONS.get(kind, kind.__name__), *path)
            if place in self._places:
                after[place] = array
            elif not issubclass(kind, (nnx.RngState, *_PASSING)):
                raise ValueError(
                    f"the call made the variable {'.'.join(path)} ({kind.__name__}), which the "
                    f"module didn't have: "
                    "make it in the constructor"
                )
        given = unnest(before)
        moved = {place[0] for place, array in after.items() if array is not given[place]}
        return nest({place: array for place, array in after.items() if place[0] in moved})

    def named(self, arrays: dict[tuple[str, ...], Any]) -> Variables:
        """Arrays by their paths, as variables; a path that the module hasn't got stands under its own name."""
        collections = {place[1:]: place for place in self._places}
        collections |= {
            (*path, "value"): place for path, place in collections.items()
        }  # as some files have them
        return nest({collections.get(path, path): array for path, array in arrays.items()})


def state_paths(state: Any) -> dict[tuple[str, ...], Any]:
    """The arrays of an `nnx.State`, or of nested dicts, by their paths; keys left out."""
    return {
        path: array for path, kind, array in _leaves(state) if not issubclass(kind, nnx.RngState)
    }


def _leaves(state: Any) -> Iterator[tuple[tuple[str, ...], type, Any]]:
    """Path, type of the variable and array, in the order of `jax.tree.leaves`."""
    for path, node in nnx.to_flat_state(nnx.State(state) if isinstance(state, dict) else state):
        of_variable = isinstance(node, nnx.Variable)
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node):
            parts = (str(getattr(k, "key", getattr(k, "idx", None))) for k in inner[of_variable:])
            yield (*map(str, path), *parts), type(node) if of_variable else jax.Array, leaf


def undecided(module: nnx.Module) -> bool:
    """Whether training and evaluation differ somewhere inside, and no constructor has said which it is."""
    return any(True for _ in _open_flags(module))


def switched(module: nnx.Module, *, training: bool) -> Any:
    """The graph of a module in a mode. What a constructor has switched to evaluation stays there."""
    made = nnx.clone(module)
    for node, flag in list(_open_flags(made)):
        setattr(node, flag, not training)
    return nnx.split(made)[0]


def _open_flags(module: nnx.Module) -> Iterator[tuple[Any, str]]:
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module):
            for flag in ("deterministic", "use_running_average"):
                never_drops = flag == "deterministic" and 0 in (
                    getattr(node, n, None) for n in ("rate", "dropout_rate")
                )
                if getattr(node, flag, True) in (None, False) and not never_drops:
                    yield node, flag
