"""One layer's call: for real, or on shapes alone."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seqbridge._interface import CapturedArrayError, Inputs, Keywords, Path, Variables, path_text
from seqbridge._layers import (
    Layer,
    Signature,
    Trace,
    captured_arrays,
    forwarded_inputs,
    inputs_that_matter,
    signature_of_call,
)
from seqbridge._state import Keys

# A model that calls itself never ends, and each call of it would be tried twice.
_NOT_TO_BE_PASSED_OVER = CapturedArrayError, RecursionError


def apply(layer: Layer, variables: Variables, key: Any, args: Inputs, keywords: Keywords) -> Any:
    """Call a layer on its variables. Return `(outputs, new_state)`."""
    if key is not None and mapped_axes(layer, args):
        key = jax.random.split(key, _mapped_sizes(layer, args))
    return _apply(layer, variables, key, args, keywords)


def mapped_axes(layer: Layer, args: Inputs) -> int:
    """How many leading axes of its inputs a layer is mapped over; 0: it is called once."""
    return int(layer.pure.per_example) if jax.tree.leaves(args) else 0


def _mapped_sizes(layer: Layer, args: Inputs) -> tuple[int, ...]:
    """The sizes of the leading axes.

    Raises:
        ValueError: An input lacks one, or two inputs differ.
    """
    axes = int(layer.pure.per_example)
    leaves = jax.tree.leaves(args)
    sizes = {jnp.shape(leaf)[:axes] for leaf in leaves}
    if len(sizes) != 1 or any(jnp.ndim(leaf) < axes for leaf in leaves):
        shapes = ", ".join(str(jnp.shape(leaf)) for leaf in leaves) or "none"
        wanted = "one leading axis, the batch" if axes == 1 else f"{axes} leading axes"
        raise ValueError(
            f"a per-example layer takes inputs with {wanted}; got shapes {shapes}. For an entry "
            "that takes a whole batch, or one example at a time: "
            "sb.Layer(entry, per_example=False)"
        )
    return sizes.pop()


def _apply(
    layer: Layer,
    variables: Variables,
    keys: Any,
    args: Inputs,
    keywords: Keywords,
) -> Any:
    """Call a layer with its key, or with one key for each example."""
    axes = mapped_axes(layer, args)
    if not axes:
        return _call(layer, variables, keys, args, keywords)
    sizes = _mapped_sizes(layer, args)
    batched = layer.pure.batched or ()
    mapped = {name: value for name, value in keywords.items() if name in batched}
    same = {name: value for name, value in keywords.items() if name not in batched}
    if layer.pure.batched is None:
        _refuse_batches(layer, same, sizes)

    def one(key: Any, args: Inputs, mapped: Keywords) -> Any:
        return _call(layer, variables, key, args, {**same, **mapped})

    call = one
    for axis in reversed(range(axes)):
        name = layer.pure.axis_name if axis == 0 else None
        call = jax.vmap(call, out_axes=(0, None), axis_name=name)
    try:
        return call(keys, args, mapped)
    except Exception as error:
        if "out_axes" in str(error):  # JAX' word for outputs that were not to be mapped
            error.add_note("the state of a per-example layer must not depend on the example")
        over = " by ".join(map(str, sizes))
        error.add_note(
            f"the layer takes one example, so it was mapped over {over} of them, the leading "
            f"{'axis' if axes == 1 else 'axes'} of its inputs. For a batch of sequences, say: "
            "sb.Layer(entry, per_example=2), which maps over both axes; per_example=False gives it "
            "the inputs as they are"
        )
        raise


def _refuse_batches(layer: Layer, keywords: Keywords, sizes: tuple[int, ...]) -> None:
    """Raise a `TypeError` if a keyword seems to hold a value for each example."""
    for name, value in keywords.items():
        if any(jnp.shape(leaf)[:1] == sizes[:1] for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"{name} is as long as the batch, {sizes[0]}, and {layer!r} takes one example: "
                f"map the keyword, too, sb.Layer(entry, batched=({name!r},)), or say that it is "
                "the same for all, batched=()"
            )


def _call(layer: Layer, variables: Variables, key: Any, args: Inputs, keywords: Keywords) -> Any:
    name = layer.pure.key_name
    filled = layer.call_parameters.positional[: len(args)]
    if name is not None and name not in keywords and name not in filled:
        keywords = {**keywords, name: key}
    result = bind_axes(lambda: layer.pure.apply(variables, key, *args, **keywords))
    if type(result) is not tuple or len(result) != 2:
        raise TypeError(
            f"apply of the adapter of {layer.pure.ecosystem} must return (outputs, new_state)"
        )
    return result


def bind_axes(function: Callable[[], Any]) -> Any:
    """Call `function` with every axis name bound that it asks for and nobody has bound.

    A layer that averages over the devices of an axis gets the whole batch here, so there is one of
    them. Inside `jax.shard_map` it doesn't, and a name that isn't bound there is a mistake.
    """
    names: list[str] = []
    while True:
        try:
            return _under(names, function)
        except NameError as error:
            found = re.search(r"unbound axis name: (\w+)", str(error))
            if found is None or found[1] in names or jax.sharding.get_abstract_mesh().manual_axes:
                raise
            names.append(found[1])


def _under(names: Sequence[str], function: Callable[[], Any]) -> Any:
    if not names:
        return function()
    first, *rest = names
    return jax.vmap(lambda _: _under(rest, function), axis_name=first, out_axes=None)(jnp.zeros(1))


def as_initialized(layer: Layer, variables: Variables) -> Variables:
    """Return the variables with which a call does what initialization does.

    A state that the library makes in the call may be made for other inputs than those to come, as a
    cache is for the whole sequence.
    """
    if not layer.pure.makes_state:
        return variables
    kinds = layer.pure.kinds
    kept = {}
    for collection, tree in variables.items():
        kept[collection] = {} if kinds.get(collection, "state") == "state" else tree
    return kept


def traced(
    layer: Layer, variables: Variables, args: Inputs, keywords: Keywords
) -> tuple[Any, Any, Any]:
    """Trace a call. Return the program, whose first argument is the key, and shapes.

    The shapes are those of the outputs and of the state after the call.
    """
    leaves, treedef = jax.tree.flatten((variables, args, keywords))
    arrays = {}
    for i, leaf in enumerate(leaves):
        if _is_array(leaf):
            arrays[i] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    def call(keys: Any, arrays: dict[int, Any]) -> Any:
        given = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        variables, args, keywords = jax.tree.unflatten(treedef, given)
        return _apply(layer, variables, keys, args, keywords)

    batch = _mapped_sizes(layer, args) if mapped_axes(layer, args) else ()
    keys = jax.ShapeDtypeStruct(batch, unused_key().dtype)
    closed, (out, state) = jax.make_jaxpr(call, return_shape=True)(keys, arrays)
    if layer.pure.check_constants is not None:
        _check(layer.pure.check_constants, captured_arrays(closed), call, keys, arrays)
    return closed, out, state


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _check(
    check: Callable[[Sequence[jax.Array] | None], None],
    captured: Sequence[jax.Array],
    call: Callable[[Any, Any], Any],
    *given: Any,
) -> None:
    """Check the constants of a trace, but for those that the trace itself has made."""
    captured = [array for array in captured if array is not unused_key()]
    try:
        check(captured)
    except CapturedArrayError:
        # `partial` makes a new function: of the same one JAX would return its cached trace, and
        # with it the same constants.
        again = captured_arrays(jax.make_jaxpr(functools.partial(call))(*given))
        check([array for array in captured if any(array is other for other in again)])


def check_before_call(layer: Layer, variables: Variables, args: Inputs, keywords: Keywords) -> bool:
    """Look once at each kind of call of a function, for arrays that should be its parameters.

    Returns:
        Whether it was seen what the function uses.

    Raises:
        CapturedArrayError: It uses an array that is none of its variables.
    """
    if layer.pure.check_constants is None:
        return True
    if layer.trace_cache.is_untraceable(signature_of_call(variables, args, keywords)):
        return True
    try:
        trace_of_any_size(layer, variables, args, keywords)
    except _NOT_TO_BE_PASSED_OVER:
        raise
    except Exception:  # what is wrong, the call itself will say
        return False
    return True


def check_after_call(layer: Layer, variables: Variables, args: Inputs, keywords: Keywords) -> None:
    """Look again at a function that couldn't be traced, and has run.

    A model that it uses may have been built by the call only.

    Raises:
        CapturedArrayError: It uses an array that is none of its variables, as far as its names tell
            where it can't be traced now either.
    """
    assert layer.pure.check_constants is not None
    try:
        trace_of_any_size(layer, variables, args, keywords)
    except _NOT_TO_BE_PASSED_OVER:
        raise
    except Exception:
        signature = signature_of_call(variables, args, keywords)
        layer.pure.check_constants(None)
        layer.trace_cache.note_untraceable(signature)


def trace(layer: Layer, variables: Variables, args: Inputs, keywords: Keywords) -> Trace:
    """Look at a call of a layer without computing anything; the layer remembers the trace."""
    return _look(layer, variables, args, keywords, layer.trace_cache.exact)


def trace_of_any_size(
    layer: Layer, variables: Variables, args: Inputs, keywords: Keywords
) -> Trace:
    """Look at a call of a layer, where the sizes of arrays don't matter."""
    return _look(layer, variables, args, keywords, layer.trace_cache.of_any_size)


