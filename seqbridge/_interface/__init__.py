"""The contract with adapters, and the words that all of seqbridge shares.

A `PureLayer` is all that the core knows of an entry: two pure functions, a signature, and notes on
modes, keys and weights. The registry finds the adapter that makes one; dispatch decides which layer
gets which keyword. Paths, messages and tables stand here because every floor above uses them.
"""

from seqbridge._interface.dispatch import Call as Call
from seqbridge._interface.dispatch import Parameters as Parameters
from seqbridge._interface.dispatch import call_of as call_of
from seqbridge._interface.dispatch import check_taken as check_taken
from seqbridge._interface.dispatch import mode_of as mode_of
from seqbridge._interface.messages import check_flags as check_flags
from seqbridge._interface.messages import check_names as check_names
from seqbridge._interface.messages import habit as habit
from seqbridge._interface.messages import nearest as nearest
from seqbridge._interface.messages import plain as plain
from seqbridge._interface.messages import shape_text as shape_text
from seqbridge._interface.messages import shapes_text as shapes_text
from seqbridge._interface.paths import Path as Path
from seqbridge._interface.paths import dotted as dotted
from seqbridge._interface.paths import nest as nest
from seqbridge._interface.paths import parts_of as parts_of
from seqbridge._interface.paths import path_text as path_text
from seqbridge._interface.paths import unnest as unnest
from seqbridge._interface.pure_layer import MODE_FLAGS as MODE_FLAGS
from seqbridge._interface.pure_layer import Annotated as Annotated
from seqbridge._interface.pure_layer import CapturedArrayError as CapturedArrayError
from seqbridge._interface.pure_layer import Inputs as Inputs
from seqbridge._interface.pure_layer import Keywords as Keywords
from seqbridge._interface.pure_layer import Kind as Kind
from seqbridge._interface.pure_layer import Origin as Origin
from seqbridge._interface.pure_layer import PureLayer as PureLayer
from seqbridge._interface.pure_layer import Variables as Variables
from seqbridge._interface.pure_layer import bind as bind
from seqbridge._interface.pure_layer import call_text as call_text
from seqbridge._interface.pure_layer import training_of as training_of
from seqbridge._interface.registry import Export as Export
from seqbridge._interface.registry import ask as ask
from seqbridge._interface.registry import exporter as exporter
from seqbridge._interface.registry import exports as exports
from seqbridge._interface.registry import has_adapter as has_adapter
from seqbridge._interface.registry import known as known
from seqbridge._interface.registry import register as register
from seqbridge._interface.registry import register_export as register_export
from seqbridge._interface.tables import Column as Column
from seqbridge._interface.tables import colour as colour
from seqbridge._interface.tables import filled as filled
from seqbridge._interface.tables import shown as shown
from seqbridge._interface.tables import table as table
from seqbridge._interface.tables import to_html as to_html
from seqbridge._interface.weight_spec import Part as Part
from seqbridge._interface.weight_spec import Untyped as Untyped
from seqbridge._interface.weight_spec import Weight as Weight
from seqbridge._interface.weight_spec import explicit as explicit
