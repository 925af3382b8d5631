"""What holds variables, as a line of an interactive tree that unfolds, by treescope."""

from __future__ import annotations

import functools
from typing import Any

from seqbridge._layer import Layer
from seqbridge._stateful import Stateful
from seqbridge._structure import Structure
from seqbridge._table import colour
from seqbridge._variable import Variable


def unfolding(node: Stateful, path: str | None, render: Any) -> Any:
    """What treescope asks a `__treescope_repr__` for. It marks what it meets again, a shared variable, by itself."""
    from treescope import rendering_parts  # late: nobody needs it but who looks

    (head, opened, closed), children, background = _content(node)
    lines = []
    for called, place, child in children:
        if (
            isinstance(child, Layer) and not child._by_name()
        ):  # a function that stands twice shares nothing
            below = rendering_parts.text(repr(child))
        else:
            below = render(child, path=None if path is None else path + place)
        lines.append(rendering_parts.siblings_with_annotations(called, below))
    return rendering_parts.build_foldable_tree_node_from_children(
        head + opened, lines, closed, comma_separated=True, path=path, background_color=background
    )


@functools.singledispatch
def _content(node: Any) -> tuple[tuple[str, str, str], list[tuple[str, str, Any]], str | None]:
    """What stands before the bracket, and both; what in it: how it is called, how it is reached, itself; the colour."""
    named = [(f"{name!r}: ", f"[{name!r}]", box) for name, box in node._by_name().items()]
    return (type(node).__name__, "({", "})"), named, None


@_content.register
def _(node: Variable) -> Any:
    shown = {"value": node.value, "kind": node.kind, "trainable": node.trainable, "name": node.name}
    if node.trainable == (node.kind == "params"):
        del shown["trainable"]
    return (
        ("Variable", "(", ")"),
        [(f"{name}=", f".{name}", value) for name, value in shown.items()],
        None,
    )


@_content.register
def _(node: Layer) -> Any:
    names = {name: f".{name}" if name.isidentifier() else f"[{name!r}]" for name in node._by_name()}
    brackets = (" {", "}") if names else ("", "")
    variables = [(f"{name}: ", names[name], box) for name, box in node._by_name().items()]
    return (repr(node), *brackets), variables, colour(node.pure.ecosystem, 0.9)


@_content.register
def _(node: Structure) -> Any:
    labels = (f"[{i}] {name}: " if name else f"[{i}] " for i, name in enumerate(node.names))
    rows = [
        (label, place, item) for label, (place, item) in zip(labels, node._placed(), strict=False)
    ]
    return (type(node).__name__, "([", "])"), rows, None
