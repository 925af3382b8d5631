"""A line of an interactive tree that unfolds, as treescope renders it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Content(NamedTuple):
    """The text of one line, and the lines that it unfolds to.

    Attributes:
        head: The text before the opening bracket.
        opening: The opening bracket.
        closing: The closing bracket.
        rows: For each child its label, the code that reaches it from the parent, and the child.
        colour: The background, `"#rrggbb"`; None: none.
    """

    head: str
    opening: str
    closing: str
    rows: list[tuple[str, str, Any]]
    colour: str | None = None


class PlainText(str):
    """A child that is shown as text, and never marked as one that was met before."""


def unfolding(content: Content, path: str | None, render: Any) -> Any:
    """Return a line as a `__treescope_repr__` is to return it.

    treescope marks whatever it meets again, such as a shared variable.
    """
    from treescope import rendering_parts  # late: needed by who looks at a tree alone

    lines = []
    for label, place, child in content.rows:
        if isinstance(child, PlainText):
            below = rendering_parts.text(child)
        else:
            below = render(child, path=None if path is None else path + place)
        lines.append(rendering_parts.siblings_with_annotations(label, below))
    return rendering_parts.build_foldable_tree_node_from_children(
        content.head + content.opening,
        lines,
        content.closing,
        comma_separated=True,
        path=path,
        background_color=content.colour,
    )
