"""One layer's call: for real, or on shapes alone."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seqbridge._interface import CapturedArrayError, Variables
from seqbridge._layers import Draws, Layer, captured_arrays, eliminate_dead_code
from seqbridge._state import Keys, version


def apply(
    layer: Layer, variables: Variables, key: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Any:
    """`(outputs, new_state)`."""
    keys = key if key is None or not layer.pure.per_example else jax.random.split(key, _batch(args))
    return _apply(layer, variables, keys, args, keywords)


def _batch(args: tuple[Any, ...]) -> int:
    """The size of the leading axis.

    Raises:
        ValueError: There is none, or more than one.
    """
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else -1 for leaf in jax.tree.leaves(args)}
    if len(sizes) != 1 or -1 in sizes:
        shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(args)) or "none"
        raise ValueError(
            f"a per-example layer takes inputs with one leading axis, the batch; got shapes "
            f"{shapes}. For an entry "
            "that takes a whole batch, or one example at a time: sb.Layer(entry, per_example=False)"
        )
    return sizes.pop()


def _apply(
    layer: Layer,
    variables: Variables,
    keys: Any,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
) -> Any:
    """The call of a layer with its key, or with one for each example."""
    if not layer.pure.per_example:
        return _call(layer, variables, keys, args, keywords)
    _batch(args)
    try:
        return jax.vmap(
            lambda key, args: _call(layer, variables, key, args, keywords),
            out_axes=(0, None),
            axis_name=layer.pure.axis_name,
        )(keys, args)
    except Exception as error:
        if "out_axes" in str(error):
            error.add_note("the state of a per-example layer must not depend on the example")
        error.add_note(
            f"the layer takes one example, so it was mapped over {_batch(args)} of them, the "
            f"leading axis of its "
            "inputs. For a batch of sequences, say, give jax.vmap(jax.vmap(entry)), which maps "
            "over both axes; "
            "sb.Layer(entry, per_example=False) gets the inputs as they are"
        )
        raise


def _call(
    layer: Layer, variables: Variables, key: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Any:
    name = layer.pure.key_name
    if (
        name is not None
        and name not in keywords
        and name not in layer.call_parameters.positional[: len(args)]
    ):
        keywords = {**keywords, name: key}
    result = binding(lambda: layer.pure.apply(variables, key, *args, **keywords))
    if type(result) is not tuple or len(result) != 2:
        raise TypeError(
            f"apply of the adapter of {layer.pure.ecosystem} must return (outputs, new_state)"
        )
    return result


def binding(function: Callable[[], Any]) -> Any:
    """`function()`, with every axis bound that it asks for, by name, and nobody has bound.

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


def traced(
    layer: Layer, variables: Variables, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[Any, Any, Any]:
    """The program of a call, whose first argument is the key, and the shapes of the outputs and of the state."""
    leaves, treedef = jax.tree.flatten((variables, args, keywords))
    arrays = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    }

    def call(keys: Any, arrays: dict[int, Any]) -> Any:
        variables, args, keywords = jax.tree.unflatten(
            treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        )
        return _apply(layer, variables, keys, args, keywords)

    shapes = {i: jax.ShapeDtypeStruct(a.shape, a.dtype) for i, a in arrays.items()}
    batch = (_batch(args),) if layer.pure.per_example else ()
    keys = jax.ShapeDtypeStruct(batch, unused_key().dtype)
    closed, (out, state) = jax.make_jaxpr(call, return_shape=True)(keys, shapes)
    if layer.pure.check_constants is not None:
        _check(layer.pure.check_constants, captured_arrays(closed), call, keys, shapes)
    return closed, out, state


def _check(
    check: Callable[[Sequence[jax.Array]], None],
    captured: Sequence[jax.Array],
    call: Callable[[Any, Any], Any],
    *given: Any,
) -> None:
    """Check the constants of a trace, but for those that the trace itself has made."""
    try:
        check(captured)
    except CapturedArrayError:
        # Of another function, since JAX remembers the trace of this one.
        again = captured_arrays(jax.make_jaxpr(functools.partial(call))(*given))
        check([array for array in captured if any(array is other for other in again)])


def look_for_parameters(
    layer: Layer,
    variables: Variables,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    mode: Any,
) -> None:
    """Check once for each kind of call that a function uses no arrays but its variables.

    Raises:
        CapturedArrayError: It does.
    """
    if layer.pure.check_constants is None:
        return
    if _known_draws(layer, args, keywords, mode) is not None:
        return
    try:
        evaluate(layer, variables, args, keywords, mode)
    except CapturedArrayError:
        raise
    except Exception:  # it has run, so it is one that can't be traced
        if not layer.pure.takes_key:
            layer._draws[_signature(args, keywords, mode)] = Draws(False, False)


def evaluate(
    layer: Layer,
    variables: Variables,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    mode: Any,
) -> Any:
    """The shapes of the outputs, computing nothing. Notes whether the layer draws random numbers."""
    closed, out, _ = traced(layer, variables, args, keywords)
    key = closed.jaxpr.invars[0]
    # What an evaluation would do to the state is dropped, so it needs no random numbers either.
    results = (
        closed.jaxpr.outvars[: len(jax.tree.leaves(out))] if mode is False else closed.jaxpr.outvars
    )
    _, read = eliminate_dead_code(closed.jaxpr.eqns, results, effects=True)
    asked = any(v is key for equation in closed.jaxpr.eqns for v in equation.invars)
    before = layer._random
    layer._draws[_signature(args, keywords, mode)] = Draws(asked, id(key) in read)
    if layer._random != before:
        version.bump()  # its models show a stream of keys, or none, from now on
    return out


def key_for(
    layer: Layer,
    keys: Keys,
    variables: Variables,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    mode: Any,
) -> Any:
    """The layer's key for a call, or None. A call that draws nothing takes none from the stream."""
    if not layer.pure.takes_key:
        return None
    draws = _known_draws(layer, args, keywords, mode)
    if draws is None:
        try:
            evaluate(layer, variables, args, keywords, mode)
        except Exception:  # what can't be traced may draw; what is wrong, the call itself will say
            with contextlib.suppress(Exception):  # if there is no key, that isn't what is wrong
                return keys.key
            return None
        draws = layer._draws[_signature(args, keywords, mode)]
    if draws.used:
        return keys.key
    if not draws.asked:
        return None
    key = unused_key()
    return jax.random.clone(key) if jax.config.jax_debug_key_reuse else key  # pyright: ignore


@functools.cache
def unused_key() -> jax.Array:
    """The key for a layer that asks for one, splits it, and then draws nothing with it."""
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)


def _known_draws(
    layer: Layer, args: tuple[Any, ...], keywords: Mapping[str, Any], mode: Any
) -> Draws | None:
    """What is known of a call, without a look at the layer: a call that draws nothing draws nothing in evaluation."""
    draws = layer._draws.get(_signature(args, keywords, mode))
    if draws is None and mode is False:
        draws = layer._draws.get(_signature(args, keywords, True))
        return draws if draws is not None and not draws.used else None
    return draws


def _signature(args: tuple[Any, ...], keywords: Mapping[str, Any], mode: Any) -> Hashable:
    static = bool, str, int, type(None)
    given = ((k, type(v), v if isinstance(v, static) else None) for k, v in keywords.items())
    # Without a mode the state is kept, as in training.
    return len(args), mode is False, tuple(sorted(given, key=lambda item: item[0]))
