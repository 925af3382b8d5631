"""The adapter of Flax NNX: any `nnx.Module`, or `partial(Module, ...)`, becomes a layer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from flax import nnx

from seqbridge import MODE_FLAGS, Part, PureLayer, Variables, call_text, signature_of, training_of
from seqbridge_nnx._export import export as export
from seqbridge_nnx._parts import parts
from seqbridge_nnx._structure import Structure, is_undecided, leaves_of, switch_mode

Method: TypeAlias = str | Callable[..., Any]
"""The name of a method, or a function that takes the module first."""


def adapt(entry: object) -> PureLayer | None:
    """Return the `PureLayer` of an NNX module or of `partial(Module, ...)`.

    The module itself is never changed.

    Raises:
        TypeError: A module class, or a module that isn't called.
    """
    if isinstance(entry, type):
        if issubclass(entry, nnx.Module):
            raise TypeError(
                f"got the class {entry.__name__}: give a module, or partial({entry.__name__}, ...)"
            )
        return None
    if isinstance(entry, functools.partial):
        if isinstance(entry.func, type) and issubclass(entry.func, nnx.Module):
            return _from_class(entry, "__call__")
        return None
    if isinstance(entry, nnx.Module):
        return _from_module(entry, "__call__")
    return None


def _from_module(module: nnx.Module, method: Method) -> PureLayer:
    structure = Structure(module)
    return _make_layer(
        module,
        structure,
        method,
        init=None,
        ready=structure.variables(structure.arrays),
        sources=structure.sources(module),
        method=lambda other: _from_module(module, other),
        reduce=(_rebuild_module, (type(module), dict(vars(module)))),
        text=call_text(type(module).__name__, (), _simple_attributes(module)),
        parts=lambda run: parts(module, structure.sources(module)),
    )


def _from_class(entry: functools.partial[nnx.Module], method: Method) -> PureLayer:
    if "rngs" in entry.keywords:
        # Its values are decided. They are drawn from a copy, since drawing changes the object.
        return _from_module(entry(rngs=nnx.clone(entry.keywords["rngs"])), method)
    cls: Any = entry.func
    draws = "rngs" in inspect.signature(cls.__init__).parameters

    def make(key: jax.Array) -> nnx.Module:
        return entry(rngs=nnx.Rngs(key)) if draws else entry()

    def init(key: jax.Array, /, *args: Any, **keywords: Any) -> Variables:
        return structure.variables(Structure(make(key)).arrays)

    def find_parts(run: Callable[[], object]) -> list[Part]:
        found: list[Part] = []

        # While the class makes a module: in one of shapes, NNX has sorted the attributes.
        def look() -> None:
            made = make(jax.random.key(0))
            found.extend(parts(made, Structure(made).sources(made)))

        nnx.eval_shape(look)
        return found

    module = nnx.eval_shape(lambda: make(jax.random.key(0)))
    structure = Structure(module)
    return _make_layer(
        module,
        structure,
        method,
        init=init,
        method=lambda other: _from_class(entry, other),
        text=call_text(cls.__name__, entry.args, entry.keywords),
        parts=find_parts,
    )


def _make_layer(
    module: nnx.Module, structure: Structure, called: Method, **fields: Any
) -> PureLayer:
    """Return the `PureLayer` that calls a module by one of its methods.

    Args:
        module: The module, with arrays or with shapes in place of them.
        structure: Its structure.
        called: The method.
        **fields: More fields of the `PureLayer`.

    Raises:
        TypeError: The module has no such method.
    """
    name = type(module).__name__
    if isinstance(called, str) and not callable(getattr(type(module), called, None)):
        raise TypeError(f"{name} has no method {called!r}")
    function = getattr(type(module), called) if isinstance(called, str) else called
    signature = signature_of(function, skip=1)
    parameters = dict(signature.parameters) if signature is not None else {}
    rngs = parameters.pop("rngs", None)
    undecided = is_undecided(module)
    flags = [flag for flag in MODE_FLAGS if flag in parameters]
    if undecided and not flags:  # the module is switched as a whole
        parameters["training"] = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY)
    decided = set()
    if not undecided:
        decided = {flag for flag in flags if parameters[flag].default is None}
    if signature is not None:
        ordered = sorted(parameters.values(), key=lambda p: p.kind)
        signature = signature.replace(parameters=ordered)
    graphs = {
        True: switch_mode(module, training=True),
        False: switch_mode(module, training=False),
    }

    def apply(
        variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        training = training_of(keywords) is not False
        made = structure.merge(graphs[training], variables, key)
        if rngs is not None and (key is not None or rngs.default is rngs.empty):
            keywords["rngs"] = nnx.Rngs(0 if key is None else key)
        if not flags:
            keywords.pop("training", None)
        if isinstance(called, str):
            out = getattr(made, called)(*args, **keywords)
        else:
            out = called(made, *args, **keywords)
        return out, structure.changes(made, variables)

    def remake(variables: Variables) -> nnx.Module:
        return structure.merge(graphs[True], variables)

    def to_native(variables: Variables) -> nnx.State:
        return nnx.state(remake(variables), nnx.Not(nnx.RngState))

    def from_native(tree: Any) -> Variables:
        state = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
        return structure.named(leaves_of(state))

    return PureLayer(
        apply=apply,
        signature=signature,
        label=name,
        ecosystem="nnx",
        decided=frozenset(decided),
        takes_key=structure.draws or rngs is not None,
        kinds=structure.kinds,
        to_native=to_native,
        from_native=from_native,
        held=_constant_nodes(module),
        remake=None if structure.draws else remake,
        **fields,
    )


def _constant_nodes(module: nnx.Module) -> tuple[object, ...]:
    """Return the nodes that are neither modules nor variables, such as activation functions."""
    nodes = []
    for _, node in nnx.iter_graph(module):
        if not isinstance(node, nnx.Module | nnx.Variable):
            nodes.append(node)
    return tuple(nodes)


def _rebuild_module(cls: type[nnx.Module], attributes: dict[str, object]) -> nnx.Module:
    """Make a module again from its attributes, past its constructor, for pickle."""
    module = object.__new__(cls)
    vars(module).update(attributes)
    return module


def _simple_attributes(module: nnx.Module) -> dict[str, int | float | str]:
    """Return the attributes of a module that are numbers or names."""
    found = {}
    for name, value in vars(module).items():
        if type(value) in (int, float, str) and not name.startswith("_"):
            found[name] = value
    return found
