"""Initial values: from shapes alone, all of a model or none of it."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._interface import Call, Variables
from seqbridge._layers import Layer, Layout, Structure, eliminate_dead_code
from seqbridge._passes.call import binding, evaluate, key_for, unused_key
from seqbridge._passes.forward import Run, resized
from seqbridge._state import Keys, Tracer, tracing, version

_AGAIN = 2**31 - 2  # no list is that long


class Taken:
    """The positions that initial values were folded with.

    After an edit a new layer may come to a position that another layer was built at; its values
    must still be its own.

    Attributes:
        origins: Those of new layers, which they get with their variables: a build that fails has
            taken none.
    """

    def __init__(self, layers: Iterable[Layer]):
        self._paths = {layer._origin for layer in layers}
        self.origins: dict[Layer, tuple[int, ...]] = {}

    def unused(self, layer: Layer, keys: Keys) -> Keys:
        """The keys that `layer` starts from."""
        while keys.path in self._paths:
            keys = keys.child(_AGAIN)
        self._paths.add(keys.path)
        self.origins[layer] = keys.path
        return keys


class Build:
    """The visitor of a build: shapes go in and out, and each layer that has no variables gets a layout with values.

    Args:
        taken: The layers whose initial values no new layer may get.
        fresh: Whether layers that have variables get new values, too.
        abstract: Whether shapes will do in place of values.
    """

    def __init__(self, *, taken: Iterable[Layer] = (), fresh: bool = False, abstract: bool = False):
        self._taken = Taken(taken)
        self.origins = self._taken.origins
        self._fresh = fresh
        self._abstract = abstract
        self.layouts: dict[Layer, Layout] = {}
        self.inputs: dict[Any, tuple[tuple[Any, ...], Call]] = {}
        self.failed = (
            False  # to make the variables of a layer, rather than to find what comes after it
        )
        self.misfit = False  # the variables of a layer were made for other inputs

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        mode: bool | None,
        /,
    ) -> Any:
        if layer not in self.layouts and (self._fresh or not layer.built):
            self.failed = True
            if layer.pure.init is None:
                variables = layer.pure.ready or {}
            else:
                if not (self._fresh or self._abstract):  # else they aren't for the layer to keep
                    keys = self._taken.unused(layer, keys)
                variables = initial(layer, keys, args, keywords, abstract=self._abstract)
            self.layouts[layer] = Layout(layer.pure, variables, (args, keywords))
            self.failed = False
        signature = _signature((args, keywords), mode)
        other = (
            resized(layer, args) is not None
        )  # what was found before it had variables needn't hold
        if other or signature not in layer._outputs:
            new = self.layouts.get(layer)
            tree = layer._tree() if new is None else new.tree(new.arrays)
            try:
                layer._outputs[signature] = evaluate(layer, tree, args, keywords, mode)
            except (
                jax.errors.JAXTypeError,
                jax.errors.JAXIndexError,
            ):  # can't be traced, but may run
                raise
            except Exception:
                self.misfit = other
                raise
        return layer._outputs[signature]

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        self.inputs[model] = (args, call)


class FirstRun(Run):
    """The visitor of the first call: runs the layers, and makes the variables of each from what reaches it."""

    def __init__(self, *, taken: Iterable[Layer] = ()) -> None:
        super().__init__(self._variables)
        self._taken = Taken(taken)
        self.origins = self._taken.origins
        self.layouts: dict[Layer, Layout] = {}
        self.inputs: dict[Any, tuple[tuple[Any, ...], Call]] = {}

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        mode: bool | None,
        /,
    ) -> Any:
        if not layer.built and layer not in self.layouts:
            assert keys.initial is not None
            shapes, training = (
                specs(args),
                layer.call_parameters.in_training(keyword_specs(keywords)),
            )
            own = self._taken.unused(layer, keys.initial)
            self.layouts[layer] = Layout(
                layer.pure, initial(layer, own, shapes, training), (shapes, training)
            )
            key_for(layer, keys, self._variables(layer), shapes, training, True)
        return super().__call__(layer, keys, args, keywords, mode)

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        self.inputs[model] = specs(args), call.map(keyword_specs, training=True)

    def _variables(self, layer: Layer) -> Variables:
        new = self.layouts.get(layer)
        return layer._tree() if new is None else new.tree(new.arrays)


def install(model: Any, build: Build | FirstRun) -> None:
    """Makes the variables of a build the model's own, all of them or none.

    Raises:
        ValueError: One doesn't fit the layout of the model.
    """
    known = {
        tie: box for layer in model._family() if layer.built for tie, box in layer._tied_variables()
    }
    before = {part: part._inputs for part in build.inputs}
    try:
        for layer, layout in build.layouts.items():
            layer._fill(layout, model._lock, known)
            layer._origin = build.origins.get(layer)
            known.update(layer._tied_variables())
        model._adopt()
        for part, given in build.inputs.items():
            part._inputs = given
        version.bump()
        for root in model._roots():
            if root._placement is not None:
                root._place(root._placement, new=True)
    except BaseException:  # Ctrl-C, say
        for layer in build.layouts:
            layer._variables, layer._layout, layer._origin = (), None, None
        for part, given in before.items():
            part._inputs = given
        version.bump()
        raise


def initial(
    layer: Layer,
    keys: Keys,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    abstract: bool = False,
) -> Variables:
    """Initial variables for inputs of these shapes, computing only what they need.

    A module computes its outputs while it makes its parameters. Here that part is traced and
    dropped; the rest runs operation by operation, as it does natively, so that the values are the
    same to the last bit.
    """
    make = layer.pure.init
    assert make is not None
    if layer.pure.per_example:
        args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), args)

    def init(key: Any) -> Variables:
        inputs, options = jax.tree.map(_zeros, (args, keywords))
        return binding(lambda: make(key, *inputs, **options))

    if not layer.pure.traceable:
        return make(_outside(layer, keys, abstract), *args, **keywords)
    if abstract:
        return jax.eval_shape(init, keys.key)
    if tracing() or isinstance(keys.key, Tracer):
        return init(keys.key)
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # late, as in `_trace`

    closed, shapes = jax.make_jaxpr(init, return_shape=True)(keys.key)
    equations, _ = eliminate_dead_code(closed.jaxpr.eqns, closed.jaxpr.outvars, effects=False)
    kept = ClosedJaxpr(closed.jaxpr.replace(eqns=equations), closed.consts)
    leaves, treedef = jax.tree.flatten(shapes)
    arrays = jaxpr_as_fun(kept)(keys.key)  # where a result is a constant, JAX gives back a number
    return treedef.unflatten(jnp.asarray(a, s.dtype) for a, s in zip(arrays, leaves, strict=True))


def _outside(layer: Layer, keys: Keys, abstract: bool) -> Any:
    """The key for initial values that can't be drawn inside a trace."""
    key = unused_key() if abstract else keys.key
    if isinstance(key, Tracer):
        raise RuntimeError(
            f"{layer!r} draws its initial values outside of JAX transforms only: call "
            f"model.init(key, ...) before"
        )
    return key


