"""`Repeat`: n copies of an entry, one after the other, compiled once."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex, overload

import jax
import jax.numpy as jnp

from seqbridge._interface import MODE_FLAGS, Annotated, PureLayer, Variables, nearest
from seqbridge._layers import Layer
from seqbridge._state import fold_in, strong
from seqbridge._wrappers.repeat_view import Copy
from seqbridge._wrappers.wrap import as_layer, key_within, wrap


class Repeat(Layer):
    """n copies of a layer, each of which takes what the one before returns, as one loop of the compiled program.

    It does what a list of n such layers does, with the same initial values and the same random
    numbers. Each of its variables holds those of all copies, stacked along a new first axis; so the
    time to trace and to compile doesn't grow with n, nor does the number of arrays. `repeat[17]`
    shows one copy.

    Args:
        layer: An entry of any library, a `Layer`, a `Sequential` or a list of entries. One that has
            values already gives them to each copy.
        n: How many copies.
        name: As for a `Layer`.
        per_copy: The names of keywords that hold a value for each copy, stacked along a first axis
            of size `n`. Any other keyword is the same for all.
        unroll: How many copies stand in the program one after the other, as `jax.lax.scan` has it:
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
            if not one.call_parameters.takes(word, 1) or word in MODE_FLAGS:
                near = nearest(word, one.call_parameters.names)
                raise TypeError(
                    f"per_copy={word!r}: no copy takes a value of its own by that name{near}"
                )
        super().__init__(
            _repeated(one, n, per_copy, unroll), name=name, trainable=one.entry_options.trainable
        )

    @property
    def n(self) -> int:
        """How many copies there are."""
        return self.pure.n  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Copy]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self[i] for i in range(self.n))

    @overload
    def __getitem__(self, index: SupportsIndex) -> Copy: ...
    @overload
    def __getitem__(self, index: str) -> Any: ...
    def __getitem__(self, index: SupportsIndex | str) -> Any:
        """A copy, by its position; or a variable of all copies, by its name."""
        if isinstance(index, str):
            return super().__getitem__(index)
        if isinstance(index, slice):
            raise TypeError(
                "a Repeat isn't sliced: its copies stand in one array; repeat[3] shows one of them"
            )
        index = operator.index(index)
        if index not in range(-self.n, self.n):
            raise IndexError(f"there is no copy {index}; there are {self.n}")
        return Copy(self, self.pure.one, range(self.n)[index])  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Repeated(PureLayer):
    one: Layer
    n: int


def _repeated(one: Layer, n: int, per_copy: tuple[str, ...], unroll: int) -> PureLayer:
    """Copies of a layer as one layer."""
    inner = wrap(one)

    def init(key: Any, /, *inputs: Any, **keywords: Any) -> Variables:
        assert inner.init is not None
        make = inner.init
        first = {
            k: jax.tree.map(lambda a: a[0], v) if k in per_copy else v for k, v in keywords.items()
        }
        if not inner.traceable:
            drawn = [make(fold_in(key, i), *inputs, **first) for i in range(n)]
            return _stacked(jax.tree.map(lambda *arrays: jnp.stack(arrays), *drawn))
        return _stacked(
            jax.vmap(lambda i: make(jax.random.fold_in(key, i), *inputs, **first))(jnp.arange(n))
        )

    def run(
        variables: Variables, key: Any, /, *inputs: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        each = {k: keywords.pop(k) for k in per_copy if k in keywords}
        for name, value in each.items():
            if any(jnp.shape(leaf)[:1] != (n,) for leaf in jax.tree.leaves(value)):
                raise ValueError(
                    f"{name!r} holds a value for each of the {n} copies: give an array whose first "
                    f"axis is {n}; got "
                    f"{value!r:.60}"
                )
        inputs = jax.tree.map(strong, inputs)
        rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (variables, each))
        key = key_within(one, key, rows[0], inputs, {**keywords, **rows[1]})

        def step(carry: Any, copy: Any) -> Any:
            i, own, given = copy
            own_key = None if key is None else jax.random.fold_in(key, i)
            out, state = inner.apply(own, own_key, *carry, **keywords, **given)
            out = jax.tree.map(strong, out if type(out) is tuple else (out,))
            _check(carry, out)
            return out, state

        out, state = jax.lax.scan(step, inputs, (jnp.arange(n), variables, each), unroll=unroll)
        return out[0] if len(out) == 1 else out, state

    fields = {field.name: getattr(inner, field.name) for field in dataclasses.fields(inner)}
    return _Repeated(**{
        **fields,
        "init": inner.init and init,
        "apply": run,
        "label": "Repeat",
        "text": f"Repeat({inner.text if 0 < len(inner.text) <= 100 else inner.label}, {n})",
        "ready": _of_each(one, n) if one.built else None,
        "sources": {},
        "reduce": (_repeated, (one, n, per_copy, unroll)),
        "inside": inner.inside and (inner.inside[0], n),
        "parts": None,
        "read": None,
        "one": one,
        "n": n,
    })  # fmt: skip


def _stacked(variables: Variables) -> Variables:
    """What a library says of the axes of its arrays goes for the axes behind the new one."""

    def said(leaf: Any) -> Any:
        return (
            dataclasses.replace(leaf, axes=(None, *leaf.axes))
            if isinstance(leaf, Annotated) and leaf.axes
            else leaf
        )

    return jax.tree.map(said, variables, is_leaf=lambda leaf: isinstance(leaf, Annotated))


def _of_each(one: Layer, n: int) -> Variables:
    """The values of a layer, for each of its copies."""
    assert one.native_layout is not None
    told = one.native_layout.described([box.value for box in one.own_variables()])
    return _stacked(jax.tree.map(lambda a: jnp.tile(a[None], (n, *(1,) * a.ndim)), told))


def _check(given: Any, out: Any) -> None:
    """Raises a `TypeError` if a copy can't take what the one before returns."""

    def shown(values: Any) -> str:
        return ", ".join(
            f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in jax.tree.leaves(values)
        )

    if jax.tree.structure(given) != jax.tree.structure(out) or shown(given) != shown(out):
        raise TypeError(
            f"a repeated layer must return what it takes, since the next copy takes it: it took "
            f"{shown(given)} and "
            f"returned {shown(out)}"
        )
