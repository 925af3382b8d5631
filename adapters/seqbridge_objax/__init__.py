"""The adapter of Objax, and of modules made like it.

These are whatever can be called and lists its variables by `vars()`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from seqbridge import PureLayer, Variables, call_text, nest, signature_of, unnest
from seqbridge_objax._template import Box, Template

_LONGEST = 100  # texts of modules, in letters

Method: TypeAlias = str | Callable[..., Any]
"""The name of a method, or a function that takes the module first."""


def adapt(entry: Any) -> PureLayer | None:
    """Return the `PureLayer` of a module whose `vars()` returns boxes by name.

    A box is an object with `value` (and `assign`). A `partial(Class, ...)` is called once, and its
    initial values are those that it draws by itself.

    Raises:
        TypeError: A module class.
    """
    if isinstance(entry, type):
        cls = entry
    elif isinstance(entry, functools.partial):
        cls = entry.func
    else:
        cls = type(entry)
    if not isinstance(cls, type) or not _makes_modules(cls):
        return None
    if isinstance(entry, type):
        raise TypeError(f"got the class {entry.__name__}: give a module, {entry.__name__}(...)")
    module = entry() if isinstance(entry, functools.partial) else entry
    boxes = module.vars()
    if not isinstance(boxes, Mapping):
        return None
    boxes = dict(boxes)
    if not all(hasattr(box, "value") for box in boxes.values()):
        return None
    return _make_layer(module, boxes, "__call__")


def _makes_modules(cls: type) -> bool:
    """Whether the instances of a class are called, and have `vars()`."""
    is_called = any("__call__" in vars(base) for base in cls.__mro__)
    return is_called and callable(getattr(cls, "vars", None))


def _make_layer(module: Any, boxes: dict[str, Box], method: Method) -> PureLayer:
    """Return the `PureLayer` that calls a module by one of its methods.

    Args:
        module: The module.
        boxes: Its boxes by name.
        method: The method.

    Raises:
        TypeError: The module has no such method.
    """
    if isinstance(method, str) and not callable(getattr(module, method, None)):
        raise TypeError(f"{type(module).__name__} has no method {method!r}")
    template = Template(module, boxes)

    def apply(
        variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        def call(made: Any) -> Any:
            if isinstance(method, str):
                return getattr(made, method)(*args, **keywords)
            return method(made, *args, **keywords)

        return template.call(call, variables, key)

    def to_native(variables: Variables) -> dict[str, Any]:
        return {name: array for (_, name), array in unnest(variables).items()}

    def from_native(tree: Any) -> Variables:
        given = tree.vars() if hasattr(tree, "vars") else _name_arrays(tree)
        places = {name: (collection, name) for collection, name in template.values}
        leaves = {}
        for name, leaf in dict(given).items():
            place = places.get(name, ("params", name))
            if place[0] != "rng":
                leaves[place] = leaf.value if hasattr(leaf, "assign") else leaf
        return nest(leaves)

    ready = {}
    sources = {}
    for place, value in template.values.items():
        if place[0] != "rng":
            ready[place] = value
            sources[place] = template.sources[place]
    layers = module if isinstance(module, list) else ()
    return PureLayer(
        init=None,
        apply=apply,
        signature=_call_signature(module, method),
        label=type(module).__name__,
        ecosystem="objax",
        text=_show(module),
        held=tuple(layer for layer in layers if not hasattr(layer, "vars")),
        takes_key=template.draws,
        shorten=_shorten_path,
        method=lambda other: _make_layer(module, boxes, other),
        to_native=to_native,
        from_native=from_native,
        ready=nest(ready),
        sources=sources,
    )


def _show(module: Any) -> str:
    """Return the call that made a module, if it shows that on one line; else the class."""
    name = type(module).__name__
    text = repr(module)
    _, found, arguments = text.partition(f"{name}(")
    is_call = found and text.endswith(")") and "\n" not in text and len(text) <= _LONGEST
    return found + arguments if is_call else call_text(name)


def _shorten_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Show `"(Linear).w"` as `w`, since the label says `Linear` already."""
    return (re.sub(r"^\(\w+\)\.?", "", path[0]),)


def _name_arrays(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arrays by name, also those of an npz of Objax', which numbers them.

    Raises:
        KeyError: Its list of names is of another length.
    """
    if "names" not in tree or "0" not in tree:
        return tree
    names = [str(name) for name in tree["names"]]
    if len(names) != len(tree) - 1:
        raise KeyError(f"load_native: there are {len(names)} names for {len(tree) - 1} arrays")
    return {name: tree[str(i)] for i, name in enumerate(names)}


def _call_signature(module: Any, method: Method) -> inspect.Signature | None:
    """Return what a call takes; of a list of modules, what any takes beside its input."""
    if not isinstance(method, str):
        return signature_of(method, skip=1)
    if method != "__call__":
        return signature_of(getattr(module, method))
    module = inspect.unwrap(module)  # `objax.Jit` and the like take what they wrap does
    if not isinstance(module, list):
        return signature_of(module)
    found: dict[str, inspect.Parameter] = {}
    for i, inner in enumerate(module):
        signature = _call_signature(inner, "__call__")
        parameters = list(signature.parameters.values()) if signature is not None else []
        if i == 0 and parameters:
            found[parameters[0].name] = parameters[0]
        for parameter in parameters[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                keyword = parameter.replace(kind=parameter.KEYWORD_ONLY)
                found.setdefault(parameter.name, keyword)
    return inspect.Signature(sorted(found.values(), key=lambda p: p.kind))
