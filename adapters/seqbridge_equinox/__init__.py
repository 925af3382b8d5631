"""The adapter of Equinox: any `equinox.Module`, or `partial(Module, ...)`, becomes a layer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax

from seqbridge import MODE_FLAGS, PureLayer, Variables, call_text, signature_of, training_of
from seqbridge_equinox._export import export as export
from seqbridge_equinox._files import read_arrays as read_arrays
from seqbridge_equinox._files import read_like
from seqbridge_equinox._parts import parts
from seqbridge_equinox._structure import Structure, is_undecided, may_draw, variables_of

Method: TypeAlias = str | Callable[..., Any]
"""The name of a method, or a function that takes the module first."""

# The classes of what `eqx.filter_jit` and `eqx.filter_vmap` return, which have no public names.
_Jitted: type[Any] = type(eqx.filter_jit(lambda x: x))
_Mapped: type[Any] = type(eqx.filter_vmap(lambda x: x))


def adapt(entry: Any) -> PureLayer | None:
    """Return the `PureLayer` of an Equinox module or of `partial(Module, ...)`.

    A module takes one example, so it is mapped over the batch, unless it is `eqx.filter_vmap` of
    one.

    Raises:
        TypeError: A module class, or a module whose initial state is gone.
    """
    if isinstance(entry, type):
        if issubclass(entry, eqx.Module):
            raise TypeError(
                f"got the class {entry.__name__}: give a module, or partial({entry.__name__}, ...)"
            )
        return None
    if isinstance(entry, functools.partial):
        if isinstance(entry.func, type) and issubclass(entry.func, eqx.Module):
            return _from_class(entry, "__call__")
        return None
    if isinstance(entry, _Jitted):
        return adapt(entry.__wrapped__)  # as a program of its own it would only be in the way
    if isinstance(entry, eqx.Module):
        return _from_module(entry, "__call__")
    return None


def _from_module(entry: eqx.Module, method: Method) -> PureLayer:
    module, state = _split_state(entry)
    structure = Structure(module, state)
    fields = {}
    for field in dataclasses.fields(entry):
        if hasattr(entry, field.name):
            fields[field.name] = getattr(entry, field.name)
    return _make_layer(
        module,
        structure,
        method,
        init=None,
        ready=variables_of(module, state),
        remake=lambda variables: structure.merge(variables)[0],
        method=lambda other: _from_module(entry, other),
        reduce=(_rebuild_module, (type(entry), fields)),
    )


def _from_class(entry: functools.partial[eqx.Module], method: Method) -> PureLayer:
    cls = entry.func
    assert isinstance(cls, type)
    takes_key = "key" in inspect.signature(cls.__init__).parameters
    wants_key = takes_key and "key" not in entry.keywords

    def make(key: jax.Array) -> tuple[eqx.Module, eqx.nn.State]:
        def construct() -> eqx.Module:
            return entry(key=key) if wants_key else entry()

        return eqx.nn.make_with_state(construct)()

    def init(key: jax.Array, /, *args: Any, **keywords: Any) -> Variables:
        return variables_of(*make(key))

    module, state = eqx.filter_eval_shape(make, jax.random.key(0))
    return _make_layer(
        module,
        Structure(module, state),
        method,
        text=call_text(cls.__name__, entry.args, entry.keywords),
        init=init,
        method=lambda other: _from_class(entry, other),
    )


def _make_layer(
    module: eqx.Module, structure: Structure, called: Method, **fields: Any
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
    unwrapped = _unwrap(module)
    name = getattr(unwrapped, "__name__", type(unwrapped).__name__)
    _check_method(type(module), called, name)
    mapped = _is_mapped(module)
    parameters = _call_parameters(module, called, mapped=mapped)
    takes_key = parameters.pop("key", None) is not None
    takes_state = structure.stateful and "state" in parameters
    if takes_state or type(unwrapped).__module__.startswith("equinox."):
        parameters.pop("state", None)
    if "inference" in parameters:
        parameters.pop("deterministic", None)  # Equinox' own word for it until 0.11
    undecided = is_undecided(module)
    flags = [flag for flag in MODE_FLAGS if flag in parameters]
    if undecided and not flags:  # the module is switched as a whole
        parameters["training"] = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY)
    decided = set()
    if not undecided:
        decided = {flag for flag in flags if parameters[flag].default is None}

    def apply(
        variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        made, state = structure.merge(variables)
        if training_of(keywords) is False:
            made = eqx.nn.inference_mode(made)
        given: dict[str, Any] = {"key": key} if takes_key else {}
        given |= keywords
        if not flags:
            given.pop("training", None)
        if takes_state:
            given["state"] = state
        function = getattr(type(made), called) if isinstance(called, str) else called
        out = function(made, *args, **given)
        if not takes_state:
            return out, {}
        out, state = out[0], out[1]
        return out, {"state": variables_of(made, state)["state"]}

    def to_native(variables: Variables) -> eqx.Module | tuple[eqx.Module, eqx.nn.State]:
        made, state = structure.merge(variables)
        return (made, state) if structure.stateful else made

    def from_native(tree: eqx.Module | tuple[eqx.Module, eqx.nn.State]) -> Variables:
        made, state = tree if isinstance(tree, tuple) else _split_state(tree)
        return variables_of(made, state)

    fields.setdefault("text", call_text(name, (), _simple_fields(module)))
    return PureLayer(
        apply=apply,
        signature=inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind)),
        label=name,
        ecosystem="equinox",
        decided=frozenset(decided),
        takes_key=takes_key and may_draw(module),
        per_example=not (mapped or structure.batched),
        axis_name=structure.axis_name,
        parts=lambda run: parts(module),
        read=read_like,
        held=_constant_leaves(module),
        to_native=to_native,
        from_native=from_native,
        **fields,
    )


def _check_method(cls: type[eqx.Module], method: Method, name: str) -> None:
    if not isinstance(method, str) or method == "__call__":
        return
    if not callable(getattr(cls, method, None)):
        raise TypeError(f"{name} has no method {method!r}")


def _split_state(module: eqx.Module) -> tuple[eqx.Module, eqx.nn.State]:
    """Return a module and its initial state.

    Raises:
        TypeError: The state was taken out before.
    """
    try:
        return eqx.nn.make_with_state(lambda: module)()
    except ValueError as error:
        raise TypeError(
            f"the initial state of this {type(module).__name__} was taken out by "
            "make_with_state: give the module as its class makes it, or partial(Class, ...), and "
            "then model[i].load_native((module, state))"
        ) from error


def _unwrap(module: Any) -> Any:
    """Return what a wrapper such as `eqx.filter_checkpoint` is around, or the module itself."""
    return inspect.unwrap(module)


def _is_mapped(module: Any) -> bool:
    """Whether a module is `eqx.filter_vmap` of another, be it inside of other wrappers."""
    found = inspect.unwrap(module, stop=lambda wrapped: isinstance(wrapped, _Mapped))
    return isinstance(found, _Mapped)


def _call_parameters(module: Any, method: Method, *, mapped: bool) -> dict[str, inspect.Parameter]:
    """Return what a call takes beside the module itself, by name."""
    if method == "__call__" and hasattr(module, "__wrapped__"):
        signature = signature_of(module)
    elif isinstance(method, str):
        signature = signature_of(getattr(type(module), method), skip=1)
    else:
        signature = signature_of(method, skip=1)
    parameters = dict(signature.parameters) if signature is not None else {}
    if not mapped:
        return parameters
    # `eqx.filter_vmap` shows the keywords of what it wraps, and takes none.
    inputs = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            inputs[name] = parameter.replace(kind=parameter.POSITIONAL_ONLY)
    return inputs


def _constant_leaves(module: eqx.Module) -> tuple[object, ...]:
    """Return the leaves that aren't arrays, such as activation functions."""
    constants = []
    for leaf in jax.tree.leaves(module):
        if not eqx.is_array(leaf) and not eqx.is_inexact_array(leaf):
            constants.append(leaf)
    return tuple(constants)


def _simple_fields(module: eqx.Module) -> dict[str, int | float | str]:
    """Return the fields of a module that are numbers or names."""
    found = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if type(value) in (int, float, str) and not field.name.startswith("_"):
            found[field.name] = value
    return found


def _rebuild_module(cls: type[eqx.Module], fields: dict[str, object]) -> eqx.Module:
    """Make a module again from its fields, past its constructor, for pickle."""
    module = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module
