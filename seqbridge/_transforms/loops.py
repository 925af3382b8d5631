"""`vmap`, `scan`, `remat` and `eval_shape` of functions that use stateful objects."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, overload

import jax
from jax.typing import ArrayLike

from seqbridge._state import Frame, Stateful, Variable, commit, locked
from seqbridge._transforms.partition import boxes_of, combine, holders_of, partition, values_of

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")


class _LoopOptions(TypedDict, total=False):
    reverse: bool
    unroll: int | bool


def vmap(
    function: Callable[P, R], in_axes: Any = 0, out_axes: Any = 0, *, vars: Any = None
) -> Callable[P, R]:
    """Maps a function over axes of its array arguments; models and what else holds variables aren't mapped.

    Each example draws its own random numbers. A state that would differ between the examples is
    refused.

    Args:
        function: What is mapped.
        in_axes: As `jax.vmap` has it; what it says of stateful and static arguments doesn't count.
            Keywords that hold arrays are mapped over axis 0.
        out_axes: As `jax.vmap` has it.
        vars: What `function` closes over.

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
        axes = tuple(in_axes) if isinstance(in_axes, tuple | list) else (in_axes,) * len(args)
        if len(axes) != len(args):
            raise ValueError(f"vmap: in_axes= says {len(axes)} axes for {len(args)} arguments")
        mapped = {
            i: (a, axis)
            for i, (a, axis) in enumerate(zip(args, axes, strict=True))
            if _only_arrays(a)
        }
        mapped |= {name: (a, 0) for name, a in keywords.items() if _only_arrays(a)}
        arrays = (
            (leaf, axis)
            for a, axis in mapped.values()
            if isinstance(axis, int)
            for leaf in jax.tree.leaves(a)
        )
        size = next((leaf.shape[axis] for leaf, axis in arrays if jax.numpy.ndim(leaf)), None)
        if size is None:
            raise ValueError("vmap: no argument is an array that could be mapped over")
        changed: list[Variable] = []

        def one(keys: list[Any], values: list[Any]) -> Any:
            streams = dict(zip(rngs, keys, strict=True))
            arrays = dict(zip(mapped, values, strict=True))  # JAX couldn't sort positions and names
            with Frame({**values_of(boxes), **streams}) as frame:
                given = [arrays.get(i, a) for i, a in enumerate(args)]
                out: Any = call(*given, **{n: arrays.get(n, a) for n, a in keywords.items()})
            changed[:] = changes = frame.changes()
            return out, [new for box, new in changes.items() if box not in streams]

        with locked(lambda: holders):
            boxes = boxes_of(holders)
            rngs = [box for box in boxes if box.kind == "rng"]
            pairs = [jax.random.split(box.value) for box in rngs]
            keys = [jax.random.split(pair[1], size) for pair in pairs]
            values, over = ([pair[n] for pair in mapped.values()] for n in (0, 1))
            try:
                out, new = jax.vmap(one, in_axes=(0, over), out_axes=(out_axes, None))(keys, values)
            except ValueError as error:
                if "out_axes" in str(error) and changed:
                    error.add_note(
                        f"{', '.join(box.name for box in changed if box not in rngs)} would get "
                        f"another value for each "
                        "example: run the model on the whole batch, or with training=False"
                    )
                raise
            changes = dict(zip((box for box in changed if box not in rngs), new, strict=True))
            commit(
                {
                    **changes,
                    **{
                        box: pair[0]
                        for box, pair in zip(rngs, pairs, strict=True)
                        if box in changed
                    },
                }
            )
        return out

    return wrapped


def _only_arrays(value: Any) -> bool:
    _, arrays, holders = partition((value,), {})
    return bool(arrays) and not holders and len(arrays) == len(jax.tree.leaves(value))


