"""`Variable`: one array, with its name and where it came from; and what holds variables."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._interface import Kind
from seqbridge._state.buffers import ArrayBuffer, BufferSlot, own_slot
from seqbridge._state.dtypes import cast, strong
from seqbridge._state.frames import Tracer, commit, note_new, read
from seqbridge._state.locks import Locks
from seqbridge._state.operators import Operators
from seqbridge._state.treescope import Content, unfolding
from seqbridge._state.version import version


class CacheKey:
    """A key for what a compiled program depends on of one holder of variables.

    It keeps no array and no object alive.
    """

    __slots__ = ("_hash", "parts")

    def __init__(self, parts: Hashable):
        self.parts: Hashable = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, CacheKey) and self.parts == other.parts)


class Stateful(ABC):
    """Something that holds variables."""

    __slots__ = ()

    # Names for the other folders of the package: a person who types `model.` isn't offered them.
    internal_names: ClassVar[frozenset[str]] = frozenset(
        {
            "cache_key",
            "internal_names",
            "own_variables",
            "steady_key",
            "variable_locks",
            "variables_by_name",
        }
    )

    # Whether the cache key stays the same while no model is edited.
    steady_key = True

    @abstractmethod
    def own_variables(self) -> tuple[Variable, ...]:
        """Return the distinct variables, in order."""

    @abstractmethod
    def cache_key(self) -> CacheKey:
        """Return a key that is equal for two holders if one's programs hold for the other."""

    @abstractmethod
    def variables_by_name(self) -> Mapping[str, Variable]:
        """Return the variables by name."""

    def variable_locks(self) -> Locks:
        """Return the locks of all variables, for a thread that reads or changes them together."""
        return Locks(self.own_variables())

    def __dir__(self) -> list[str]:
        return [name for name in object.__dir__(self) if name not in self.internal_names]

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return unfolding(self._tree_content(), path, subtree_renderer)

    def _tree_content(self) -> Content:
        """Return the line of an interactive tree for this, closed and unfolded."""
        variables = self.variables_by_name().items()
        rows = [(f"{name!r}: ", f"[{name!r}]", variable) for name, variable in variables]
        return Content(type(self).__name__, "({", "})", rows)


