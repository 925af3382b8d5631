"""Trees of variables and the paths of their leaves."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]

# As `repr` writes a string; a name may hold one in place of an identifier.
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_PART = rf"{_QUOTED}|[^.]+"


def nest(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Return nested dicts made from leaves by their paths, as `Variables` have them.

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
    """Return the leaves of nested dicts by their paths; the inverse of `nest`.

    Examples:
        >>> unnest({"params": {"dense": {"kernel": 1}, "scale": 2}})
        {('params', 'dense', 'kernel'): 1, ('params', 'scale'): 2}
    """
    leaves: dict[Path, Any] = {}
    for part, node in tree.items():
        if not isinstance(node, Mapping):
            leaves[(part,)] = node
            continue
        for path, leaf in unnest(node).items():
            leaves[(part, *path)] = leaf
    return leaves


def dotted(path: Sequence[str]) -> str:
    """Return a path as a name, with quotes around the parts that have a dot in them.

    Examples:
        >>> print(dotted(("b", "c")), dotted(("b.c",)))
        b.c 'b.c'
    """
    quoted = [repr(part) if "." in part or "'" in part else part for part in path]
    return ".".join(quoted)


def parts_of(name: str) -> list[str]:
    """Return the parts of a name, of which some may stand in quotes.

    Examples:
        >>> parts_of("Dense_0.'b.c'.kernel")
        ['Dense_0', 'b.c', 'kernel']
    """
    parts: list[str] = re.findall(_PART, name)
    return [ast.literal_eval(part) if re.fullmatch(_QUOTED, part) else part for part in parts]


def path_text(keys: Sequence[Any]) -> Path:
    """Return the parts of a path of `jax.tree_util`, as strings.

    Examples:
        >>> import jax
        >>> leaves = jax.tree_util.tree_leaves_with_path({"w": 1, "rest": [2, 3]})
        >>> [path_text(path) for path, _ in leaves]
        [('rest', '0'), ('rest', '1'), ('w',)]
    """
    return tuple(_key_text(key) for key in keys)


def _key_text(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"{key!r} is no key of a path in a pytree")
