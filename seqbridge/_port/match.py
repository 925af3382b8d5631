"""Which part of one side is which part of the other: by what they are, by their shapes, their order and their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from seqbridge._files import WeightsError
from seqbridge._interface import Part, Untyped, nearest, plain
from seqbridge._port.sides import Piece

# What a weight is where a layer hasn't got it; without the others there is no layer.
DEFAULTS: Mapping[str, float] = {
    **dict.fromkeys(("bias", "mean"), 0.0),
    **dict.fromkeys(("scale", "var"), 1.0),
    **{f"{name}_bias": 0.0 for name in ("query", "key", "value", "out")},
}


class Matches(NamedTuple):
    """What was found.

    Attributes:
        pairs: A piece of the source, one of the target, and what the first is in terms of the
            second.
        ambiguous: Pieces of the target for which there are several, with these.
        missing: Pieces of the target for which there is none.
        unused: Pieces of the source that nothing takes.
    """

    pairs: list[tuple[Piece, Piece, Part]]
    ambiguous: list[tuple[Piece, list[Piece]]]
    missing: list[Piece]
    unused: list[Piece]


def as_part(source: Piece, target: Piece) -> Part | None:
    """What a piece of the source is, if it may be that of the target."""
    assert isinstance(target.part, Part)
    ours = source.seen_as(target.part.kind, target.part.options)
    theirs = target.seen_as(target.part.kind, target.part.options)
    if ours is None or theirs is None:
        return None
    part, shapes = ours
    if part.refused or target.part.refused:
        return part
    both = shapes.keys() & theirs[1].keys()
    only_one = shapes.keys() ^ theirs[1].keys()
    fit = (
        both
        and all(shapes[name] == theirs[1][name] for name in both)
        and all(name in DEFAULTS for name in only_one)
    )
    return part if fit else None


def match(
    sources: Sequence[Piece], targets: Sequence[Piece], mapping: Mapping[str, str | None] = {}
) -> Matches:
    """Finds the pairs.

    Args:
        sources: The pieces of the source.
        targets: The pieces of the target.
        mapping: What a person says: from names of the source to names of the target; None: this
            isn't carried.

    Raises:
        WeightsError: A name in `mapping` is of nothing, or what it names can't be paired.
    """
    pairs: dict[int, tuple[Piece, Piece, Part]] = {}
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
                f"port: {source.name} can't be {target.name}: {difference(source, target)}"
            )
        right.remove(target)
        pairs[id(target)] = source, target, part
    fits = {
        (id(s), id(t)): part for s in left for t in right if (part := as_part(s, t)) is not None
    }
    for source, target in _settled(left, right, fits):
        pairs[id(target)] = source, target, fits[id(source), id(target)]
    while True:
        taken = {id(source) for source, _, _ in pairs.values()}
        open_ = [s for s in left if id(s) not in taken]
        waiting = [t for t in right if id(t) not in pairs]
        choices = {id(t): [s for s in open_ if (id(s), id(t)) in fits] for t in waiting}
        wanted = Counter(id(s) for some in choices.values() for s in some)
        sure = [
            (c[0], t) for t in waiting if len(c := choices[id(t)]) == 1 and wanted[id(c[0])] == 1
        ]
        if not sure:
            break
        for source, target in sure:
            pairs[id(target)] = source, target, fits[id(source), id(target)]
    return Matches(
        [pairs[id(t)] for t in targets if id(t) in pairs],
        [(t, choices[id(t)]) for t in waiting if choices[id(t)]],
        [t for t in waiting if not choices[id(t)]],
        [s for s in open_ if not wanted[id(s)]],
    )


def _settled(
    left: Sequence[Piece], right: Sequence[Piece], fits: Mapping[tuple[int, int], Part]
) -> Iterator[tuple[Piece, Piece]]:
    """The pairs that names or the order settle.

    Pieces that are alike are paired by their names if those are the same on both sides, or else in
    order if all of their kinds come in the same order on both sides. A file says no order but by
    numbers in its names.
    """
    of_file = any(
        isinstance(source.part, Untyped) for source in left
    )  # which may have them in any order
    in_order: list[tuple[Piece, Piece]] = []
    if not of_file and len(left) == len(right):
        both = list(zip(left, right, strict=True))
        in_order = both if all((id(s), id(t)) in fits for s, t in both) else []
    groups = list(_alike(left, right, fits))
    number = {id(piece): i for i, group in enumerate(groups) for side in group for piece in side}
    orders = [
        [number[id(piece)] for piece in side if id(piece) in number] for side in (left, right)
    ]
    by_name: set[int] = set()
    for sources, targets in groups:
        ours, theirs = (
            {within(piece.name): piece for piece in side} for side in (sources, targets)
        )
        if ours.keys() == theirs.keys() and len(ours) == len(sources):
            by_name.update(map(id, targets))
            yield from ((ours[name], theirs[name]) for name in theirs)
        elif (
            of_file and len({re.sub(r"\d+", "", name) for name in ours}) == 1
        ):  # the numbers in them say the order
            yield from zip(sorted(sources, key=_numbers), targets, strict=True)
        elif not of_file and not in_order and orders[0] == orders[1]:
            yield from zip(sources, targets, strict=True)
    yield from ((s, t) for s, t in in_order if id(t) not in by_name)


def _alike(
    left: Sequence[Piece], right: Sequence[Piece], fits: Mapping[tuple[int, int], Part]
) -> Iterator[tuple[list[Piece], list[Piece]]]:
    """As many pieces of both sides as could each be any of the others, and nothing else."""
    seen: set[int] = set()
    for target in right:
        if id(target) in seen:
            continue
        sources = [s for s in left if (id(s), id(target)) in fits]
        targets = [t for t in right if sources and (id(sources[0]), id(t)) in fits]
        seen.update(map(id, targets))
        closed = all(
            ((id(s), id(t)) in fits) == (s in sources) for s in left for t in targets
        ) and all(((id(s), id(t)) in fits) == (t in targets) for s in sources for t in right)
        if sources and len(sources) == len(targets) and closed:
            yield sources, targets


def _numbers(piece: Piece) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", piece.name)]


def within(name: str) -> str:
    """The name without those of classes, and without the model's own place for it."""
    return re.sub(r"^(\[\d+\])+\.?", "", plain(name))