class Variable(Operators, Stateful):
    """A box that holds one array.

    Two variables are equal when they are the same object. Arithmetic works on the value (`v + 1`,
    `v @ x`, `v[0]`, `-v`); a `jnp` function wants the array itself: `jnp.sum(v.value)`.

    Args:
        value: The array.
        kind: `"params"` (trained), `"state"` (batch statistics and the like) or `"rng"` (a stream
            of keys).
        collection: The collection of the entry's own library, such as `"batch_stats"`.
        path: The keys that lead to the array inside that collection.
        name: What the variable is called while no model names it.
        trainable: Whether gradients and optimizers see it. By default the kind decides.
        metadata: What the entry's own library says of the array.
        axes: How it says the array is to be split over a mesh; see `Annotated`.
        former: The end of the variable's name, and a pattern of what stood there in files of
            earlier versions.

    Examples:
        >>> import jax.numpy as jnp
        >>> v = Variable(jnp.zeros(3), name="bias")
        >>> v.assign([1, 2, 3])
        >>> (v + 1).sum()
        Array(9., dtype=float32)
        >>> v.assign([1, 2])
        Traceback (most recent call last):
        ...
        ValueError: bias has shape (3,): can't assign shape (2,)
    """

    __slots__ = (
        "__weakref__",
        "_trainable",
        "aliased",
        "axes",
        "buffer_slot",
        "collection",
        "default_name",
        "former",
        "kind",
        "lock",
        "metadata",
        "namer",
        "path",
    )

    internal_names: ClassVar[frozenset[str]] = Stateful.internal_names | {
        "aliased",
        "buffer_slot",
        "cache_parts",
        "default_name",
        "former",
        "from_leaf",
        "lock",
        "namer",
        "stored",
    }

    def __init__(
        self,
        value: Any,
        *,
        kind: Kind = "params",
        collection: str = "params",
        path: tuple[str, ...] = (),
        name: str = "",
        trainable: bool | None = None,
        metadata: Any = None,
        axes: tuple[Any, ...] = (),
        former: tuple[str, str] | None = None,
    ):
        self.buffer_slot: BufferSlot = own_slot(self, strong(value))
        note_new(self)
        if kind not in get_args(Kind):
            raise ValueError(
                f"the kind of a variable is one of {', '.join(get_args(Kind))}, not {kind!r}"
            )
        self.kind: Kind = kind
        self.collection: str = collection
        self.path: tuple[str, ...] = path
        self.metadata: Any = metadata
        self.axes: tuple[Any, ...] = axes
        self.former: tuple[str, str] | None = former
        self.default_name: str = name or ".".join(path) or "variable"
        self.namer: Callable[[Variable], str | None] | None = None
        self._trainable = trainable
        # Whether the array may be that of an object of the user's, which keeps it.
        self.aliased: bool = False
        self.lock: threading.RLock = threading.RLock()

    @classmethod
    def from_leaf(cls, leaf: Any, **options: Any) -> Variable:
        """Return a variable that holds a leaf of a pytree as it is, even if that is no array."""
        variable = cls(np.zeros(()), **options)
        variable.buffer_slot = BufferSlot(ArrayBuffer(variable, leaf))
        note_new(variable)
        return variable

    @property
    def stored(self) -> Any:
        """The array, whatever transform is being traced."""
        place = self.buffer_slot
        return place.buffer.get(place.index)

    @stored.setter
    def stored(self, new: Any) -> None:
        place = self.buffer_slot
        place.buffer.set(place.index, new)

    def own_variables(self) -> tuple[Variable, ...]:
        return (self,)

    def cache_key(self) -> CacheKey:
        return CacheKey(self.cache_parts)

    def variables_by_name(self) -> Mapping[str, Variable]:
        return {self.name: self}

    @property
    def cache_parts(self) -> Hashable:
        """The parts of the cache key: what a compiled program depends on."""
        return self.buffer_slot.serial, self.trainable

    @property
    def name(self) -> str:
        """The name in the model that holds the variable: `"(Sequential)[0](Dense).kernel"`."""
        given = self.namer(self) if self.namer is not None else None
        return given or self.default_name

    @property
    def value(self) -> jax.Array:
        """The array: the one that is there now, or in a transform the one that it traces."""
        return read(self)

    @value.setter
    def value(self, new: Any) -> None:
        self.assign(new)

    def assign(self, value: Any) -> None:
        """Replace the array.

        Args:
            value: Anything that `jnp.asarray` takes, of this variable's shape; it is cast to this
                variable's dtype.

        Raises:
            ValueError: Another shape.
            TypeError: No array, or a dtype of another kind.
            RuntimeError: Inside a JAX transform that doesn't know of the variable.
        """
        with self.lock:
            commit({self: cast(self.name, value, self.value)})

    @property
    def trainable(self) -> bool:
        """Whether gradients and optimizers see the variable; can be set."""
        return self.kind == "params" if self._trainable is None else self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"trainable is True or False, not {value!r:.60}")
        self._trainable = bool(value)
        version.bump()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, which stays as it is."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the array, which stays as it is."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """The number of axes of the array."""
        return self.value.ndim

    @property
    def size(self) -> int:
        """The number of elements of the array."""
        return self.value.size

    def _tree_content(self) -> Content:
        shown = {
            "value": self.value,
            "kind": self.kind,
            "trainable": self.trainable,
            "name": self.name,
        }
        if self.trainable == (self.kind == "params"):
            del shown["trainable"]
        rows = [(f"{name}=", f".{name}", value) for name, value in shown.items()]
        return Content("Variable", "(", ")", rows)

    def __repr__(self) -> str:
        return f"Variable({self.name}, {self.kind}, {self.stored.dtype}{list(self.stored.shape)})"

    def __bool__(self) -> bool:
        if self.shape == ():
            raise TypeError(
                f"the truth of the scalar variable {self.name} is ambiguous: write "
                f"bool({self.name}.value)"
            )
        return True

    def __jax_array__(self) -> jax.Array:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype=dtype, copy=copy)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> jax.Array:
        return self.value[index]

    def __iter__(self) -> Iterator[jax.Array]:
        return iter(self.value)

    def __dir__(self) -> list[str]:
        shown = []
        for name in super().__dir__():
            if not isinstance(getattr(type(self), name, None), _OfTheArray):
                shown.append(name)
        return shown

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Variable:
        with jax.ensure_compile_time_eval():  # a value, even if JAX is tracing something else
            return _restore(jnp.copy(self._untraced_value()), *self._description())

    def __reduce__(self) -> tuple[Any, ...]:
        value = self._untraced_value()
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            saved = (np.asarray(jax.random.key_data(value)), str(jax.random.key_impl(value)))
        else:
            saved = np.asarray(value)
        return _restore, (saved, *self._description())

    def _untraced_value(self) -> jax.Array:
        value = self.value
        if isinstance(value, Tracer):
            raise RuntimeError(
                f"{self.name} can't be copied inside a JAX transform: the copy would keep a tracer"
            )
        return value

    def _description(self) -> tuple[Any, ...]:
        """Return all but the value, as `_restore` takes it."""
        return (
            self.kind,
            self.collection,
            self.path,
            self.default_name,
            self._trainable,
            self.metadata,
            self.axes,
            self.former,
        )


def _restore(
    saved: Any,
    kind: Kind,
    collection: str,
    path: tuple[str, ...],
    name: str,
    trainable: bool | None,
    metadata: Any,
    axes: tuple[Any, ...],
    former: tuple[str, str] | None = None,
) -> Variable:
    if isinstance(saved, tuple):
        numbers, impl = saved
        saved = jax.random.wrap_key_data(jnp.array(numbers), impl=impl)
    return Variable(
        saved,
        kind=kind,
        collection=collection,
        path=path,
        name=name,
        trainable=trainable,
        metadata=metadata,
        axes=axes,
        former=former,
    )


class _OfTheArray:
    """An attribute that arrays have and variables haven't: the error says where it is.

    `Variable.__getattr__` could say so, too, but Python reads every attribute of such a class more
    slowly, and `sb.jit` reads each variable's at each call.
    """

    def __init__(self, name: str):
        self._name = name

    def __get__(self, variable: Variable | None, cls: type) -> Any:
        if variable is None:
            return self
        # Never forwards to the array: that would make copy and pickle see the array in place of the
        # variable.
        message = (
            f"a Variable has no attribute {self._name!r}; the array has it: write "
            f".value.{self._name}"
        )
        raise AttributeError(message, name=self._name, obj=variable)


for _name in dir(jax.Array):
    if not _name.startswith("_") and not hasattr(Variable, _name):
        setattr(Variable, _name, _OfTheArray(_name))


def distinct(variables: Iterable[Variable]) -> tuple[Variable, ...]:
    """Return each variable once, in order."""
    return tuple(dict.fromkeys(variables))
