"""Trees of variables and the paths of their leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]


def nest(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by their paths, as `Variables` have them.

    Examples:
        >>> nest({("params", "dense", "kernel"): 1, ("params", "dense", "bias"): 2})
        {'params': {'dense': {'kernel': 1, 'bias': 2}}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


def unnest(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """The leaves of nested dicts by their paths; the inverse of `nest`.

    Examples:
        >>> unnest({"params": {"dense": {"kernel": 1}, "scale": 2}})
        {('params', 'dense', 'kernel'): 1, ('params', 'scale'): 2}
    """
    leaves: dict[Path, Any] = {}
    for part, node in tree.items():
        below = unnest(node) if isinstance(node, Mapping) else {(): node}
        leaves |= {(part, *path): leaf for path, leaf in below.items()}
    return leaves


def path_text(keys: Sequence[Any]) -> Path:
    """The parts of a path of `jax.tree_util`, as names.

    Examples:
        >>> import jax
        >>> [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path({"w": 1, "rest": [2, 3]})]
        [('rest', '0'), ('rest', '1'), ('w',)]
    """
    return tuple(
        str(next(getattr(k, n) for n in ("key", "idx", "name") if hasattr(k, n))) for k in keys
    )
