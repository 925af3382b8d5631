"""Weights of one library in a model of another.

The layers of both sides are read as parts in one canonical layout, matched, compared and converted.
A plan shows what would happen, and nothing is written before all of it fits.
"""

from seqbridge._port.port import port as port
