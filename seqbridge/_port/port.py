"""`port`: the weights of one library's layers, in another library's layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from seqbridge._files import WeightsError
from seqbridge._interface import Part, check_flags, nearest
from seqbridge._layers import Layer, LayerList
from seqbridge._port.convert import Conversion, PlannedWeight, Problem, convert
from seqbridge._port.match import Matches, Pair, find, match, name_inside, shapes_by_name
from seqbridge._port.plan import Plan, activations, difference
from seqbridge._port.weights import LayerWeights, ModelWeights, weights_of
from seqbridge._state import refuse_in_trace

# By name of a layer of the target: `(channels, *space)`, or None.
_Sizes: TypeAlias = Mapping[str, Sequence[int] | None]

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
    """Port the weights of one library's layers to another library's layers.

    Layers are matched by their kinds and shapes; those that are alike, by their names or their
    order. Each weight is laid out as the target has it. All weights are written at once, or none
    is.

    Args:
        source: A `Sequential`, a `Layer`, or an entry that has its values; or a flat dict of arrays
            by the names of an adapter that knows what they mean (a `state_dict`), or the path of a
            file of them.
        target: A `Sequential` or a `Layer`, built.
        mapping: From names of the source's layers to names of the target's, where nothing else
            tells what belongs together; the names are those in the plan, or their ends. None as a
            value leaves a layer out. Names of variables port single arrays that belong to no known
            kind of layer, as they are.
        flatten: For a linear layer, or a norm, of the target that takes a flattened image, where
            one side has its channels first and the other last: `(channels, height, width)`. None:
            the order is right already.
        accept: Differences to accept: `"epsilon"`, `"momentum"`, `"padding"`, ..., by the names in
            the plan.
        strict: Whether everything of both sides must be ported. False: whatever matches is.
        check: An input on which both sides are run afterwards, in evaluation mode; the largest
            difference of their outputs is printed. A tuple: several inputs.
        expected: The outputs of the source for `check`, where it can't be run; it isn't, then.
        dry_run: Whether to make the plan only; `plan.apply()` carries it out.

    Returns:
        The plan.

    Raises:
        WeightsError: Something can't be ported so that the results are the same; the message is the
            plan.
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
        ...         init=make,
        ...         apply=apply,
        ...         signature=signature_of(lambda x: x),
        ...         label="Linear",
        ...         ecosystem="mine",
        ...         takes_key=False,
        ...         parts=lambda run: [part],
        ...     )
        >>> kernel = Weight.at("params", "kernel")
        >>> transposed = Weight.transposed(("params", "weight"), (1, 0))
        >>> ours = Sequential([linear("kernel", kernel)]).build((1, 2))
        >>> theirs = Sequential([linear("weight", transposed)]).build((1, 2))
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
            "port writes weights into a Sequential or a Layer, not into a "
            f"{type(target).__name__}: put the entry into a Sequential, and build it"
        )
    if (dry_run and check is not None) or (expected is not None and check is None):
        raise TypeError(
            "port: check= runs both sides once the weights are there: give it without dry_run="
        )
    left, source_model = weights_of(source)
    right, target_model = weights_of(target)
    assert target_model is not None
    accepted = {accept} if isinstance(accept, str) else set(accept)
    _check_accepted(accepted, right)
    mapping = dict(mapping or {})
    made = _port_single_arrays(left, right, mapping, strict=strict)
    matches = match(left.layers, right.layers, mapping)
    made.add(_convert_all(matches.pairs, _checked_sizes(flatten or {}, right.layers)))
    made.problems += _unmatched(matches, strict=strict)
    if source_model is not None and strict:
        problem = activations(source_model, target_model)
        if problem is not None:
            made.problems.append(problem)

    open_problems: list[str] = []
    accepted_problems: list[str] = []
    for problem in made.problems:
        if problem.about in accepted:
            accepted_problems.append(problem.text)
        elif problem.about is None:
            open_problems.append(problem.text)
        else:
            open_problems.append(f"{problem.text} [accept={problem.about!r}]")
    plan = Plan(
        made.rows,
        problems=open_problems,
        accepted=accepted_problems,
        notes=list(_paired_by_order(matches.pairs)),
        new=made.new,
        target=target,
    )
    if not dry_run:
        plan.apply()
        if check is not None:
            plan.difference = difference(source_model, target, check, expected)
            print(f"largest difference of the outputs: {plan.difference:.3g}")
    return plan


def _check_accepted(accepted: Collection[str], target: ModelWeights) -> None:
    options = {"activation", "dtype"}
    for layer in target.layers:
        options.update(layer.known_part.options)
    for name in accepted:
        if name not in options:
            raise WeightsError(
                f"port: accept={name!r} names no option of these layers{nearest(name, options)}"
            )


