"""Arrays that a traced function uses and that should be its parameters.

The constants of a jaxpr are exactly the arrays that a function uses, wherever they hide: in
attributes of classes and of global objects, in caches, in compiled functions, in models and modules
that it calls. Those that aren't meant as constants are refused.

NumPy arrays and integers are constants, and so are arrays that are themselves globals of a module:
a table, say.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from seqbridge._entries.closure_conversion import held_text, is_key, is_parameter
from seqbridge._entries.reachable import Found, module_of_library, reachable
from seqbridge._interface import CapturedArrayError, PureLayer, shape_text
from seqbridge._state import Stateful


def check_captured(
    function: Callable[..., Any],
    name: str,
    lifted: Iterable[Any],
    arrays: Sequence[jax.Array] | None,
) -> None:
    """Refuse arrays that a trace of a function holds as constants.

    Args:
        function: The function.
        name: What it is called in errors.
        lifted: Modules that it may hold.
        arrays: The arrays. None: the function can't be traced, so that its names must do.

    Raises:
        CapturedArrayError: One of them should be a parameter; the message says what to write.
    """
    if arrays is None:
        _check_names(function, name, lifted)
        return
    hidden = [array for array in arrays if is_parameter(array) or is_key(array)]
    hidden = _without_globals(hidden, function) if hidden else []
    if not hidden:
        return
    places: dict[int, str] = {}
    holders: dict[str, Any] = {}
    for found in reachable(function):
        holder = holders.setdefault(found.place, found.value)
        _refuse_holder(found, holder, name, hidden)
        places.setdefault(id(found.value), found.place)
    shown = []
    for array in hidden:
        place = places.get(id(array))
        shown.append(shape_text(array) + (f" ({place})" if place else ""))
    cure = (
        "Take the layer's own key by a parameter called key."
        if all(is_key(array) for array in hidden)
        else "Give an array as a default, in the closure or as an attribute of the object, so that "
        "it becomes a parameter, or as np.asarray(...) if it is a constant; put a module or a "
        "model into the list itself."
    )
    raise CapturedArrayError(
        f"{name} hides {len(hidden)} arrays, {', '.join(shown)}: they would be constants. {cure}"
    )


def _check_names(function: Callable[..., Any], name: str, lifted: Iterable[Any]) -> None:
    """Refuse a function that names a model, or a module with parameters."""
    ids = {id(module) for module in lifted}
    holders: dict[str, Any] = {}
    for found in reachable(function, into_objects=False):
        holder = holders.setdefault(found.place, found.value)
        if id(found.value) in ids or isinstance(found.value, type) or not found.place:
            continue
        if isinstance(found.value, Stateful):
            raise CapturedArrayError(_model_text(name, found))
        module = module_of_library(found.value)
        if isinstance(module, PureLayer) and module.ready:
            raise CapturedArrayError(_module_text(name, found, holder, module))


def _refuse_holder(found: Found, holder: Any, name: str, hidden: list[jax.Array]) -> None:
    """Refuse a model or a module that one of the arrays belongs to."""
    ids = {id(array) for array in hidden}
    if isinstance(found.value, Stateful):
        for own, variable in found.value.variables_by_name().items():
            if id(variable.stored) in ids:
                example = f" ({own}, {shape_text(variable.stored)}, say)"
                raise CapturedArrayError(_model_text(name, found, example))
        return
    module = module_of_library(found.value)
    if isinstance(module, PureLayer) and _owns(module, hidden):
        raise CapturedArrayError(_module_text(name, found, holder, module))


def note_modules(
    error: Exception, function: Callable[..., Any], name: str, lifted: Iterable[Any]
) -> None:
    """Add a note to an error of a function that names a module or a model.

    Args:
        error: The error.
        function: The function.
        name: What it is called in the note.
        lifted: Modules that it may hold.
    """
    ids = {id(module) for module in lifted}
    holders: dict[str, Any] = {}
    for found in reachable(function):
        holder = holders.setdefault(found.place, found.value)
        if id(found.value) in ids or isinstance(found.value, type) or not found.place:
            continue
        if isinstance(found.value, Stateful):
            note = _model_text(name, found)
        else:
            module = module_of_library(found.value)
            if module is None:
                continue
            note = _module_text(name, found, holder, module)
        if note not in getattr(error, "__notes__", ()):  # once, however often a layer calls itself
            error.add_note(note)
        return


def check_of_held(pure: PureLayer) -> Callable[[Sequence[jax.Array] | None], None] | None:
    """A check of the modules that functions inside an entry name; None: they name none."""
    modules = []
    for function in pure.held:
        for found in reachable(function, into_objects=False):
            module = None if isinstance(found.value, type) else module_of_library(found.value)
            if isinstance(module, PureLayer) and module.ready:
                modules.append(module)

    def check(arrays: Sequence[jax.Array] | None) -> None:
        for module in modules:
            if arrays is not None and _owns(module, arrays):
                raise CapturedArrayError(held_text(pure, module))

    return check if modules else None


def _model_text(name: str, found: Found, example: str = "") -> str:
    return (
        f"{name} holds {found.place}, a {type(found.value).__name__}: its variables would be "
        f"lost{example}. Put it into the list itself."
    )


def _module_text(name: str, found: Found, holder: Any, module: PureLayer | TypeError) -> str:
    if holder is found.value or isinstance(module, TypeError):
        return (
            f"{name} holds {found.place}: the parameters, mode and keys of that module would be "
            "lost. Put the module into the list itself."
        )
    return (
        f"{name} uses {found.place}, which holds a {module.label} ({module.ecosystem}): its "
        f"parameters would be constants. Put {found.place} into the list itself."
    )


def _owns(module: PureLayer, arrays: Iterable[jax.Array]) -> bool:
    own = {id(array) for array in jax.tree.leaves(module.ready)}
    return any(id(array) in own for array in arrays)


def _without_globals(arrays: list[jax.Array], function: Callable[..., Any]) -> list[jax.Array]:
    """Return the arrays that are globals of no module."""
    ids = {id(array) for array in arrays}
    scopes = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    for found in reachable(function):
        if inspect.isfunction(found.value):  # of a namespace that is no module, as in `exec`
            scopes.append(found.value.__globals__)
    for scope in scopes:
        for value in list(scope.values()):
            ids.discard(id(value))
    return [array for array in arrays if id(array) in ids]
