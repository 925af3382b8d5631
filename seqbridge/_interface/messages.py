"""How things are called in messages: names, the nearest ones where they don't match, and shapes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

_HABITS = {  # what people know by another name
    name: cure
    for names, cure in (
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
    )
    for name in names.split()
}


def habit(name: str) -> str:
    """What to write in place of a name that a model has elsewhere, or nothing."""
    return f": {_HABITS[name]}" if name in _HABITS else ""


def nearest(name: Any, names: Iterable[Any], *, cutoff: float = 0.5) -> str:
    """`"; did you mean 'bias'?"`, or nothing if nothing is near."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_flags(**flags: Any) -> None:
    """Raises a `TypeError` if one of them is no bool: `"no"` is true."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}= is True or False, not {value!r:.60}")


def check_names(what: str, got: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises a `KeyError` that lists the names that are missing and those that nothing has, each with the nearest."""
    got, wanted = list(got), list(wanted)
    missing = [n for n in wanted if n not in set(got)]
    unknown = [n for n in got if n not in set(wanted)]
    if missing or unknown:
        lines = [f"missing: {n}" for n in missing] + [
            f"unknown: {n}{nearest(n, wanted)}" for n in unknown
        ]
        more = f"; and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise KeyError(f"{what}: the names don't match: " + "; ".join(lines[:12]) + more)


def plain(name: str) -> str:
    """A name without those of classes, which may be others and mean the same.

    Examples:
        >>> plain("(Sequential)[0](Dense).kernel")
        '[0].kernel'
    """
    return re.sub(r"\([^()]*\)", "", name)


def shape_text(value: Any) -> str:
    """The dtype and shape of an array, `"float32[8,28,28,1]"`; of a container, those of what is in it."""

    def leaf(x: Any) -> str:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return f"{x.dtype}[{','.join(map(str, x.shape))}]"
        return f"{x!r:.40}"

    leaves, treedef = jax.tree.flatten(value)
    if value is None or treedef == jax.tree.structure(0):
        return leaf(value)
    return f"{type(value).__name__}({', '.join(map(leaf, leaves))})"


def shapes_text(values: Iterable[Any]) -> str:
    """Those of several."""
    return ", ".join(map(shape_text, values))
