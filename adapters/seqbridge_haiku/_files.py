"""The files in which people keep the parameters of Haiku: pickles of nested dicts."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from seqbridge import WeightsError

_INSTEAD = "store it as npz or safetensors there"


def read_pickle(path: str, *, allow_pickle: bool = False, **_: Any) -> Any:
    """The tree in a pickle, of which only arrays and containers are taken. No code of it runs.

    Raises:
        WeightsError: It isn't allowed to read a pickle, or there is something else in this one.
    """
    if not allow_pickle:
        raise WeightsError(
            f"{path} is a pickle, which may hold code. If you know where it comes from, say "
            f"allow_pickle=True: arrays "
            f"and containers are taken from it, and everything else is refused. Or {_INSTEAD}"
        )
    with open(path, "rb") as file:
        data = file.read()
    _check_memo(data)
    return _plain(_Arrays(io.BytesIO(data)).load(), {})


def _check_memo(data: bytes) -> None:
    """Refuses numbers of notes for which the unpickler would reserve memory beyond all reason."""
    end = 0
    for i, (op, arg, at) in enumerate(pickletools.genops(data)):
        if "PUT" in op.name and int(arg or 0) > i:  # pyright: ignore[reportArgumentType]
            raise WeightsError(f"it notes something under the number {arg}, after {i} steps")
        end = (at or 0) + 1
    if end != len(data):
        raise WeightsError(f"there is something behind the end of the pickle: {_INSTEAD}")


class _Arrays(pickle.Unpickler):
    """Finds nothing but what stands in for the makers of arrays and containers."""

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is None:
            raise WeightsError(
                f"it asks for {module}.{name}, which is neither an array nor a container: "
                f"{_INSTEAD}"
            )
        return found if isinstance(found, type) else _Maker(found)

    def persistent_load(self, pid: Any) -> Any:
        raise WeightsError(f"it refers to something outside of it, {pid!r:.60}: {_INSTEAD}")


class _Maker:
    """A function that a pickle may call, and can't change: a pickle sets attributes of whatever it finds.

    With other defaults, say, a function would put something into all that is read after it.
    """

    __slots__ = ("make",)

    def __init__(self, make: Any):
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)

    def __setstate__(self, state: Any) -> None:
        raise WeightsError("it changes what arrays are made by, and holds no weights")


class _Dtype:
    """A dtype, as pickles make it: by a name, and then a byte order."""

    def __init__(self, what: Any, *_: Any):
        named = isinstance(what, str) and re.fullmatch(r"[biufc]\d{1,2}", what)
        if not named and not (isinstance(what, type) and what in _EXTENDED):
            raise WeightsError(f"an array is of {what!r:.60}, which is no type of numbers")
        self.dtype = np.dtype(what)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, as pickles make it: first there is one, then it is filled."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | str):
        raise WeightsError(
            f"an array is made of {type(data).__name__}: objects, say, and no numbers"
        )
    data = data.encode("latin1") if isinstance(data, str) else data
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(
        shape
    ) * dtype.dtype.itemsize != len(data):
        raise WeightsError(
            f"an array says that its shape is {shape!r:.80}, and has {len(data)} bytes"
        )
    flat = np.frombuffer(data, dtype.dtype) if data else np.zeros(0, dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _new(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, data: Any) -> np.ndarray:
    return _filled(data, dtype, (), "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    if order == "K":  # as it lies in memory, and then how its axes are to be permuted
        return _filled(data, dtype, shape, "C").transpose(axes)
    return _filled(data, dtype, shape, order)


def _of_jax(make: Any, args: Any, state: Any, *_: Any) -> _Array:
    """What JAX pickles is how to make a NumPy array, to be put on a device then."""
    array = _Array()
    array.__setstate__(state)
    return array


def _mapping(tree: Any = (), *_: Any) -> dict[Any, Any]:
    return dict(tree)


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how bytes were pickled before there was a way


def _no_bytes() -> bytes:
    return b""


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(float(real), float(imaginary))


def _plain(tree: Any, seen: dict[int, Any]) -> Any:
    """The tree with arrays in place of what stood in for them. What is shared stays so."""
    if id(tree) in seen:
        return seen[id(tree)]
    if isinstance(tree, _Array):
        made: Any = tree.value
    elif isinstance(tree, Mapping):
        made = {name: _plain(inner, seen) for name, inner in tree.items()}
    elif isinstance(tree, list | tuple):
        made = type(tree)(_plain(inner, seen) for inner in tree)
    else:
        return tree
    seen[id(tree)] = made
    return made


_EXTENDED = {
    kind
    for kind in vars(ml_dtypes).values()
    if isinstance(kind, type) and issubclass(kind, np.generic)
}
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "complex"): _complex,
    ("__builtin__", "complex"): _complex,
    ("collections", "OrderedDict"): _mapping,
    ("jax._src.array", "_reconstruct_array"): _of_jax,
    ("jax._src.device_array", "reconstruct_device_array"): _of_jax,  # until 0.4
    **{
        ("haiku._src.data_structures", name): _mapping
        for name in ("FlatMapping", "FlatMap", "frozendict")
    },
    **{(module, "FrozenDict"): _mapping for module in ("flax.core.frozen_dict", "flax.core")},
    **{("ml_dtypes", kind.__name__): kind for kind in _EXTENDED},
    **{(f"jaxlib.xla_{part}", "bfloat16"): ml_dtypes.bfloat16 for part in ("client", "extension")},
}
