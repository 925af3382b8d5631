"""Matching of the layers of two sides: by kind, shapes, names and order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from seqbridge._files import WeightsError
from seqbridge._interface import Part, Untyped, nearest, plain
from seqbridge._port.weights import LayerWeights

# Values of weights that a layer may lack. Without any other weight, it isn't the same layer.
DEFAULTS: Mapping[str, float] = {
    "bias": 0.0,
    "mean": 0.0,
    "scale": 1.0,
    "var": 1.0,
    "query_bias": 0.0,
    "key_bias": 0.0,
    "value_bias": 0.0,
    "out_bias": 0.0,
}


class Pair(NamedTuple):
    """Two layers that belong together.

    Attributes:
        source: The layer of the source.
        target: The layer of the target.
        part: What the source is, in terms of the target.
    """

    source: LayerWeights
    target: LayerWeights
    part: Part


class Matches(NamedTuple):
    """Result of a matching.

    Attributes:
        pairs: The layers that belong together, in the order of the target.
        ambiguous: Layers of the target for which there are several of the source, with these.
        missing: Layers of the target for which there is none.
        unused: Layers of the source that nothing takes.
    """

    pairs: list[Pair]
    ambiguous: list[tuple[LayerWeights, list[LayerWeights]]]
    missing: list[LayerWeights]
    unused: list[LayerWeights]


# By source and target, where these fit each other: what the source is then.
_Fits: TypeAlias = dict[tuple[LayerWeights, LayerWeights], Part]
# By target, sources.
_Settled: TypeAlias = dict[LayerWeights, LayerWeights]


class _Group(NamedTuple):
    """As many layers of both sides, of which each could be any of the others."""

    sources: list[LayerWeights]
    targets: list[LayerWeights]


def match(
    sources: Sequence[LayerWeights],
    targets: Sequence[LayerWeights],
    mapping: Mapping[str, str | None] = {},
) -> Matches:
    """Find out which layers belong together.

    Args:
        sources: The layers of the source.
        targets: The layers of the target.
        mapping: What the user says: names of the target by names of the source; None: this layer
            is left out.

    Raises:
        WeightsError: A name in `mapping` means no layer, or two layers that can't be a pair.
    """
    pairs: dict[LayerWeights, Pair] = {}
    left, right = list(sources), list(targets)
    for old, new in mapping.items():
        source = find(old, left, "the source")
        left.remove(source)
        if new is None:
            continue
        target = find(new, right, "the target")
        part = as_part(source, target)
        if part is None:
            raise WeightsError(
                f"port: {source.name} can't be {target.name}: {_why_different(source, target)}"
            )
        right.remove(target)
        pairs[target] = Pair(source, target, part)

    fits = _all_fits(left, right)
    for target, source in _settle(left, right, fits).items():
        pairs[target] = Pair(source, target, fits[source, target])
    while True:
        taken = {pair.source for pair in pairs.values()}
        free = [source for source in left if source not in taken]
        choices: dict[LayerWeights, list[LayerWeights]] = {}
        for target in right:
            if target not in pairs:
                choices[target] = [source for source in free if (source, target) in fits]
        settled = _without_choice(choices)
        if not settled:
            break
        for target, source in settled.items():
            pairs[target] = Pair(source, target, fits[source, target])

    wanted: set[LayerWeights] = set().union(*choices.values())
    return Matches(
        pairs=[pairs[target] for target in targets if target in pairs],
        ambiguous=[(target, some) for target, some in choices.items() if some],
        missing=[target for target, some in choices.items() if not some],
        unused=[source for source in free if source not in wanted],
    )


def as_part(source: LayerWeights, target: LayerWeights) -> Part | None:
    """Return what a layer of the source is, if it may be that of the target."""
    wanted = target.known_part
    seen_source = source.seen_as(wanted.kind, wanted.options)
    seen_target = target.seen_as(wanted.kind, wanted.options)
    if seen_source is None or seen_target is None:
        return None
    part, shapes = seen_source
    _, target_shapes = seen_target
    if part.refused or wanted.refused:
        return part
    common = shapes.keys() & target_shapes.keys()
    if not common or any(shapes[name] != target_shapes[name] for name in common):
        return None
    if any(name not in DEFAULTS for name in shapes.keys() ^ target_shapes.keys()):
        return None
    return part


def _all_fits(left: Sequence[LayerWeights], right: Sequence[LayerWeights]) -> _Fits:
    fits: _Fits = {}
    for source in left:
        for target in right:
            part = as_part(source, target)
            if part is not None:
                fits[source, target] = part
    return fits


def _without_choice(choices: Mapping[LayerWeights, list[LayerWeights]]) -> _Settled:
    """Return the targets with one possible source that no other target could take."""
    wanted: Counter[LayerWeights] = Counter()
    for candidates in choices.values():
        wanted.update(candidates)
    settled: _Settled = {}
    for target, candidates in choices.items():
        if len(candidates) == 1 and wanted[candidates[0]] == 1:
            settled[target] = candidates[0]
    return settled


def _settle(left: Sequence[LayerWeights], right: Sequence[LayerWeights], fits: _Fits) -> _Settled:
    """Return the pairs that names or the order settle.

    Layers that are alike are paired by their names if those are the same on both sides, or else in
    order if all of their kinds come in the same order on both sides. A file may have its layers in
    any order, so that only numbers in their names say it.
    """
    of_file = any(isinstance(source.part, Untyped) for source in left)
    in_order = {} if of_file else _all_in_order(left, right, fits)
    groups = _groups_of_alike(left, right, fits)
    same_order = _have_same_order(left, right, groups)
    settled: _Settled = {}
    for group in groups:
        pairs = _by_name(group)
        if pairs is None:
            if of_file:
                pairs = _by_number(group)
            elif same_order and not in_order:
                pairs = dict(zip(group.targets, group.sources, strict=True))
        settled |= pairs or {}
    return in_order | settled


def _all_in_order(
    left: Sequence[LayerWeights], right: Sequence[LayerWeights], fits: _Fits
) -> _Settled:
    """Return all layers in pairs, one after the other, if they all fit; otherwise none."""
    if len(left) != len(right):
        return {}
    pairs = list(zip(left, right, strict=True))
    if any(pair not in fits for pair in pairs):
        return {}
    return {target: source for source, target in pairs}


def _groups_of_alike(
    left: Sequence[LayerWeights], right: Sequence[LayerWeights], fits: _Fits
) -> list[_Group]:
    """Return the groups of layers that could each be any of the others, and nothing else."""
    groups: list[_Group] = []
    seen: set[LayerWeights] = set()
    for target in right:
        if target in seen:
            continue
        sources = [source for source in left if (source, target) in fits]
        if not sources:
            continue
        targets = [other for other in right if (sources[0], other) in fits]
        seen.update(targets)
        group = _Group(sources, targets)
        if len(sources) == len(targets) and _is_closed(group, left, right, fits):
            groups.append(group)
    return groups


def _is_closed(
    group: _Group, left: Sequence[LayerWeights], right: Sequence[LayerWeights], fits: _Fits
) -> bool:
    """Return whether the layers of a group fit each other, and no layer outside of it."""
    sources, targets = set(group.sources), set(group.targets)
    for source in left:
        for target in targets:
            if ((source, target) in fits) != (source in sources):
                return False
    for source in sources:
        for target in right:
            if ((source, target) in fits) != (target in targets):
                return False
    return True


def _have_same_order(
    left: Sequence[LayerWeights], right: Sequence[LayerWeights], groups: Sequence[_Group]
) -> bool:
    """Return whether the layers of all groups come in the same order on both sides."""
    group_of: dict[LayerWeights, int] = {}
    for i, group in enumerate(groups):
        for layer in (*group.sources, *group.targets):
            group_of[layer] = i
    left_order = [group_of[layer] for layer in left if layer in group_of]
    right_order = [group_of[layer] for layer in right if layer in group_of]
    return left_order == right_order


def _by_name(group: _Group) -> _Settled | None:
    """Return the group in pairs if both sides have the same names."""
    sources = {name_inside(source.name): source for source in group.sources}
    targets = {name_inside(target.name): target for target in group.targets}
    if sources.keys() != targets.keys() or len(sources) != len(group.sources):
        return None
    return {target: sources[name] for name, target in targets.items()}


def _by_number(group: _Group) -> _Settled | None:
    """Return the group in pairs if the names of the sources differ in numbers alone."""
    stems = {re.sub(r"\d+", "", name_inside(source.name)) for source in group.sources}
    if len(stems) != 1:
        return None
    in_order = sorted(group.sources, key=_numbers_in_name)
    return dict(zip(group.targets, in_order, strict=True))


def _numbers_in_name(layer: LayerWeights) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", layer.name)]


def name_inside(name: str) -> str:
    """Return a name without those of classes, and without the position in the model itself."""
    return re.sub(r"^(\[\d+\])+\.?", "", plain(name))


def find(name: str, layers: Sequence[LayerWeights], where: str) -> LayerWeights:
    """Return the layer that is meant by its name, its name without classes, or the end of that."""
    exact = [layer for layer in layers if layer.name == name]
    without_classes = [layer for layer in layers if plain(layer.name) == plain(name)]
    by_end = [layer for layer in layers if f".{plain(layer.name)}".endswith(f".{name}")]
    for found in (exact, without_classes, by_end):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(layer.name for layer in found)
            raise WeightsError(f"port: mapping: {name!r} may be any of {names} of {where}")
    names = [layer.name for layer in layers]
    guess = nearest(name, [*names, *(plain(known) for known in names)])
    there = ", ".join(names[:12]) or "nothing left"
    raise WeightsError(f"port: mapping: {where} has no {name!r}{guess}; it has {there}")


def _why_different(source: LayerWeights, target: LayerWeights) -> str:
    """Return why two layers can't be a pair."""
    texts: list[str] = []
    source_kind = "of no kind that is known"
    if isinstance(source.part, Part):
        source_kind = source.part.kind
    if source_kind != target.known_part.kind:
        texts.append(f"one is {source_kind}, the other {target.known_part.kind}")
    shapes = [*shapes_by_name(source), *shapes_by_name(target)]
    return "; ".join([*texts, ", ".join(shapes)])


def shapes_by_name(layer: LayerWeights) -> list[str]:
    """Return the arrays of a layer as messages show them: `"kernel (3, 4)"`."""
    return [f"{name} {layer.arrays[path].shape}" for path, name in layer.names.items()]
