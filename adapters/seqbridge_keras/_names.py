"""The names of a Keras layer's weights: where they stand in it, whatever Keras has counted.

Keras numbers layers over the whole process, and the path of a variable depends on whether its layer
was built inside of another one, or loaded. So the layers are walked, and a number is left out where
Keras has put it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import keras

Path: TypeAlias = tuple[str, ...]


def name_weights(layer: keras.Layer) -> dict[int, Path]:
    """Return the path of each weight below the layer, by the `id` of the weight."""
    names: dict[int, Path] = {}
    seen: set[int] = set()

    def visit(current: keras.Layer, path: Path) -> None:
        seen.add(id(current))
        children = children_of(current)
        inside = {id(variable) for child in children for variable in child.weights}
        unique = _numbered()
        for variable in current.weights:
            if id(variable) not in inside and id(variable) not in names:
                own = _without_number(variable.name, "Variable")
                names[id(variable)] = (*path, unique(own))
        for child, name in zip(children, _names_of(current, children), strict=True):
            new = any(id(variable) not in names for variable in child.weights)
            if new and id(child) not in seen:
                visit(child, (*path, unique(name)))

    visit(layer, ())
    return names


def children_of(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers that a layer runs, or holds in an attribute, in order."""
    held = keras.tree.flatten(list(vars(layer).values()))
    if isinstance(layer, keras.Model):
        held = [*layer.layers, *held]
    found = {id(value): value for value in held if isinstance(value, keras.Layer)}
    found.pop(id(layer), None)
    return list(found.values())


def _names_of(layer: keras.Layer, children: list[keras.Layer]) -> list[str]:
    short: list[str] = []
    for child in children:
        short.append(_without_number(child.name, type(child).__name__))
    if isinstance(layer, keras.Model):
        return short
    wrapped: list[str] = []
    for child, name in zip(children, short, strict=True):
        wrapped.append(_base_of_wrapped(name, type(child).__name__) or name)
    counts = Counter(wrapped)
    return [new if counts[new] == 1 else old for new, old in zip(wrapped, short, strict=True)]


def former_names(layer: keras.Layer) -> dict[int, str]:
    """Return a pattern of the name of each weight in files of earlier versions, by its `id`.

    They took the path that Keras gives a variable, apart from the first part of it.
    """
    classes: dict[Any, str] = {inner.path: type(inner).__name__ for inner in sublayers(layer)}
    unique: dict[Path, Callable[[str], str]] = {}
    shown: dict[str, str] = {}  # of each full path of Keras', its last part
    patterns: dict[int, str] = {}
    for variable in layer.weights:
        parts = variable.path.split("/")
        path: Path = ()
        pattern: list[str] = []
        for i in range(1, len(parts)):
            full = "/".join(parts[: i + 1])
            class_name = classes.get(full, "Variable")
            if full not in shown:
                number = unique.setdefault(path, _numbered())
                shown[full] = number(_without_number(parts[i], class_name))
            name = shown[full]
            path = (*path, name)
            base = _base_of_wrapped(name, class_name)
            pattern.append(re.escape(name) if base is None else rf"{re.escape(base)}(_\d+)?")
        patterns[id(variable)] = r"\.".join(pattern) or re.escape(parts[0])
    return patterns


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layer and all layers inside, outermost first."""
    seen: dict[int, keras.Layer] = {}
    waiting = [layer]
    while waiting:
        current = waiting.pop(0)
        if id(current) not in seen:
            seen[id(current)] = current
            waiting += children_of(current)
    return list(seen.values())


def _numbered() -> Callable[[str], str]:
    """Return a function that returns `"dense"` for the first `"dense"`, then `"dense_1"`."""
    counts: Counter[str] = Counter()

    def unique(name: str) -> str:
        counts[name] += 1
        return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"

    return unique


def _without_number(name: str, class_name: str) -> str:
    """Return `"dense"` for the name `"dense_12"` that Keras gives to a `Dense`.

    A name that a person has given is returned as it is.
    """
    base = re.sub(r"_\d+$", "", name)
    return base if base == _snake_case(class_name) else name


def _base_of_wrapped(name: str, class_name: str) -> str | None:
    """Return `"backward_lstm"` for `"backward_lstm_7"`, as a wrapper names an `LSTM`; else None."""
    base = re.sub(r"_\d+$", "", name)
    return base if base.endswith(f"_{_snake_case(class_name)}") else None


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
