"""`vmap` and `eval_shape` of functions that use stateful objects."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from seqbridge._interface import Inputs, Keywords
from seqbridge._state import Frame, Stateful, Variable, commit, locked
from seqbridge._transforms.partition import (
    combine,
    holders_of,
    partition,
    usable_variables,
    values_of,
)

P = ParamSpec("P")
R = TypeVar("R")


def vmap(
    function: Callable[P, R],
    in_axes: Any = 0,
    out_axes: Any = 0,
    *,
    axis_name: Hashable | None = None,
    vars: Any = None,
) -> Callable[P, R]:
    """Map a function over axes of its array arguments.

    Models, and whatever else holds variables, aren't mapped. Each example draws its own random
    numbers. A state that would differ between the examples is refused.

    Args:
        function: The function.
        in_axes: As `jax.vmap` has it; it doesn't count for stateful and static arguments.
            Keywords that hold arrays are mapped over axis 0.
        out_axes: As `jax.vmap` has it.
        axis_name: A name for the mapped axis, for `jax.lax.psum` and the like.
        vars: Holders of variables that `function` closes over.

    Raises:
        ValueError: A variable would get another value for each example.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> vmap(lambda w, x: w.value @ x)(w, jnp.ones((3, 2)))
        Array([3., 3., 3.], dtype=float32)
    """
    call: Callable[..., Any] = function
    closed = holders_of(function, vars)

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> Any:
        holders = closed + partition(args, keywords)[2]
        mapped, axes = _mapped_arguments(args, keywords, in_axes)
        size = _mapped_size(mapped, axes)
        changed: list[Variable] = []

        def one(keys: list[Any], values: list[Any]) -> Any:
            """Call the function for one example."""
            own_keys = dict(zip(streams, keys, strict=True))
            given = dict(zip(mapped, values, strict=True))
            with Frame({**values_of(variables), **own_keys}, transform="sb.vmap") as frame:
                inside = [given.get(i, arg) for i, arg in enumerate(args)]
                options = {name: given.get(name, arg) for name, arg in keywords.items()}
                out: Any = call(*inside, **options)
            changes = frame.changes()
            changed[:] = changes
            # The streams go on from outside.
            return out, [new for variable, new in changes.items() if variable not in own_keys]

        with locked(lambda: holders):
            variables = usable_variables(holders)
            streams = [variable for variable in variables if variable.kind == "rng"]
            pairs = [jax.random.split(stream.value) for stream in streams]
            following = {stream: pair[0] for stream, pair in zip(streams, pairs, strict=True)}
            keys = [jax.random.split(pair[1], size) for pair in pairs]
            # A list, as JAX couldn't sort positions and names.
            values = list(mapped.values())
            try:
                each = jax.vmap(
                    one, in_axes=(0, axes), out_axes=(out_axes, None), axis_name=axis_name
                )
                out, new = each(keys, values)
            except ValueError as error:
                # If the function has returned, JAX refuses what it has returned.
                names = [variable.name for variable in changed if variable not in following]
                if names:
                    error.add_note(
                        f"{', '.join(names)} would get another value for each example: run the "
                        "model on the whole batch, or with training=False; or keep the state as it "
                        "is, sb.Layer(entry, freeze_state=True)"
                    )
                raise
            state = [variable for variable in changed if variable not in following]
            changes = dict(zip(state, new, strict=True))
            for stream, key in following.items():
                if stream in changed:
                    changes[stream] = key
            commit(changes)
        return out

    return wrapped


def _mapped_arguments(
    args: Inputs, keywords: Keywords, in_axes: Any
) -> tuple[dict[int | str, Any], list[Any]]:
    """Return the arguments that are mapped, by position or name, and their axes."""
    axes = tuple(in_axes) if isinstance(in_axes, tuple | list) else (in_axes,) * len(args)
    if len(axes) != len(args):
        raise ValueError(f"vmap: in_axes= says {len(axes)} axes for {len(args)} arguments")
    mapped: dict[int | str, Any] = {}
    over: list[Any] = []
    for i, (arg, axis) in enumerate(zip(args, axes, strict=True)):
        if _only_arrays(arg):
            mapped[i] = arg
            over.append(axis)
    for name, arg in keywords.items():
        if _only_arrays(arg):
            mapped[name] = arg
            over.append(0)
    return mapped, over


def _mapped_size(mapped: Mapping[int | str, Any], axes: list[Any]) -> int:
    """Return the number of examples, by the first array that is mapped."""
    for arg, axis in zip(mapped.values(), axes, strict=True):
        if isinstance(axis, int):
            for leaf in jax.tree.leaves(arg):
                if jnp.ndim(leaf):
                    return leaf.shape[axis]
    raise ValueError("vmap: no argument is an array that could be mapped over")


def _only_arrays(value: Any) -> bool:
    _, arrays, holders = partition((value,), {})
    return bool(arrays) and not holders and len(arrays) == len(jax.tree.leaves(value))


def eval_shape(function: Callable[..., Any], *args: Any, vars: Any = None, **keywords: Any) -> Any:
    """Return the shapes and dtypes of what a function returns.

    Nothing is computed, and no variable changes.

    Args:
        function: A function, a model or a layer.
        *args: Its arguments; `jax.ShapeDtypeStruct` will do for arrays.
        vars: Holders of variables that `function` closes over.
        **keywords: Its keywords.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> eval_shape(lambda w, x: x @ w, w, jax.ShapeDtypeStruct((5, 2), jnp.float32)).shape
        (5,)
    """
    shapes = functools.partial(functools.partial, jax.eval_shape)
    closed = holders_of(function, vars)
    return pure_call(shapes, function, closed, args, keywords, keep=False, name="sb.eval_shape")


def pure_call(
    transform: Callable[[Callable[..., Any]], Callable[..., Any]],
    function: Callable[..., Any],
    closed: list[Stateful],
    args: Inputs,
    keywords: Keywords,
    *,
    name: str,
    keep: bool = True,
) -> Any:
    """Call `function` through `transform`, as a pure function of values and arrays.

    Args:
        transform: From a pure function to another.
        function: The function.
        closed: The holders of variables that it closes over.
        args: Its arguments.
        keywords: Its keywords.
        name: The name of the transform in errors.
        keep: Whether variables keep what the function assigns to them.
    """
    signature, arrays, holders = partition(args, keywords)
    changed: list[Variable] = []

    def pure(values: list[Any], arrays: list[Any]) -> Any:
        with Frame(dict(zip(variables, values, strict=True)), transform=name) as frame:
            inside, options = combine(signature, arrays, holders)
            out = function(*inside, **options)
        changes = frame.changes()
        changed[:] = changes
        return out, list(changes.values())

    with locked(lambda: closed + holders):
        variables = usable_variables(closed + holders)
        out, new = transform(pure)([variable.value for variable in variables], arrays)
        if keep:
            commit(dict(zip(changed, new, strict=True)))
    return out
