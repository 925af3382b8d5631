"""The adapter of Objax, and of modules made like it: whatever can be called and lists its variables by `vars()`."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import threading
from collections.abc import Mapping
from typing import Any

import jax

from seqbridge import PureLayer, Variables, call_text, nest, signature_of, unnest


def adapt(entry: Any) -> PureLayer | None:
    """The neutral form of a module with `vars()`, which returns boxes by name: objects with `value` (and `assign`).

    A class, or `partial(Class, ...)`, is called once, and its initial values are those that it
    draws by itself.

    Raises:
        TypeError: A module class.
    """
    cls = (
        entry
        if isinstance(entry, type)
        else entry.func
        if isinstance(entry, functools.partial)
        else type(entry)
    )
    if not isinstance(cls, type) or not callable(getattr(cls, "vars", None)) or not _called(cls):
        return None
    if isinstance(entry, type):
        raise TypeError(f"got the class {entry.__name__}: give a module, {entry.__name__}(...)")
    module = entry() if isinstance(entry, functools.partial) else entry
    boxes = module.vars()
    if not isinstance(boxes, Mapping) or not all(
        hasattr(box, "value") for box in dict(boxes).values()
    ):
        return None
    return _layer(module, dict(boxes), "__call__")


def _layer(module: Any, boxes: dict[str, Any], how: Any) -> PureLayer:
    if isinstance(how, str) and not callable(getattr(module, how, None)):
        raise TypeError(f"{type(module).__name__} has no method {how!r}")
    names: dict[int, tuple[str, str]] = {}
    for name, box in boxes.items():  # a box with two names has its first
        names.setdefault(id(box), (_collection(box), name))
    held = {names[id(box)]: box for box in boxes.values()}
    standing_in = {id(box): _copy(box) for box in boxes.values()}
    own = {place: standing_in[id(box)] for place, box in held.items()}
    template = copy.deepcopy(
        module, dict(standing_in)
    )  # so that the module itself never sees a value of ours
    values = {place: box.value for place, box in held.items()}
    inner = module if isinstance(module, list) else ()
    lock = threading.RLock()

    def apply(
        variables: Variables, key: Any, /, *args: Any, **keywords: Any
    ) -> tuple[Any, Variables]:
        given = {**values, **unnest(variables)}
        keys = [place for place in own if place[0] == "rng"]
        if key is not None:
            given |= {place: _key_like(values[place], key, i) for i, place in enumerate(keys)}
        with lock:
            try:
                for place, box in own.items():
                    _write(box, given[place])
                out = _run(template, how, args, keywords)
                return out, nest(
                    {place: box.value for place, box in own.items() if place[0] == "state"}
                )
            finally:
                for place, box in own.items():
                    _write(box, values[place])

    def to_native(variables: Variables) -> dict[str, Any]:
        return {name: array for (_, name), array in unnest(variables).items()}

    def from_native(tree: Any) -> Variables:
        tree = tree.vars() if hasattr(tree, "vars") else _by_name(tree)
        places = {name: (collection, name) for collection, name in own}
        given = {n: v.value if hasattr(v, "assign") else v for n, v in dict(tree).items()}
        return nest(
            {
                places.get(n, ("params", n)): v
                for n, v in given.items()
                if places.get(n, ("",))[0] != "rng"
            }
        )

    return PureLayer(
        init=None,
        apply=apply,
        signature=_signature(module, how),
        label=type(module).__name__,
        ecosystem="objax",
        text=call_text(type(module).__name__),
        held=tuple(v for v in inner if not hasattr(v, "vars")),
        takes_key=any(place[0] == "rng" for place in own),
        shorten=lambda path: (re.sub(r"^\(\w+\)\.?", "", path[0]),),
        method=lambda other: _layer(module, boxes, other),
        to_native=to_native,
        from_native=from_native,
        ready=nest({place: value for place, value in values.items() if place[0] != "rng"}),
        sources={place: box for place, box in held.items() if place[0] != "rng"},
    )


def _by_name(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays by name; of an npz that Objax has written, which numbers them and has a list of names."""
    if "names" not in tree or "0" not in tree:
        return tree
    names = [str(name) for name in tree["names"]]
    if len(names) != len(tree) - 1:
        raise KeyError(f"load_native: there are {len(names)} names for {len(tree) - 1} arrays")
    return {name: tree[str(i)] for i, name in enumerate(names)}


def _run(module: Any, how: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return (
        getattr(module, how)(*args, **keywords)
        if isinstance(how, str)
        else how(module, *args, **keywords)
    )


def _called(cls: type) -> bool:
    return any("__call__" in vars(base) for base in cls.__mro__)


def _collection(box: Any) -> str:
    """What a box is, by Objax' own names for the kinds of them."""
    kinds = {base.__name__ for base in type(box).__mro__}
    return (
        "rng"
        if "RandomState" in kinds
        else "state"
        if kinds & {"BaseState", "StateVar"}
        else "params"
    )


def _copy(box: Any) -> Any:
    # Not by `copy.copy`: an Objax box hands on what it doesn't know to its array, which it hasn't
    # got at that moment.
    made = object.__new__(type(box))
    vars(made).update(vars(box))
    return made


def _write(box: Any, value: Any) -> None:
    """Gives a box a value, without the checks that a tracer doesn't pass."""
    if not hasattr(type(box), "assign"):
        box.value = value
    elif "check" in inspect.signature(box.assign).parameters:
        box.assign(value, check=False)
    else:
        box.assign(value)


def _key_like(old: Any, key: Any, i: int) -> Any:
    key = jax.random.fold_in(key, i)
    if jax.numpy.issubdtype(old.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.bits(key, old.shape, old.dtype)


def _signature(module: Any, how: Any = "__call__") -> inspect.Signature | None:
    """What a call takes; of a list of modules, what any of them takes beside its input."""
    if not isinstance(how, str):
        return signature_of(how, skip=1)
    if how != "__call__" or not isinstance(module, list):
        return signature_of(getattr(module, how))
    found: dict[str, inspect.Parameter] = {}
    for i, inner in enumerate(module):
        signature = _signature(inner)
        first, *others = (
            signature.parameters.values() if signature and signature.parameters else (None,)
        )
        if i == 0 and first is not None:
            found[first.name] = first
        for p in others:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p.replace(kind=p.KEYWORD_ONLY))
    return inspect.Signature(sorted(found.values(), key=lambda p: p.kind))
