"""Layers, and a model as a tree of them.

A `Layer` is an entry with its variables. The tree gives each layer its place, each variable its
name, and layers of one entry the same variables.
"""

from seqbridge._layers.first_places import FirstPlaces as FirstPlaces
from seqbridge._layers.first_places import Place as Place
from seqbridge._layers.first_places import sharing_keys as sharing_keys
from seqbridge._layers.jaxpr import FROZEN as FROZEN
from seqbridge._layers.jaxpr import captured_arrays as captured_arrays
from seqbridge._layers.jaxpr import eliminate_dead_code as eliminate_dead_code
from seqbridge._layers.jaxpr import flops as flops
from seqbridge._layers.jaxpr import forwarded_inputs as forwarded_inputs
from seqbridge._layers.jaxpr import inner_jaxprs as inner_jaxprs
from seqbridge._layers.jaxpr import inputs_that_matter as inputs_that_matter
from seqbridge._layers.layer import Layer as Layer
from seqbridge._layers.layer_list import Child as Child
from seqbridge._layers.layer_list import LayerList as LayerList
from seqbridge._layers.layer_list import entries_of as entries_of
from seqbridge._layers.layer_list import is_entry as is_entry
from seqbridge._layers.layout import Layout as Layout
from seqbridge._layers.layout import lookup as lookup
from seqbridge._layers.module_tree import full_name as full_name
from seqbridge._layers.module_tree import leaves as leaves
from seqbridge._layers.module_tree import walk as walk
from seqbridge._layers.traces import Signature as Signature
from seqbridge._layers.traces import Trace as Trace
from seqbridge._layers.traces import signature_of_call as signature_of_call
