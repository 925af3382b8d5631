"""Layers of any JAX library in one Python list.

A `PureLayer` is a pair of pure functions; an adapter is a function that turns one foreign object
into a `PureLayer`, or says None. `Sequential` is a list of layers that own named variables;
everything stateful is a thin shell over the pure functions.
"""

from collections.abc import Callable as _Callable
from importlib.metadata import version as _version
from typing import Any as _Any

from seqbridge._entries import as_method as as_method
from seqbridge._entries import signature_of as signature_of
from seqbridge._export import export_function as _export_function
from seqbridge._export import freeze as freeze
from seqbridge._export import from_native as from_native
from seqbridge._export import to_pure as to_pure
from seqbridge._files import WeightsError as WeightsError
from seqbridge._files import read as read
from seqbridge._interface import MODE_FLAGS as MODE_FLAGS
from seqbridge._interface import Annotated as Annotated
from seqbridge._interface import Part as Part
from seqbridge._interface import PureLayer as PureLayer
from seqbridge._interface import Untyped as Untyped
from seqbridge._interface import Variables as Variables
from seqbridge._interface import Weight as Weight
from seqbridge._interface import call_text as call_text
from seqbridge._interface import explicit as explicit
from seqbridge._interface import exports as _exports
from seqbridge._interface import nest as nest
from seqbridge._interface import path_text as path_text
from seqbridge._interface import register as register
from seqbridge._interface import register_export as register_export
from seqbridge._interface import training_of as training_of
from seqbridge._interface import unnest as unnest
from seqbridge._layers import Layer as Layer
from seqbridge._model import Sequential as Sequential
from seqbridge._model import plot as plot
from seqbridge._port import port as port
from seqbridge._sharding import feed as feed
from seqbridge._state import Variable as Variable
from seqbridge._transforms import Optimizer as Optimizer
from seqbridge._transforms import cond as cond
from seqbridge._transforms import eval_shape as eval_shape
from seqbridge._transforms import fori_loop as fori_loop
from seqbridge._transforms import grad as grad
from seqbridge._transforms import jit as jit
from seqbridge._transforms import scan as scan
from seqbridge._transforms import switch as switch
from seqbridge._transforms import value_and_grad as value_and_grad
from seqbridge._transforms import vmap as vmap
from seqbridge._transforms import while_loop as while_loop
from seqbridge._variables import Checkpoint as Checkpoint
from seqbridge._variables import VarCollection as VarCollection
from seqbridge._variables import diff as diff
from seqbridge._wrappers import Repeat as Repeat
from seqbridge._wrappers import remat as remat

__version__: str = _version(__name__)


def __getattr__(name: str) -> _Callable[..., _Any]:
    """`to_<library>`, one for each library with an exporter; loaded when it is asked for."""
    if name.startswith("to_"):
        return _export_function(name.removeprefix("to_"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(f"to_{name}" for name in _exports())})
