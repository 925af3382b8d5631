"""What a call sets on an object of the user's is there afterwards, as when it is called by hand."""

from __future__ import annotations

import collections
import functools
import threading
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb
from helpers import assert_close

X = jax.random.normal(jax.random.key(0), (2, 4))


class Plain:
    """Sets numbers, arrays and entries of a list, and holds no array."""

    def __init__(self) -> None:
        self.calls, self.last, self.shapes = 0, None, []

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.last = 2 * x
        self.shapes.append(x.shape)
        return self.last


class WithWeight(Plain):
    """Holds an array, too."""

    def __init__(self) -> None:
        super().__init__()
        self.w = jnp.full((1, 4), 2.0)

    def __call__(self, x: Any) -> Any:
        return super().__call__(x * self.w / 2) * 2


class Slots:
    """Keeps its attributes in slots."""

    __slots__ = ("calls", "last", "shapes", "w")

    def __init__(self) -> None:
        self.calls, self.last, self.shapes = 0, None, []
        self.w = jnp.full((1, 4), 2.0)

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.last = x * self.w
        self.shapes.append(x.shape)
        return 2 * self.last


@chex.dataclass
class Tree:
    """A tree of JAX."""

    w: jax.Array
    calls: Any = 0
    last: Any = None

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.last = x * self.w
        return self.last


WAYS = {
    "the object": lambda obj: obj,
    "its method": lambda obj: obj.__call__,
    "a partial": lambda obj: functools.partial(obj),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [Plain, WithWeight, Slots])
def test_what_a_call_sets_is_what_it_sets_by_hand(cls: Any, way: str) -> None:
    mine, by_hand = cls(), cls()
    model = sb.Sequential([WAYS[way](mine)]).build((2, 4))
    assert mine.calls == 0
    assert mine.last is None
    for x in (X, X + 1, X[:1]):
        assert_close(model(x), by_hand(x))
        assert_close(mine.last, by_hand.last)
        assert (mine.calls, mine.shapes) == (by_hand.calls, by_hand.shapes)


def test_a_tree_keeps_what_a_call_sets() -> None:
    mine = Tree(w=jnp.full((1, 4), 2.0))
    model = sb.Sequential([mine])
    assert_close(model(X), 2 * X)
    assert_close(mine.last, 2 * X)
    assert mine.calls == 1


@pytest.mark.parametrize("cls", [Plain, WithWeight])
def test_a_trace_leaves_nothing_in_it(cls: Any) -> None:
    mine = cls()
    model = sb.Sequential([mine])
    sb.jit(lambda model, x: model(x))(model, X)
    sb.grad(lambda model, x: model(x).sum())(sb.Sequential([mine, lambda x, w=X[:1]: x * w]), X)
    jax.eval_shape(lambda x: model.apply(model.init(0, x), x), X)
    model.summary((2, 4))
    assert (mine.calls, mine.last, mine.shapes) == (0, None, [])


class Average:
    def __init__(self) -> None:
        self.mean = jnp.zeros((1, 4))

    def __call__(self, x: Any) -> Any:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0, keepdims=True)
        return x - self.mean


class History:
    def __init__(self) -> None:
        self.seen = [jnp.zeros((1, 4))]

    def __call__(self, x: Any) -> Any:
        self.seen.append(x)
        return x - self.seen[0]


@pytest.mark.parametrize(("cls", "name"), [(Average, "mean"), (History, "seen")])
def test_a_call_that_sets_parameters_is_refused(cls: Any, name: str) -> None:
    model = sb.Sequential([cls()])
    with pytest.raises(TypeError, match=rf"{cls.__name__} sets self.{name} in a call"):
        model(X)
    inner = cls()
    with pytest.raises(TypeError, match=rf"<lambda> sets inner.{name} in a call"):
        sb.Sequential([lambda x: inner(x)])(X)


class Derived:
    def __init__(self) -> None:
        self.w = jnp.full((1, 4), 2.0)

    @functools.cached_property
    def twice(self) -> Any:
        return 2 * self.w

    def __call__(self, x: Any) -> Any:
        return x * self.twice


def test_a_cached_property_follows_the_parameters() -> None:
    model = sb.Sequential([Derived()])
    assert_close(model(X), 4 * X)
    model[0].w.assign(jnp.ones((1, 4)))
    assert_close(model(X), 2 * X)
    (grad,) = sb.grad(lambda model: model(X).sum())(model).values()
    assert_close(grad, 2 * X.sum(0, keepdims=True))


class Lazy:
    table: Any = None

    def __call__(self, x: Any) -> Any:
        if self.table is None:
            self.table = jnp.full((1, 4), 3.0)
        return x * self.table


