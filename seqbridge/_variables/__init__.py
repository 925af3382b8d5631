"""Collections."""

from seqbridge._variables.checkpoint import Checkpoint as Checkpoint
from seqbridge._variables.collection import Filter as Filter
from seqbridge._variables.collection import VarCollection as VarCollection
from seqbridge._variables.collection import selector as selector
from seqbridge._variables.diff import diff as diff
from seqbridge._variables.saving import VariableHolder as VariableHolder
