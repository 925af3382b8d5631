"""Which layer takes which keyword arguments, and in which mode it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import numpy as np

from seqbridge._interface.messages import nearest
from seqbridge._interface.pure_layer import MODE_FLAGS, PureLayer

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_OF_THE_MODEL = {"rng", "per_layer"}  # the call's own, which no layer gets by name
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Call:
    """What one call of a model gives beside its inputs."""

    training: bool | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    per_layer: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # the keywords that a layer has got
    said: bool = (
        True  # whether the mode is the caller's; what nobody said isn't handed to `**kwargs`
    )

    def __post_init__(self) -> None:
        if not isinstance(self.per_layer, Mapping):
            raise TypeError(
                "per_layer= takes a dict from the names or positions of layers to dicts of "
                "keywords, "
                f"not {type(self.per_layer).__name__}"
            )

    def of(self, own: Mapping[str, Any]) -> Call:
        """The call as one layer sees it, that has keywords of its own."""
        if not own:
            return (
                self
                if not self.per_layer
                else Call(self.training, self.keywords, {}, self.used, self.said)
            )
        inner = own.get("per_layer", {})
        keywords = {k: v for k, v in own.items() if k not in ("training", "per_layer")}
        training = mode_of(own.get("training", self.training))
        return Call(training, {**self.keywords, **keywords}, inner, self.used, self.said)

    def map(self, function: Callable[[Any], Any], *, training: bool | None) -> Call:
        """The call with `function` of each value that it gives."""
        per_layer = {
            which: {k: v if k in ("training", "per_layer") else function(v) for k, v in own.items()}
            for which, own in self.per_layer.items()
        }
        said = self.training is not None
        return Call(
            training, {k: function(v) for k, v in self.keywords.items()}, per_layer, said=said
        )


def call_of(keywords: Mapping[str, Any]) -> Call:
    """The call that these keywords of a model make."""
    rest = {k: v for k, v in keywords.items() if k not in ("training", "per_layer")}
    return Call(mode_of(keywords.get("training")), rest, keywords.get("per_layer") or {})


def mode_of(training: Any) -> bool | None:
    """`training`, if it is a mode.

    Raises:
        TypeError: It is no bool; a traced one, for instance.
    """
    if training is None or isinstance(training, bool | np.bool_):
        return None if training is None else bool(training)
    cure = (
        ". Inside jax.jit make it a static argument; sb.jit does so by itself"
        if isinstance(training, jax.core.Tracer)
        else ""
    )
    raise TypeError(f"training= is True, False or None, not {training!r:.60}{cure}")


class Parameters:
    """What a layer takes at a call. Read from its signature once, when the entry joins."""

    def __init__(self, pure: PureLayer):
        parameters = list(pure.signature.parameters.values()) if pure.signature is not None else []
        self.positional = tuple(p.name for p in parameters if p.kind in _POSITIONAL)
        self.any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.names = (
            frozenset(p.name for p in parameters if p.kind in _BY_NAME)
            - pure.decided
            - _OF_THE_MODEL
        )
        self.required = tuple(
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind in (*_POSITIONAL, p.KEYWORD_ONLY)
            and p.name != pure.key_name
        )
        self.flags = {n: MODE_FLAGS[n] for n in MODE_FLAGS if n in self.names}
        self._defaults = {p.name: p.default for p in parameters if isinstance(p.default, bool)}
        self.decided = pure.decided
        self.key_name = pure.key_name

    @property
    def default_mode(self) -> bool | None:
        """The mode of a call that says none: True in training. None: the layer wants to know."""
        modes = {self._defaults.get(flag) is polarity for flag, polarity in self.flags.items()}
        return (
            modes.pop() if len(modes) == 1 and self.flags.keys() <= self._defaults.keys() else None
        )

    def takes(self, name: str, inputs: int) -> bool:
        """Whether a keyword reaches the layer when `inputs` inputs do."""
        if name in self.decided or name in self.positional[:inputs]:
            return False
        return name in self.names or self.any

    def route(self, call: Call, inputs: int) -> tuple[dict[str, Any], bool | None]:
        """The layer's keywords, and its mode: True in training, False in evaluation, None if nothing says.

        Raises:
            LookupError: With the name of a mode flag that nothing decides.
        """
        filled = self.positional[:inputs]
        routed = {k: v for k, v in call.keywords.items() if self.takes(k, inputs)}
        call.used.update(routed)
        if not self.flags:
            if self.any and call.said and call.training is not None and not self.decided:
                routed["training"] = call.training
            return routed, call.training
        modes = []
        for flag, polarity in self.flags.items():
            if flag in filled:
                continue
            if flag in routed:
                value = routed[flag]
            elif call.training is not None:
                value = routed[flag] = call.training is polarity
            elif flag in self._defaults:
                value = self._defaults[flag]
            else:
                raise LookupError(flag)
            modes.append(
                bool(value) is polarity if isinstance(value, bool | int | np.bool_) else None
            )
        return routed, None if None in modes or not modes else any(modes)

    def in_training(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords with every mode flag turned to training."""
        return {k: self.flags.get(k, v) for k, v in keywords.items()}

    def undecided(self, call: Call) -> bool:
        """Whether the call leaves the layer's mode open."""
        return call.training is None and any(
            f not in call.keywords and f not in self._defaults for f in self.flags
        )

    def missing(self, routed: Mapping[str, Any], inputs: int) -> tuple[str, ...]:
        filled = self.positional[:inputs]
        return tuple(n for n in self.required if n not in filled and n not in routed)


def check_taken(
    keywords: Iterable[str],
    layers: Mapping[str, Parameters],
    inputs: Mapping[str, int] | None = None,
    *,
    only: bool = False,
) -> None:
    """Raises if there is a keyword that no layer takes.

    Args:
        keywords: The names that the call gave.
        layers: What each layer takes, by how an error calls it.
        inputs: How many inputs reach each layer, one where nothing is said.
        only: Whether the keywords were given for the one layer in `layers`.

    Raises:
        TypeError: It lists what is taken, by whom, and the nearest spelling.
    """
    inputs = inputs or {}
    for name in keywords:
        if any(p.takes(name, inputs.get(label, 1)) for label, p in layers.items()):
            continue
        takers: dict[str, list[str]] = {}
        for label, p in layers.items():
            for taken in sorted(p.names - set(p.positional[: inputs.get(label, 1)])):
                takers.setdefault(taken, []).append(label)
        listed = "; ".join(
            f"{n} ({', '.join(by[:4])}{', ...' if len(by) > 4 else ''})" for n, by in takers.items()
        )
        guess = nearest(name, [*takers, "training", "rng", "per_layer"])
        if name in ("key", "rngs", *(p.key_name for p in layers.values())):
            guess = "; did you mean 'rng', the key of a call?"
        if name == "rng":
            guess = "; a call takes it, model(x, rng=key), and build takes key=."
        who = f"layer {next(iter(layers))} doesn't take" if only else "no layer takes"
        raise TypeError(
            f"{who} the keyword {name!r}{guess or '.'} Keywords that are taken: {listed or 'none'}"
        )