def test_a_table_that_a_call_makes_is_made_in_each_trace() -> None:
    lazy = Lazy()
    model = sb.Sequential([lazy])
    compiled = sb.jit(lambda model, x: model(x))
    assert_close(compiled(model, X), 3 * X)
    assert lazy.table is None
    assert_close(model(X), 3 * X)
    assert lazy.table is not None
    lazy.table = None
    assert_close(model(X), 3 * X)
    program = jax.make_jaxpr(lambda x: model.apply(model.variables, x)[0])(X)
    assert not program.consts
    assert_close(compiled(model, X[:1]), 3 * X[:1])


class OfClass:
    w = jnp.full((1, 4), 2.0)

    def __call__(self, x: Any) -> Any:
        return x * self.w


class OfBase(OfClass):
    pass


@pytest.mark.parametrize("entry", [OfClass(), OfBase(), OfClass().__call__, lambda x: x * OfBase.w])
def test_an_array_of_a_class_is_refused(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"hides 1 arrays, .*w\).*attribute of the object"):
        sb.Sequential([entry])(X)


class Parts:
    """Reads its arrays in ways that a look at its code may miss."""

    def __init__(self) -> None:
        self.queue = collections.deque([jnp.full((1, 4), 2.0)], maxlen=1)
        self.w = jnp.full((1, 4), 3.0)

    def _times(self, x: Any, factor: float) -> Any:
        return x * self.w * factor

    by_two = functools.partialmethod(_times, factor=2.0)

    def __call__(self, x: Any) -> Any:
        return self.by_two(x) * self.queue[0]


def test_deques_and_partial_methods_are_seen() -> None:
    model = sb.Sequential([Parts()])
    assert_close(model(X), 12 * X)
    assert sorted(model[0].vars()) == ["queue.0", "w"]
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert all(np.abs(grad).sum() > 0 for grad in grads.values())


class Counted:
    def __init__(self) -> None:
        self.w, self.n = jnp.arange(1.0, 5.0), 0

    def __call__(self, x: Any) -> Any:
        self.n += 1
        return x * self.w[None] * self.n


class Twice:
    """Holds one object, and one array, at two places."""

    def __init__(self) -> None:
        self.first = Counted()
        self.second = [self.first]
        self.w = self.first.w

    def __call__(self, x: Any) -> Any:
        return self.second[0](self.first(x)) * self.w[None]


class Inner:
    def __init__(self) -> None:
        self.last, self.n = None, 0

    def __call__(self, x: Any) -> Any:
        self.n += 1
        self.last = x
        return jnp.tanh(x) * self.n


class Outer:
    def __init__(self, *, w: Any = 2.0) -> None:
        self.w, self.act = w, Inner()

    def __call__(self, x: Any) -> Any:
        return self.act(x * self.w)


class Picky:
    """Is copied and pickled in ways of its own, and holds a lock."""

    def __init__(self, k: float = 2.0) -> None:
        self.w, self.k, self.lock = jnp.full((1, 4), k), {"k": k}, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"w": self.w}

    def __reduce__(self) -> Any:
        return type(self), (0.0,)

    def __copy__(self) -> Any:
        return self

    def __call__(self, x: Any) -> Any:
        with self.lock:
            return x * self.w * self.k["k"]


def in_a_closure(obj: Any) -> Any:
    return lambda x: obj(x)


HELD = {
    "twice": Twice,
    "inner": Outer,
    "inner with an array": lambda: Outer(w=jnp.full((1, 4), 2.0)),
    "picky": Picky,
}


@pytest.mark.parametrize(
    "way", [lambda obj: obj, functools.partial, in_a_closure, lambda obj: obj.__call__]
)
@pytest.mark.parametrize("name", HELD)
def test_objects_that_hold_objects_do_what_they_do_by_hand(name: str, way: Any) -> None:
    mine, by_hand = HELD[name](), HELD[name]()
    model = sb.Sequential([way(mine)]).build((2, 4))
    for _ in range(3):
        assert_close(model(X), by_hand(X))
    sb.jit(lambda model: model(X))(model)
    if name.startswith("inner"):
        assert mine.act.n == by_hand.act.n
        assert_close(mine.act.last, by_hand.act.last)


def test_what_is_held_twice_is_one_parameter() -> None:
    model = sb.Sequential([Twice()])
    (variable,) = model.vars().values()
    w = variable.value

    def by_hand(w: Any) -> Any:
        return (X * w[None] * w[None] * 2 * w[None]).sum()

    (grad,) = sb.grad(lambda model: model(X).sum())(model).values()
    assert_close(grad, jax.grad(by_hand)(w))
    pair = sb.Sequential([lambda x, a=w, b=w: x * a[None] + b[None], lambda x: x * w[None]])
    assert len(pair.vars().tensors()) == 1
    (grad,) = sb.grad(lambda model: model(X).sum())(pair).values()
    assert_close(grad, jax.grad(lambda w: ((X * w[None] + w[None]) * w[None]).sum())(w))


def test_an_object_may_hold_itself() -> None:
    class Me(Counted):
        def __call__(self, x: Any) -> Any:
            self.me = self
            return super().__call__(x)

    mine = Me()
    sb.Sequential([mine])(X)
    assert mine.me is mine
    assert mine.n == 1
