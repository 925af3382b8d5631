"""The adapter of stax, `jax.example_libraries.stax`: a pair of functions, `(init_fun, apply_fun)`, becomes a layer."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import jax

from seqbridge import PureLayer, Variables, nest, path_text, signature_of, training_of, unnest
from seqbridge_stax._export import export as export

# The structure of the parameters that an `init_fun` makes; it has empty tuples in it, which nested
# dicts lose.
_structures: WeakKeyDictionary[Callable[..., Any], Any] = WeakKeyDictionary()


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of `(init_fun, apply_fun)`: `init_fun(rng, input_shape)`, `apply_fun(params, inputs, **kwargs)`.

    A pair of two other functions is none; neither are the named tuples of other libraries.
    """
    if type(entry) is not tuple or len(entry) != 2 or not all(inspect.isfunction(f) for f in entry):
        return None
    init_fun, apply_fun = entry
    if _inputs(init_fun) != 2 or not _applies(apply_fun):
        return None
    in_evaluation = _switched(apply_fun)
    name = init_fun.__qualname__.partition(".")[0]
    named = "training" in inspect.signature(apply_fun).parameters

    def init(key: Any, /, *args: Any, **keywords: Any) -> Variables:
        return from_native(_initial(init_fun, key, args))

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        if init_fun not in _structures:
            jax.eval_shape(lambda: _initial(init_fun, jax.random.key(0), args))
        given = {k: v for k, v in keywords.items() if k != "training" or named}
        given["rng"] = _unused_key() if key is None else key
        function = in_evaluation if training_of(keywords) is False else apply_fun
        return function(to_native(variables), args[0] if len(args) == 1 else args, **given), {}

    def to_native(variables: Variables) -> Any:
        if init_fun not in _structures:
            raise RuntimeError(
                f"the structure of this {name}'s parameters isn't known before its first call here"
            )
        structure = _structures[init_fun]
        arrays = unnest(variables)
        paths, _ = jax.tree_util.tree_flatten_with_path(
            jax.tree.unflatten(structure, range(structure.num_leaves))
        )
        return jax.tree.unflatten(
            structure, [arrays["params", *path_text(path)] for path, _ in paths]
        )

    def from_native(params: Any) -> Variables:
        return nest(
            {
                ("params", *path_text(path)): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            }
        )

    return PureLayer(
        init=init,
        apply=apply,
        signature=_signature(apply_fun, mode=in_evaluation is not apply_fun),
        label="stax" if name == "<lambda>" else name,
        ecosystem="stax",
        held=entry,
        to_native=to_native,
        from_native=from_native,
    )


def _initial(init_fun: Callable[..., Any], key: Any, args: tuple[Any, ...]) -> Any:
    shapes = tuple(jax.tree.map(lambda a: a.shape, args))
    _, params = init_fun(key, shapes[0] if len(shapes) == 1 else shapes)
    _structures[init_fun] = jax.tree.structure(params)
    return params


@functools.cache
def _unused_key() -> jax.Array:
    # A dropout wants a key even if it is off.
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)


def _inputs(function: Any) -> int:
    """How many arguments a function must get."""
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _applies(function: Any) -> bool:
    """Whether a function can be called as `function(params, inputs, rng=key)`."""
    if not inspect.isfunction(function) or _inputs(function) != 2:
        return False
    parameters = inspect.signature(function).parameters
    return "rng" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _signature(apply_fun: Any, *, mode: bool) -> inspect.Signature:
    """What a call takes: the keywords that some function inside names. `**kwargs` is stax' way to say nothing."""
    found: dict[str, inspect.Parameter] = {}

    def look(value: Any) -> None:
        if type(value) in (tuple, list):
            for child in value:
                look(child)
        elif _applies(value):
            signature = signature_of(value, skip=1)
            for p in signature.parameters.values() if signature else ():
                if (
                    p.kind is not p.VAR_KEYWORD
                    and p.name != "rng"
                    and (value is apply_fun or p.default is not p.empty)
                ):
                    found.setdefault(
                        p.name, p if value is apply_fun else p.replace(kind=p.KEYWORD_ONLY)
                    )
            for cell in value.__closure__ or ():
                look(cell.cell_contents)

    look(apply_fun)
    if mode and "training" not in found:
        found["training"] = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY)
    return inspect.Signature(sorted(found.values(), key=lambda p: p.kind))


def _switched(value: Any) -> Any:
    """`value`, or, if a dropout inside is in its training mode, the same function with that dropout off."""
    if type(value) in (tuple, list):
        changed = type(value)(_switched(v) for v in value)
        return value if all(a is b for a, b in zip(changed, value, strict=True)) else changed
    if not _applies(value):
        return value
    names = value.__code__.co_freevars
    before = [cell.cell_contents for cell in value.__closure__ or ()]
    pairs = zip(names, before, strict=True)
    after = ["test" if (name, v) == ("mode", "train") else _switched(v) for name, v in pairs]
    if all(a is b for a, b in zip(after, before, strict=True)):
        return value
    cells = tuple(types.CellType(v) for v in after)
    return types.FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    )
