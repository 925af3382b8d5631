"""`PureLayer`: all that seqbridge knows of an entry."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

from seqbridge._interface.paths import Path
from seqbridge._interface.weight_spec import Part

Kind: TypeAlias = Literal["params", "state", "rng"]

Variables: TypeAlias = dict[str, Any]
"""Plain arrays in plain nested dicts, with one dict a collection at the top.

For example `{"params": {"kernel": ..., "bias": ...}}`.
"""

Inputs: TypeAlias = tuple[Any, ...]
"""The inputs of a call: arrays, shapes in their place, or whatever else a layer takes."""

Keywords: TypeAlias = Mapping[str, Any]
"""The keyword arguments of a call."""

MODE_FLAGS: Mapping[str, bool] = {
    "training": True,
    "train": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""Keywords that tell training from evaluation. True: follows `training`; False: its opposite."""


def _identity(value: Any) -> Any:
    return value


class Origin(NamedTuple):
    """Module that an array of a function came from, and the place of the array in it."""

    owner: Any
    place: Path


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Annotated:
    """Array with a note of its own library: the names of its axes, say, or that it is frozen.

    An adapter's `init` may return it in place of an array. seqbridge keeps the note as
    `Variable.metadata` and puts it back when the adapter's `to_native` asks for the native tree.

    Args:
        value: The array.
        note: Anything that can be compared and hashed.
        trainable: False: a parameter that its library has frozen.
        axes: For each dimension the axis, or axes, of a mesh along which it is to be split, or a
            name that stands for them; None: it isn't. Empty: nothing is said.
        former: A regular expression of the names within its layer that earlier versions of the
            adapter gave the array, for files that they wrote. Empty: it is called as it was.
    """

    value: Any
    note: Any = dataclasses.field(default=None, metadata={"static": True})
    trainable: bool = dataclasses.field(default=True, metadata={"static": True})
    axes: tuple[Any, ...] = dataclasses.field(default=(), metadata={"static": True})
    former: str = dataclasses.field(default="", metadata={"static": True})


def training_of(keywords: Keywords) -> bool | None:
    """Return the mode that the flags among the keywords of a call say; None if there are none.

    Examples:
        >>> training_of({"deterministic": True}), training_of({"scale": 2.0})
        (False, None)
    """
    for name, value in keywords.items():
        if name in MODE_FLAGS and value is not None:
            return bool(value) is MODE_FLAGS[name]
    return None


