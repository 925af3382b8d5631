"""The source of a variable's value: its buffer, or the frame of the transform that is tracing.

A transform never writes tracers into variables. It opens a `Frame`, which holds the values that its
function sees and collects what the function assigns, for its own thread only. So an exception needs
no clean-up, another thread sees no tracer, and a tracer that would outlive its transform has
nowhere to stay: the write is refused.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

import jax
import jax.core

from seqbridge._state.interrupts import finish_on_interrupt, writer

Tracer = jax.core.Tracer


class VariableLike(Protocol):
    """A variable, as far as frames, locks and buffers know it. Equal by identity."""

    stored: Any
    lock: threading.RLock
    aliased: bool

    @property
    def name(self) -> str: ...


V = TypeVar("V", bound=VariableLike)


@functools.cache
def _state_getter() -> Callable[[], Any]:
    # Imported late: `jax.extend` takes as long to import as all of this package.
    import jax.extend.core

    if hasattr(jax.extend.core, "get_opaque_trace_state"):
        return jax.extend.core.get_opaque_trace_state
    # Before jax 0.10.
    return jax.core.get_opaque_trace_state  # pyright: ignore[reportAttributeAccessIssue]


def trace_state() -> Any:
    """Return the transforms that are tracing in this thread, as something to compare."""
    return _state_getter()()


@functools.cache
def _state_outside() -> Any:
    """The trace state while nothing is traced."""
    # Of a new thread, as this one may be inside a trace when it asks for the first time.
    states: list[Any] = []
    thread = threading.Thread(target=lambda: states.append(trace_state()))
    thread.start()
    thread.join()
    return states[0]


class _Stack(threading.local):
    frames: tuple[Frame[Any], ...] = ()


_stack = _Stack()


class Frame(Generic[V]):
    """The values that the variables have while one transform traces its function.

    Args:
        values: What each variable that the transform knows of reads as, at first.
        transform: The transform that opens the frame, as errors name it: `"sb.jit"`.
        compiled: Whether the traced program is kept and run again. A variable that the program
            reads without the transform knowing of it would be a constant in it for ever, so that
            read is refused.
    """

    __slots__ = ("compiled", "start", "state", "transform", "values")

    def __init__(self, values: Mapping[V, Any], *, transform: str, compiled: bool = False):
        self.start = values
        self.values = dict(values)
        self.transform = transform
        self.compiled = compiled

    def __enter__(self) -> Self:
        self.state = trace_state()
        _stack.frames = (*_stack.frames, self)
        return self

    def __exit__(self, *_: object) -> None:
        _stack.frames = _stack.frames[:-1]

    def changes(self) -> dict[V, Any]:
        """Return the variables that were assigned within, with their last values."""
        changed: dict[V, Any] = {}
        for variable, old in self.start.items():
            new = self.values[variable]
            if new is not old:
                changed[variable] = new
        return changed


def tracing() -> bool:
    """Whether JAX is tracing in this thread, by whatever transform."""
    return trace_state() != _state_outside()


def in_frame() -> bool:
    """Whether one of our own transforms is tracing in this thread."""
    return bool(_stack.frames)


def known_variables() -> tuple[Any, ...]:
    """Return the variables that our own transforms which are tracing in this thread know of."""
    known: dict[Any, None] = {}
    for frame in reversed(_stack.frames):
        known.update(dict.fromkeys(frame.values))
        if frame.compiled:  # nothing further out can be read
            break
    return tuple(known)


def note_new(variable: VariableLike) -> None:
    """Let a variable that is made inside a frame belong to it, whatever it holds."""
    if _stack.frames:
        _stack.frames[-1].values[variable] = variable.stored


def read(variable: VariableLike) -> Any:
    """Return the value that `variable` has here and now."""
    for frame in reversed(_stack.frames):
        if variable in frame.values:
            return frame.values[variable]
        if frame.compiled:
            raise RuntimeError(
                f"{variable.name} is read inside {frame.transform}, which doesn't know of it: its "
                "value would be a constant of the compiled program. Pass the model as an "
                f"argument, or {frame.transform}(fn, vars=model.vars())."
            )
    return variable.stored


def commit(changes: Mapping[Any, Any]) -> None:
    """Write all of `changes`, which are checked already, or raise and write none."""
    # Tracers first: they say more in errors.
    ordered = sorted(changes.items(), key=lambda item: not isinstance(item[1], Tracer))
    targets = {variable: _target(variable, value) for variable, value in ordered}
    _write(targets, changes)


@finish_on_interrupt
@writer
def _write(
    targets: Mapping[VariableLike, Frame[Any] | None], changes: Mapping[VariableLike, Any]
) -> None:
    for variable, value in changes.items():
        frame = targets[variable]
        if frame is None:
            variable.stored = value
        else:
            frame.values[variable] = value


def _target(variable: VariableLike, value: Any) -> Frame[Any] | None:
    """Return the frame that takes `value`; None: the variable itself."""
    for frame in reversed(_stack.frames):
        if variable in frame.values:
            if frame.state != trace_state():
                raise _leak(variable)
            return frame
        if frame.compiled:
            raise _leak(variable, frame)
    # A value that isn't traced, too: the next key of a stream under jax.vmap, say, would be one key
    # for all examples.
    if isinstance(value, Tracer) or tracing():
        innermost = _stack.frames[-1] if _stack.frames else None
        if innermost is not None and innermost.state == trace_state():
            raise _leak(variable, innermost)
        raise _leak(variable)
    return None


def _leak(variable: VariableLike, frame: Frame[Any] | None = None) -> RuntimeError:
    """Return the error for an assignment that a transform can't see.

    Args:
        variable: What is assigned.
        frame: That of the transform, if it is one of our own that wasn't told of the variable.
    """
    if frame is None:
        theirs, ours = _transform_of_jax()
        where = f"{theirs}, which doesn't know of it"
        cure = (
            f"Use {ours} in its place, with the model as an argument or vars=model.vars(); or the "
            "pure form, model.apply(variables, ...), which assigns nothing."
        )
    else:
        where = f"{frame.transform}, which doesn't know of it"
        cure = (
            f"Pass the model as an argument, or {frame.transform}(fn, vars=model.vars()); or use "
            "the pure form, model.apply(variables, ...), which assigns nothing."
        )
    return RuntimeError(
        f"{variable.name} is assigned inside {where}: the new value would be lost, or leak out as "
        f"a tracer. {cure}"
    )


# The functions of JAX that call what they transform, how people know them, and what stands in their
# place.
_TRANSFORMS = {
    "cache_miss": ("jax.jit", "sb.jit"),
    "cond": ("jax.lax.cond", "sb.cond"),
    "fori_loop": ("jax.lax.fori_loop", "sb.fori_loop"),
    "fun_remat": ("jax.checkpoint", "sb.remat"),
    "grad_f": ("jax.grad", "sb.grad"),
    "map": ("jax.lax.map", "sb.scan"),
    "scan": ("jax.lax.scan", "sb.scan"),
    "switch": ("jax.lax.switch", "sb.switch"),
    "value_and_grad_f": ("jax.value_and_grad", "sb.value_and_grad"),
    "vmap_f": ("jax.vmap", "sb.vmap"),
    "while_loop": ("jax.lax.while_loop", "sb.while_loop"),
}
_ANY_TRANSFORM = "a JAX transform", "sb.jit, sb.grad, sb.vmap, sb.scan or sb.cond"


def _transform_of_jax() -> tuple[str, str]:
    """Return the transform of JAX that has called, and what stands in its place here."""
    found = None
    caller = sys._getframe()
    while caller is not None:
        if caller.f_globals.get("__name__", "").startswith("jax."):
            found = _TRANSFORMS.get(caller.f_code.co_name, found)
        elif found is not None:
            break  # of functions of JAX that call each other the outermost is meant
        caller = caller.f_back
    return found or _ANY_TRANSFORM


def has_tracer(tree: Any) -> bool:
    """Whether a tree holds something that is traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def refuse_in_trace(what: str, arguments: Iterable[Any] = ()) -> None:
    """Raise if JAX is tracing, since what is about to happen would be lost or would leak.

    Args:
        what: What is about to happen, as the error begins: `"building a model"`.
        arguments: What it is given, in which a tracer may show that JAX is tracing.

    Raises:
        RuntimeError: With the cure.
    """
    if not tracing() and not has_tracer(list(arguments)):
        return
    cure = ", or after it"
    if "build" in what:
        cure = (
            ", for instance model.build((1, 28, 28, 1)), or use the pure form: model.init and "
            "model.apply"
        )
    raise RuntimeError(
        f"{what} inside a JAX transform (jit, grad, vmap, ...) is refused: it would store "
        f"tracers. Do it before{cure}."
    )
