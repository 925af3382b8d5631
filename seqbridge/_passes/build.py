"""Initial values: from shapes alone, all of a model or none of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from seqbridge._interface import Call, Inputs, Keywords, PureLayer, Variables, path_text
from seqbridge._layers import Layer, LayerList, Layout, eliminate_dead_code, inputs_that_matter
from seqbridge._passes.call import (
    as_initialized,
    bind_axes,
    trace,
    trace_of_any_size,
    unused_key,
)
from seqbridge._passes.forward import Run, resized, traverse
from seqbridge._passes.specs import are_known, keyword_specs, specs
from seqbridge._state import Keys, Tracer, fold_in, version

_AGAIN, _DRAWS = 2**31 - 2, 2**31 - 3  # no list is that long


class NeedsInputsError(ValueError):
    """Initial values depend on inputs of which only the shapes are known."""


KnownInputs = dict[LayerList, tuple[Inputs, Call]]


class NewLayers:
    """The layers that a build makes variables for, and what they get.

    Args:
        family: The layers whose initial values no new layer may get: after an edit a new layer may
            come to a position that another layer was built at, and its values must be its own.

    Attributes:
        layouts: The structure of each layer's variables, with the values.
        origins: The positions that each layer's key was folded with. A build that fails has taken
            none.
        inputs: What reached each nested model, and the model itself.
    """

    def __init__(self, family: Iterable[Layer] = ()):
        self._origins_taken = {layer.origin_path for layer in family}
        self.layouts: dict[Layer, Layout] = {}
        self.origins: dict[Layer, tuple[int, ...]] = {}
        self.inputs: KnownInputs = {}

    def unused_keys(self, layer: Layer, keys: Keys) -> Keys:
        """The keys that the initial values of `layer` start from."""
        while keys.path in self._origins_taken:
            keys = keys.child(_AGAIN)
        self._origins_taken.add(keys.path)
        self.origins[layer] = keys.path
        return keys

    def variables(self, layer: Layer) -> Variables:
        """The variables of a layer, new or not."""
        new = self.layouts.get(layer)
        return layer.current_tree() if new is None else new.tree(new.arrays)


class Build:
    """The visitor of a build: shapes go in and out, and layers without variables get a layout.

    Args:
        family: See `NewLayers`.
        fresh: Whether layers that have variables get new values, too.
        abstract: Whether shapes will do in place of values.
        wait_for_inputs: Whether a layer whose initial values depend on its inputs is an error, as
            there are arrays to run the model on.
    """

    def __init__(
        self,
        *,
        family: Iterable[Layer] = (),
        fresh: bool = False,
        abstract: bool = False,
        wait_for_inputs: bool = False,
    ):
        self.new = NewLayers(family)
        self._fresh = fresh
        self._abstract = abstract
        self._wait_for_inputs = wait_for_inputs
        self.failed = False  # to make the variables of a layer, rather than to find what follows it
        self.misfit = False  # the variables of a layer were made for other inputs

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: Inputs,
        keywords: Keywords,
        /,
    ) -> Any:
        if layer not in self.new.layouts and (self._fresh or not layer.built):
            self.failed = True
            variables = self._initial(layer, keys, args, keywords)
            self.new.layouts[layer] = Layout(layer.pure, variables, (args, keywords))
            self.failed = False
        try:
            variables = as_initialized(layer, self.new.variables(layer))
            return trace(layer, variables, args, keywords).outputs
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # can't be traced, but may run
            raise
        except Exception:
            self.misfit = resized(layer, args) is not None
            raise

    def _initial(self, layer: Layer, keys: Keys, args: Inputs, keywords: Keywords) -> Variables:
        if not (self._fresh or self._abstract):  # else they aren't for the layer to keep
            keys = self.new.unused_keys(layer, keys)
        return initial(
            layer,
            keys,
            args,
            keywords,
            abstract=self._abstract,
            wait_for_inputs=self._wait_for_inputs,
        )

    def enter(self, model: LayerList, args: Inputs, call: Call, /) -> None:
        self.new.inputs[model] = (args, call)


class FirstRun(Run):
    """The visitor of the first call: run the layers, and make their variables from what comes.

    Args:
        family: See `NewLayers`.
        fresh: Whether layers that have variables get new values, too.
    """

    def __init__(self, *, family: Iterable[Layer] = (), fresh: bool = False):
        self.new = NewLayers(family)
        self._fresh = fresh
        super().__init__(self.new.variables)

    def __call__(
        self,
        layer: Layer,
        keys: Keys,
        args: Inputs,
        keywords: Keywords,
        /,
    ) -> Any:
        if layer not in self.new.layouts and (self._fresh or not layer.built):
            own = keys.initial
            assert own is not None
            if not self._fresh:
                own = self.new.unused_keys(layer, own)
            in_training = layer.call_parameters.in_training(keywords)
            variables = initial(layer, own, args, in_training)
            shapes, training = specs(args), keyword_specs(in_training)
            self.new.layouts[layer] = Layout(layer.pure, variables, (shapes, training))
            if layer.pure.takes_key:  # so that it is known whether it draws in training
                with contextlib.suppress(Exception):  # the call itself will say what is wrong
                    trace_of_any_size(layer, variables, shapes, training)
        return super().__call__(layer, keys, args, keywords)

    def enter(self, model: LayerList, args: Inputs, call: Call, /) -> None:
        self.new.inputs[model] = specs(args), call.map(keyword_specs, training=True)


def find_initial(
    model: LayerList,
    inputs: Inputs,
    call: Call,
    keys: Keys,
    *,
    fresh: bool = False,
    abstract: bool = False,
) -> NewLayers:
    """Return initial values of a model's layers, from shapes where these are enough.

    Args:
        model: The model.
        inputs: Its inputs, or shapes in their place.
        call: Likewise, the rest of a call.
        keys: The keys that the values start from.
        fresh: As for `Build`.
        abstract: As for `Build`.

    Raises:
        NeedsInputsError: A layer needs arrays, and gets shapes.
    """
    known = are_known(inputs, call)
    build = Build(fresh=fresh, abstract=abstract, wait_for_inputs=known)
    try:
        traverse(model, specs(inputs), call.map(keyword_specs, training=True), build, keys)
    except NeedsInputsError:
        if not known:
            raise
    else:
        return build.new
    run = FirstRun(fresh=fresh)
    first, drawing = first_call(call, keys)
    traverse(model, inputs, first, run, drawing)
    return run.new


def first_call(call: Call, keys: Keys) -> tuple[Call, Keys]:
    """Return a call that is there for initial values only, and its keys.

    Args:
        call: What was asked for. Without a mode it is one in training.
        keys: The keys that the values start from.
    """
    training = True if call.training is None else call.training
    drawing = Keys(lambda: fold_in(keys.key, _DRAWS), keys)
    return call.map(lambda value: value, training=training), drawing


def install(model: LayerList, new: NewLayers) -> None:
    """Make the variables of a build the model's own, all of them or none.

    Raises:
        ValueError: One doesn't fit the layout of the model.
    """
    known = {}
    for layer in model.family_layers():
        if layer.built:
            known.update(layer.tied_variables())
    before = {part: part.known_inputs for part in new.inputs}
    try:
        for layer, layout in new.layouts.items():
            layer.fill_variables(layout, model.edit_lock, known)
            layer.origin_path = new.origins.get(layer)
            known.update(layer.tied_variables())
        model.link_children()
        for part, given in new.inputs.items():
            part.known_inputs = given
        version.bump()
        for root in model.root_models():
            if root.mesh_placement is not None:
                root.lay_out(root.mesh_placement, new=True)
    except BaseException:  # Ctrl-C, too
        for layer in new.layouts:
            layer.drop_variables()
        for part, given in before.items():
            part.known_inputs = given
        version.bump()
        raise


def initial(
    layer: Layer,
    keys: Keys,
    args: Inputs,
    keywords: Keywords,
    *,
    abstract: bool = False,
    wait_for_inputs: bool = False,
) -> Variables:
    """Return initial variables for these inputs, computing only what they need.

    A module computes its outputs while it makes its parameters. Here that part is traced and
    dropped; the rest runs operation by operation, as it does natively, so that the values are the
    same to the last bit.

    Args:
        layer: The layer.
        keys: The keys that the values start from.
        args: The inputs, or their shapes.
        keywords: The keywords, with arrays, or shapes in place of them.
        abstract: Whether shapes will do in place of values.
        wait_for_inputs: Whether arrays can be had in place of shapes, where any value needs them.

    Raises:
        NeedsInputsError: The values depend on those of the inputs, and these are shapes.
    """
    if layer.pure.init is None:
        return layer.pure.ready or {}
    if layer.pure.per_example:
        axes, batched = int(layer.pure.per_example), layer.pure.batched or ()
        args = jax.tree.map(lambda shape: _of_example(shape, axes), specs(args))
        keywords = dict(keywords)
        for name in keywords.keys() & set(batched):
            given = keyword_specs(keywords[name])
            keywords[name] = jax.tree.map(lambda shape: _of_example(shape, axes), given)
    if not layer.pure.traceable:
        key = _key_outside(layer, keys, abstract)
        return layer.pure.init(key, *specs(args), **keyword_specs(keywords))
    init, arrays = _init_of_arrays(layer.pure, args, keywords)
    shapes = specs(arrays)
    if abstract:
        return jax.eval_shape(init, keys.key, shapes)
    # Imported late: `jax.extend` takes as long to import as all of this package.
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

    closed, made = jax.make_jaxpr(init, return_shape=True)(keys.key, shapes)
    equations, read = eliminate_dead_code(closed.jaxpr.eqns, closed.jaxpr.outvars)
    jaxpr = closed.jaxpr.replace(eqns=equations)
    inputs = list(arrays.values())
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in inputs):
        state_too = wait_for_inputs and not layer.pure.per_example
        if _depends_on_inputs(layer.pure, jaxpr, made, state_too=state_too):
            _refuse_shapes(layer)
        for i, variable in enumerate(jaxpr.invars[1:]):
            aval = variable.aval
            inputs[i] = jnp.zeros(aval.shape, aval.dtype) if id(variable) in read else None
    kept = ClosedJaxpr(jaxpr, closed.consts)
    leaves, treedef = jax.tree.flatten(made)
    values = []
    for value, shape in zip(jaxpr_as_fun(kept)(keys.key, *inputs), leaves, strict=True):
        values.append(jnp.asarray(value, shape.dtype))  # JAX gives back a number for a constant
    return treedef.unflatten(values)


def _of_example(shape: Any, axes: int) -> Any:
    """The shape of one example, of that of a batch with so many axes before it."""
    return jax.ShapeDtypeStruct(shape.shape[axes:], shape.dtype)


def _init_of_arrays(
    pure: PureLayer, args: Inputs, keywords: Keywords
) -> tuple[Callable[[Any, dict[int, Any]], Variables], dict[int, Any]]:
    """Return `init` as a function of its key and its arrays alone, and the arrays, or shapes."""
    make = pure.init
    assert make is not None
    given, tree = jax.tree.flatten((args, dict(keywords)))
    arrays = {}
    for i, leaf in enumerate(given):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            arrays[i] = leaf

    def init(key: Any, arrays: dict[int, Any]) -> Variables:
        leaves = [arrays.get(i, leaf) for i, leaf in enumerate(given)]
        inputs, options = jax.tree.unflatten(tree, leaves)
        return bind_axes(lambda: make(key, *inputs, **options))

    return init, arrays


def parameters_depend_on_inputs(
    pure: PureLayer, key: Any, args: Inputs, keywords: Keywords
) -> bool:
    """Whether the initial parameters depend on the values of the inputs, beside their shapes."""
    init, arrays = _init_of_arrays(pure, args, keywords)
    closed, made = jax.make_jaxpr(init, return_shape=True)(key, specs(arrays))
    return _depends_on_inputs(pure, closed.jaxpr, made, state_too=False)


def _depends_on_inputs(pure: PureLayer, jaxpr: Any, made: Variables, *, state_too: bool) -> bool:
    """Whether initial values depend on the values of the inputs.

    Args:
        pure: The layer.
        jaxpr: A trace of its `init`, whose first input is the key.
        made: The shapes of its variables.
        state_too: Whether those of state count. Without inputs they are those for zeros, as of a
            moving average that has seen nothing yet; a parameter would stay wrong.
    """
    checked = []
    for path, _ in jax.tree_util.tree_leaves_with_path(made):
        checked.append(state_too or pure.kinds.get(path_text(path)[0]) == "params")
    return any(inputs_that_matter(jaxpr, checked)[1:])


def _refuse_shapes(layer: Layer) -> NoReturn:
    """Raise an error for initial values that depend on inputs of which the shapes are known.

    Raises:
        NeedsInputsError: There are only shapes.
        TypeError: The layer takes one example of a batch: nothing says which.
    """
    depends = f"the initial values of {layer!r} depend on the values of its inputs"
    if layer.pure.per_example:
        raise TypeError(
            f"{depends}, and it takes one example: give a layer that takes the batch, "
            "sb.Layer(entry, per_example=False)"
        )
    raise NeedsInputsError(
        f"{depends}, and only shapes are known: call the model on a first batch, or "
        "model.build(batch)"
    )


def _key_outside(layer: Layer, keys: Keys, abstract: bool) -> jax.Array:
    """The key for initial values that can't be drawn inside a trace."""
    key = unused_key() if abstract else keys.key
    if isinstance(key, Tracer):
        raise RuntimeError(
            f"{layer!r} draws its initial values outside of JAX transforms only: call "
            "model.init(key, ...) before"
        )
    return key