def find(name: str, pieces: Sequence[Piece], where: str) -> Piece:
    """The piece that a person means: by its name, by that without the names of classes, or by the end of it."""
    short = {id(piece): plain(piece.name) for piece in pieces}
    for same in (
        [p for p in pieces if p.name == name],
        [p for p in pieces if short[id(p)] == plain(name)],
        [p for p in pieces if f".{short[id(p)]}".endswith(f".{name}")],
    ):
        if len(same) == 1:
            return same[0]
        if len(same) > 1:
            raise WeightsError(
                f"port: mapping: {name!r} may be any of {', '.join(p.name for p in same)} of "
                f"{where}"
            )
    raise WeightsError(
        f"port: mapping: {where} has no "
        f"{name!r}{nearest(name, [*(p.name for p in pieces), *short.values()])}; it has "
        f"{', '.join(p.name for p in pieces[:12]) or 'nothing left'}"
    )


def difference(source: Piece, target: Piece) -> str:
    """Why two pieces can't be a pair."""
    assert isinstance(target.part, Part)
    of_source = source.part.kind if isinstance(source.part, Part) else "of no kind that is known"
    shapes = [
        f"{name} {piece.arrays[path].shape}"
        for piece in (source, target)
        for path, name in piece.names.items()
    ]
    kinds = (
        ""
        if of_source == target.part.kind
        else f"one is {of_source}, the other {target.part.kind}; "
    )
    return f"{kinds}{', '.join(shapes)}"
