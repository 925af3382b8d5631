"""From what a person puts into the list to a `PureLayer`.

`as_pure` asks the adapters, or makes a layer of a plain function. Arrays that a function holds
become its parameters. Pickling carries entries by their import path, or as their adapter says.
"""

from seqbridge._entries.adapt import as_pure as as_pure
from seqbridge._entries.function import as_method as as_method
from seqbridge._entries.function import signature_of as signature_of
from seqbridge._entries.function_like import FunctionLike as FunctionLike
from seqbridge._entries.pickling import portable as portable
from seqbridge._entries.reachable import objects_inside as objects_inside
