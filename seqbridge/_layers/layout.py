"""The structure of a layer's variables, and their look-up by name."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from seqbridge._interface import (
    Annotated,
    Kind,
    Origin,
    Path,
    PureLayer,
    Variables,
    check_names,
    nearest,
    path_text,
)
from seqbridge._state import Variable
from seqbridge._variables import VarCollection


class Slot(NamedTuple):
    """Where one variable stands in its layer."""

    collection: str
    path: Path
    kind: Kind
    shown: str
    note: Any
    trainable: bool
    axes: tuple[Any, ...]


class Layout:
    """The structure of a layer's variables: the native tree without its arrays.

    Args:
        pure: The layer.
        variables: The tree.
        inputs: The shapes of the inputs that the variables were made for, and the keywords; None:
            they came with the entry.
    """

    def __init__(
        self,
        pure: PureLayer,
        variables: Variables,
        inputs: tuple[Any, Mapping[str, Any]] | None = None,
    ):
        self.inputs = inputs
        leaves, self.treedef = jax.tree_util.tree_flatten_with_path(
            variables, is_leaf=_is_annotated
        )
        paths = [path_text(path) for path, _ in leaves]
        if any(len(path) < 2 for path in paths):
            raise TypeError(
                f"the adapter of {pure.ecosystem} gives variables that stand in no collection; "
                f"they are nested dicts, "
                f'{{"params": {{"kernel": array}}}}, not '
                f"{jax.tree.map(lambda a: 'array', variables)}"
            )
        short = [".".join(pure.shorten(path[1:])) for path in paths]
        often = Counter(short)
        # Where two paths would look the same they are shown in full, and if they still do, with
        # their collections.
        shown = [
            name if often[name] == 1 else ".".join(path[1:])
            for name, path in zip(short, paths, strict=True)
        ]
        often = Counter(shown)
        self.slots = tuple(
            Slot(
                collection=path[0],
                path=path[1:],
                kind=pure.kinds.get(path[0], "state"),
                shown=name if often[name] == 1 or path[0] == "params" else ".".join(path),
                note=leaf.note if _is_annotated(leaf) else None,
                trainable=not _is_annotated(leaf) or leaf.trainable,
                axes=leaf.axes if _is_annotated(leaf) else (),
            )
            for (_, leaf), path, name in zip(leaves, paths, shown, strict=True)
        )
        self.arrays = [leaf.value if _is_annotated(leaf) else leaf for _, leaf in leaves]

    def ties(
        self, sources: Mapping[Path, Any], entry: Any, copy: int, arrays: Sequence[Any]
    ) -> list[Hashable]:
        """What each variable is tied by."""
        found: list[Hashable] = []
        for slot, array in zip(self.slots, arrays, strict=True):
            place = slot.collection, *slot.path
            source = sources.get(place, Origin(entry, place))
            owner, *rest = (
                (source.owner, source.place, array.shape)
                if isinstance(source, Origin)
                else (source,)
            )
            found.append((id(owner), copy, *rest))
        return found

    def tree(self, arrays: list[Any]) -> Variables:
        return jax.tree_util.tree_unflatten(self.treedef, arrays)

    def annotated(self, arrays: list[Any]) -> Variables:
        pairs = zip(self.slots, arrays, strict=True)
        return self.tree(
            [
                a if s.trainable and s.note is None else Annotated(a, s.note, s.trainable)
                for s, a in pairs
            ]
        )

    def described(self, arrays: list[Any]) -> Variables:
        """The tree with all that was said of the arrays, from which a layout can be made again."""
        pairs = zip(self.slots, arrays, strict=True)
        return self.tree([Annotated(a, s.note, s.trainable, s.axes) for s, a in pairs])

    def flatten(self, what: str, variables: Variables) -> list[Any]:
        """The arrays of a tree of this structure.

        Raises:
            KeyError: Another structure.
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_annotated)
        if treedef != self.treedef:
            check_names(
                what,
                ("/".join(path_text(path)) for path, _ in leaves),
                ("/".join((s.collection, *s.path)) for s in self.slots),
            )
            raise KeyError(f"{what}: another structure: {treedef}, not {self.treedef}")
        return [leaf.value if _is_annotated(leaf) else leaf for _, leaf in leaves]


def _is_annotated(leaf: Any) -> bool:
    return isinstance(leaf, Annotated)


class Branch:
    """The variables below one name of a layer: `model[3].Dense_0`."""

    def __init__(self, variables: Mapping[str, Variable], name: str):
        object.__setattr__(self, "_variables", variables)
        object.__setattr__(self, "_name", name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"write .{name}.assign(...), or .{name}.value = ...")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lookup(self._name, self._variables, name, AttributeError)

    def __getitem__(self, name: str) -> Any:
        return lookup(self._name, self._variables, name, KeyError)

    def __dir__(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in self._variables})

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._variables)

    def vars(self) -> VarCollection:
        return VarCollection(self._variables)

    def __repr__(self) -> str:
        return repr(self.vars())


def lookup(
    owner: str,
    variables: Mapping[str, Variable],
    name: str,
    error: type[Exception],
    *,
    built: bool = True,
) -> Any:
    """The variable called `name`, or the branch of those below it."""
    if name in variables:
        return variables[name]
    below = {n[len(name) + 1 :]: v for n, v in variables.items() if n.startswith(f"{name}.")}
    if below:
        return Branch(below, name)
    if not built:
        raise error(
            f"{owner} has no {name!r}: it isn't built, and has variables after model.build(...)"
        )
    first = sorted({n.partition(".")[0] for n in variables})
    raise error(
        f"{owner} has no {name!r}{nearest(name, first)}; its variables: "
        f"{', '.join(first) or 'none'}"
    )


def namer(homes: list[weakref.ref[Any]]) -> Callable[[Any], str | None]:
    """How a variable is called in the models that its layer stands in.

    Args:
        homes: These, in a list that changes. A layer itself, which holds its variables, would make
            a cycle, and their arrays would live on until it is collected.
    """

    def name_of(box: Any) -> str | None:
        living = (model for home in homes if (model := home()) is not None)
        tables = (root._names() for model in living for root in model._roots())
        return next((names[box] for names in tables if box in names), None)

    return name_of