@overload
def scan(
    function: Callable[[jax.Array, Any], tuple[jax.Array, Y]],
    init: ArrayLike,
    xs: Any = None,
    length: int | None = None,
    *,
    vars: Any,
    **options: Unpack[_LoopOptions],
) -> tuple[jax.Array, Y]: ...
@overload
def scan(
    function: Callable[[C, Any], tuple[C, Y]],
    init: C,
    xs: Any = None,
    length: int | None = None,
    *,
    vars: Any,
    **options: Unpack[_LoopOptions],
) -> tuple[C, Y]: ...
def scan(
    function: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    vars: Any,
    **options: Unpack[_LoopOptions],
) -> tuple[Any, Any]:
    """`jax.lax.scan` of a function that uses, and may change, variables.

    Args:
        function: From `(carry, x)` to `(carry, y)`.
        init: The first carry: arrays.
        xs: Arrays that are scanned over their leading axis.
        length: The number of steps, if `xs` doesn't say.
        vars: What `function` closes over: `model.vars()`, a model, or a list of them.
        **options: `reverse` and `unroll`, as `jax.lax.scan` has them.

    Returns:
        The last carry, and the `y`s stacked on a new leading axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> total = Variable(jnp.zeros(()), kind="state", name="total")
        >>> def step(carry, x):
        ...     total.assign(total + x)
        ...     return carry, total.value
        >>> scan(step, None, jnp.arange(3.0), vars=total)[1]
        Array([0., 1., 3.], dtype=float32)
    """
    holders = holders_of(function, vars)
    if given := partition((init, xs), {})[2]:
        raise TypeError(
            f"sb.scan carries arrays: name the {type(given[0]).__name__} in vars=, and close over "
            f"it"
        )
    changing: list[Variable] = []

    def step(carry: Any, x: Any) -> Any:
        values, own = carry
        with Frame(values_of(boxes) | dict(zip(changing, values, strict=True))) as frame:
            own, y = function(own, x)
        if not changing:
            found.extend(frame.changes())
        return ([frame.values[box] for box in changing], own), y

    with locked(lambda: holders):
        found, boxes = list[Variable](), boxes_of(holders)
        first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
        jax.eval_shape(
            step, ([], init), first
        )  # finds what changes, which is all that the loop must carry
        changing.extend(found)
        (values, carry), ys = jax.lax.scan(
            step, ([box.value for box in changing], init), xs, length, **options
        )
        commit(dict(zip(changing, values, strict=True)))
    return carry, ys


def eval_shape(function: Callable[..., Any], *args: Any, vars: Any = None, **keywords: Any) -> Any:
    """The shapes and dtypes of what a function returns; nothing is computed and no variable changes.

    Args:
        function: A function, a model or a layer.
        *args: Its arguments; `jax.ShapeDtypeStruct` will do for arrays.
        vars: What `function` closes over.
        **keywords: Its keywords.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> eval_shape(lambda w, x: x @ w, w, jax.ShapeDtypeStruct((5, 2), jnp.float32)).shape
        (5,)
    """
    shapes = functools.partial(functools.partial, jax.eval_shape)
    return pure_call(shapes, function, holders_of(function, vars), args, keywords, keep=False)


def pure_call(
    transform: Callable[[Callable[..., Any]], Callable[..., Any]],
    function: Callable[..., Any],
    closed: list[Stateful],
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    keep: bool = True,
) -> Any:
    """Calls `function` through `transform`, as a pure function of values and arrays, and keeps what it changes."""
    signature, arrays, holders = partition(args, keywords)
    changed: list[Variable] = []

    def pure(values: list[Any], arrays: list[Any]) -> Any:
        with Frame(dict(zip(boxes, values, strict=True))) as frame:
            inside, options = combine(signature, arrays, holders)
            out = function(*inside, **options)
        changed[:] = changes = frame.changes()
        return out, list(changes.values())

    with locked(lambda: closed + holders):
        boxes = boxes_of(closed + holders)
        out, new = transform(pure)([box.value for box in boxes], arrays)
        if keep:
            commit(dict(zip(changed, new, strict=True)))
    return out
