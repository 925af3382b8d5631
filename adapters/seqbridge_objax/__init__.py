"""The adapter of Objax, and of modules made like it: whatever can be called and lists its variables by `vars()`."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from seqbridge import PureLayer, Variables, call_text, nest, signature_of, unnest


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of a module with `vars()`, which returns boxes by name: objects with `value` and `assign`.

    A class, or `partial(Class, ...)`, is called once, and its initial values are those that it draws by itself.

    Raises:
        TypeError: A module class.
    """
    cls = entry if isinstance(entry, type) else entry.func if isinstance(entry, functools.partial) else type(entry)
    if not isinstance(cls, type) or not callable(getattr(cls, "vars", None)) or not _called(cls):
        return None
    if isinstance(entry, type):
        raise TypeError(f"got the class {entry.__name__}: give a module, {entry.__name__}(...)")
    module = entry() if isinstance(entry, functools.partial) else entry
    boxes = module.vars()
    if not isinstance(boxes, Mapping) or not all(hasattr(box, "value") for box in dict(boxes).values()):
        return None
    return _layer(module, dict(boxes))


def _layer(module: Any, boxes: dict[str, Any]) -> PureLayer:
    names: dict[int, tuple[str, str]] = {}
    for name, box in boxes.items():  # a box with two names has its first
        names.setdefault(id(box), (_collection(box), name))
    held = {names[id(box)]: box for box in boxes.values()}
    standing_in = {id(box): _copy(box) for box in boxes.values()}
    own = {place: standing_in[id(box)] for place, box in held.items()}
    template = copy.deepcopy(module, dict(standing_in))  # so that the module itself never sees a value of ours
    values = {place: box.value for place, box in held.items()}
    lock = threading.RLock()

    def apply(variables: Variables, key: Any, /, *args: Any, **keywords: Any) -> tuple[Any, Variables]:
        given = {**values, **unnest(variables)}
        keys = [place for place in own if place[0] == "rng"]
        if key is not None:
            given |= {place: _key_like(values[place], key, i) for i, place in enumerate(keys)}
        with lock:
            try:
                for place, box in own.items():
                    _write(box, given[place])
                out = template(*args, **keywords)
                return out, nest({place: box.value for place, box in own.items() if place[0] == "state"})
            finally:
                for place, box in own.items():
                    _write(box, values[place])

    def to_native(variables: Variables) -> dict[str, Any]:
        return {name: array for (_, name), array in unnest(variables).items()}

    def from_native(tree: Any) -> Variables:
        tree = tree.vars() if hasattr(tree, "vars") else tree
        places = {name: (collection, name) for collection, name in own}
        given = {n: v.value if hasattr(v, "assign") else v for n, v in dict(tree).items()}
        return nest({places.get(n, ("params", n)): v for n, v in given.items() if places.get(n, ("",))[0] != "rng"})

    return PureLayer(
        init=None,
        apply=apply,
        signature=_signature(module),
        label=type(module).__name__,
        ecosystem="objax",
        text=call_text(type(module).__name__),
        takes_key=any(place[0] == "rng" for place in own),
        shorten=lambda path: (re.sub(r"^\(\w+\)\.?", "", path[0]),),
        to_native=to_native,
        from_native=from_native,
        ready=nest({place: value for place, value in values.items() if place[0] != "rng"}),
        sources={place: box for place, box in held.items() if place[0] != "rng"},
    )


def _called(cls: type) -> bool:
    return any("__call__" in vars(base) for base in cls.__mro__)


def _collection(box: Any) -> str:
    """What a box is, by Objax' own names for the kinds of them."""
    kinds = {base.__name__ for base in type(box).__mro__}
    return "rng" if "RandomState" in kinds else "state" if kinds & {"BaseState", "StateVar"} else "params"


def _copy(box: Any) -> Any:
    # Not by `copy.copy`: an Objax box hands on what it doesn't know to its array, which it hasn't got at that moment.
    made = object.__new__(type(box))
    vars(made).update(vars(box))
    return made


def _write(box: Any, value: Any) -> None:
    """Gives a box a value, without the checks that a tracer doesn't pass."""
    if "check" in inspect.signature(box.assign).parameters:
        box.assign(value, check=False)
    else:
        box.assign(value)


def _key_like(old: Any, key: Any, i: int) -> Any:
    key = jax.random.fold_in(key, i)
    if jax.numpy.issubdtype(old.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.bits(key, old.shape, old.dtype)


def _signature(module: Any) -> inspect.Signature | None:
    """What a call takes; of a list of modules, what any of them takes."""
    signature = signature_of(module)
    if signature is None or not isinstance(module, list):
        return signature
    found = {p.name: p for p in _parameters(module[:1]) if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    first = dict(list(found.items())[:1])
    for p in _parameters(module):
        if p.name not in first and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            first.setdefault(p.name, p.replace(kind=p.KEYWORD_ONLY))
    return inspect.Signature(sorted(first.values(), key=lambda p: p.kind))


def _parameters(modules: list[Any]) -> Iterator[inspect.Parameter]:
    for module in modules:
        signature = _signature(module)
        yield from signature.parameters.values() if signature else ()