class CapturedArrayError(TypeError):
    """A function uses an array that should be one of its parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PureLayer:
    """Pair of pure functions, and all that the core must know to call them.

    An adapter makes one from an entry of its ecosystem. Variables are plain arrays in plain nested
    dicts, at the top one dict a collection: `{"params": {"kernel": ..., "bias": ...},
    "batch_stats": {...}}`.

    Args:
        init: `init(key, /, *inputs, **keywords) -> variables`. The variables may depend on the
            values of the inputs, too, where it can be traced: then `build` with shapes alone is
            refused. None: the entry came with its variables, `ready`, and new ones can't be drawn.
        apply: `apply(variables, key, /, *inputs, **keywords) -> (outputs, new_state)`, where
            `new_state` holds the collections that are no parameters, as they are after the call,
            in whatever mode. `key` is None where the layer draws nothing.
        signature: What the entry takes at a call, inputs first. None: inputs only, no keywords.
        label: The name of the entry's class or function, as it stands in names: `(Conv)`.
        ecosystem: The name of the library, as it stands in `repr` and in errors.
        text: How the entry is shown: `Conv(features=20, kernel_size=(5, 5))`. By default the label.
        mode_flags: More mode flags among the keywords, in the entry's own words, as in
            `MODE_FLAGS`: True follows `training`, False is its opposite.
        decided: The mode flags (see `MODE_FLAGS`) that the entry has set for itself, so that no
            call may.
        key_name: The keyword by which the entry takes its PRNG key, beside `apply`'s own `key`.
        takes_key: Whether the entry can draw random numbers at all.
        per_example: Over how many leading axes of its inputs the entry is to be mapped, since it
            takes one example at a time; True is 1.
        batched: The keywords that hold a value for each example, and are mapped with the inputs.
            None: nobody has said, so one that is as long as the batch is an error.
        axis_name: The name of the axis that the entry is mapped over, if it computes anything
            across the batch.
        traceable: Whether `init` may be traced. False: it is called outside of every trace, on
            `jax.ShapeDtypeStruct`s.
        makes_state: Whether `apply` makes the state of a collection that is given empty, as `init`
            does. So `build` finds the outputs of a layer whose state, such as a cache, is made for
            other inputs than those of later calls.
        recipe: Whether the entry makes variables wherever it stands, as a class or a transform
            does, rather than holding them as an object does: at each place of a list it is a layer
            of its own. `partial`s of classes are recipes without it.
        kinds: The kind of each collection; those that aren't named are `"state"`.
        shorten: From a variable's native path to the path that is shown and looked up.
        to_native: From variables (with `Annotated` leaves where there are notes) to the tree that
            the entry's own library uses.
        from_native: The inverse of `to_native`; the result needs no notes.
        method: From the name of a method, or a function of the module, to the `PureLayer` that
            calls it in place of `__call__`. None: the entry has no methods.
        ready: Variables that the entry holds already, so that no shape need be known to have them.
        sources: The objects of the entry's library behind the variables in `ready`, by collection
            and path. Entries that have one in common share that variable.
        owner: The object that holds the variables, where it isn't the entry itself: entries of one
            owner share those of the same path and shape.
        remake: From variables to the entry with these in place of its own, so that a function which
            holds the entry can be made again. None: such a function is refused.
        check_constants: Called with the arrays that a trace of `apply` holds as constants, or with
            None if it can't be traced; raises a `CapturedArrayError` if one of them should be a
            parameter. None: that is up to the library, as for a table in one of its modules.
        held: Functions that the entry calls and its library takes for constants, so that no module
            may hide there.
        reduce: The entry as a function and its arguments that make it again, for pickle. None:
            pickle the entry.
        inputs: In an export, the shapes and dtypes of the inputs that the model is for, as far as
            they are known.
        seed: In an export, the seed of initial values where nobody gives one.
        frozen: In an export, the parameters that get no gradients, by collection and path, once
            `init` was called.
        inside: Where the layer runs a model, that model and the number of its copies, for code that
            looks inside.
        parts: `parts(run)` says what the weights inside are, each `Part` once, in the order in
            which they are used as far as that can be known. `run()` calls the layer on shapes, for
            an adapter that has to watch a call.
        read: `read(path, native)`, from a file in which the entry's own library has stored its
            values to the native tree, where the file can't be read without the tree as it is now.
            By default, seqbridge's own `read` does it.

    Examples:
        >>> import jax.numpy as jnp
        >>> from seqbridge import Sequential, signature_of
        >>> scale = PureLayer(
        ...     init=lambda key, /, x: {"params": {"factor": jnp.full(x.shape[-1], 2.0)}},
        ...     apply=lambda variables, key, /, x: (x * variables["params"]["factor"][None], {}),
        ...     signature=signature_of(lambda x: x),
        ...     label="Scale",
        ...     ecosystem="mine",
        ...     takes_key=False,
        ... )
        >>> Sequential([scale])(jnp.ones((1, 3)))
        Array([[2., 2., 2.]], dtype=float32)
    """

    init: Callable[..., Variables] | None
    apply: Callable[..., tuple[Any, Variables]]
    signature: inspect.Signature | None
    label: str
    ecosystem: str
    text: str = ""
    mode_flags: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    decided: frozenset[str] = frozenset()
    key_name: str | None = None
    takes_key: bool = True
    per_example: int = False
    batched: tuple[str, ...] | None = None
    axis_name: Hashable = None
    traceable: bool = True
    makes_state: bool = False
    recipe: bool = False
    kinds: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: {"params": "params"})
    shorten: Callable[[Path], Path] = _identity
    to_native: Callable[[Variables], Any] = _identity
    from_native: Callable[[Any], Variables] = _identity
    method: Callable[[Any], PureLayer] | None = None
    ready: Variables | None = None
    sources: Mapping[Path, Any] = dataclasses.field(default_factory=dict)
    owner: Any = None
    remake: Callable[[Variables], Any] | None = None
    check_constants: Callable[[Sequence[jax.Array] | None], None] | None = None
    held: tuple[Any, ...] = ()
    reduce: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    inputs: Inputs = ()
    seed: Any = 0
    frozen: Callable[[], Collection[Path]] = frozenset
    inside: tuple[Any, int] | None = None
    parts: Callable[[Callable[[], Any]], Iterable[Part]] | None = None
    read: Callable[[str, Any], Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PureLayer:
        # It is immutable, and the copy of a module that holds it must be the same kind of tree.
        return self

    def __repr__(self) -> str:
        return f"PureLayer({self.ecosystem} {self.text or self.label})"


def call_text(name: str, args: Inputs = (), keywords: Mapping[str, Any] = {}) -> str:
    """Return a call as it was written, on one line and without memory addresses.

    Examples:
        >>> call_text("Conv", (20,), {"kernel_size": (5, 5)})
        'Conv(20, kernel_size=(5, 5))'
    """
    parts = [_argument_text(value) for value in args]
    parts += [f"{keyword}={_argument_text(value)}" for keyword, value in keywords.items()]
    return f"{name}({', '.join(parts)})"


def _argument_text(value: Any) -> str:
    if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
        return value.__name__
    if isinstance(value, jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    if " at 0x" in text or len(text) > 60:
        return f"{type(value).__name__}(...)"
    return text


def bind(pure: PureLayer, args: Inputs, keywords: Keywords) -> PureLayer:
    """Return the layer with some arguments given, as `functools.partial` does it."""

    def init(key: Any, /, *more: Any, **others: Any) -> Variables:
        assert pure.init is not None
        return pure.init(key, *args, *more, **{**keywords, **others})

    def apply(
        variables: Variables, key: Any, /, *more: Any, **others: Any
    ) -> tuple[Any, Variables]:
        return pure.apply(variables, key, *args, *more, **{**keywords, **others})

    return dataclasses.replace(
        pure,
        init=None if pure.init is None else init,
        apply=apply,
        signature=_bound_signature(pure.signature, args, keywords),
        decided=pure.decided | (keywords.keys() & MODE_FLAGS.keys()),
        text=call_text(f"partial of {pure.text or pure.label}", args, keywords),
        method=None,
    )


def _bound_signature(
    signature: inspect.Signature | None, args: Inputs, keywords: Keywords
) -> inspect.Signature | None:
    """Return the signature that is left when its first inputs and some keywords are given."""
    if signature is None:
        return None

    def function(*_: Any, **__: Any) -> None: ...

    function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        # Other keywords are the adapter's own.
        keywords = {name: v for name, v in keywords.items() if name in signature.parameters}
    return inspect.signature(functools.partial(function, *args, **keywords))
