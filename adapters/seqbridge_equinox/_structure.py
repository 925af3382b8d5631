"""The structure of a module: where its arrays and its state are, and what is inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from seqbridge import Variables, nest, path_text, unnest
from seqbridge_equinox._export import Exported


class Structure:
    """Where the arrays of a module and of its state stand.

    Args:
        module: What `eqx.nn.make_with_state` returns first, with arrays or with shapes in place of
            them.
        state: What it returns second.

    Raises:
        TypeError: The modules inside name several axes.
    """

    def __init__(self, module: Any, state: Any):
        self._leaves, self._treedef = jax.tree.flatten(module)
        self._state = jax.tree.structure(state)
        self._places = {
            ("params", *path_text(path)): i
            for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(module))
            if _is_parameter(leaf)
        }
        self._of_state = list(_states(module, state))
        self.stateful = bool(self._of_state)
        across = [node for node in modules(module) if isinstance(node, eqx.nn.BatchNorm | Exported)]
        self.batched = any(
            node.axis_name is None for node in across
        )  # only what came from here can be so
        axes = dict.fromkeys(name for node in across for name in jax.tree.leaves(node.axis_name))
        if len(axes) > 1:
            raise TypeError(
                f"the modules inside name several axes, {', '.join(map(str, axes))}: name one"
            )
        self.axis_name = next(iter(axes), None)

    def merge(self, variables: Variables) -> tuple[Any, Any]:
        """A module and a state with these variables."""
        given = unnest(variables)
        leaves = list(self._leaves)
        for place, i in self._places.items():
            leaves[i] = given[place]
        state = jax.tree.unflatten(self._state, [given[place] for place in self._of_state])
        return jax.tree.unflatten(self._treedef, leaves), state


def variables_of(module: Any, state: Any) -> Variables:
    """All parameters and states, by where they stand."""
    leaves = jax.tree_util.tree_leaves_with_path(module)
    return nest(
        {("params", *path_text(p)): leaf for p, leaf in leaves if _is_parameter(leaf)}
        | _states(module, state)
    )


def _states(module: Any, state: Any) -> dict[tuple[str, ...], Any]:
    """The states by the places of their indices, in the order in which a `State` holds them."""
    found = {}
    for path, index in jax.tree_util.tree_leaves_with_path(module, is_leaf=_is_index):
        for inner, leaf in jax.tree_util.tree_leaves_with_path(
            state.get(index) if _is_index(index) else None
        ):
            found[("state", *path_text(path), *path_text(inner))] = leaf
    return found


def _is_index(node: Any) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _is_parameter(leaf: Any) -> bool:
    # Equinox trains NumPy's arrays, too, as weights are that come from elsewhere.
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) and jnp.issubdtype(
        leaf.dtype, jnp.inexact
    )


def modules(tree: Any) -> Iterator[eqx.Module]:
    """All modules inside, outermost first."""
    if isinstance(tree, eqx.Module):
        yield tree
    children, _ = eqx.tree_flatten_one_level(tree)
    for child in children:
        if child is not tree:  # a leaf is its own child
            yield from modules(child)


def undecided(module: Any) -> bool:
    """Whether training and inference differ somewhere inside, and no constructor has chosen inference."""
    return any(
        getattr(m, "inference", None) is False and getattr(m, "p", None) != 0
        for m in modules(module)
    )


def draws(module: Any) -> bool:
    """Whether anything inside may draw random numbers: a dropout, or a module that isn't Equinox' own."""
    own = (type(m).__module__.partition(".")[0] == "equinox" for m in modules(module))
    return not all(own) or any(isinstance(m, eqx.nn.Dropout) and m.p != 0 for m in modules(module))
