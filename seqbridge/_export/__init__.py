"""A whole model in other forms: one `PureLayer`, an object of another library, a frozen function.

`from_native` loads the values that were trained in an exported object.
"""

from seqbridge._export.export import export_function as export_function
from seqbridge._export.export import to_pure as to_pure
from seqbridge._export.freeze import freeze as freeze
from seqbridge._export.from_native import from_native as from_native
from seqbridge._export.snapshot import as_pure_layer as as_pure_layer
