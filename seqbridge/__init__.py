"""Layers of any JAX library in one Python list.

A `PureLayer` is a pair of pure functions; an adapter is a function that turns one foreign object
into a `PureLayer`, or says None. `Sequential` is a list of layers that own named variables;
everything stateful is a thin shell over the pure functions.
"""

from collections.abc import Callable as _Callable
from importlib.metadata import version as _version
from typing import Any as _Any

from seqbridge._checkpoint import Checkpoint as Checkpoint
from seqbridge._collection import VarCollection as VarCollection
from seqbridge._diff import diff as diff
from seqbridge._export import to_pure as to_pure
from seqbridge._export import way_out as _way_out
from seqbridge._files import read as read
from seqbridge._freeze import freeze as freeze
from seqbridge._function import as_method as as_method
from seqbridge._function import signature_of as signature_of
from seqbridge._grad import grad as grad
from seqbridge._grad import value_and_grad as value_and_grad
from seqbridge._home import from_native as from_native
from seqbridge._jit import jit as jit
from seqbridge._layer import Layer as Layer
from seqbridge._optimizer import Optimizer as Optimizer
from seqbridge._parts import Part as Part
from seqbridge._parts import Untyped as Untyped
from seqbridge._parts import Weight as Weight
from seqbridge._parts import explicit as explicit
from seqbridge._paths import nest as nest
from seqbridge._paths import path_text as path_text
from seqbridge._paths import unnest as unnest
from seqbridge._picture import plot as plot
from seqbridge._port import port as port
from seqbridge._processes import feed as feed
from seqbridge._pure import MODE_FLAGS as MODE_FLAGS
from seqbridge._pure import Annotated as Annotated
from seqbridge._pure import PureLayer as PureLayer
from seqbridge._pure import Variables as Variables
from seqbridge._pure import call_text as call_text
from seqbridge._pure import training_of as training_of
from seqbridge._registry import exports as _exports
from seqbridge._registry import register as register
from seqbridge._registry import register_export as register_export
from seqbridge._repeat import Repeat as Repeat
from seqbridge._safetensors import WeightsError as WeightsError
from seqbridge._sequential import Sequential as Sequential
from seqbridge._transforms import eval_shape as eval_shape
from seqbridge._transforms import remat as remat
from seqbridge._transforms import scan as scan
from seqbridge._transforms import vmap as vmap
from seqbridge._variable import Variable as Variable

__version__: str = _version(__name__)


def __getattr__(name: str) -> _Callable[..., _Any]:
    """`to_<library>`, one for each adapter that has a way out; loaded when it is asked for."""
    if name.startswith("to_"):
        return _way_out(name.removeprefix("to_"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(f"to_{name}" for name in _exports())})
