"""A key with a dot in it makes no two variables one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import seqbridge as sb
from helpers import assert_close, assert_same

X = jnp.ones((2, 4))
THREE, ONE = jnp.full(4, 3.0), jnp.full(4, 1.0)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x * self.param("c", nn.initializers.constant(3.0), (4,))[None]


class LinenDots(nn.Module):
    """Has a parameter `b.c` beside a module `b` with a parameter `c`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return Inner(name="b")(x) + self.param("b.c", nn.initializers.constant(1.0), (4,))[None]


class EquinoxDots(eqx.Module):
    """Has a dict with such keys."""

    table: dict[str, Any]

    def __init__(self) -> None:
        self.table = {"b": {"c": THREE}, "b.c": ONE}

    def __call__(self, x: Any) -> Any:
        return x * self.table["b"]["c"] + self.table["b.c"]


class NnxDots(nnx.Module):
    """Has a dict with such keys."""

    def __init__(self) -> None:
        self.table = nnx.Dict({"b": nnx.Dict({"c": nnx.Param(THREE)}), "b.c": nnx.Param(ONE)})

    def __call__(self, x: Any) -> Any:
        return x * self.table["b"]["c"][...][None] + self.table["b.c"][...][None]


def function_with_dots() -> Callable[[Any], Any]:
    table = {"b": {"c": THREE}, "b.c": ONE}

    def run(x: Any) -> Any:
        return x * table["b"]["c"][None] + table["b.c"][None]

    return run


ENTRIES: dict[str, Callable[[], Any]] = {
    "linen": LinenDots,
    "equinox": EquinoxDots,
    "nnx": NnxDots,
    "function": function_with_dots,
}


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return ENTRIES[request.param]


def made(entry: Callable[[], Any]) -> sb.Sequential:
    return sb.Sequential([entry()]).build((2, 4))


def changed(entry: Callable[[], Any]) -> sb.Sequential:
    """A model whose two parameters are 5 and 9."""
    model = made(entry)
    for variable in model.vars().values():
        variable.assign(jnp.full(4, 5.0 if variable.value[0] == 3.0 else 9.0))
    return model


def loss(model: sb.Sequential) -> jax.Array:
    return (model(2 * X) ** 2).sum()


def test_both_have_names_and_gradients(entry: Callable[[], Any]) -> None:
    model = made(entry)
    assert len(model.vars()) == len(set(model.vars().values())) == 2
    assert sum(name.endswith("b.c") for name in model.vars()) == 1

    def by_hand(three: Any, one: Any) -> Any:
        return ((2 * X * three[None] + one[None]) ** 2).sum()

    expected = jax.grad(by_hand, (0, 1))(THREE, ONE)
    grads = sorted(sb.grad(loss)(model).values(), key=lambda grad: -grad[0])
    assert_close(grads, sorted(expected, key=lambda grad: -grad[0]))


def test_files_and_pickles_keep_both(entry: Callable[[], Any], tmp_path: Path) -> None:
    model = changed(entry)
    model.save(tmp_path / "model.safetensors")
    loaded = made(entry)
    loaded.load(tmp_path / "model.safetensors")
    assert_same(loaded.variables, model.variables)
    with sb.Checkpoint(tmp_path / "run", model=model) as checkpoint:
        checkpoint.save(1)
    restored = made(entry)
    with sb.Checkpoint(tmp_path / "run", model=restored) as checkpoint:
        checkpoint.restore()
    assert_same(restored.variables, model.variables)
    if entry is not function_with_dots:
        assert_same(pickle.loads(pickle.dumps(model)).variables, model.variables)


def test_the_pure_form_and_exports_keep_both(entry: Callable[[], Any]) -> None:
    model = changed(entry)
    out, after = model.apply(model.variables, X)
    assert_close(out, model(X))
    assert_same(after, model.variables)
    for export in (sb.to_pure, sb.to_linen):
        module = export(model)
        variables = module.init(jax.random.key(0), X)
        assert_close(jax.tree.leaves(module.apply(variables, X))[0], model(X))
        home = made(entry)
        sb.from_native(home, variables)
        assert_same(home.variables, model.variables)
    home = made(entry)
    home[0].load_native(model[0].native)
    assert_same(home.variables, model.variables)
