"""`Repeat`: n copies of an entry, one after the other, compiled once."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, overload

import jax
import jax.numpy as jnp

from seqbridge._interface import (
    MODE_FLAGS,
    Annotated,
    Inputs,
    Keywords,
    PureLayer,
    Variables,
    nearest,
)
from seqbridge._layers import Layer
from seqbridge._passes import parameters_depend_on_inputs
from seqbridge._state import fold_in, strong
from seqbridge._wrappers.repeat_view import Copy
from seqbridge._wrappers.wrap import as_layer, key_within, wrap


class Repeat(Layer):
    """Copies of a layer, one after the other, as one loop of the compiled program.

    It computes what a list of n such layers computes, with the same initial values and the same
    random numbers: each copy takes what the one before returns. Each of its variables holds those
    of all copies, stacked along a new first axis; so the time to trace and to compile doesn't grow
    with n, nor does the number of arrays. `repeat[17]` shows one copy.

    Args:
        layer: An entry of any library, a `Layer`, a `Sequential` or a list of entries. One that has
            values already gives them to each copy.
        n: How many copies.
        name: As for a `Layer`.
        per_copy: The names of keywords that hold a value for each copy, stacked along a first axis
            of size `n`. Any other keyword is the same for all.
        unroll: How many copies the program runs in each step of the loop, as in `jax.lax.scan`:
            more of them take longer to compile and may run faster.

    Raises:
        ValueError: `n` is less than one.
        TypeError: `layer` is no entry. At a call: a copy doesn't return what it takes.

    Examples:
        >>> import jax.numpy as jnp
        >>> from seqbridge import Sequential
        >>> double = lambda x, w=jnp.array(2.0): x * w
        >>> model = Sequential([Repeat(double, 10)])
        >>> float(model(jnp.array(1.0)))
        1024.0
        >>> print(model.vars())
        (Sequential)[0](Repeat).w       10 (10,)
        +Total(1)                       10
        >>> model[0][9].w.assign(1.0)
        >>> float(model(jnp.array(1.0)))
        512.0
    """

    def __init__(
        self,
        layer: Any,
        n: SupportsIndex,
        *,
        name: str | None = None,
        per_copy: str | tuple[str, ...] = (),
        unroll: int = 1,
    ):
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(
                f"Repeat takes a layer and how often to repeat it, Repeat(layer, 12); got {n!r:.60}"
            )
        n, unroll = operator.index(n), operator.index(unroll)
        if n < 1 or unroll < 1:
            raise ValueError(
                f"a layer is repeated, and unrolled, once or more often: not n={n}, unroll={unroll}"
            )
        one = as_layer(layer)
        per_copy = (per_copy,) if isinstance(per_copy, str) else tuple(per_copy)
        for word in per_copy:
            is_flag = word in MODE_FLAGS or word in one.call_parameters.flags
            if is_flag or not one.call_parameters.takes(word, 1):
                near = nearest(word, one.call_parameters.names)
                raise TypeError(
                    f"per_copy={word!r}: no copy takes a value of its own by that name{near}"
                )
        pure = _repeat(one, n, per_copy, unroll)
        options = one.entry_options
        super().__init__(
            pure, name=name, trainable=options.trainable, freeze_state=options.freeze_state
        )

    @property
    def _copies(self) -> _Copies:
        assert isinstance(self.pure, _Copies)
        return self.pure

    @property
    def n(self) -> int:
        """The number of copies."""
        return self._copies.n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Copy]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self[i] for i in range(self.n))

    @overload
    def __getitem__(self, index: SupportsIndex) -> Copy: ...
    @overload
    def __getitem__(self, index: str) -> Any: ...
    def __getitem__(self, index: SupportsIndex | str) -> Any:
        """Return a copy, by its position; or a variable of all copies, by its name."""
        if isinstance(index, str):
            return super().__getitem__(index)
        if isinstance(index, slice):
            raise TypeError(
                "a Repeat isn't sliced: its copies stand in one array; repeat[3] shows one of them"
            )
        index = operator.index(index)
        if index not in range(-self.n, self.n):
            raise IndexError(f"there is no copy {index}; there are {self.n}")
        return Copy(self, self._copies.one, range(self.n)[index])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Copies(PureLayer):
    """Copies of a layer as one layer.

    Args:
        one: The layer.
        n: How many copies there are.
    """

    one: Layer
    n: int


def _repeat(one: Layer, n: int, per_copy: tuple[str, ...], unroll: int) -> PureLayer:
    """Return copies of a layer as one layer."""
    inner = wrap(one)

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Variables:
        assert inner.init is not None
        draw = inner.init
        for_first = dict(keywords)
        for name in per_copy:
            if name in keywords:
                for_first[name] = jax.tree.map(lambda array: array[0], keywords[name])

        def init_copy(i: jax.Array) -> Variables:
            return draw(jax.random.fold_in(key, i), *inputs, **for_first)

        if inner.traceable:
            if parameters_depend_on_inputs(inner, key, inputs, for_first):
                return _with_copy_axis(_init_in_turn(inner, n, key, inputs, keywords, per_copy))
            return _with_copy_axis(jax.vmap(init_copy)(jnp.arange(n)))
        drawn = [draw(fold_in(key, i), *inputs, **for_first) for i in range(n)]
        return _with_copy_axis(jax.tree.map(lambda *arrays: jnp.stack(arrays), *drawn))

    def apply(
        variables: Variables, key: Any, /, *inputs: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        each: dict[str, Any] = {}
        for name in per_copy:
            if name in keywords:
                each[name] = keywords.pop(name)
        _check_first_axis(each, n)
        inputs = jax.tree.map(strong, inputs)
        own, given = jax.tree.map(_without_first_axis, (variables, each))
        key = key_within(one, key, own, inputs, {**keywords, **given})

        def step(
            carry: tuple[Any, ...], copy: tuple[jax.Array, Variables, dict[str, Any]]
        ) -> tuple[tuple[Any, ...], Variables]:
            i, own, given = copy
            own_key = None if key is None else jax.random.fold_in(key, i)
            out, state = inner.apply(own, own_key, *carry, **keywords, **given)
            outputs = jax.tree.map(strong, out if type(out) is tuple else (out,))
            _check_same_shapes(carry, outputs)
            return outputs, state

        copies = jnp.arange(n), variables, each
        outputs, state = jax.lax.scan(step, inputs, copies, unroll=unroll)
        return outputs[0] if len(outputs) == 1 else outputs, state

    shown = inner.text if 0 < len(inner.text) <= 100 else inner.label
    fields = {field.name: getattr(inner, field.name) for field in dataclasses.fields(inner)}
    fields.update(
        init=None if inner.init is None else init,
        apply=apply,
        label="Repeat",
        text=f"Repeat({shown}, {n})",
        ready=_tiled_values(one, n) if one.built else None,
        sources={},
        reduce=(_repeat, (one, n, per_copy, unroll)),
        inside=None if inner.inside is None else (inner.inside[0], n),
        parts=None,
        read=None,
        one=one,
        n=n,
    )
    return _Copies(**fields)


def _init_in_turn(
    inner: PureLayer,
    n: int,
    key: Any,
    inputs: Inputs,
    keywords: Keywords,
    per_copy: Sequence[str],
) -> Variables:
    """Return initial values where each copy starts from what the one before returns."""
    assert inner.init is not None
    copies: list[Variables] = []
    for i in range(n):
        own = dict(keywords)
        for name in per_copy:
            if name in keywords:
                own[name] = jax.tree.map(operator.itemgetter(i), keywords[name])
        own_key = jax.random.fold_in(key, i)
        variables = inner.init(own_key, *inputs, **own)
        copies.append(variables)
        plain = jax.tree.map(_without_note, variables, is_leaf=_is_annotated)
        out, _ = inner.apply(plain, jax.random.fold_in(own_key, n), *inputs, **own)
        inputs = out if type(out) is tuple else (out,)
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *copies)


def _is_annotated(leaf: object) -> bool:
    return isinstance(leaf, Annotated)


def _without_note(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Annotated) else leaf


def _check_first_axis(each: dict[str, Any], n: int) -> None:
    for name, value in each.items():
        if any(jnp.shape(leaf)[:1] != (n,) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"{name!r} holds a value for each of the {n} copies: give an array whose first "
                f"axis is {n}; got {value!r:.60}"
            )


def _without_first_axis(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)


def _with_copy_axis(variables: Variables) -> Variables:
    """Return variables whose notes on axes allow for the new first one."""

    def shift_axes(leaf: Any) -> Any:
        if isinstance(leaf, Annotated) and leaf.axes:
            return dataclasses.replace(leaf, axes=(None, *leaf.axes))
        return leaf

    return jax.tree.map(shift_axes, variables, is_leaf=_is_annotated)


def _tiled_values(one: Layer, n: int) -> Variables:
    """Return the values of a layer, once for each of its copies."""
    assert one.native_layout is not None
    values = one.native_layout.described([variable.value for variable in one.own_variables()])

    def tile(array: jax.Array) -> jax.Array:
        return jnp.tile(array[None], (n, *(1,) * array.ndim))

    return _with_copy_axis(jax.tree.map(tile, values))


def _check_same_shapes(given: Any, out: Any) -> None:
    """Raise a `TypeError` if a copy can't take what the one before returns."""
    took, returned = _shapes_text(given), _shapes_text(out)
    if jax.tree.structure(given) != jax.tree.structure(out) or took != returned:
        raise TypeError(
            "a repeated layer must return what it takes, since the next copy takes it: it took "
            f"{took} and returned {returned}"
        )


def _shapes_text(values: Any) -> str:
    texts: list[str] = []
    for array in jax.tree.leaves(values):
        sizes = ",".join(str(size) for size in array.shape)
        texts.append(f"{array.dtype}[{sizes}]")
    return ", ".join(texts)
