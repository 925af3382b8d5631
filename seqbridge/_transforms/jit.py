"""`jit`: a function of stateful objects, compiled, on one device or on a mesh of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp

from seqbridge._entries import signature_of
from seqbridge._interface import Inputs, Keywords, check_flags, nearest
from seqbridge._sharding import BatchSharding, check_agreement
from seqbridge._state import tracing, version
from seqbridge._transforms.partition import is_stateful, places_of
from seqbridge._transforms.program import Bound, Jitted, Prepared

P = ParamSpec("P")
R = TypeVar("R")


class MeshJitted(Jitted[P, R]):
    """A compiled function for a mesh: it puts arrays and variables in place before each call.

    Args:
        sharding: How they lie on the mesh.
        check_processes: Whether several processes make sure that they call the same.
        *options: Those of `Jitted`.
    """

    def __init__(self, sharding: BatchSharding, check_processes: bool, *options: Any):
        super().__init__(*options)
        self._sharding = sharding
        self._check_processes = check_processes

    def __call__(self, /, *args: P.args, **keywords: P.kwargs) -> R:
        return self._on_mesh(super().__call__, args, keywords)

    def lower(self, /, *args: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """Return the program for these arguments, as they are split over the mesh."""
        return self._on_mesh(super().lower, args, keywords)

    def _on_mesh(self, call: Callable[..., Any], args: Inputs, keywords: Keywords) -> Any:
        assert self._sharding is not None
        if tracing():  # the program around this one has its arrays in place
            self._current.batch = 0
            return call(*args, **keywords)
        with jax.set_mesh(self._sharding.mesh):  # whatever mesh the caller has set
            args, keywords, self._current.batch = self._sharding.inputs(args, keywords)
            return call(*args, **keywords)

    def _prepare(self, args: Inputs, keywords: Keywords) -> Prepared:
        assert self._sharding is not None
        prepared = super()._prepare(args, keywords)
        if tracing():
            return prepared
        _, bound, _ = prepared
        if self._check_processes:
            self._check_agreement(args, keywords, bound)
        before = version.number
        with bound.lock:
            self._sharding.place_variables(bound.variables, bound.buffers)
        return prepared if version.number == before else super()._prepare(args, keywords)

    def _check_agreement(self, args: Inputs, keywords: Keywords, bound: Bound) -> None:
        """Raise in every process if they don't call the same."""
        leaves, treedef = jax.tree.flatten((args, keywords), is_leaf=is_stateful)
        arrays: list[Any] = []
        static: list[Any] = []
        keys: list[Any] = []
        for variable in bound.variables:
            if variable.kind == "rng":
                keys.append(variable.stored)
        for leaf in leaves:
            if is_stateful(leaf):
                continue
            if not hasattr(leaf, "dtype"):
                static.append(leaf)
                continue
            arrays.append(leaf)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                keys.append(leaf)
        described = [(v.name, v.stored.shape, str(v.stored.dtype)) for v in bound.variables]
        check_agreement(
            {
                "values that aren't arrays": static,
                "structure": str(treedef),
                "shapes": [(array.shape, str(array.dtype)) for array in arrays],
                "variables": described,
                "random keys": [jax.device_get(jax.random.key_data(key)).tolist() for key in keys],
            }
        )


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
    compiler_options: dict[str, Any] | None


def _check_known(function: Callable[..., Any], places: Iterable[str | int]) -> None:
    """Raise a `TypeError` if an option names an argument that the function doesn't take."""
    signature = signature_of(function)
    if signature is None:
        return
    parameters = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in places:
        if isinstance(name, str) and name not in parameters:
            raise TypeError(
                f"sb.jit was told of an argument {name!r}, but the function takes no {name!r}"
                f"{nearest(name, parameters)}"
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
    compiler_options: dict[str, Any] | None = None,
) -> Any:
    """Compile a function of models, layers, collections, optimizers and arrays.

    Their variables keep what the function assigns to them. Arrays, floats and ints are traced;
    bools, strings, None, enums and callables are static, so a new value of them is a new program,
    as is an edit of a model.

    With a mesh the program runs on all of its devices and means the same: arrays whose first
    dimension is the batch, that of the first array given, are split over `batch_axis`, others are
    replicated, and variables lie as `model.shard` laid them. Statistics and gradients are those of
    the whole batch.

    Args:
        function: The function, or a model itself.
        vars: Holders of variables that the function closes over: `model.vars()`, a model, or a list
            of them.
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
        compiler_options: Options of XLA, as `jax.jit` has them.

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
        options = dict(locals())
        del options["function"]
        return functools.partial(jit, **options)
    if not callable(function):
        raise TypeError(f"sb.jit takes a function or a model, not {type(function).__name__}")
    check_flags(donate=donate, pack=pack, check_processes=check_processes)
    if uneven not in ("auto", "error"):
        raise ValueError(f"uneven= is 'auto' or 'error', not {uneven!r}")
    batched, replicated = places_of(function, batch_kwargs), places_of(function, replicated_kwargs)
    _check_known(function, places_of(function, static_argnames) | batched | replicated)
    if mesh is None:
        return Jitted(function, vars, static_argnames, donate, pack, compiler_options)
    sharding = BatchSharding(mesh, batch_axis, batched, replicated, uneven)
    return MeshJitted(
        sharding,
        check_processes,
        function,
        vars,
        static_argnames,
        donate,
        pack,
        compiler_options,
    )
