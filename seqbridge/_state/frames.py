"""Where a variable's value comes from: its own slot, or the frame of the transform that is being traced.

A transform never writes tracers into variables. It opens a `Frame`, which holds the values that its
function sees and collects what the function assigns, for its own thread only. So an exception needs
no clean-up, another thread sees no tracer, and a tracer that would outlive its transform has
nowhere to stay: the write is refused.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.core

Tracer = jax.core.Tracer


class Slot(Protocol):
    """A variable, as far as frames know it: a slot for a value, with a name. Equal by identity."""

    stored: Any

    @property
    def name(self) -> str: ...


@functools.cache
def _state_getter() -> Callable[[], Any]:
    # Imported late: `jax.extend` takes as long to import as all of this package.
    import jax.extend.core

    if hasattr(jax.extend.core, "get_opaque_trace_state"):
        return jax.extend.core.get_opaque_trace_state
    return jax.core.get_opaque_trace_state  # pyright: ignore[reportAttributeAccessIssue]  (before jax 0.10)


def trace_state() -> Any:
    """Which transforms are tracing in this thread, as something that can be compared."""
    return _state_getter()()


@functools.cache
def _outside() -> Any:
    # Of a new thread, as this one may be inside a trace when it asks for the first time.
    states: list[Any] = []
    thread = threading.Thread(target=lambda: states.append(trace_state()))
    thread.start()
    thread.join()
    return states[0]


_CURES = {  # what the tracer's type says of the transform that made it
    "DynamicJaxprTracer": "sb.jit (or sb.scan for a loop)",
    "JVPTracer": "sb.value_and_grad or sb.grad",
    "LinearizeTracer": "sb.value_and_grad or sb.grad",
    "BatchTracer": "sb.vmap",
}


class _Stack(threading.local):
    frames: tuple[Frame, ...] = ()


_stack = _Stack()


class Frame:
    """The values that the variables have while one transform traces its function.

    Args:
        values: What each variable that the transform knows of reads as, at first.
        compiled: Whether the traced program is kept and run again. A variable that the program
            reads without the transform knowing of it would be a constant in it for ever, so that
            read is refused.
    """

    __slots__ = ("compiled", "start", "state", "values")

    def __init__(self, values: Mapping[Slot, Any], *, compiled: bool = False):
        self.start = values
        self.values = dict(values)
        self.compiled = compiled

    def __enter__(self) -> Self:
        self.state = trace_state()
        _stack.frames = (*_stack.frames, self)
        return self

    def __exit__(self, *_: object) -> None:
        _stack.frames = _stack.frames[:-1]

    def changes(self) -> dict[Slot, Any]:
        """The variables that were assigned within, with their last values."""
        return {v: self.values[v] for v, old in self.start.items() if self.values[v] is not old}


def tracing() -> bool:
    """Whether JAX is tracing in this thread, by whatever transform."""
    return trace_state() != _outside()


def in_frame() -> bool:
    return bool(_stack.frames)


_writers: set[types.CodeType] = set()
F = TypeVar("F", bound=Callable[..., Any])


def writer(function: F) -> F:
    """Notes a function that writes variables in turn, or gives their arrays away meanwhile."""
    _writers.add(function.__code__)
    return function


def refuse_within_write() -> None:
    """Raises if this thread is in a writer already: what is to happen would see half of a step, or change it.

    The calls on the stack say so. A flag would cost each step a little, and Ctrl-C might leave it
    set.
    """
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:
        if frame.f_code in _writers:
            raise RuntimeError(
                "a signal handler has come into the middle of a step, whose variables are half "
                "written: let the "
                "handler set a flag, and save, load or call when the step is done"
            )


def born(variable: Slot) -> None:
    """A variable that is made inside a frame belongs to it, whatever it holds."""
    if _stack.frames:
        _stack.frames[-1].values[variable] = variable.stored


def read(variable: Slot) -> Any:
    """The value that `variable` has here and now."""
    for frame in reversed(_stack.frames):
        if variable in frame.values:
            return frame.values[variable]
        if frame.compiled:
            raise RuntimeError(
                f"{variable.name} is read inside sb.jit, which doesn't know of it: its value would "
                f"be a constant of "
                "the compiled program. Pass the model as an argument, or sb.jit(fn, "
                "vars=model.vars())."
            )
    return variable.stored


def commit(changes: Mapping[Slot, Any]) -> None:
    """Writes all of `changes`, which are checked already, or raises and writes none."""
    traced_first = sorted(
        changes.items(), key=lambda item: not isinstance(item[1], Tracer)
    )  # they say more in errors
    targets = {variable: _target(variable, value) for variable, value in traced_first}
    try:
        _write(targets, changes)
    except BaseException:  # Ctrl-C, between two of them
        _write(targets, changes)
        raise


@writer
def _write(targets: Mapping[Slot, Frame | None], changes: Mapping[Slot, Any]) -> None:
    for variable, value in changes.items():
        if (frame := targets[variable]) is None:
            variable.stored = value
        else:
            frame.values[variable] = value


def _target(variable: Slot, value: Any) -> Frame | None:
    """The frame that takes `value`; None: the variable itself."""
    for frame in reversed(_stack.frames):
        if variable in frame.values:
            if frame.state != trace_state():
                raise _leak(variable, value)
            return frame
        if frame.compiled:
            raise _leak(variable, value)
    # A value that isn't traced, too: the next key of a stream under jax.vmap, say, would be one key
    # for all examples.
    if isinstance(value, Tracer) or tracing():
        raise _leak(variable, value)
    return None


def _leak(variable: Slot, value: Any) -> RuntimeError:
    cure = _CURES.get(type(value).__name__, "sb.jit, sb.value_and_grad, sb.vmap or sb.scan")
    return RuntimeError(
        f"{variable.name} is assigned inside a JAX transform that doesn't know of it: the new "
        f"value would be lost, or "
        f"leak out as a tracer. Use {cure} in place of the plain JAX transform, with the model as "
        f"an argument or "
        "vars=model.vars(); or the pure form, model.apply(variables, ...), which assigns nothing."
    )


def has_tracer(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def refuse_in_trace(what: str, arguments: Iterable[Any] = ()) -> None:
    """Raises if JAX is tracing, since what is about to happen would be lost or would leak.

    Raises:
        RuntimeError: With the cure.
    """
    if tracing() or has_tracer(list(arguments)):
        cure = ", for instance model.build((1, 28, 28, 1)), or use the pure form: model.init and model.apply"
        raise RuntimeError(
            f"{what} inside a JAX transform (jit, grad, vmap, ...) is refused: it would store "
            f"tracers. "
            f"Do it before{cure if 'build' in what else ', or after it'}."
        )
