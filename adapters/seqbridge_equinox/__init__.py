"""The adapter of Equinox: any `equinox.Module`, or `partial(Module, ...)`, becomes a layer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from seqbridge import MODE_FLAGS, PureLayer, Variables, call_text, signature_of, training_of
from seqbridge_equinox._export import export as export
from seqbridge_equinox._files import read_arrays as read_arrays
from seqbridge_equinox._files import read_like
from seqbridge_equinox._parts import parts
from seqbridge_equinox._structure import Structure, draws, undecided, variables_of

# What `eqx.filter_jit` and `eqx.filter_vmap` return.
_JITTED: Any = type(eqx.filter_jit(lambda x: x))
_MAPPED: Any = type(eqx.filter_vmap(lambda x: x))


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of an Equinox module or of `partial(Module, ...)`.

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
        return _from_class(entry, "__call__") if issubclass(entry.func, eqx.Module) else None  # pyright: ignore
    if isinstance(entry, _JITTED):
        return adapt(entry.__wrapped__)  # as a program of its own it would only be in the way
    return _from_module(entry, "__call__") if isinstance(entry, eqx.Module) else None


def _from_module(entry: eqx.Module, method: str | Callable[..., Any]) -> PureLayer:
    module, state = _split(entry)
    structure = Structure(module, state)
    fields = {
        f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if hasattr(entry, f.name)
    }
    return _layer(
        module,
        structure,
        method,
        init=None,
        ready=variables_of(module, state),
        remake=lambda variables: structure.merge(variables)[0],
        method=lambda other: _from_module(entry, other),
        reduce=(_make, (type(entry), fields)),
    )


def _from_class(entry: functools.partial[Any], method: str | Callable[..., Any]) -> PureLayer:
    wants_key = (
        "key" in inspect.signature(entry.func.__init__).parameters and "key" not in entry.keywords
    )

    def make(key: Any) -> Any:
        return eqx.nn.make_with_state(lambda: entry(key=key) if wants_key else entry())()

    module, state = eqx.filter_eval_shape(make, jax.random.key(0))
    return _layer(
        module,
        Structure(module, state),
        method,
        text=call_text(entry.func.__name__, entry.args, entry.keywords),
        init=lambda key, /, *args, **keywords: variables_of(*make(key)),
        method=lambda other: _from_class(entry, other),
    )


def _layer(
    module: Any, structure: Structure, how: str | Callable[..., Any], **fields: Any
) -> PureLayer:
    wrapped: Any = inspect.unwrap(module)  # of eqx.filter_checkpoint(module), say
    name = getattr(wrapped, "__name__", type(wrapped).__name__)
    if (
        isinstance(how, str)
        and how != "__call__"
        and not callable(getattr(type(module), how, None))
    ):
        raise TypeError(f"{name} has no method {how!r}")
    mapped = isinstance(inspect.unwrap(module, stop=lambda m: isinstance(m, _MAPPED)), _MAPPED)
    parameters = _parameters(module, how, mapped=mapped)
    keyed = parameters.pop("key", None) is not None
    stateful = structure.stateful and "state" in parameters
    if stateful or type(wrapped).__module__.startswith("equinox."):
        parameters.pop("state", None)
    if "inference" in parameters:
        parameters.pop("deterministic", None)  # Equinox' own word for it until 0.11
    open_ = undecided(module)
    flags = [flag for flag in MODE_FLAGS if flag in parameters]
    if open_ and not flags:  # the module is switched as a whole
        parameters["training"] = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY)

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        made, state = structure.merge(variables)
        if training_of(keywords) is False:
            made = eqx.nn.inference_mode(made)
        given = {k: v for k, v in keywords.items() if flags or k != "training"}
        given = {"key": key, **given} if keyed else given
        given |= {"state": state} if stateful else {}
        function = how if not isinstance(how, str) else getattr(type(made), how)
        out = function(made, *args, **given)
        if not stateful:
            return out, {}
        return out[0], {"state": variables_of(made, out[1])["state"]}

    return PureLayer(
        apply=apply,
        signature=inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind)),
        label=name,
        ecosystem="equinox",
        decided=frozenset()
        if open_
        else frozenset(f for f in flags if parameters[f].default is None),
        takes_key=keyed and draws(module),
        per_example=not (mapped or structure.batched),
        axis_name=structure.axis_name,
        parts=lambda run: parts(module),
        read=read_like,
        held=tuple(
            leaf
            for leaf in jax.tree.leaves(module)
            if not (eqx.is_array(leaf) or eqx.is_inexact_array(leaf))
        ),
        to_native=lambda variables: structure.merge(variables)[
            slice(None) if structure.stateful else 0
        ],
        from_native=lambda tree: variables_of(*(tree if isinstance(tree, tuple) else _split(tree))),
        **{"text": call_text(name, (), _options(module)), **fields},
    )


def _split(module: Any) -> tuple[Any, Any]:
    """A module and its initial state.

    Raises:
        TypeError: The state was taken out before.
    """
    try:
        return eqx.nn.make_with_state(lambda: module)()
    except ValueError as error:
        raise TypeError(
            f"the initial state of this {type(module).__name__} was taken out by make_with_state: "
            f"give the module as "
            "its class makes it, or partial(Class, ...), and then model[i].load_native((module, "
            "state))"
        ) from error


def _parameters(
    module: Any, how: str | Callable[..., Any], *, mapped: bool
) -> dict[str, inspect.Parameter]:
    """What the call takes beside the module itself."""
    if how == "__call__" and hasattr(module, "__wrapped__"):
        signature = signature_of(module)
    else:
        signature = signature_of(
            getattr(type(module), how) if isinstance(how, str) else how, skip=1
        )
    parameters = dict(signature.parameters) if signature else {}
    if mapped:  # `eqx.filter_vmap` shows the keywords of what it wraps, and takes none
        positional = (
            p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        )
        parameters = {p.name: p.replace(kind=p.POSITIONAL_ONLY) for p in positional}
    return parameters


def _make(cls: type[eqx.Module], fields: dict[str, Any]) -> eqx.Module:
    module = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module


def _options(module: Any) -> dict[str, Any]:
    """The numbers and names that a module was made with."""
    values = {f.name: getattr(module, f.name, None) for f in dataclasses.fields(module)}
    return {
        k: v for k, v in values.items() if type(v) in (int, float, str) and not k.startswith("_")
    }
