"""Variables under names: collections, files, checkpoints, differences.

`VarCollection` is a live mapping from name to variable. Saving writes such a mapping to a file,
loading matches what a file stores with what a model has, and changes all of it or nothing.
"""

from seqbridge._variables.checkpoint import Checkpoint as Checkpoint
from seqbridge._variables.collection import Filter as Filter
from seqbridge._variables.collection import VarCollection as VarCollection
from seqbridge._variables.collection import selector as selector
from seqbridge._variables.diff import diff as diff
from seqbridge._variables.saving import VariableHolder as VariableHolder