def _port_single_arrays(
    source: ModelWeights, target: ModelWeights, mapping: dict[str, str | None], *, strict: bool
) -> Conversion:
    """Port single arrays, by `mapping` alone, and take what is used out of it."""
    made = Conversion()
    ours, theirs = dict(source.single_arrays), dict(target.single_arrays)
    for old, new in list(mapping.items()):
        if old not in ours:
            continue
        array = ours.pop(old)
        del mapping[old]
        if new is None:
            continue
        if new not in theirs:
            raise WeightsError(f"port: mapping: {new!r} is no single variable of the target")
        own = theirs.pop(new)
        if own.shape != array.shape:
            text = f"{old} has shape {array.shape}, and {new} {own.shape}"
            made.problems.append(Problem(None, text))
            continue
        made.new[target.single_variables[new]] = array
        made.rows.append(PlannedWeight(old, new, "array", str(array.shape), "as it is"))
    if strict:
        for name in ours:
            text = f"{name} isn't ported: nobody says what it is. mapping={{{name!r}: ...}} does"
            made.problems.append(Problem(None, text))
        for name in theirs:
            text = (
                f"{name} gets nothing: nobody says what it is. mapping={{...: {name!r}}} or "
                "strict=False"
            )
            made.problems.append(Problem(None, text))
    return made


def _convert_all(pairs: Sequence[Pair], sizes: _Sizes) -> Conversion:
    """Convert all layers, and look for those that may take a flattened image."""
    made = Conversion()
    layouts_differ, from_first = _channels_first(pairs)
    channels = 0  # of the image that comes out of the layer before; 0: it is none
    for pair in pairs:
        target = pair.target
        ask = layouts_differ and target.name not in sizes and _may_be_flattened(target, channels)
        if ask:
            made.problems.append(_flatten_question(target, channels))
        if pair.part.kind in _SPATIAL and not ask:
            channels = _features(target)
        elif pair.part.kind not in _NORMS:  # what comes out of it is no image
            channels = 0
        made.add(convert(pair, sizes.get(target.name), from_first=from_first))
    return made


def _paired_by_order(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield a note on all layers that are alike and that nothing but their order tells apart."""
    groups: dict[Any, list[Pair]] = {}
    for pair in pairs:
        weights = pair.target.canonical(pair.target.known_part)
        shapes = tuple(sorted((name, array.shape) for name, array in weights.items()))
        groups.setdefault((pair.part.kind, shapes), []).append(pair)
    for (kind, _), group in groups.items():
        if len(group) == 1 or all(_same_name(pair) for pair in group):
            continue
        some = ", ".join(f"{pair.source.name} to {pair.target.name}" for pair in group[:3])
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        yield (
            f"{len(group)} {kind.replace('_', ' ')} layers are alike, and only their order tells "
            f"which is which: {some}{more}"
        )


def _same_name(pair: Pair) -> bool:
    return name_inside(pair.source.name) == name_inside(pair.target.name)


def _unmatched(matches: Matches, *, strict: bool) -> list[Problem]:
    problems: list[Problem] = []
    for layer, candidates in matches.ambiguous:
        names = ", ".join(candidate.name for candidate in candidates)
        text = f"{layer.name} may be any of {names}: say which by mapping="
        problems.append(Problem(None, text))
    if strict:
        for layer in matches.missing:
            problems.append(Problem(None, f"nothing fits {_layer_text(layer)}"))
        for layer in matches.unused:
            problems.append(Problem(None, f"nothing takes {_layer_text(layer)}"))
    return problems


def _layer_text(layer: LayerWeights) -> str:
    text = layer.name
    if isinstance(layer.part, Part):
        text += f", {layer.part.kind.replace('_', ' ')}"
    return f"{text} ({', '.join(shapes_by_name(layer))})"


def _checked_sizes(flatten: _Sizes, layers: Sequence[LayerWeights]) -> _Sizes:
    """Return what `flatten=` says by the full names of layers."""
    found: dict[str, Sequence[int] | None] = {}
    for name, sizes in flatten.items():
        layer = find(name, layers, "the target")
        if sizes is not None and int(np.prod(sizes)) != _features(layer):
            raise WeightsError(
                f"port: flatten={{{name!r}: {tuple(sizes)}}}: {layer.name} takes "
                f"{_features(layer)} features"
            )
        found[layer.name] = sizes
    return found


def _features(layer: LayerWeights) -> int:
    """Return how many features a linear layer or a norm takes, or a spatial layer returns."""
    weights = layer.canonical(layer.known_part)
    if layer.known_part.kind == "linear":
        return weights["kernel"].shape[0]
    return max((array.shape[-1] for array in weights.values() if array.ndim), default=0)


def _channels_first(pairs: Sequence[Pair]) -> tuple[bool, bool]:
    """Return whether the sides have their channels at different ends, and the source's first."""
    differ = from_first = False
    for pair in pairs:
        if pair.part.kind in _SPATIAL:
            differ |= pair.part.channels_first != pair.target.known_part.channels_first
            from_first |= pair.part.channels_first
    return differ, from_first


def _may_be_flattened(layer: LayerWeights, channels: int) -> bool:
    """Return whether the input of a layer may be a flattened image of so many channels.

    Its elements come in another order in the other library.
    """
    kind = layer.known_part.kind
    if kind != "linear" and kind not in _NORMS:
        return False
    features = _features(layer)
    return 0 < channels < features and features % channels == 0


def _flatten_question(layer: LayerWeights, channels: int) -> Problem:
    text = (
        f"{layer.name} takes {_features(layer)} features, which look like a flattened image of "
        f"{channels} channels, and one side has its channels first: "
        f"say flatten={{{layer.name!r}: ({channels}, height, width)}}, or None if it is none"
    )
    return Problem(None, text)
