"""The structure of a layer's variables, and their look-up by name."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard

import jax

from seqbridge._interface import (
    Annotated,
    Kind,
    Origin,
    Path,
    PureLayer,
    Variables,
    check_names,
    dotted,
    nearest,
    path_text,
)
from seqbridge._layers.parents import Parents
from seqbridge._state import Variable
from seqbridge._variables import VarCollection


class Slot(NamedTuple):
    """The place of one variable in its layer, and what is said of it."""

    collection: str
    path: Path
    kind: Kind
    shown: str
    note: Any
    trainable: bool
    axes: tuple[Any, ...]
    former: str


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
        leaves, treedef = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_annotated)
        paths = [path_text(path) for path, _ in leaves]
        if any(len(path) < 2 for path in paths):
            raise TypeError(
                f"the adapter of {pure.ecosystem} gives variables that stand in no collection; "
                f'they are nested dicts, {{"params": {{"kernel": array}}}}, not '
                f"{jax.tree.map(lambda a: 'array', variables)}"
            )
        names = _shown_names(pure, paths)
        slots: list[Slot] = []
        arrays: list[Any] = []
        for (_, leaf), path, name in zip(leaves, paths, names, strict=True):
            noted = leaf if _is_annotated(leaf) else Annotated(leaf)
            slots.append(
                Slot(
                    collection=path[0],
                    path=path[1:],
                    kind=pure.kinds.get(path[0], "state"),
                    shown=name,
                    note=noted.note,
                    trainable=noted.trainable,
                    axes=noted.axes,
                    former=noted.former,
                )
            )
            arrays.append(noted.value)
        self.treedef: Any = treedef
        self.slots: tuple[Slot, ...] = tuple(slots)
        self.arrays: list[Any] = arrays

    def ties(
        self,
        sources: Mapping[Path, Any],
        owner: Any,
        copy_number: int | None,
        arrays: Sequence[Any],
    ) -> list[Hashable]:
        """Return the tie of each variable; see `Layer.variable_ties`."""
        found: list[Hashable] = []
        for slot, array in zip(self.slots, arrays, strict=True):
            place = (slot.collection, *slot.path)
            source = sources.get(place, Origin(owner, place))
            if isinstance(source, Origin):
                found.append((id(source.owner), copy_number, source.place, array.shape))
            else:
                found.append((id(source), copy_number))
        return found

    def tree(self, arrays: Sequence[Any]) -> Variables:
        """The tree with these arrays."""
        return jax.tree_util.tree_unflatten(self.treedef, arrays)

    def annotated(self, arrays: Sequence[Any]) -> Variables:
        """The tree with these arrays, and with what its library says of them."""
        leaves = []
        for slot, array in zip(self.slots, arrays, strict=True):
            said = slot.note is not None or not slot.trainable
            leaves.append(Annotated(array, slot.note, slot.trainable) if said else array)
        return self.tree(leaves)

    def described(self, arrays: Sequence[Any]) -> Variables:
        """The tree with all that was said of the arrays, of which a layout can be made again."""
        leaves = []
        for slot, array in zip(self.slots, arrays, strict=True):
            leaves.append(Annotated(array, *slot[4:]))
        return self.tree(leaves)

    def flatten(self, what: str, variables: Variables) -> list[Any]:
        """The arrays of a tree of this structure.

        Args:
            what: Where the tree comes from, as errors say it.
            variables: The tree.

        Raises:
            KeyError: Another structure.
        """
        leaves, treedef = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_annotated)
        if treedef != self.treedef:
            given = ["/".join(path_text(path)) for path, _ in leaves]
            wanted = ["/".join((slot.collection, *slot.path)) for slot in self.slots]
            check_names(what, given, wanted)
            raise KeyError(f"{what}: another structure: {treedef}, not {self.treedef}")
        return [leaf.value if _is_annotated(leaf) else leaf for _, leaf in leaves]


class SourceHolder(Protocol):
    """A layer, as far as the objects behind its variables go."""

    pure: PureLayer


# Of each array that has stood in an entry: the array, the layer, and the path of it there.
_met: dict[int, tuple[weakref.ref[Any], weakref.ref[SourceHolder], Path]] = {}


def _behind(array: jax.Array, source: Any, holder: SourceHolder, path: Path) -> Any:
    """Return the object behind an array: the first that it was met with.

    Args:
        array: The array of a parameter.
        source: What the entry's library says is behind it; an `Origin` or None: nothing.
        holder: The layer of the entry.
        path: The path of the array there.
    """
    of_library = not isinstance(source, Origin | None)
    key = id(array)
    if key in _met:
        its_array, its_holder, its_path = _met[key]
        pure = getattr(its_holder(), "pure", None)  # none of a layer that couldn't be made
        if its_array() is array and pure is not None:
            known = pure.sources.get(its_path)
            # Of two objects of a library each stands for itself.
            if known is not None and (known is array or not of_library):
                return known
    _met[key] = weakref.ref(array, functools.partial(_forget, key)), weakref.ref(holder), path
    return source if of_library else array


def _forget(key: int, _: Any) -> None:
    _met.pop(key, None)


def sources_of(pure: PureLayer, holder: SourceHolder) -> Mapping[Path, Any]:
    """Return the objects behind the values that an entry came with, by collection and path.

    An array is the object behind a parameter, unless its library has one for it; so one array in
    two entries is one variable. Twice in one entry it is what it is to the entry's library, and so
    it is in two objects of one library, such as a module and its clone.
    """
    sources = dict(pure.sources)
    seen: set[int] = set()
    leaves = jax.tree_util.tree_leaves_with_path(pure.ready, is_leaf=_is_annotated)
    for keys, leaf in leaves:
        path = path_text(keys)
        array = leaf.value if _is_annotated(leaf) else leaf
        is_parameter = pure.kinds.get(path[0]) == "params" and isinstance(array, jax.Array)
        if not is_parameter or id(array) in seen:
            continue
        seen.add(id(array))
        sources[path] = _behind(array, sources.get(path), holder, path)
    return sources


def _shown_names(pure: PureLayer, paths: Sequence[Path]) -> list[str]:
    """The name of each variable within its layer, each another."""
    short = [".".join(pure.shorten(path[1:])) for path in paths]
    # Where two paths would look the same they are shown in full, and if they still do, with their
    # collections.
    often = Counter(short)
    full = []
    for name, path in zip(short, paths, strict=True):
        full.append(name if often[name] == 1 else ".".join(path[1:]))
    often = Counter(full)
    shown = []
    for name, path in zip(full, paths, strict=True):
        unique = often[name] == 1 or path[0] == "params"
        shown.append(name if unique else ".".join(path))
    # A part with a dot in it may still make two of them one.
    often = Counter(shown)
    for i, path in enumerate(paths):
        if often[shown[i]] > 1:
            collection = "" if path[0] == "params" else f"{path[0]!r}."
            shown[i] = collection + dotted(path[1:])
    return shown


def _is_annotated(leaf: Any) -> TypeGuard[Annotated]:
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
    """Return the variable called `name`, or the branch of those below it.

    Raises:
        Exception: Of the class `error`: there is none.
    """
    if name in variables:
        return variables[name]
    below = {}
    for full, variable in variables.items():
        if full.startswith(f"{name}."):
            below[full.removeprefix(f"{name}.")] = variable
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


def namer(parents: Parents) -> Callable[[Variable], str | None]:
    """Return a function that says how a variable is called in the models that its layer stands in.

    Args:
        parents: Links to these models. A link to the layer itself, which holds its variables, would
            make a cycle, and their arrays would live on until it is collected.
    """

    def name_of(variable: Variable) -> str | None:
        for model in parents:
            for root in model.root_models():
                name = root.names_by_variable().get(variable)
                if name is not None:
                    return name
        return None

    return name_of