def specs(tree: Any, size: int | None = 1) -> Any:
    """Shapes in place of arrays, shape tuples and the like; everything else as it is.

    Args:
        tree: Arrays, `jax.ShapeDtypeStruct`s, shapes (a tuple of ints, where None may be anything;
            float32), or nested containers of them.
        size: What None stands for. None: a shape that has one stays as it is.
    """
    return jax.tree.map(lambda value: _spec(value, size), tree, is_leaf=_is_shape)


def keyword_specs(tree: Any) -> Any:
    """Likewise of a keyword, where a tuple of numbers alone is a value, `axis=(0, 1)`, and no shape."""
    return jax.tree.map(lambda value: _spec(value, 1), tree, is_leaf=_is_open)


def _is_shape(value: Any) -> bool:
    whole = (int, np.integer)
    return type(value) is tuple and all(
        n is None or (isinstance(n, whole) and type(n) is not bool) for n in value
    )


_NUMBERS = int, float, np.generic


def check_inputs(inputs: tuple[Any, ...]) -> None:
    """Raises if an input of `build` is no array and no shape, or if there is none."""
    for value in inputs or (None,):
        if (
            type(value) is tuple
            and _is_shape(value)
            and any(n is not None and n < 0 for n in value)
        ):
            raise ValueError(f"a size that may be anything is None, not -1: got the shape {value}")
        numbers = isinstance(value, list | tuple) and all(
            n is None or isinstance(n, _NUMBERS) for n in value
        )
        if (
            value is None
            or isinstance(value, (str, *_NUMBERS))
            or (numbers and not _is_shape(value))
        ):
            got = repr(value) if inputs else "nothing"
            raise TypeError(
                f"a shape or an array is wanted for each input, model.build((None, 28, 28, 1)); "
                f"got {got}"
            )


