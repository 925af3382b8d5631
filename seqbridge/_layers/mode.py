"""The mode flags that a person names, and those that one may have forgotten to name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TypeAlias

from seqbridge._interface import MODE_FLAGS, PureLayer, nearest

Mode: TypeAlias = str | Mapping[str, bool]
"""The name of a flag that is True in training, or names of flags with what they are in training."""

# What flags are called in code that no adapter knows, and what they are in training.
_LOOK_LIKE_FLAGS = {
    "is_train": True,
    "is_training_mode": True,
    "train_mode": True,
    "training_mode": True,
    "eval": False,
    "eval_mode": False,
    "evaluate": False,
    "evaluating": False,
    "evaluation": False,
    "inference_mode": False,
    "is_eval": False,
    "is_evaluating": False,
    "is_inference": False,
    "is_test": False,
    "is_testing": False,
    "is_deterministic": False,
    "test": False,
    "test_mode": False,
    "testing": False,
}
_warned: set[tuple[str, str]] = set()


def mode_flags(mode: Mode, pure: PureLayer) -> dict[str, bool]:
    """Return the flags that a person has named, with what they are in training.

    Raises:
        TypeError: The entry takes no such keyword, or what it is in training is no bool.
    """
    flags = {mode: True} if isinstance(mode, str) else mode
    if not isinstance(flags, Mapping) or not all(isinstance(f, bool) for f in flags.values()):
        raise TypeError(
            'mode= takes the name of a flag, mode="is_train", or what flags are in training, '
            f'mode={{"eval_mode": False}}; got {mode!r:.60}'
        )
    for name in flags:
        if name not in _parameters(pure):
            raise TypeError(
                f"mode={name!r}: {pure.label} takes no such keyword"
                f"{nearest(name, _parameters(pure))}"
            )
    return dict(flags)


def warn_of_unnamed(pure: PureLayer) -> None:
    """Warn once of a boolean parameter that looks like a mode flag and follows nothing."""
    for name, parameter in _parameters(pure).items():
        known = name in MODE_FLAGS or name in pure.mode_flags or name in pure.decided
        if known or name not in _LOOK_LIKE_FLAGS or not _is_boolean(parameter):
            continue
        if (pure.label, name) in _warned:
            continue
        _warned.add((pure.label, name))
        mode = repr(name) if _LOOK_LIKE_FLAGS[name] else f"{{{name!r}: False}}"
        warnings.warn(
            f"{pure.label} has a boolean parameter {name}, which looks like a mode flag and "
            f"doesn't follow training=. If it is one, say sb.Layer(entry, mode={mode}); else "
            "mode={}",
            stacklevel=4,
        )


def _parameters(pure: PureLayer) -> Mapping[str, inspect.Parameter]:
    return pure.signature.parameters if pure.signature is not None else {}


def _is_boolean(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.default, bool) or parameter.annotation in (bool, "bool")
