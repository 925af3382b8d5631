"""The entries that the conformance suite runs, each with the same entry run by its own library.

An adapter is added to the suite by adding cases here. `native` is how a person runs the entry by
hand, without seqbridge; what it returns is the truth that the layer is held against.
"""

from __future__ import annotations

from cases import equinox, functions, haiku, keras, linen, nnx, objax, stax, toy
from cases._case import Case as Case

CASES = [
    case
    for module in (linen, haiku, nnx, equinox, stax, keras, objax, toy, functions)
    for case in module.CASES
]
