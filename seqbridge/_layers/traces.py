"""A cache of what traces of a layer said, by the signature of the call.

A trace tells the shapes of a call's outputs and whether they depend on the layer's PRNG key. The
jaxpr itself isn't kept: it would hold alive whatever arrays the entry closes over, and tracers
where a layer is traced inside another transform.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax

from seqbridge._interface import Path
from seqbridge._state import version

_MOST_KINDS = 64  # of calls that are remembered; the oldest goes first
_MOST_SIZES = 16  # of inputs for each of them


class Signature(NamedTuple):
    """A call of a layer, as far as a trace of it can depend on the call.

    Attributes:
        kind: All but the sizes of arrays: the structure, and the value of each other leaf.
        sizes: The shapes of the arrays.
    """

    kind: Hashable
    sizes: tuple[tuple[int, ...], ...]


def signature_of_call(variables: Any, args: Any, keywords: Any) -> Signature | None:
    """Return the signature of a call; None if a leaf can't be told from others by its value."""
    leaves, treedef = jax.tree.flatten((variables, args, keywords))
    kind: list[Hashable] = [treedef]
    sizes = []
    for leaf in leaves:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            kind.append((leaf.dtype, len(leaf.shape)))
            sizes.append(leaf.shape)
        else:
            kind.append((type(leaf), leaf))  # 1, 1.0 and True are equal, and aren't the same
    signature = Signature(tuple(kind), tuple(sizes))
    try:
        hash(signature)
    except TypeError:
        return None
    return signature


class Trace(NamedTuple):
    """Facts that one trace of a layer has shown.

    Attributes:
        outputs: The shapes and dtypes of the outputs.
        needs_key: Whether the call reads its key at all.
        depends_on_key: Whether a result depends on the value of the key: the outputs, or the state
            after the call.
        changed_state: The paths of those variables that the call gives another value.
    """

    outputs: Any
    needs_key: bool
    depends_on_key: bool
    changed_state: frozenset[Path]


class TraceCache:
    """The traces of one layer.

    Whether a layer draws rarely depends on the sizes of its inputs, so that one look is enough for
    batches of all sizes; the shapes of its outputs do.

    Attributes:
        draws: Whether some call draws random numbers; None if none was traced yet.
    """

    __slots__ = ("_traces", "_untraceable", "draws")

    def __init__(self) -> None:
        self._traces: dict[Hashable, dict[Hashable, Trace]] = {}
        self._untraceable: dict[Hashable, None] = {}
        self.draws: bool | None = None

    def exact(self, signature: Signature) -> Trace | None:
        """Return the trace of a call with this signature."""
        return self._traces.get(signature.kind, {}).get(signature.sizes)

    def of_any_size(self, signature: Signature) -> Trace | None:
        """Return a trace of a call that differs in the sizes of its arrays at most.

        Of several, it is one that depends on the key: a call takes a key too much, rather than too
        few.
        """
        with version.lock:
            traces = list(self._traces.get(signature.kind, {}).values())
        for trace in traces:
            if trace.depends_on_key:
                return trace
        return traces[-1] if traces else None

    def add(self, signature: Signature | None, trace: Trace) -> None:
        """Remember a trace. Models that hold the layer may show a stream of keys from now on."""
        with version.lock:
            if signature is not None:
                sizes = self._traces.setdefault(signature.kind, {})
                sizes[signature.sizes] = trace
                _drop_oldest(sizes, _MOST_SIZES)
                _drop_oldest(self._traces, _MOST_KINDS)
            before = self.draws
            self.draws = bool(before) or trace.depends_on_key
        if self.draws != before:
            version.bump()

    def is_untraceable(self, signature: Signature | None) -> bool:
        """Whether a call of this kind can run, and can't be traced."""
        return signature is not None and signature.kind in self._untraceable

    def note_untraceable(self, signature: Signature | None) -> None:
        """Remember that a call of this kind can't be traced, though it can run."""
        if signature is not None:
            with version.lock:
                self._untraceable[signature.kind] = None
                _drop_oldest(self._untraceable, _MOST_KINDS)

    def copy(self) -> TraceCache:
        """Return a cache with the same traces, for a copy of the layer."""
        made = TraceCache()
        with version.lock:
            made._traces = {kind: dict(sizes) for kind, sizes in self._traces.items()}
            made.draws = self.draws
        return made


def _drop_oldest(cache: dict[Hashable, Any], most: int) -> None:
    while len(cache) > most:
        del cache[next(iter(cache))]
