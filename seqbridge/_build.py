"""Initial values: from shapes alone, all of a model or none of it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from seqbridge._apply import evaluate
from seqbridge._dispatch import Call
from seqbridge._forward import Keys
from seqbridge._layer import Layer
from seqbridge._layout import Layout
from seqbridge._pure import Variables
from seqbridge._structure import Structure
from seqbridge._trace import Tracer, tracing


class DoesNotFitError(Exception):
    """A layer that has its variables already doesn't take what an edit makes reach it."""


class Build:
    """The visitor of a build: shapes go in and out, and each layer that has no variables gets a layout with values.

    Args:
        old: The layers that were there before an edit. They may fail: the next call says so.
        fresh: Whether layers that have variables get new values, too.
        abstract: Whether shapes will do in place of values.
    """

    def __init__(self, *, old: frozenset[Layer] = frozenset(), fresh: bool = False, abstract: bool = False):
        self._old = old
        self._fresh = fresh
        self._abstract = abstract
        self.layouts: dict[Layer, Layout] = {}
        self.inputs: dict[Structure, tuple[tuple[Any, ...], Call]] = {}

    def __call__(
        self, layer: Layer, keys: Keys, args: tuple[Any, ...], keywords: dict[str, Any], mode: bool | None, /
    ) -> Any:
        if layer not in self.layouts and (self._fresh or not layer.built):
            self.layouts[layer] = Layout(layer.pure, _initial(layer, keys, args, keywords, abstract=self._abstract))
        try:
            return self._outputs(layer, args, keywords, mode)
        except Exception as error:
            if layer in self._old:
                raise DoesNotFitError from error
            raise

    def enter(self, model: Structure, args: tuple[Any, ...], call: Call, /) -> None:
        self.inputs[model] = (args, call)

    def _outputs(self, layer: Layer, args: tuple[Any, ...], keywords: dict[str, Any], mode: bool | None) -> Any:
        signature = _signature((args, keywords), mode)
        if signature not in layer._outputs:
            new = self.layouts.get(layer)
            tree = layer._tree() if new is None else new.tree(new.arrays)
            layer._outputs[signature] = evaluate(layer, tree, args, keywords, mode)
        return layer._outputs[signature]


def _initial(layer: Layer, keys: Keys, args: tuple[Any, ...], keywords: dict[str, Any], *, abstract: bool) -> Variables:
    """Initial variables for inputs of these shapes, computing only what they need.

    A module computes its outputs while it makes its parameters. Here that part is traced and dropped; the rest runs
    operation by operation, as it does natively, so that the values are the same to the last bit.
    """
    if layer.pure.per_example:
        args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), args)

    def init(key: Any) -> Variables:
        inputs, options = jax.tree.map(_zeros, (args, keywords))
        return layer.pure.init(key, *inputs, **options)

    if abstract:
        return jax.eval_shape(init, keys.key)
    if tracing() or isinstance(keys.key, Tracer):
        return init(keys.key)
    closed, shapes = jax.make_jaxpr(init, return_shape=True)(keys.key)
    needed = set(map(id, closed.jaxpr.outvars))
    equations = []
    for equation in reversed(closed.jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            equations.append(equation)
            needed.update(map(id, equation.invars))
    kept = jax.extend.core.ClosedJaxpr(closed.jaxpr.replace(eqns=equations[::-1]), closed.consts)
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.extend.core.jaxpr_as_fun(kept)(keys.key))


def specs(tree: Any) -> Any:
    """Shapes in place of arrays, shape tuples and the like; everything else as it is.

    Args:
        tree: Arrays, `jax.ShapeDtypeStruct`s, shapes (a tuple of ints, where None may be anything; float32), or
            nested containers of them.
    """
    return jax.tree.map(_spec, tree, is_leaf=_is_shape)


def _is_shape(value: Any) -> bool:
    return type(value) is tuple and all(n is None or type(n) is int for n in value)


def _spec(value: Any) -> Any:
    if _is_shape(value):
        return jax.ShapeDtypeStruct(tuple(1 if n is None else n for n in value), jnp.float32)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return jax.ShapeDtypeStruct(value.shape, jax.dtypes.canonicalize_dtype(value.dtype))
    return value


def _zeros(value: Any) -> Any:
    return jnp.zeros(value.shape, value.dtype) if isinstance(value, jax.ShapeDtypeStruct) else value


def _signature(tree: Any, mode: bool | None) -> Hashable:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, mode, tuple((x.shape, x.dtype) if hasattr(x, "shape") else _static(x) for x in leaves)


def _static(value: Any) -> Hashable:
    return type(value), value if isinstance(value, Hashable) else id(value)
