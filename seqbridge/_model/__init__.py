"""`Sequential`: a list of layers that is called, built, saved and shown."""

from seqbridge._model.plot import plot as plot
from seqbridge._model.sequential import Sequential as Sequential
from seqbridge._model.sequential import as_model as as_model
