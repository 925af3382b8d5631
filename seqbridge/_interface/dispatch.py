"""Keyword dispatch: which layer takes which keyword arguments, and in which mode it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import numpy as np

from seqbridge._interface.messages import nearest
from seqbridge._interface.pure_layer import MODE_FLAGS, Keywords, PureLayer

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# Keywords that no layer gets by name.
_OF_THE_MODEL = frozenset({"rng", "per_layer"})
# Keywords that are fields of `Call`.
_OF_THE_CALL = frozenset({"training", "per_layer"})


@dataclass(frozen=True)
class Call:
    """Mode and keywords of one call of a model, that is, everything beside its inputs.

    Attributes:
        training: The mode; None: the caller hasn't said.
        keywords: Keywords for whichever layers take them.
        per_layer: Keywords for single layers, by name or position.
        used: The keywords that some layer has taken so far.
        said: Whether the caller chose the mode. A mode that nobody chose isn't handed to a layer
            that takes `**kwargs`.
    """

    training: bool | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    per_layer: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    said: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.per_layer, Mapping):
            raise TypeError(
                "per_layer= takes a dict from the names or positions of layers to dicts of "
                f"keywords, not {type(self.per_layer).__name__}"
            )

    def of(self, own: Mapping[str, Any]) -> Call:
        """Return the call as one layer sees it, given that layer's own keywords."""
        if not own:
            if not self.per_layer:
                return self
            return Call(self.training, self.keywords, {}, self.used, self.said)
        keywords = {**self.keywords, **_layer_keywords(own)}
        training = mode_of(own.get("training", self.training))
        return Call(training, keywords, own.get("per_layer", {}), self.used, self.said)

    def map(self, function: Callable[[Any], Any], *, training: bool | None) -> Call:
        """Return the call in another mode, with `function` applied to each value that it gives."""
        keywords = {name: function(value) for name, value in self.keywords.items()}
        per_layer: dict[Any, dict[str, Any]] = {}
        for which, own in self.per_layer.items():
            mapped = dict(own)
            for name, value in _layer_keywords(own).items():
                mapped[name] = function(value)
            per_layer[which] = mapped
        return Call(training, keywords, per_layer, said=self.training is not None)


def call_of(keywords: Keywords) -> Call:
    """Return the call that the keywords of a model's `__call__` stand for."""
    training = mode_of(keywords.get("training"))
    return Call(training, _layer_keywords(keywords), keywords.get("per_layer") or {})


def _layer_keywords(keywords: Keywords) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if name not in _OF_THE_CALL}


def mode_of(training: Any) -> bool | None:
    """Return `training` as a bool, or None where nothing is said.

    Raises:
        TypeError: It isn't a bool; a traced one isn't, for instance.
    """
    if training is None:
        return None
    if isinstance(training, bool | np.bool_):
        return bool(training)
    message = f"training= is True, False or None, not {training!r:.60}"
    if isinstance(training, jax.core.Tracer):
        message += ". Inside jax.jit make it a static argument; sb.jit does so by itself"
    raise TypeError(message)


