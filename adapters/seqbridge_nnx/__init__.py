"""The adapter of Flax NNX: any `nnx.Module`, or `partial(Module, ...)`, becomes a layer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from seqbridge import MODE_FLAGS, Part, PureLayer, Variables, call_text, signature_of, training_of
from seqbridge_nnx._export import export as export
from seqbridge_nnx._parts import parts
from seqbridge_nnx._structure import Structure, state_paths, switched, undecided


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of an NNX module or of `partial(Module, ...)`. The module itself is never changed.

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
        return _from_class(entry, "__call__") if issubclass(entry.func, nnx.Module) else None  # pyright: ignore
    return _from_module(entry, "__call__") if isinstance(entry, nnx.Module) else None


def _from_module(module: nnx.Module, method: str | Callable[..., Any]) -> PureLayer:
    structure = Structure(module)
    return _layer(
        module,
        structure,
        method,
        init=None,
        ready=structure.variables(structure.arrays),
        sources=structure.sources(module),
        method=lambda other: _from_module(module, other),
        reduce=(_make, (type(module), dict(vars(module)))),
    )


def _from_class(entry: functools.partial[Any], method: str | Callable[..., Any]) -> PureLayer:
    if (
        "rngs" in entry.keywords
    ):  # its values are decided; drawn from a copy, since drawing changes the object
        return _from_module(entry(rngs=nnx.clone(entry.keywords["rngs"])), method)
    draws = "rngs" in inspect.signature(entry.func.__init__).parameters

    def make(key: Any) -> nnx.Module:
        return entry(rngs=nnx.Rngs(key)) if draws else entry()

    def parts_of(run: Callable[[], Any]) -> list[Part]:
        found: list[Part] = []

        def look() -> (
            None
        ):  # while the class makes one: in a module of shapes, NNX has sorted the attributes
            made = make(jax.random.key(0))
            found.extend(parts(made, Structure(made).sources(made)))

        nnx.eval_shape(look)
        return found

    module = nnx.eval_shape(lambda: make(jax.random.key(0)))
    structure = Structure(module)
    return _layer(
        module,
        structure,
        method,
        text=call_text(entry.func.__name__, entry.args, entry.keywords),
        init=lambda key, /, *args, **keywords: structure.variables(Structure(make(key)).arrays),
        method=lambda other: _from_class(entry, other),
        parts=parts_of,
    )


def _layer(
    module: nnx.Module, structure: Structure, how: str | Callable[..., Any], **fields: Any
) -> PureLayer:
    name = type(module).__name__
    if isinstance(how, str) and not callable(getattr(type(module), how, None)):
        raise TypeError(f"{name} has no method {how!r}")
    signature = signature_of(getattr(type(module), how) if isinstance(how, str) else how, skip=1)
    parameters = dict(signature.parameters) if signature else {}
    wanted = parameters.pop("rngs", None)
    open_ = undecided(module)
    flags = [flag for flag in MODE_FLAGS if flag in parameters]
    if open_ and not flags:  # the module is switched as a whole
        parameters["training"] = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY)
    ordered = sorted(parameters.values(), key=lambda p: p.kind)
    graphs = {True: switched(module, training=True), False: switched(module, training=False)}

    def call(module: Any, key: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if wanted is not None and (key is not None or wanted.default is wanted.empty):
            keywords = {**keywords, "rngs": nnx.Rngs(0 if key is None else key)}
        if not flags:
            keywords = {k: v for k, v in keywords.items() if k != "training"}
        return (
            getattr(module, how)(*args, **keywords)
            if isinstance(how, str)
            else how(module, *args, **keywords)
        )

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        made = structure.merge(graphs[training_of(keywords) is not False], variables, key)
        out = call(made, key, args, keywords)
        return out, structure.changes(made, variables)

    def to_native(variables: Variables) -> nnx.State:
        return nnx.state(structure.merge(graphs[True], variables), nnx.Not(nnx.RngState))

    def from_native(tree: Any) -> Variables:
        return structure.named(
            state_paths(nnx.state(tree) if isinstance(tree, nnx.Module) else tree)
        )

    return PureLayer(
        apply=apply,
        signature=signature and signature.replace(parameters=ordered),
        label=name,
        ecosystem="nnx",
        decided=frozenset()
        if open_
        else frozenset(f for f in flags if parameters[f].default is None),
        takes_key=structure.draws or wanted is not None,
        kinds=structure.kinds,
        to_native=to_native,
        from_native=from_native,
        held=tuple(
            n for _, n in nnx.iter_graph(module) if not isinstance(n, nnx.Module | nnx.Variable)
        ),
        remake=None
        if structure.draws
        else lambda variables: structure.merge(graphs[True], variables),
        **{
            "text": call_text(name, (), _options(module)),
            "parts": lambda run: parts(module, structure.sources(module)),
            **fields,
        },
    )


def _make(cls: type[nnx.Module], attributes: dict[str, Any]) -> nnx.Module:
    module = object.__new__(cls)
    vars(module).update(attributes)
    return module


def _options(module: nnx.Module) -> dict[str, Any]:
    """The numbers and names that a module was made with."""
    return {
        k: v
        for k, v in vars(module).items()
        if type(v) in (int, float, str) and not k.startswith("_")
    }
