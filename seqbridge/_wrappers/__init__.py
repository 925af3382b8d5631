"""Wrappers."""

from seqbridge._wrappers.remat import remat as remat
from seqbridge._wrappers.repeat import Repeat as Repeat
