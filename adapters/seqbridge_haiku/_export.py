"""Export of a layer to a Haiku module, or to a function that makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import haiku as hk

from seqbridge import PureLayer, nest, training_of, unnest

Path: TypeAlias = tuple[str, ...]


class _Scope(hk.Module):
    """A module that gives its name to the variables of a layer.

    Haiku calls variables by the modules in whose call they are made.
    """

    def __call__(self, function: Callable[..., None], *args: Any) -> None:
        function(*args)


def _visit_leaves(
    visit: Callable[[Path, str], None],
    tree: Mapping[str, Any],
    scopes: dict[Path, _Scope],
    above: Path = (),
) -> None:
    """Call `visit(path, name)` for each leaf, inside the modules that its path names.

    Args:
        visit: The function.
        tree: The leaves.
        scopes: The modules that exist already, by their paths; more are added.
        above: The path of the tree itself.
    """
    for name, node in tree.items():
        path = (*above, name)
        if isinstance(node, Mapping) and name.isidentifier():
            if path not in scopes:
                scopes[path] = _Scope(name=name)
            scopes[path](_visit_leaves, visit, node, scopes, path)
        else:  # a number can't be the name of a module
            for rest in unnest({name: node}):
                visit((*above, *rest), ".".join(rest))


def _read_variables(
    get: Callable[..., Any], initial: dict[str, Any], scopes: dict[Path, _Scope], *, starting: bool
) -> dict[str, Any]:
    """Return the values that Haiku has of some variables.

    Args:
        get: `hk.get_parameter` or `hk.get_state`.
        initial: The variables with their first values, or with shapes in place of them.
        scopes: The modules that exist already.
        starting: Whether Haiku is to take the first values. Otherwise a variable that nobody handed
            over is missed.
    """
    leaves = unnest(initial)
    found: dict[Path, Any] = {}

    def read(path: Path, name: str) -> None:
        leaf = leaves[path]
        make = (lambda shape, dtype: leaf) if starting else None
        found[path] = get(name, leaf.shape, leaf.dtype, init=make)

    _visit_leaves(read, initial, scopes)
    return nest(found)


# Not a method: Haiku would put its name into those of the variables.
def _run(
    layer: PureLayer, args: tuple[Any, ...], training: bool | None, keywords: dict[str, Any]
) -> Any:
    assert layer.init is not None
    starting = hk.running_init()
    if starting and training_of({"training": training, **keywords}) is None:
        training = False  # an output is asked for, and nobody has decided on a mode yet
    initial = layer.init(hk.next_rng_key if starting else None, *args, **keywords)
    scopes: dict[Path, _Scope] = {}
    variables = {
        "params": _read_variables(hk.get_parameter, initial["params"], scopes, starting=starting),
        "state": _read_variables(hk.get_state, initial["state"], scopes, starting=starting),
    }
    out, new = layer.apply(variables, hk.next_rng_key, *args, training=training, **keywords)
    if not starting:
        state = new.get("state", {})
        leaves = unnest(state)

        def write(path: Path, name: str) -> None:
            hk.set_state(name, leaves[path])

        _visit_leaves(write, state, scopes)
    return out


def export(layer: PureLayer, *, name: str | None = None) -> Callable[..., Any]:
    """A model, a layer or an entry of any library for use in a Haiku transform.

    Inside a transform it is a `haiku.Module`, as if its class had been called there. Outside, where
    Haiku allows no module, it is a function that makes the module and calls it: give it to
    `hk.transform_with_state`, or call it in the function that you transform. Parameters and state
    stand under the module's name, `"sequential/Conv_0"`; random numbers come from
    `hk.next_rng_key`. What was built hands over its values: `init` returns them, whatever the key.
    Haiku hands its custom getters to the transforms inside, too, so variables of Haiku's own layers
    are seen twice.

    Args:
        layer: The `PureLayer` of what goes out.
        name: The name of the module, as for any Haiku module.

    Returns:
        A `haiku.Module`, or a function.

    Raises:
        TypeError: `x` is no entry.

    Examples:
        >>> import flax.linen as nn, haiku as hk, jax, jax.numpy as jnp, seqbridge as sb
        >>> pair = hk.transform_with_state(sb.to_haiku([jnp.tanh, nn.Dense(3)]))
        >>> params, state = pair.init(jax.random.key(0), jnp.ones((2, 4)))  # (batch, features)
        >>> params["sequential/Dense_1"]["kernel"].shape
        (4, 3)
    """

    def call(self: hk.Module, *args: Any, training: bool | None = None, **keywords: Any) -> Any:
        return _run(layer, args, training, keywords)

    cls: Any = type(layer.label, (hk.Module,), {"__call__": call, "__module__": __name__})
    if _is_inside_transform():
        return cls(name=name)

    def function(*args: Any, **keywords: Any) -> Any:
        return cls(name=name)(*args, **keywords)

    function.__name__ = function.__qualname__ = name or layer.label
    function.__signature__ = layer.signature  # pyright: ignore[reportFunctionMemberAccess]
    return function


def _is_inside_transform() -> bool:
    try:
        hk.running_init()
    except ValueError:
        return False
    return True