def _look(
    layer: Layer,
    variables: Variables,
    args: Inputs,
    keywords: Keywords,
    known: Callable[[Signature], Trace | None],
) -> Trace:
    signature = signature_of_call(variables, args, keywords)
    found = None if signature is None else known(signature)
    if found is not None:
        return found
    closed, out, state = traced(layer, variables, args, keywords)
    jaxpr = closed.jaxpr
    key = jaxpr.invars[0]
    # A state that no call changes needs no key.
    wanted = [True] * len(jax.tree.leaves(out))
    wanted += [not layer.entry_options.freeze_state] * len(jax.tree.leaves(state))
    made = Trace(
        outputs=out,
        needs_key=any(v is key for equation in jaxpr.eqns for v in equation.invars),
        depends_on_key=inputs_that_matter(jaxpr, wanted)[0],
        changed_state=_changed_state(jaxpr, variables, state),
    )
    layer.trace_cache.add(signature, made)
    return made


def _changed_state(jaxpr: Any, variables: Variables, state: Variables) -> frozenset[Path]:
    """The paths of the state that a call gives another value.

    Args:
        jaxpr: A trace of the call, whose inputs are the key, and then the variables.
        variables: Those before the call.
        state: The shapes after it.
    """
    positions: dict[Path, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if _is_array(leaf):
            positions[path_text(path)] = len(positions) + 1
    after = jax.tree_util.tree_leaves_with_path(state)
    if not after:
        return frozenset()
    sources = forwarded_inputs(jaxpr)[-len(after) :]
    changed: set[Path] = set()
    for (path, _), source in zip(after, sources, strict=True):
        name = path_text(path)
        if source is None or source != positions.get(name):
            changed.add(name)
    return frozenset(changed)


def state_after(
    layer: Layer, variables: Variables, state: Variables, args: Inputs, keywords: Keywords
) -> Variables | None:
    """Return the variables after a call, or None if it changes none.

    What a layer hands on unchanged, through a loop or a rematerialization, too, stays the array
    that it was.
    """
    if not state or layer.entry_options.freeze_state:
        return None
    before = dict(jax.tree_util.tree_leaves_with_path(variables))
    after, treedef = jax.tree_util.tree_flatten_with_path(state)
    if all(before.get(path) is leaf for path, leaf in after):
        return None
    try:
        changed = trace(layer, variables, args, keywords).changed_state
    except Exception:  # what can't be traced has just run, and what it returned differs
        return {**variables, **state}
    if not changed:
        return None
    leaves = []
    for path, leaf in after:
        leaves.append(leaf if path_text(path) in changed else before.get(path, leaf))
    return {**variables, **treedef.unflatten(leaves)}


def key_for(
    layer: Layer,
    keys: Keys,
    variables: Variables,
    args: Inputs,
    keywords: Keywords,
) -> Any:
    """The layer's key for a call, or None. A call that draws nothing takes none from the stream."""
    if not layer.pure.takes_key:
        return None
    try:
        known = trace_of_any_size(layer, variables, args, keywords)
    except _NOT_TO_BE_PASSED_OVER:
        raise
    except Exception:  # what can't be traced may draw; what is wrong, the call itself will say
        with contextlib.suppress(Exception):  # if there is no key, that isn't what is wrong
            return keys.key
        return None
    if known.depends_on_key:
        return keys.key
    if layer.pure.key_name is not None:  # a function may draw for inputs of some sizes only
        known = trace(layer, variables, args, keywords)
        if known.depends_on_key:
            return keys.key
    if not known.needs_key:
        return None
    key = unused_key()
    return jax.random.clone(key) if jax.config.jax_debug_key_reuse else key  # pyright: ignore


@functools.cache
def unused_key() -> jax.Array:
    """The key for a layer that asks for one, splits it, and then draws nothing with it."""
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)
