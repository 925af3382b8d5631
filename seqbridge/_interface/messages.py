"""Texts of messages: what was meant by a name that doesn't exist, and shapes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

# Names that other libraries use, and what to write here.
_HABITS: dict[str, str] = {}
for _names, _cure in (
    (
        "params parameters named_parameters weights state_dict",
        "model.vars() and model.variables have the weights",
    ),
    ("train eval training", "a call says the mode, model(x, training=True)"),
    ("seed rng key", "Sequential(..., seed=0) and model.build(..., seed=0) say it"),
    ("to cuda cpu", "arrays are on JAX' default device, or where model.shard(mesh) puts them"),
    ("dtype half float bfloat16", "each layer has its own dtype"),
    (
        "load_state_dict set_weights",
        "model.assign(variables), model.load(path) and sb.port take weights",
    ),
    ("save_weights load_weights", "model.save(path), model.load(path)"),
    ("layers children modules", "the model is the list of its layers"),
    ("forward predict", "call it, model(x, training=False)"),
    ("fit compile evaluate", "a training step is a function in sb.jit, with sb.Optimizer"),
    ("tabulate count_params", "print(model.summary())"),
    ("native load_native", "each layer has its own, model[0].native"),
):
    _HABITS.update(dict.fromkeys(_names.split(), _cure))

_MOST = 12  # lines of a message


def habit(name: str) -> str:
    """Return what to write in place of a name that models of other libraries have, or nothing."""
    return f": {_HABITS[name]}" if name in _HABITS else ""


def nearest(name: Any, names: Iterable[Any], *, cutoff: float = 0.5) -> str:
    """Return `"; did you mean 'bias'?"`, or nothing if nothing is near."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_flags(**flags: Any) -> None:
    """Raise a `TypeError` if one of the flags isn't a bool: the string `"no"` is true."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}= is True or False, not {value!r:.60}")


def check_names(what: str, got: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise a `KeyError` that lists the missing and the unknown names, with the nearest ones."""
    got, wanted = list(got), list(wanted)
    given, needed = set(got), set(wanted)
    lines = [f"missing: {name}" for name in wanted if name not in given]
    for name in got:
        if name not in needed:
            lines.append(f"unknown: {name}{nearest(name, wanted)}")
    if not lines:
        return
    text = f"{what}: the names don't match: {'; '.join(lines[:_MOST])}"
    if len(lines) > _MOST:
        text += f"; and {len(lines) - _MOST} more"
    raise KeyError(text)


def plain(name: str) -> str:
    """Return a name without the names of classes, which may differ where the model is the same.

    Examples:
        >>> plain("(Sequential)[0](Dense).kernel")
        '[0].kernel'
    """
    return re.sub(r"\([^()]*\)", "", name)


def shape_text(value: Any) -> str:
    """Return dtype and shape, `"float32[8,28,28,1]"`; of a container, those of its leaves."""
    leaves, treedef = jax.tree.flatten(value)
    if value is None or treedef == jax.tree.structure(0):
        return _leaf_text(value)
    return f"{type(value).__name__}({', '.join(_leaf_text(leaf) for leaf in leaves)})"


def shapes_text(values: Iterable[Any]) -> str:
    """Return the dtypes and shapes of several values."""
    return ", ".join(shape_text(value) for value in values)


def _leaf_text(leaf: Any) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(str(size) for size in leaf.shape)}]"
    return f"{leaf!r:.40}"
