"""`ObjectCopy`: the copy of an object on which a call runs, and what the call sets on it.

A call runs on a copy that has other arrays, and often under a trace. So what it sets must be
brought to the object of the user, who looks there, and tracers must not.
"""

from __future__ import annotations

import collections
import copy
import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from seqbridge._entries.destructure import attributes_of, set_attribute
from seqbridge._state import has_tracer, tracing

_MUTABLE = list, dict, set, collections.deque
_MISSING = object()


class OriginalObject:
    """An object of the user's that calls run on copies of.

    Args:
        obj: The object.
        lifted: The attributes that hold parameters.
        place: How it is called in errors: `"self"`.
    """

    def __init__(self, obj: Any, lifted: Collection[str], place: str):
        self.obj, self.lifted, self.place = obj, lifted, place
        self.initial: dict[str, Any] = attributes_of(obj)
        self.set_by_calls: dict[str, Any] = {}


class ObjectCopy:
    """A copy of an object, from before a call to after it.

    A call that is traced is to have no effect, and to depend on no other call. So it sees nothing
    that calls have set, and what it sets is dropped.

    Args:
        original: The object.
        made: The copy.
    """

    def __init__(self, original: OriginalObject, made: Any):
        self._original, self._made = original, made
        if tracing():
            self._begin_trace()
        self._before = attributes_of(made)
        self._contents = {name: _contents(self._before.get(name)) for name in original.lifted}

    def _begin_trace(self) -> None:
        original, made = self._original, self._made
        for name, value in attributes_of(made).items():
            if value is original.set_by_calls.get(name, _MISSING):
                if name in original.initial:
                    set_attribute(made, name, original.initial[name])
                else:
                    object.__delattr__(made, name)
            elif type(value) in _MUTABLE and name not in original.lifted:
                set_attribute(made, name, copy.copy(value))

    def keep_changes(self, function: str, made: Mapping[int, Any]) -> None:
        """Set on the object what the call has set on the copy, unless it was traced.

        Args:
            function: What the entry is called in errors.
            made: What stands for each object in the call, by the id of the object.

        Raises:
            TypeError: The call has set parameters.
        """
        original, now = self._original, attributes_of(self._made)
        for name in original.lifted:
            same = now.get(name) is self._before.get(name)
            if not same or not _same(_contents(now.get(name)), self._contents[name]):
                place = f"{original.place}.{name}"
                raise TypeError(
                    f"{function} sets {place} in a call, and {place} holds parameters: what the "
                    "call sets there would be lost. Keep state in a module of a library; what is "
                    "only to be looked at starts as None."
                )
        if tracing():
            return
        for name, value in now.items():
            changed = value is not self._before.get(name, _MISSING)
            if changed and not _is_derived(original.obj, name) and not has_tracer(value):
                is_itself = value is made.get(id(original.obj))
                new = original.obj if is_itself else value
                set_attribute(original.obj, name, new)
                original.set_by_calls[name] = new
        for name in self._before.keys() - now.keys():
            object.__delattr__(original.obj, name)


def _contents(value: Any) -> list[Any]:
    """What stands in a list or a dict."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if type(value) in _MUTABLE else []


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _is_derived(obj: Any, name: str) -> bool:
    """Whether an attribute is computed from others, and so is to be computed again."""
    return isinstance(inspect.getattr_static(type(obj), name, None), functools.cached_property)
