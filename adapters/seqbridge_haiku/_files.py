"""The files in which people keep the parameters of Haiku: pickles of nested dicts."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from seqbridge import WeightsError

_INSTEAD = "store it as npz or safetensors there"


def read_pickle(path: str, *, allow_pickle: bool = False, **_: object) -> Any:
    """Return the tree in a pickle. Only arrays and containers are taken, and no code of it runs.

    Raises:
        WeightsError: It isn't allowed to read a pickle, or there is something else in this one.
    """
    if not allow_pickle:
        raise WeightsError(
            f"{path} is a pickle, which may hold code. If you know where it comes from, say "
            "allow_pickle=True: arrays and containers are taken from it, and everything else is "
            f"refused. Or {_INSTEAD}"
        )
    with open(path, "rb") as file:
        data = file.read()
    _check_memo(data)
    return _replace_stand_ins(_Unpickler(io.BytesIO(data)).load(), {})


def _check_memo(data: bytes) -> None:
    """Refuse numbers of notes for which the unpickler would reserve memory beyond all reason."""
    end = 0
    for i, (op, arg, at) in enumerate(pickletools.genops(data)):
        if "PUT" in op.name and int(arg or 0) > i:  # pyright: ignore[reportArgumentType]
            raise WeightsError(f"it notes something under the number {arg}, after {i} steps")
        end = (at or 0) + 1
    if end != len(data):
        raise WeightsError(f"there is something behind the end of the pickle: {_INSTEAD}")


class _Unpickler(pickle.Unpickler):
    """Finds nothing but what stands in for the makers of arrays and containers."""

    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module, name))
        if found is None:
            raise WeightsError(
                f"it asks for {module}.{name}, which is neither an array nor a container: "
                f"{_INSTEAD}"
            )
        return found if isinstance(found, type) else _Maker(found)

    def persistent_load(self, pid: object) -> Any:
        raise WeightsError(f"it refers to something outside of it, {pid!r:.60}: {_INSTEAD}")


class _Maker:
    """A function that a pickle may call, and can't change.

    A pickle sets attributes of whatever it finds. With other defaults, say, a function would put
    something into all that is read after it.
    """

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]):
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)

    def __setstate__(self, state: object) -> None:
        raise WeightsError("it changes what arrays are made by, and holds no weights")


class _PickledDtype:
    """A dtype, as pickles make it: by a name, and then a byte order."""

    def __init__(self, what: Any, *_: object):
        is_name = isinstance(what, str) and re.fullmatch(r"[biufc]\d{1,2}", what)
        is_class = isinstance(what, type) and what in _EXTENDED_DTYPES
        if not is_name and not is_class:
            raise WeightsError(f"an array is of {what!r:.60}, which is no type of numbers")
        self.dtype = np.dtype(what)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
    """An array, as pickles make it: first there is one, then it is filled."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _make_array(data, dtype, shape, "F" if fortran else "C")


def _make_array(data: object, dtype: object, shape: Any, order: str) -> np.ndarray:
    """Return the array that these bytes are.

    Raises:
        WeightsError: They aren't the bytes of such an array.
    """
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes | bytearray | str):
        raise WeightsError(
            f"an array is made of {type(data).__name__}: objects, say, and no numbers"
        )
    if isinstance(data, str):
        data = data.encode("latin1")
    is_shape = all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise WeightsError(
            f"an array says that its shape is {shape!r:.80}, and has {len(data)} bytes"
        )
    flat = np.frombuffer(data, dtype.dtype) if data else np.zeros(0, dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _make_empty_array(*_: object) -> _PickledArray:
    return _PickledArray()


def _make_scalar(dtype: object, data: object) -> np.ndarray:
    return _make_array(data, dtype, (), "C")


def _make_array_from_buffer(
    data: object, dtype: object, shape: Any, order: str, axes: Any = None
) -> np.ndarray:
    if order == "K":  # as it lies in memory, and then how its axes are to be permuted
        return _make_array(data, dtype, shape, "C").transpose(axes)
    return _make_array(data, dtype, shape, order)


def _make_jax_array(make: object, args: object, state: object, *_: object) -> _PickledArray:
    """Return the NumPy array that JAX would put on a device."""
    array = _PickledArray()
    array.__setstate__(state)
    return array


def _make_dict(tree: Any = (), *_: object) -> dict[Any, Any]:
    return dict(tree)


def _encode_bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how bytes were pickled before there was a way


def _make_no_bytes() -> bytes:
    return b""


def _make_complex(real: Any, imaginary: Any) -> complex:
    return complex(float(real), float(imaginary))


def _replace_stand_ins(tree: Any, seen: dict[int, Any]) -> Any:
    """Return the tree with arrays in place of what stood in for them.

    Args:
        tree: The tree.
        seen: What was made already, by the `id` of what it was made of: what is shared stays so.
    """
    if id(tree) in seen:
        return seen[id(tree)]
    if isinstance(tree, _PickledArray):
        made: Any = tree.value
    elif isinstance(tree, Mapping):
        made = {name: _replace_stand_ins(inner, seen) for name, inner in tree.items()}
    elif isinstance(tree, list | tuple):
        made = type(tree)(_replace_stand_ins(inner, seen) for inner in tree)
    else:
        return tree
    seen[id(tree)] = made
    return made


def _find_extended_dtypes() -> set[type[np.generic]]:
    """Return the classes of numbers that NumPy hasn't got, such as bfloat16."""
    found = set()
    for value in vars(ml_dtypes).values():
        if isinstance(value, type) and issubclass(value, np.generic):
            found.add(value)
    return found


_EXTENDED_DTYPES = _find_extended_dtypes()
# What stands in for a function or a class that a pickle may ask for, by module and name.
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("numpy.core.multiarray", "_reconstruct"): _make_empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_empty_array,
    ("numpy.core.multiarray", "scalar"): _make_scalar,
    ("numpy._core.multiarray", "scalar"): _make_scalar,
    ("numpy.core.numeric", "_frombuffer"): _make_array_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _make_array_from_buffer,
    ("_codecs", "encode"): _encode_bytes,
    ("__builtin__", "bytes"): _make_no_bytes,
    ("builtins", "complex"): _make_complex,
    ("__builtin__", "complex"): _make_complex,
    ("collections", "OrderedDict"): _make_dict,
    ("jax._src.array", "_reconstruct_array"): _make_jax_array,
    ("jax._src.device_array", "reconstruct_device_array"): _make_jax_array,  # until 0.4
    ("haiku._src.data_structures", "FlatMapping"): _make_dict,
    ("haiku._src.data_structures", "FlatMap"): _make_dict,
    ("haiku._src.data_structures", "frozendict"): _make_dict,
    ("flax.core.frozen_dict", "FrozenDict"): _make_dict,
    ("flax.core", "FrozenDict"): _make_dict,
    ("jaxlib.xla_client", "bfloat16"): ml_dtypes.bfloat16,
    ("jaxlib.xla_extension", "bfloat16"): ml_dtypes.bfloat16,
    **{("ml_dtypes", dtype.__name__): dtype for dtype in _EXTENDED_DTYPES},
}
