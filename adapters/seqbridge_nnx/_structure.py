"""The structure of a module: its graph without arrays, and where each array stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from seqbridge import Annotated, Variables, nest, path_text, unnest

Path: TypeAlias = tuple[str, ...]

_COLLECTIONS: dict[type, str] = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
# What a call may leave in a module without its being state.
_PASSING = (nnx.Intermediate, nnx.Perturbation)
# What NNX calls the axes along which an array is split, in one version or another.
_AXES = ("out_sharding", "sharding_names", "sharding")
# How many keys a call may take from one stream before it meets those of the next.
_STREAM = 1 << 16


class Leaf(NamedTuple):
    """An array of a module.

    Attributes:
        path: Where it stands.
        kind: The class of the variable that holds it.
        array: The array.
    """

    path: Path
    kind: type
    array: Any


class Structure:
    """Where the arrays of a module stand.

    Args:
        module: A module, with arrays or with shapes in place of them.

    Attributes:
        arrays: The arrays, in the order of NNX.
        kinds: The kind of each collection, as `PureLayer` has it.
        draws: Whether the module has streams of keys.
    """

    def __init__(self, module: nnx.Module):
        _, state = nnx.split(module)
        self.arrays, self._treedef = jax.tree.flatten(state)
        self.kinds: dict[str, Literal["params", "state"]] = {}
        # Indices into the arrays, by collection and path, or by the path of a stream of keys.
        self._indices: dict[Path, int] = {}
        self._keys: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}
        for i, leaf in enumerate(_walk_leaves(state)):
            if issubclass(leaf.kind, nnx.RngKey):
                self._keys[leaf.path[:-1]] = i
            elif issubclass(leaf.kind, nnx.RngState):
                self._counts[leaf.path[:-1]] = i
            else:
                collection = _collection(leaf.kind)
                self.kinds[collection] = "params" if issubclass(leaf.kind, nnx.Param) else "state"
                self._indices[collection, *leaf.path] = i
        self._axes = _find_axes(state)
        self.draws = bool(self._keys)
        self._fill_keys()

    def _fill_keys(self) -> None:
        """Put keys in place of their shapes, which only hold a place."""
        for stream, i in self._keys.items():
            spec = self.arrays[i]
            if isinstance(spec, jax.ShapeDtypeStruct):
                key = jax.random.key(0)
                self.arrays[i] = jax.random.split(key, spec.shape) if spec.shape else key
                self.arrays[self._counts[stream]] = jnp.zeros(spec.shape, "uint32")

    def variables(self, arrays: list[Any]) -> Variables:
        """Return the arrays, with what NNX says of how they are to be split."""
        leaves = {}
        for place, i in self._indices.items():
            array = jnp.asarray(arrays[i])
            axes = self._axes.get(place[1:])
            leaves[place] = Annotated(array, axes=axes) if axes else array
        return nest(leaves)

    def sources(self, module: nnx.Module) -> dict[Path, nnx.Variable]:
        """Return the `nnx.Variable`s of a module, by the places of their arrays."""
        variables: dict[Path, nnx.Variable] = {}
        for path, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Variable):
                variables[_path_of(path)] = node
        return {place: variables[place[1:]] for place in self._indices if place[1:] in variables}

    def merge(
        self, graph: nnx.GraphDef[Any], variables: Variables, key: jax.Array | None = None
    ) -> Any:
        """Return a new module with these variables, whose streams of keys all start from `key`."""
        given = unnest(variables)
        arrays = list(self.arrays)
        for place, i in self._indices.items():
            arrays[i] = given[place]
        if key is not None:
            for n, (stream, i) in enumerate(self._keys.items()):
                shape = jnp.shape(arrays[i])
                # One key and as many counters as there are streams, so that nothing is computed
                # before a key is drawn.
                arrays[i] = jax.random.split(jax.random.fold_in(key, n), shape) if shape else key
                arrays[self._counts[stream]] = jnp.full(shape, n * _STREAM, "uint32")
        return nnx.merge(graph, jax.tree.unflatten(self._treedef, arrays))

    def changes(self, module: nnx.Module, before: Variables) -> Variables:
        """Return the collections that a call of a module has changed.

        Raises:
            ValueError: The call made new variables.
        """
        after: dict[Path, Any] = {}
        for path, kind, array in _walk_leaves(nnx.state(module)):
            place = (_collection(kind), *path)
            if place in self._indices:
                after[place] = array
            elif not issubclass(kind, (nnx.RngState, *_PASSING)):
                raise ValueError(
                    f"the call made the variable {'.'.join(path)} ({kind.__name__}), which the "
                    "module didn't have: make it in the constructor"
                )
        given = unnest(before)
        changed = {place[0] for place, array in after.items() if array is not given[place]}
        return nest({place: array for place, array in after.items() if place[0] in changed})

    def named(self, arrays: dict[Path, Any]) -> Variables:
        """Return arrays by their paths as variables.

        A path that the module hasn't got stands under its own name.
        """
        places: dict[Path, Path] = {}
        for place in self._indices:
            path = place[1:]
            places[path] = place
            places[*path, "value"] = place  # as some files have them
        return nest({places.get(path, path): array for path, array in arrays.items()})


def leaves_of(state: Any) -> dict[Path, Any]:
    """Return the arrays of an `nnx.State`, or of nested dicts, by their paths; keys left out."""
    found = {}
    for path, kind, array in _walk_leaves(state):
        if not issubclass(kind, nnx.RngState):
            found[path] = array
    return found


def _collection(kind: type) -> str:
    return _COLLECTIONS.get(kind, kind.__name__)


def _path_of(keys: Iterable[object]) -> Path:
    return tuple(str(key) for key in keys)


def _walk_leaves(state: Any) -> Iterator[Leaf]:
    """Yield the arrays of an `nnx.State`, or of nested dicts, in the order of `jax.tree.leaves`."""
    if isinstance(state, dict):
        state = nnx.State(state)
    for path, node in nnx.to_flat_state(state):
        is_variable = isinstance(node, nnx.Variable)
        kind = type(node) if is_variable else jax.Array
        for inner, array in jax.tree_util.tree_leaves_with_path(node):
            keys = inner[1:] if is_variable else inner  # the first is the variable's own
            yield Leaf((*_path_of(path), *path_text(keys)), kind, array)


def _find_axes(state: nnx.State) -> dict[Path, tuple[Any, ...]]:
    """Return the axes along which arrays are to be split, by their paths; empty: none."""
    found = {}
    for path, node in nnx.to_flat_state(state):
        if isinstance(node, nnx.Variable):
            metadata = node.get_metadata()
            axes = next((metadata[name] for name in _AXES if metadata.get(name)), ())
            found[_path_of(path)] = tuple(axes)
    return found


def is_undecided(module: nnx.Module) -> bool:
    """Whether training and evaluation differ inside, and no constructor has said which it is."""
    return any(True for _ in _open_flags(module))


def switch_mode(module: nnx.Module, *, training: bool) -> nnx.GraphDef[Any]:
    """Return the graph of a module in a mode.

    What a constructor has switched to evaluation stays there.
    """
    made = nnx.clone(module)
    for node, flag in list(_open_flags(made)):
        setattr(node, flag, not training)
    graph, _ = nnx.split(made)
    return graph


def _open_flags(module: nnx.Module) -> Iterator[tuple[nnx.Module, str]]:
    """Yield the modules inside that may run in both modes, and the names of their flags."""
    for _, node in nnx.iter_graph(module):
        if not isinstance(node, nnx.Module):
            continue
        rates = (getattr(node, "rate", None), getattr(node, "dropout_rate", None))
        if getattr(node, "deterministic", True) in (None, False) and 0 not in rates:
            yield node, "deterministic"
        if getattr(node, "use_running_average", True) in (None, False):
            yield node, "use_running_average"
