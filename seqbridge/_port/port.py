"""`port`: the weights of one library's layers, in another library's layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seqbridge._files import WeightsError
from seqbridge._interface import Part, check_flags, nearest
from seqbridge._layers import Layer, LayerList
from seqbridge._port.convert import Problem, Row, carry
from seqbridge._port.match import find, match, within
from seqbridge._port.plan import Plan, activations, difference
from seqbridge._port.sides import Piece, Side, side_of
from seqbridge._state import Variable, refuse_in_trace

_SPATIAL = frozenset({"conv", "conv_transpose", "batch_norm", "group_norm"})
_NORMS = frozenset({"batch_norm", "layer_norm", "rms_norm"})


def port(
    source: Any,
    target: LayerList | Layer,
    /,
    *,
    mapping: Mapping[str, str | None] | None = None,
    flatten: Mapping[str, Sequence[int] | None] | None = None,
    accept: str | Collection[str] = (),
    strict: bool = True,
    check: Any = None,
    expected: Any = None,
    dry_run: bool = False,
) -> Plan:
    """Carries the weights of one library's layers into another library's layers.

    Layers are matched by what they are and by their shapes, those that are alike by their names or
    their order. Each weight is laid out as the target has it. All weights are written at once, or
    none is.

    Args:
        source: A `Sequential`, a `Layer`, or an entry that has its values; or a flat dict of arrays
            by the names of an adapter that knows what they mean (a `state_dict`), or the path of a
            file of them.
        target: A `Sequential` or a `Layer`, built.
        mapping: From names of the source's layers to names of the target's, where it can't be seen
            what belongs together; the names are those in the plan, or their ends. None as a value:
            this isn't carried. Names of variables carry single arrays that belong to no known kind
            of layer, as they are.
        flatten: For a linear layer, or a norm, of the target that takes a flattened image, where
            one side has its channels first and the other last: `(channels, height, width)`. None:
            the order is right already.
        accept: Differences that may be: `"epsilon"`, `"momentum"`, `"padding"`, ..., by the names
            in the plan.
        strict: Whether everything of both sides must be carried. False: what matches is.
        check: An input on which both sides are run afterwards, in evaluation mode; the largest
            difference of their outputs is printed. A tuple: several inputs.
        expected: What the source makes of `check`, for a source that can't be run; it isn't, then.
        dry_run: Whether to make the plan only; `plan.apply()` carries it out.

    Returns:
        The plan.

    Raises:
        WeightsError: Something can't be carried so that the results are the same; the message says
            all of it.
        RuntimeError: A side isn't built.
        TypeError: The target is no model.

    Examples:
        >>> from functools import partial
        >>> import jax.numpy as jnp
        >>> from seqbridge import Part, PureLayer, Sequential, Weight, signature_of
        >>> def linear(name, weight):  # a library of linear layers, and how it keeps their weights
        ...     def make(key, /, x):
        ...         return {"params": {name: jnp.zeros((2, 2)), "bias": jnp.ones(2)}}
        ...     def apply(variables, key, /, x):
        ...         kernel = variables["params"][name]
        ...         kernel = kernel if weight.text == "" else kernel.T
        ...         return x @ kernel + variables["params"]["bias"][None], {}
        ...     part = Part("linear", {"kernel": weight, "bias": Weight.at("params", "bias")})
        ...     return PureLayer(
        ...         init=make, apply=apply, signature=signature_of(lambda x: x), label="Linear", ecosystem="mine",
        ...         takes_key=False, parts=lambda run: [part],
        ...     )
        >>> ours = Sequential([linear("kernel", Weight.at("params", "kernel"))]).build((1, 2))
        >>> theirs = Sequential([linear("weight", Weight.transposed(("params", "weight"), (1, 0)))]).build((1, 2))
        >>> ours[0].kernel.assign([[1.0, 2.0], [3.0, 4.0]])
        >>> for row in port(ours, theirs, check=jnp.ones((1, 2))).rows:
        ...     print(row.weight, row.shape, row.text)
        largest difference of the outputs: 0
        linear kernel (2, 2) inverse of: transposed (1, 0)
        linear bias (2,) as it is
    """
    refuse_in_trace("porting weights")
    check_flags(strict=strict, dry_run=dry_run)
    if not isinstance(target, LayerList | Layer):
        raise TypeError(
            f"port carries weights into a Sequential or a Layer, not into a "
            f"{type(target).__name__}: put the entry "
            "into a Sequential, and build it"
        )
    if (dry_run and check is not None) or (expected is not None and check is None):
        raise TypeError(
            "port: check= runs both sides once the weights are there: give it without dry_run="
        )
    left, runs = side_of(source)
    right, model = side_of(target)
    assert model is not None
    mapping = dict(mapping or {})
    accept = {accept} if isinstance(accept, str) else set(accept)
    options = {"activation", "dtype"}.union(*(_part(piece).options for piece in right.pieces))
    for name in accept - options:
        raise WeightsError(
            f"port: accept={name!r} names no option of these layers{nearest(name, options)}"
        )
    rows, new, problems = _arrays(left, right, mapping, strict=strict)
    found = match(left.pieces, right.pieces, mapping)
    sizes = _sizes(flatten or {}, right.pieces)
    turned, from_first = _channels_first(found.pairs)
    channels = 0  # of the image that comes out of the layer before; 0: it is none
    for ours, theirs, part in found.pairs:
        flat = turned and theirs.name not in sizes and _is_flattened(theirs, channels)
        if flat:
            problems.append(_question(theirs, channels))
        if part.kind in _SPATIAL and not flat:
            channels = _features(theirs)
        elif part.kind not in _NORMS:  # what comes out of it is no image
            channels = 0
        own_rows, own_new, own_problems = carry(
            ours, theirs, part, sizes.get(theirs.name), from_first=from_first
        )
        rows, problems = [*rows, *own_rows], [*problems, *own_problems]
        new |= own_new
    problems += _unmatched(found.ambiguous, found.missing, found.unused, strict=strict)
    if runs is not None and strict and (text := activations(runs, model)):
        problems.append(text)
    plan = Plan(
        rows,
        [
            p.text + (f" [accept={p.about!r}]" if p.about else "")
            for p in problems
            if p.about not in accept
        ],
        [p.text for p in problems if p.about in accept],
        list(_by_order(found.pairs)),
        new,
        target,
    )
    if not dry_run:
        plan.apply()
        if check is not None:
            plan.difference = difference(runs, target, check, expected)
            print(f"largest difference of the outputs: {plan.difference:.3g}")
    return plan


def _arrays(
    left: Side, right: Side, mapping: dict[str, str | None], *, strict: bool
) -> tuple[list[Row], dict[Variable, Any], list[Problem]]:
    """Single arrays, which only a person can say where to carry; takes what it uses out of `mapping`."""
    rows: list[Row] = []
    new: dict[Variable, Any] = {}
    problems: list[Problem] = []
    ours, theirs = dict(left.rest), dict(right.rest)
    for old, other in list(mapping.items()):
        if old not in ours:
            continue
        array = ours.pop(old)
        del mapping[old]
        if other is None:
            continue
        if other not in theirs:
            raise WeightsError(f"port: mapping: {other!r} is no single variable of the target")
        own = theirs.pop(other)
        if own.shape != array.shape:
            problems.append(
                Problem(None, f"{old} has shape {array.shape}, and {other} {own.shape}")
            )
            continue
        new[right.boxes[other]] = array
        rows.append(Row(old, other, "array", str(array.shape), "as it is"))
    if strict:
        for name in ours:
            problems.append(
                Problem(
                    None,
                    f"{name} isn't carried: nobody says what it is. mapping={{{name!r}: ...}} does",
                )
            )
        for name in theirs:
            problems.append(
                Problem(
                    None,
                    f"{name} gets nothing: nobody says what it is. mapping={{...: {name!r}}} or "
                    f"strict=False",
                )
            )
    return rows, new, problems


def _by_order(pairs: Sequence[tuple[Piece, Piece, Part]]) -> Iterator[str]:
    """Which layers could have been each other, and had no names to tell them apart."""
    groups: dict[Any, list[tuple[Piece, Piece]]] = {}
    for ours, theirs, part in pairs:
        shapes = tuple(
            sorted((name, a.shape) for name, a in theirs.canonical(_part(theirs)).items())
        )
        groups.setdefault((part.kind, shapes), []).append((ours, theirs))
    for (kind, _), group in groups.items():
        if len(group) > 1 and any(
            within(ours.name) != within(theirs.name) for ours, theirs in group
        ):
            some = ", ".join(f"{ours.name} to {theirs.name}" for ours, theirs in group[:3])
            more = f" and {len(group) - 3} more" if len(group) > 3 else ""
            what = kind.replace("_", " ")
            yield f"{len(group)} {what} layers are alike, and only their order tells which is which: {some}{more}"


def _unmatched(
    ambiguous: list[tuple[Piece, list[Piece]]],
    missing: list[Piece],
    unused: list[Piece],
    *,
    strict: bool,
) -> list[Problem]:
    problems = [
        Problem(
            None,
            f"{piece.name} may be any of {', '.join(s.name for s in some)}: say which by mapping=",
        )
        for piece, some in ambiguous
    ]
    if strict:
        problems += [Problem(None, f"nothing fits {_shown(piece)}") for piece in missing]
        problems += [Problem(None, f"nothing takes {_shown(piece)}") for piece in unused]
    return problems


def _shown(piece: Piece) -> str:
    kind = f", {piece.part.kind.replace('_', ' ')}" if isinstance(piece.part, Part) else ""
    return f"{piece.name}{kind} ({', '.join(f'{piece.names[p]} {a.shape}' for p, a in piece.arrays.items())})"


def _sizes(
    flatten: Mapping[str, Sequence[int] | None], pieces: Sequence[Piece]
) -> dict[str, Sequence[int] | None]:
    found = {}
    for name, sizes in flatten.items():
        piece = find(name, pieces, "the target")
        if sizes is not None and int(np.prod(sizes)) != _features(piece):
            raise WeightsError(
                f"port: flatten={{{name!r}: {tuple(sizes)}}}: {piece.name} takes "
                f"{_features(piece)} features"
            )
        found[piece.name] = sizes
    return found


def _part(piece: Piece) -> Part:
    assert isinstance(piece.part, Part)
    return piece.part


def _features(piece: Piece) -> int:
    """How many features a linear layer or a norm takes, or come out of a layer that keeps the axes of space."""
    weights = piece.canonical(_part(piece))
    if _part(piece).kind == "linear":
        return weights["kernel"].shape[0]
    return max((a.shape[-1] for a in weights.values() if a.ndim), default=0)


def _channels_first(pairs: Sequence[tuple[Piece, Piece, Part]]) -> tuple[bool, bool]:
    """Whether one side has its channels first and the other last, and whether it is the source."""
    spatial = [
        (part.channels_first, _part(theirs).channels_first)
        for _, theirs, part in pairs
        if part.kind in _SPATIAL
    ]
    return any(ours != theirs for ours, theirs in spatial), any(ours for ours, _ in spatial)


def _is_flattened(piece: Piece, channels: int) -> bool:
    """Whether what a layer takes may be a flattened image, whose elements the other library has in another order."""
    if _part(piece).kind not in _NORMS and _part(piece).kind != "linear":
        return False
    n = _features(piece)
    return 0 < channels < n and n % channels == 0


def _question(piece: Piece, channels: int) -> Problem:
    n = _features(piece)
    text = f"{piece.name} takes {n} features, which look like a flattened image of {channels} channels, and one side has "
    cure = f"say flatten={{{piece.name!r}: ({channels}, height, width)}}, or None if it is none"
    return Problem(None, f"{text}its channels first: {cure}")