class Parameters:
    """Parameters of a layer at a call, read from its signature once, when the entry joins a model.

    Attributes:
        positional: The names of those that inputs fill, in order.
        names: The names of those that keywords may fill.
        any: Whether there is a `**kwargs`.
        required: The names of those without a default, apart from the key.
        flags: The mode flags among them: True follows `training`, False is its opposite.
        decided: The mode flags that the entry has set for itself.
        key_name: The keyword by which the entry takes its key.
    """

    def __init__(self, pure: PureLayer):
        parameters: list[inspect.Parameter] = []
        if pure.signature is not None:
            parameters = list(pure.signature.parameters.values())
        positional: list[str] = []
        by_name: set[str] = set()
        required: list[str] = []
        self.any: bool = False
        self._defaults: dict[str, bool] = {}
        for parameter in parameters:
            name, kind = parameter.name, parameter.kind
            if kind in _POSITIONAL:
                positional.append(name)
            if kind in _BY_NAME:
                by_name.add(name)
            if kind is parameter.VAR_KEYWORD:
                self.any = True
            if isinstance(parameter.default, bool):
                self._defaults[name] = parameter.default
            named = kind in _POSITIONAL or kind in _BY_NAME
            if named and parameter.default is parameter.empty and name != pure.key_name:
                required.append(name)
        self.positional: tuple[str, ...] = tuple(positional)
        self.names: frozenset[str] = frozenset(by_name) - pure.decided - _OF_THE_MODEL
        self.required: tuple[str, ...] = tuple(required)
        flags = {**MODE_FLAGS, **pure.mode_flags}
        self.flags: dict[str, bool] = {
            name: polarity for name, polarity in flags.items() if name in self.names
        }
        self.decided: frozenset[str] = pure.decided
        self.key_name: str | None = pure.key_name

    @property
    def default_mode(self) -> bool | None:
        """The mode of a call that says none: True in training; None if the layer must be told."""
        modes: set[bool] = set()
        for flag, polarity in self.flags.items():
            if flag not in self._defaults:
                return None
            modes.add(self._defaults[flag] is polarity)
        return modes.pop() if len(modes) == 1 else None

    def takes(self, name: str, inputs: int) -> bool:
        """Return whether a keyword reaches the layer beside so many inputs."""
        if name in self.decided or name in self.positional[:inputs]:
            return False
        return name in self.names or self.any

    def route(self, call: Call, inputs: int) -> dict[str, Any]:
        """Return the layer's keywords, with its mode in the words of its library.

        Raises:
            LookupError: Nothing decides a mode flag.
        """
        routed: dict[str, Any] = {}
        for name, value in call.keywords.items():
            if self.takes(name, inputs):
                routed[name] = value
        call.used.update(routed)
        if not self.flags:
            if self.any and call.said and call.training is not None and not self.decided:
                routed["training"] = call.training
            return routed
        filled = self.positional[:inputs]
        for flag, polarity in self.flags.items():
            if flag in filled or flag in routed:
                continue
            if call.training is not None:
                routed[flag] = call.training is polarity
            elif flag not in self._defaults:
                raise LookupError(flag)
        return routed

    def in_training(self, keywords: Keywords) -> dict[str, Any]:
        """Return the keywords with every mode flag turned to training."""
        return {name: self.flags.get(name, value) for name, value in keywords.items()}

    def undecided(self, call: Call) -> bool:
        """Return whether the call leaves the layer's mode open."""
        if call.training is not None:
            return False
        return any(f not in call.keywords and f not in self._defaults for f in self.flags)

    def missing(self, routed: Mapping[str, Any], inputs: int) -> tuple[str, ...]:
        """Return the required parameters that neither inputs nor keywords fill."""
        filled = self.positional[:inputs]
        return tuple(n for n in self.required if n not in filled and n not in routed)


def check_taken(
    keywords: Iterable[str],
    layers: Mapping[str, Parameters],
    inputs: Mapping[str, int] | None = None,
    *,
    only: bool = False,
) -> None:
    """Raise an error for the first keyword that no layer takes.

    Args:
        keywords: The names that the call gave.
        layers: The parameters of each layer, by the layer's name in messages.
        inputs: How many inputs reach each layer; one where nothing is said.
        only: Whether the keywords were given for the one layer in `layers`.

    Raises:
        TypeError: It lists what is taken, by whom, and the nearest spelling.
    """
    inputs = inputs or {}
    for name in keywords:
        if any(p.takes(name, inputs.get(label, 1)) for label, p in layers.items()):
            continue
        takers = _takers(layers, inputs)
        who = f"layer {next(iter(layers))} doesn't take" if only else "no layer takes"
        guess = _guess(name, layers.values(), takers) or "."
        raise TypeError(
            f"{who} the keyword {name!r}{guess} Keywords that are taken: {_takers_text(takers)}"
        )


def _takers(layers: Mapping[str, Parameters], inputs: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the keywords that are taken, each with the layers that take it."""
    takers: dict[str, list[str]] = {}
    for label, parameters in layers.items():
        filled = parameters.positional[: inputs.get(label, 1)]
        for name in sorted(parameters.names.difference(filled)):
            takers.setdefault(name, []).append(label)
    return takers


def _takers_text(takers: Mapping[str, list[str]]) -> str:
    texts: list[str] = []
    for name, labels in takers.items():
        shown = [*labels[:4], "..."] if len(labels) > 4 else labels
        texts.append(f"{name} ({', '.join(shown)})")
    return "; ".join(texts) or "none"


def _guess(name: str, layers: Iterable[Parameters], taken: Iterable[str]) -> str:
    """Return the keyword that was meant, as the end of a sentence, or nothing."""
    if name == "rng":
        return "; a call takes it, model(x, rng=key), and build takes key=."
    if name in ("key", "rngs") or any(name == parameters.key_name for parameters in layers):
        return "; did you mean 'rng', the key of a call?"
    return nearest(name, [*taken, "training", "rng", "per_layer"])
