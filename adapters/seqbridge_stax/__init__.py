"""The adapter of stax, `jax.example_libraries.stax`: a pair of functions becomes a layer."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax

from seqbridge import PureLayer, Variables, nest, path_text, signature_of, training_of, unnest
from seqbridge_stax._export import export as export

# The structures of the parameters that `init_fun`s make. They have empty tuples in them, which
# nested dicts lose.
_structures: WeakKeyDictionary[Callable[..., Any], Any] = WeakKeyDictionary()


def adapt(entry: object) -> PureLayer | None:
    """Return the `PureLayer` of a pair `(init_fun, apply_fun)`.

    They are called as `init_fun(rng, input_shape)` and `apply_fun(params, inputs, **kwargs)`. A
    pair of two other functions isn't taken; neither are the named tuples of other libraries.
    """
    if type(entry) is not tuple or len(entry) != 2:
        return None
    init_fun, apply_fun = entry
    if not inspect.isfunction(init_fun) or _count_required(init_fun) != 2:
        return None
    if not _is_apply_fun(apply_fun):
        return None
    return _make_layer(init_fun, apply_fun)


def _make_layer(init_fun: types.FunctionType, apply_fun: types.FunctionType) -> PureLayer:
    apply_in_evaluation = _switch_to_evaluation(apply_fun)
    name = init_fun.__qualname__.partition(".")[0]
    takes_training = "training" in inspect.signature(apply_fun).parameters

    def init(key: jax.Array, /, *args: Any, **keywords: Any) -> Variables:
        return _from_native(_make_params(init_fun, key, args))

    def apply(
        variables: Variables, key: jax.Array | None, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        if init_fun not in _structures:
            jax.eval_shape(lambda: _make_params(init_fun, jax.random.key(0), args))
        function = apply_in_evaluation if training_of(keywords) is False else apply_fun
        if not takes_training:
            keywords.pop("training", None)
        keywords["rng"] = _unused_key() if key is None else key
        inputs = args[0] if len(args) == 1 else args
        return function(to_native(variables), inputs, **keywords), {}

    def to_native(variables: Variables) -> Any:
        if init_fun not in _structures:
            raise RuntimeError(
                f"the structure of this {name}'s parameters isn't known before its first call here"
            )
        structure = _structures[init_fun]
        arrays = unnest(variables)
        numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
        leaves = []
        for path, _ in jax.tree_util.tree_leaves_with_path(numbered):
            leaves.append(arrays["params", *path_text(path)])
        return jax.tree.unflatten(structure, leaves)

    has_mode = apply_in_evaluation is not apply_fun
    return PureLayer(
        init=init,
        apply=apply,
        signature=_call_signature(apply_fun, has_mode=has_mode),
        label="stax" if name == "<lambda>" else name,
        ecosystem="stax",
        recipe=True,
        held=(init_fun, apply_fun),
        to_native=to_native,
        from_native=_from_native,
    )


def _from_native(params: Any) -> Variables:
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaves["params", *path_text(path)] = leaf
    return nest(leaves)


def _make_params(init_fun: Callable[..., Any], key: jax.Array, args: tuple[Any, ...]) -> Any:
    """Return initial parameters for inputs of these shapes, and remember their structure."""
    shapes = tuple(jax.tree.map(lambda array: array.shape, args))
    _, params = init_fun(key, shapes[0] if len(shapes) == 1 else shapes)
    _structures[init_fun] = jax.tree.structure(params)
    return params


@functools.cache
def _unused_key() -> jax.Array:
    # A dropout wants a key even if it is off.
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)


def _count_required(function: types.FunctionType) -> int:
    """Return how many arguments a function must get by position."""
    count = 0
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            count += parameter.default is parameter.empty
    return count


def _is_apply_fun(value: object) -> bool:
    """Whether a value is a function that can be called as `function(params, inputs, rng=key)`."""
    if not inspect.isfunction(value) or _count_required(value) != 2:
        return False
    parameters = inspect.signature(value).parameters
    return "rng" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _call_signature(apply_fun: types.FunctionType, *, has_mode: bool) -> inspect.Signature:
    """Return what a call takes: the keywords that some function inside names.

    `**kwargs` is stax' way to say nothing.
    """
    found: dict[str, inspect.Parameter] = {}
    _find_parameters(apply_fun, apply_fun, found)
    if has_mode and "training" not in found:
        found["training"] = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY)
    return inspect.Signature(sorted(found.values(), key=lambda p: p.kind))


def _find_parameters(
    value: Any, apply_fun: types.FunctionType, found: dict[str, inspect.Parameter]
) -> None:
    """Find the parameters of the `apply_fun`s in a value, and in the closures of these.

    Args:
        value: A function, or a list or tuple of some.
        apply_fun: The outermost function. Of others, only keywords with defaults count.
        found: Where the parameters are put, by name.
    """
    if type(value) in (tuple, list):
        for child in value:
            _find_parameters(child, apply_fun, found)
    if not _is_apply_fun(value):
        return
    signature = signature_of(value, skip=1)
    for parameter in signature.parameters.values() if signature is not None else ():
        if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "rng":
            continue
        if value is apply_fun:
            found.setdefault(parameter.name, parameter)
        elif parameter.default is not parameter.empty:
            keyword = parameter.replace(kind=parameter.KEYWORD_ONLY)
            found.setdefault(parameter.name, keyword)
    for cell in value.__closure__ or ():
        _find_parameters(cell.cell_contents, apply_fun, found)


def _switch_to_evaluation(value: Any) -> Any:
    """Return a function with all dropouts inside off.

    It is the very same function if no dropout inside is in its training mode. Other values are
    returned as they are; in lists and tuples, functions are switched.
    """
    if type(value) in (tuple, list):
        switched = [_switch_to_evaluation(inner) for inner in value]
        return value if _are_identical(switched, value) else type(value)(switched)
    if not _is_apply_fun(value):
        return value
    before = [cell.cell_contents for cell in value.__closure__ or ()]
    after = []
    for name, content in zip(value.__code__.co_freevars, before, strict=True):
        is_training = (name, content) == ("mode", "train")  # as stax.Dropout has it
        after.append("test" if is_training else _switch_to_evaluation(content))
    if _are_identical(after, before):
        return value
    cells = tuple(types.CellType(content) for content in after)
    return types.FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    )


def _are_identical(values: Sequence[object], others: Sequence[object]) -> bool:
    return all(a is b for a, b in zip(values, others, strict=True))
