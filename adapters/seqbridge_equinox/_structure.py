"""The structure of a module: where its arrays and its state are, and what is inside."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from seqbridge import Variables, nest, path_text, unnest
from seqbridge_equinox._export import Exported

Path: TypeAlias = tuple[str, ...]


class Structure:
    """Where the arrays of a module and of its state stand.

    Args:
        module: What `eqx.nn.make_with_state` returns first, with arrays or with shapes in place of
            them.
        state: What it returns second.

    Attributes:
        stateful: Whether there is any state.
        batched: Whether a module inside takes a whole batch.
        axis_name: The axis over which statistics are computed, if any module inside does so.

    Raises:
        TypeError: The modules inside name several axes.
    """

    def __init__(self, module: eqx.Module, state: eqx.nn.State):
        self._leaves, self._treedef = jax.tree.flatten(module)
        self._state_treedef = jax.tree.structure(state)
        self._indices: dict[Path, int] = {}  # of the parameters among the leaves
        for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(module)):
            if _is_parameter(leaf):
                self._indices["params", *path_text(path)] = i
        self._state_paths = list(_state_leaves(module, state))
        self.stateful = bool(self._state_paths)

        across = [node for node in modules(module) if isinstance(node, eqx.nn.BatchNorm | Exported)]
        self.batched = any(node.axis_name is None for node in across)  # only an `Exported` can be
        axes: dict[Hashable, None] = {}
        for node in across:
            axes |= dict.fromkeys(jax.tree.leaves(node.axis_name))
        if len(axes) > 1:
            names = ", ".join(str(axis) for axis in axes)
            raise TypeError(f"the modules inside name several axes, {names}: name one")
        self.axis_name = next(iter(axes), None)

    def merge(self, variables: Variables) -> tuple[Any, eqx.nn.State]:
        """Return a module and a state with these variables."""
        arrays = unnest(variables)
        leaves = list(self._leaves)
        for path, i in self._indices.items():
            leaves[i] = arrays[path]
        module = jax.tree.unflatten(self._treedef, leaves)
        state_leaves = [arrays[path] for path in self._state_paths]
        return module, jax.tree.unflatten(self._state_treedef, state_leaves)


def variables_of(module: eqx.Module, state: eqx.nn.State) -> Variables:
    """Return all parameters and states, by where they stand."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(module):
        if _is_parameter(leaf):
            leaves["params", *path_text(path)] = leaf
    return nest(leaves | _state_leaves(module, state))


def _state_leaves(module: eqx.Module, state: eqx.nn.State) -> dict[Path, Any]:
    """Return the arrays of a state by the places of their indices, in the state's own order."""
    found = {}
    for path, index in jax.tree_util.tree_leaves_with_path(module, is_leaf=_is_index):
        if not _is_index(index):
            continue
        for inner, leaf in jax.tree_util.tree_leaves_with_path(state.get(index)):
            found["state", *path_text(path), *path_text(inner)] = leaf
    return found


def _is_index(node: object) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _is_parameter(leaf: object) -> bool:
    # Equinox trains NumPy's arrays, too, as weights are that come from elsewhere.
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return False
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def modules(tree: Any) -> Iterator[eqx.Module]:
    """Yield all modules inside, outermost first."""
    if isinstance(tree, eqx.Module):
        yield tree
    children, _ = eqx.tree_flatten_one_level(tree)
    for child in children:
        if child is not tree:  # a leaf is its own child
            yield from modules(child)


def is_undecided(module: eqx.Module) -> bool:
    """Whether training and inference differ inside, and no constructor has chosen inference."""
    for inner in modules(module):
        never_drops = getattr(inner, "p", None) == 0
        if getattr(inner, "inference", None) is False and not never_drops:
            return True
    return False


def may_draw(module: eqx.Module) -> bool:
    """Whether anything inside may draw random numbers: a dropout, or what isn't Equinox' own."""
    for inner in modules(module):
        if type(inner).__module__.partition(".")[0] != "equinox":
            return True
        if isinstance(inner, eqx.nn.Dropout) and inner.p != 0:
            return True
    return False
