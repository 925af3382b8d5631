"""A model as a tree: lists in lists, whose leaves are layers, each at a named place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from seqbridge._layers.layer import Layer


class ModelTree(Protocol):
    """A list of layers and of such lists."""

    def __iter__(self) -> Iterator[Item]: ...

    def named_children(self) -> Sequence[tuple[str, Item]]:
        """Each item with its place as variables' names have it: `"[0]"`, `".conv"`."""
        ...

    def nested_models(self) -> Iterable[ModelTree]:
        """The models inside, at any depth."""
        ...


Item: TypeAlias = "Layer | ModelTree"


def leaves(items: Iterable[Item]) -> Iterator[Layer]:
    """The layers in a list and in the lists inside, in order; one that stands twice comes twice."""
    for item in items:
        if isinstance(item, Layer):
            yield item
        else:
            yield from leaves(item)


def walk(model: ModelTree, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Each layer of the whole tree, with the name of its place: `"(Sequential)[0](Conv)"`."""
    prefix = f"{prefix}({type(model).__name__})"
    for place, item in model.named_children():
        if isinstance(item, Layer):
            yield f"{prefix}{place}({item.pure.label})", item
        else:
            yield from walk(item, prefix + place)


def full_name(place: str, name: str) -> str:
    """The name of a variable in a model.

    Examples:
        >>> full_name("(Sequential)[0](Conv)", "bias"), full_name("(Sequential)[1](List)", "[0].b")
        ('(Sequential)[0](Conv).bias', '(Sequential)[1](List)[0].b')
    """
    return f"{place}{name}" if name.startswith("[") else f"{place}.{name}"