def check_arrays(inputs: tuple[Any, ...]) -> None:
    """Raises if an input of a call is a shape."""
    if given := [value for value in inputs if _is_shape(value) and value]:
        raise TypeError(
            f"a call takes arrays, and got the shape {given[0]}: model.build({given[0]}) takes "
            f"shapes"
        )


@contextlib.contextmanager
def explained(inputs: tuple[Any, ...]) -> Iterator[None]:
    """Adds to an error what was made of the inputs, where that may be what is wrong."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if any(map(_is_shape, inputs)) and "integer" in str(error):
            error.add_note(
                "a shape is that of floats; for other inputs: jax.ShapeDtypeStruct((1, 8), "
                "jnp.int32)"
            )
        elif has_open_sizes(inputs) and any(
            note.startswith("in layer") for note in getattr(error, "__notes__", ())
        ):
            error.add_note("the inputs above have 1 in place of None")
        raise


def has_open_sizes(inputs: Any) -> bool:
    """Whether a shape in `inputs` has a None."""
    return any(_is_open(value) for value in jax.tree.leaves(inputs, is_leaf=_is_shape))


def inner_open_sizes(inputs: Any) -> bool:
    """Whether one has a None behind its first axis, which is no batch then."""
    return any(
        n is None for value in jax.tree.leaves(inputs, is_leaf=_is_shape) for n in _sizes(value)[1:]
    )


def _is_open(value: Any) -> bool:
    return any(n is None for n in _sizes(value))


def _sizes(value: Any) -> tuple[Any, ...]:
    """The sizes that a shape says, or none."""
    if isinstance(value, jax.ShapeDtypeStruct | types.SimpleNamespace):
        return getattr(value, "shape", ())
    return value if _is_shape(value) else ()


def _spec(value: Any, size: int | None) -> Any:
    if size is None and _is_open(value):
        return value
    if _is_shape(value) or _is_open(value):
        sizes = tuple(size if n is None else int(n) for n in _sizes(value))
        return jax.ShapeDtypeStruct(sizes, getattr(value, "dtype", jnp.float32))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = jax.dtypes.canonicalize_dtype(
            value.dtype, allow_extended_dtype=True
        )  # keys have such a one
        return jax.ShapeDtypeStruct(value.shape, dtype)
    return value


def _zeros(value: Any) -> Any:
    return jnp.zeros(value.shape, value.dtype) if isinstance(value, jax.ShapeDtypeStruct) else value


def _signature(tree: Any, mode: bool | None) -> Hashable:
    leaves, treedef = jax.tree.flatten(tree)
    return (
        treedef,
        mode,
        tuple((x.shape, x.dtype) if hasattr(x, "shape") else _static(x) for x in leaves),
    )


def _static(value: Any) -> Hashable:
    return type(value), value if isinstance(value, Hashable) else id(value)
