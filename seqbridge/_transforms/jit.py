"""`jit`: a function of stateful objects, compiled, on one device or on a mesh of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp

from seqbridge._entries import signature_of
from seqbridge._interface import check_flags, nearest
from seqbridge._sharding import BatchSharding, check_agreement
from seqbridge._state import Stateful, tracing, version
from seqbridge._transforms.partition import places_of
from seqbridge._transforms.program import Bound, Jitted, Program

P = ParamSpec("P")
R = TypeVar("R")


class MeshJitted(Jitted[P, R]):
    """What `jit` returns for a mesh: puts arrays and variables in place, and then does the same."""

    def __init__(self, spread: BatchSharding, check_processes: bool, *options: Any):
        super().__init__(*options)
        self._spread = spread
        self._check = check_processes

    def __call__(self, /, *args: P.args, **keywords: P.kwargs) -> R:
        return self._placed(super().__call__, args, keywords)

    def lower(self, /, *args: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """The program for these arguments, as they are spread over the mesh."""
        return self._placed(super().lower, args, keywords)

    def _placed(
        self, call: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        assert self._spread is not None
        if tracing():  # the program around this one has its arrays in place
            self._now.batch = 0
            return call(*args, **keywords)
        with jax.set_mesh(self._spread.mesh):  # whatever mesh the caller has set
            args, keywords, self._now.batch = self._spread.inputs(args, keywords)
            return call(*args, **keywords)

    def _prepare(
        self, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Program, Bound, list[Any]]:
        program, bound, arrays = super()._prepare(args, keywords)
        if self._spread is not None and not tracing():
            if self._check:
                self._agree(args, keywords, bound)
            before = version.number
            with bound.lock:
                self._spread.variables(bound.boxes, bound.cells)
            if version.number != before:
                return super()._prepare(args, keywords)
        return program, bound, arrays

    def _agree(self, args: tuple[Any, ...], keywords: dict[str, Any], bound: Bound) -> None:
        """Raises in every process if they don't call the same."""
        leaves, treedef = jax.tree.flatten(
            (args, keywords), is_leaf=lambda leaf: isinstance(leaf, Stateful)
        )
        leaves = [leaf for leaf in leaves if not isinstance(leaf, Stateful)]
        arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
        keys = [box.stored for box in bound.boxes if box.kind == "rng"]
        keys += [leaf for leaf in arrays if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
        check_agreement({
            "values that aren't arrays": [leaf for leaf in leaves if not hasattr(leaf, "dtype")],
            "structure": str(treedef),
            "shapes": [(leaf.shape, str(leaf.dtype)) for leaf in arrays],
            "variables": [(box.name, box.stored.shape, str(box.stored.dtype)) for box in bound.boxes],
            "random keys": [jax.device_get(jax.random.key_data(key)).tolist() for key in keys],
        })  # fmt: skip


class _Options(TypedDict, total=False):
    vars: Any
    static_argnames: Iterable[str]
    donate: bool
    pack: bool
    mesh: Any
    batch_axis: str | tuple[str, ...]
    batch_kwargs: Iterable[str]
    replicated_kwargs: Iterable[str]
    uneven: str
    check_processes: bool


def _check_known(function: Callable[..., Any], places: Iterable[str | int]) -> None:
    """Raises a `TypeError` if an option names what the function can't take."""
    signature = signature_of(function)
    if signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    for name in places:
        if isinstance(name, str) and name not in signature.parameters:
            near = nearest(name, signature.parameters)
            raise TypeError(
                f"sb.jit was told of an argument {name!r}, but the function takes no {name!r}{near}"
            )


@overload
def jit(function: Callable[P, R], /, **options: Unpack[_Options]) -> Jitted[P, R]: ...
@overload
def jit(**options: Unpack[_Options]) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...
def jit(
    function: Callable[..., Any] | None = None,
    /,
    *,
    vars: Any = None,
    static_argnames: Iterable[str] = (),
    donate: bool = False,
    pack: bool = False,
    mesh: Any = None,
    batch_axis: str | tuple[str, ...] = "data",
    batch_kwargs: Iterable[str] = (),
    replicated_kwargs: Iterable[str] = (),
    uneven: str = "auto",
    check_processes: bool = False,
) -> Any:
    """Compiles a function of models, layers, collections, optimizers and arrays.

    What the function does to their variables comes back out. Arrays, floats and ints are traced;
    bools, strings, None, enums and callables are static, so a new value of them is a new program,
    as is an edit of a model.

    With a mesh the program runs on all of its devices and means the same: arrays whose first
    dimension is the batch, that of the first array given, are split over `batch_axis`, others are
    replicated, and variables lie as `model.shard` laid them. Statistics and gradients are those of
    the whole batch.

    Args:
        function: The function, or a model itself.
        vars: What the function closes over: `model.vars()`, a model, or a list of them.
        static_argnames: Keywords that are static, too; an int that chooses an axis, for instance.
        donate: Whether the arrays of the variables that change are given to the program, which
            saves memory and time. Whoever else holds such an array loses it. If the program fails
            while it runs, for want of memory, say, they are lost, and the error names them.
        pack: Whether small variables are kept in a few arrays, which makes calls of a model with
            many of them faster; they are read, assigned and saved as before. See docs/speed.md for
            when it pays.
        mesh: A `jax.sharding.Mesh`, such as `jax.make_mesh((8,), ("data",))`.
        batch_axis: The axis of the mesh, or axes, over which the batch is split.
        batch_kwargs: Arguments whose arrays are split though they are shorter or longer than the
            batch.
        replicated_kwargs: Arguments whose arrays are replicated though they are as long as the
            batch.
        uneven: A batch that the devices can't divide is computed all the same, `"auto"`, or an
            `"error"`.
        check_processes: Whether several processes make sure, at each call, that they call the same.
            They hang, or compute garbage, where they don't; so it is worth its milliseconds while a
            program is new.

    Returns:
        A callable with the signature of `function`, and `lower` as `jax.jit` has it.

    Raises:
        TypeError: A static argument that can't be hashed; an option names what the function doesn't
            take.
        ValueError: The mesh has no such axis; a variable lies on another mesh; an uneven batch is
            an error.
        RuntimeError: The function reads a variable that is neither an argument nor in `vars`;
            processes disagree.
        Exception: What the function raises; then every variable has the value from before.

    Examples:
        >>> import jax.numpy as jnp
        >>> from seqbridge import Variable
        >>> counter = Variable(jnp.zeros(()), kind="state", name="counter")
        >>> @jit
        ... def count(counter, x, double=False):
        ...     counter.assign(counter + 1)
        ...     return 2 * x if double else x
        >>> float(count(counter, 3.0, double=True)), float(counter.value)
        (6.0, 1.0)
    """
    if function is None:
        given = {k: v for k, v in locals().items() if k != "function"}
        return functools.partial(jit, **given)
    if not callable(function):
        raise TypeError(f"sb.jit takes a function or a model, not {type(function).__name__}")
    check_flags(donate=donate, pack=pack, check_processes=check_processes)
    if uneven not in ("auto", "error"):
        raise ValueError(f"uneven= is 'auto' or 'error', not {uneven!r}")
    batched, replicated = places_of(function, batch_kwargs), places_of(function, replicated_kwargs)
    _check_known(function, places_of(function, static_argnames) | batched | replicated)
    if mesh is None:
        return Jitted(function, vars, static_argnames, donate, pack)
    spread = BatchSharding(mesh, batch_axis, batched, replicated, uneven)
    return MeshJitted(spread, check_processes, function, vars, static_argnames, donate, pack)
