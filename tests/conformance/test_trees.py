"""Objects that JAX knows as trees are layers with their arrays as parameters."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import pytest

import seqbridge as sb
from helpers import assert_close, assert_same

X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
W = jnp.arange(4.0) + 1
B = jnp.ones(4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Affine:
    """A dataclass that is registered with JAX."""

    w: Any
    rest: dict[str, Any]
    power: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, x: Any) -> Any:
        return (x * self.w[None] + self.rest["b"][0][None]) ** self.power


@chex.dataclass(eq=False)
class ChexAffine:
    """The same by chex."""

    w: Any
    rest: Any

    def __call__(self, x: Any) -> Any:
        return x * self.w[None] + self.rest["b"][0][None]


CHEX_AFFINE: Any = ChexAffine  # a type checker knows nothing of its constructor


class FlaxAffine(flax.struct.PyTreeNode):
    """The same by Flax."""

    w: Any
    rest: Any
    power: int = flax.struct.field(pytree_node=False, default=1)

    def __call__(self, x: Any) -> Any:
        return (x * self.w[None] + self.rest["b"][0][None]) ** self.power


@jax.tree_util.register_pytree_node_class
class Registered:
    """A class with a flattening of its own, which its constructor doesn't fit."""

    def __init__(self, size: int):
        self.w, self.rest = W[:size], {"b": [B[:size]]}
        self.note = "made"

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.w, self.rest), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Registered:
        made = object.__new__(cls)
        made.w, made.rest = children
        return made

    def __call__(self, x: Any) -> Any:
        return x * self.w[None] + self.rest["b"][0][None]


class TupleAffine(NamedTuple):
    """A named tuple that can be called."""

    w: Any
    rest: Any

    def __call__(self, x: Any) -> Any:
        return x * self.w[None] + self.rest["b"][0][None]


TREES: dict[str, Callable[[], Any]] = {
    "a registered dataclass": lambda: Affine(w=W, rest={"b": [B]}),
    "a power of one": lambda: Affine(w=W, rest={"b": [B]}, power=2),
    "chex": lambda: CHEX_AFFINE(w=W, rest={"b": [B]}),
    "flax.struct": lambda: FlaxAffine(w=W, rest={"b": [B]}),
    "a registered class": lambda: Registered(4),
    "a named tuple": lambda: TupleAffine(W, {"b": [B]}),
}


def holding(tree: Any) -> dict[str, Any]:
    """Entries that hold a tree."""
    return {
        "itself": tree,
        "a closure": lambda x: tree(x),
        "a partial": partial(lambda x, tree: tree(x), tree=tree),
        "a list": (lambda trees: lambda x: trees[0](x))([tree]),
        "vmap": jax.vmap(lambda x: tree(x[None])[0]),
    }


def leaves(values: Any) -> list[Any]:
    return sorted(jax.tree.leaves(values), key=lambda leaf: float(leaf.sum()))


@pytest.mark.parametrize("held", holding(None))
@pytest.mark.parametrize("name", TREES)
def test_outputs_and_gradients_are_those_of_the_tree(name: str, held: str) -> None:
    tree = TREES[name]()
    model = sb.Sequential([holding(tree)[held]]).build((None, 4))
    assert len(model.vars()) == 2
    assert_close(model(X), tree(X))

    def by_hand(arrays: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(tree), arrays)(X).sum()

    expected = jax.grad(by_hand)(jax.tree.leaves(tree))
    assert_close(leaves(sb.grad(lambda model: model(X).sum())(model)), leaves(expected))


@pytest.mark.parametrize("name", TREES)
def test_it_is_a_layer_like_any_other(name: str) -> None:
    tree = TREES[name]()
    model = sb.Sequential([tree]).build((None, 4))
    shown = [name.rpartition(")")[2] for name in model.vars()]
    # The flattening of the registered class says no names.
    w = "0" if name == "a registered class" else "w"
    assert shown == ([".0", ".1.b.0"] if w == "0" else [".rest.b.0", ".w"])
    model[0][w].assign(2 * W)
    values = jax.tree.leaves(tree)
    doubled = [2 * value if value is W or value.sum() == W.sum() else value for value in values]
    expected = jax.tree.unflatten(jax.tree.structure(tree), doubled)(X)
    assert_close(model(X), expected)
    assert_close(sb.jit(lambda model: model(X))(model), expected)
    assert_close(sb.freeze(model)(X), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(other.variables, model.variables)
        assert_close(other(X), expected)
    module = sb.to_linen(model)
    assert_close(module.apply(module.init(jax.random.key(0), X), X), expected)
    assert float(tree.w[0]) == 1.0  # it stays as it was
