"""Layers around layers: `Repeat`, a loop over copies, and `remat`, which saves memory."""

from seqbridge._wrappers.remat import remat as remat
from seqbridge._wrappers.repeat import Repeat as Repeat
