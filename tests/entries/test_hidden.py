"""Modules that hide in functions, or in another library's modules: never constants."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import objax
import pytest
from flax import nnx
from jax.example_libraries import stax
from jax.nn import relu

import seqbridge as sb

X = jax.random.normal(jax.random.key(0), (3, 3))


pytestmark = pytest.mark.usefixtures("usual_promotion")  # which the libraries' own code needs


def _dense() -> keras.layers.Dense:
    layer = keras.layers.Dense(3)
    layer.build(X.shape)
    return layer


MODULES: dict[str, Callable[[], Any]] = {
    "linen": lambda: nn.Dense(3),
    "equinox": lambda: eqx.nn.Linear(3, 3, key=jax.random.key(0)),
    "nnx": lambda: nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
    "keras": _dense,
    "objax": lambda: objax.nn.Linear(3, 3),
    "stax": lambda: stax.Dense(3),
}
MODULES_THAT_CAN_BE_MADE_AGAIN = ("equinox", "nnx")

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "vmap": jax.vmap,
    "checkpoint": lambda m: jax.checkpoint(lambda x: m(x)),
    "closure": lambda m: lambda x: m(x),
    "default": lambda m: lambda x, m=m: m(x),
    "partial": lambda m: functools.partial(lambda m, x: m(x), m),
    "list": lambda m: lambda x, parts=[m]: parts[0](x),
    "jit": jax.jit,
    "jit of vmap": lambda m: jax.jit(jax.vmap(m)),
    "jit of a closure": lambda m: jax.jit(lambda x: m(x)),
    "grad": lambda m: jax.grad(lambda x: m(x).sum()),
}
CLOSED = ("jit", "jit of vmap", "jit of a closure")  # what JAX has compiled can't be made again


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_in_a_function_is_lifted_or_refused(name: str, wrap: Callable[[Any], Any]) -> None:
    module = MODULES[name]()
    if name == "stax":
        wrap_of_pair = functools.partial(lambda pair, x: x, module)
        with pytest.raises(TypeError, match="would be lost"):
            sb.Sequential([wrap_of_pair])
        return
    try:
        entry = wrap(module)
        model = sb.Sequential([entry])
    except TypeError as error:
        assert "lost" in str(error) or "hides" in str(error)  # noqa: PT017
        assert name not in MODULES_THAT_CAN_BE_MADE_AGAIN or wrap in [WRAPPERS[n] for n in CLOSED]
        return
    assert name in MODULES_THAT_CAN_BE_MADE_AGAIN
    assert len(model.vars().subset("params")) == 2
    x = X[0] if wrap is not WRAPPERS["vmap"] else X
    np.testing.assert_allclose(model(x, training=True), entry(x), rtol=1e-6)
    grads = sb.grad(lambda model: (model(x) ** 2).sum())(model)
    assert len(grads) == 2
    for variable in model.vars().values():
        variable.assign(jnp.zeros(variable.shape))
    assert float(jnp.abs(model(x)).max()) == 0
    assert float(jnp.abs(entry(x)).max()) > 0


def test_a_bound_method_is_the_modules() -> None:
    class Coder(eqx.Module):
        w: jax.Array

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.w @ x

        def decode(self, x: jax.Array) -> jax.Array:
            return self.w.T @ x

    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(X)

        def __call__(self, x: jax.Array) -> jax.Array:
            return x @ self.w[...]

        def decode(self, x: jax.Array) -> jax.Array:
            return x @ self.w[...].T

    for module, expected in ((Coder(X), X @ X.T @ X), (Tied(), X @ X @ X.T)):
        model = sb.Sequential([module, module.decode])
        assert len(set(model.vars().values())) == 1
        np.testing.assert_allclose(model(X), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: eqx.filter_jit(eqx.nn.Linear(3, 3, key=jax.random.key(0))),
        lambda: eqx.filter_vmap(eqx.nn.Linear(3, 3, key=jax.random.key(0))),
        lambda: eqx.filter_checkpoint(eqx.nn.Linear(3, 3, key=jax.random.key(0))),
        lambda: eqx.nn.Lambda(eqx.nn.Linear(3, 3, key=jax.random.key(0))),
        lambda: nnx.remat(nnx.Linear(3, 3, rngs=nnx.Rngs(0))),
        lambda: functools.partial(eqx.nn.Linear(3, 3, key=jax.random.key(0)), key=None),
    ],
)
def test_what_a_library_wraps_by_itself_is_lifted(make: Callable[[], Any]) -> None:
    model = sb.Sequential([make()])
    assert len(model.vars().subset("params")) == 2
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert all(np.abs(g).sum() > 0 for g in grads.values())


@pytest.mark.parametrize(
    "module",
    [
        lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
        lambda: eqx.nn.Dropout(0.5),
        lambda: eqx.nn.BatchNorm(3, "batch", mode="batch"),
    ],
)
def test_a_module_with_a_mode_is_out_of_reach_in_a_function(module: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="parameters, mode and keys of that module would be lost"):
        sb.Sequential([jax.vmap(module())])


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "linen": lambda f: nn.Sequential([nn.Dense(3), f]),
    "linen nested": lambda f: nn.Sequential([nn.Sequential([f])]),
    "haiku transform": lambda f: hk.transform(lambda x: f(hk.Linear(3)(x))),
    "haiku class": lambda f: functools.partial(hk.Sequential, [f]),
    "nnx": lambda f: nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), f),
    "equinox": lambda f: eqx.nn.Sequential([eqx.nn.Lambda(f)]),
    "stax": lambda f: stax.serial(stax.Dense(3), stax.elementwise(f)),
    "keras": lambda f: keras.layers.Lambda(f),
    "objax": lambda f: objax.nn.Sequential([objax.nn.Linear(3, 3), f]),
}


# Equinox' own word on it.
@pytest.mark.filterwarnings("ignore:\\s*Possibly assigning a JAX-transformed callable")
@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("wrap", [jax.vmap, jax.jit, lambda m: lambda x: m(x)])
@pytest.mark.parametrize("name", ["equinox", "nnx", "objax"])
def test_a_module_in_another_librarys_module_is_refused(
    name: str, wrap: Callable[[Any], Any], hold: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=r"holds a Linear .* its parameters would be constants"):
        sb.Sequential([hold(wrap(MODULES[name]()))])


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize(
    "function", [jnp.tanh, jax.jit(jnp.tanh), lambda x: x * 2, functools.partial(jnp.clip, min=0)]
)
def test_functions_without_modules_are_welcome_there(
    function: Any, hold: Callable[[Any], Any]
) -> None:
    assert sb.Sequential([hold(function)]).build(X.shape)(X).shape == (3, 3)


LINEAR = eqx.nn.Linear(3, 2, key=jax.random.key(0))
MAPPED, COMPILED, BOUND = (
    jax.vmap(LINEAR),
    jax.jit(LINEAR),
    functools.partial(lambda module, x: module(x), LINEAR),
)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("MAPPED", lambda x: MAPPED(x)),
        ("COMPILED", lambda x: jnp.tanh(COMPILED(x))),
        ("BOUND", lambda x: BOUND(x) + 1),
    ],
)
def test_a_module_in_a_function_among_the_globals_is_refused(
    name: str, function: Callable[[Any], Any]
) -> None:
    with pytest.raises(
        TypeError, match=rf"uses {name}, which holds a Linear \(equinox\).*Put {name} into the list"
    ):
        sb.Sequential([function])(X if name == "MAPPED" else X[0])


def test_functions_among_the_globals_that_hold_none_are_welcome() -> None:
    assert float(sb.Sequential([lambda x: FACTORED(x) + relu(x)])(1.0)) == 3.0


FACTORED = functools.partial(lambda factor, x: factor * x, 2.0)


# What a function reads of what is around it

norm, dropout, model, softmax = (
    nn.LayerNorm(),
    nn.Dropout(0.5),
    sb.Sequential([nn.Dense(3)]),
    lambda x: LINEAR(x),
)
CONFIG = types.SimpleNamespace(dropout=0.5, model=types.SimpleNamespace(width=2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / jnp.linalg.norm(x),
        lambda x: x * CONFIG.dropout / CONFIG.model.width,
        lambda x: jax.nn.softmax(x),
        lambda x: x - x.mean() if x.ndim else x.dropout,
        lambda x: x * norm.epsilon * LINEAR.in_features,
    ],
)
def test_attributes_and_constants_that_are_called_like_a_global_are_none(
    function: Callable[[Any], Any],
) -> None:
    entry = sb.Sequential([function, hk.transform(function)]).build(X.shape)
    assert not entry.vars()
    assert jnp.allclose(entry(X), function(function(X)))


def test_variables_of_a_function_that_are_called_like_a_global_are_none() -> None:
    def centred(x: jax.Array) -> jax.Array:
        norm = x.mean()
        return (lambda y: y - norm)(x)

    def closed(norm: float) -> Callable[[Any], Any]:
        return lambda x: x * norm

    for function in (centred, closed(2.0)):
        assert jnp.allclose(
            sb.Sequential([function, hk.transform(function)])(X), function(function(X))
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: norm(x) / jnp.linalg.norm(x),
        lambda x: softmax(x),
        lambda x: x @ LINEAR.weight,
        lambda x: model[0](x),
        lambda x: [layer(x) for layer in [norm]],
    ],
)
def test_globals_that_are_used_as_modules_are_refused_beside_them(
    function: Callable[[Any], Any],
) -> None:
    with pytest.raises(Exception, match=r"(hold|use)s .*(would be|lost)"):
        sb.Sequential([function])(X)


class Agent:
    """Holds models, and functions that read something else of it."""

    def __init__(self) -> None:
        self.scale, self.shift, self.key = 2.0, jnp.ones((1, 3)), jax.random.key(0)
        self.policy = sb.Sequential([nn.Dense(3), lambda x: x * self.scale]).build(X.shape)
        self.value = sb.Sequential([nn.Dense(3), lambda x: x * self.scale, self.shifted]).build(
            X.shape
        )

    def shifted(self, x: jax.Array) -> jax.Array:
        return x + self.shift

    def judged(self, x: jax.Array) -> jax.Array:
        return self.policy(x)

    def whole(self, x: jax.Array) -> jax.Array:
        return max([self], key=id).shift + x


def test_of_an_object_only_what_is_read_counts() -> None:
    agent = Agent()
    shift = agent.value[2]["shift"]
    shift.assign(jnp.zeros((1, 3)))
    assert jnp.array_equal(agent.value(X), agent.value[0](X) * 2)
    assert jnp.array_equal(agent.shift, jnp.ones((1, 3)))  # the object is as it was
    assert len(copy.deepcopy(agent).value.vars()) == 3
    with pytest.raises(TypeError, match="a Sequential: its variables would be lost"):
        sb.Sequential([agent.judged]).build(X.shape)
    whole = sb.Sequential([agent.whole])
    assert jnp.array_equal(whole(X), X + 1)
    whole[0]["shift"].assign(jnp.zeros((1, 3)))
    assert jnp.array_equal(whole(X), X)


@dataclasses.dataclass(frozen=True)
class Table:
    rows: jax.Array
    name: str = "rows"


@pytest.mark.parametrize("make", [Table, lambda rows: types.SimpleNamespace(rows=rows)])
def test_an_array_of_a_record_is_lifted(make: Callable[..., Any]) -> None:
    table = make(jnp.ones((1, 3)))
    learned = sb.Sequential([lambda x: x * table.rows])
    learned[0]["table.rows"].assign(jnp.full((1, 3), 3.0))
    assert jnp.array_equal(learned(X), X * 3)
    assert float(table.rows.sum()) == 3.0


def test_pure_calls_of_a_module_take_their_parameters() -> None:
    def linen() -> tuple[Any, Any]:
        net = nn.Dense(2)
        return net, net.init(jax.random.key(0), X)

    def haiku() -> tuple[Any, Any]:
        net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x)))
        return net, net.init(jax.random.key(0), X)

    for net, params in (linen(), haiku()):
        for function in (_closed(net, params), functools.partial(net.apply, params)):
            learned = sb.Sequential([function])
            assert len(learned.vars()) == 2
            assert jnp.array_equal(learned(X), net.apply(params, X))


def _closed(net: Any, params: Any) -> Any:
    return lambda x: net.apply(params, x)


def test_what_is_frozen_is_a_constant_wherever_it_stands() -> None:
    teacher = sb.freeze(sb.Sequential([nn.Dense(3)]).build(X.shape))
    for student in (teacher, lambda x: teacher(x), functools.partial(lambda f, x: f(x), teacher)):
        assert not sb.Sequential([student]).vars()
        assert jnp.allclose(sb.Sequential([student])(X), teacher(X))


def test_a_compiled_function_with_an_array_is_a_layer_with_a_parameter() -> None:
    def scaled(w: jax.Array) -> Any:
        return sb.jit(lambda x: x * w)

    entry = sb.Sequential([scaled(jnp.ones((1, 3)))]).build(X.shape)
    assert list(entry.vars()) == ["(Sequential)[0](<lambda>).w"]
    entry[0].w.assign(jnp.full((1, 3), 2.0))
    for call in (entry, sb.jit(entry)):
        assert jnp.array_equal(call(X), X * 2)
    assert jnp.allclose(
        next(iter(sb.grad(lambda m: m(X).sum())(entry).values())),
        X.sum(0, keepdims=True),
        atol=1e-6,
    )
    other = sb.Sequential([nn.Dense(3)]).build(X.shape)
    with pytest.raises(TypeError, match="a Sequential: its variables would be lost"):
        sb.Sequential([sb.jit(lambda x: other(x), vars=other)])


class Pair(NamedTuple):
    w: jax.Array
    n: int = 2


def test_what_a_container_holds_is_lifted_however_it_is_read() -> None:
    def closed() -> list[Callable[[Any], Any]]:
        parts, row = {"w": jnp.ones((1, 3))}, [jnp.ones((1, 3))]
        pair = Pair(jnp.ones((1, 3)))
        return [
            lambda x: x * sum(w for _, w in parts.items()),
            lambda x: x * parts.get("w"),
            lambda x: x * row.copy()[0],
            lambda x: x * pair.w,
            lambda x: x * pair._asdict()["w"],
        ]

    for function in closed():
        learned = sb.Sequential([function])
        (variable,) = learned.vars().values()
        variable.assign(variable * 0)
        assert not learned(X).any()


def test_no_use_of_an_object_is_overlooked() -> None:
    class Model:
        def __init__(self) -> None:
            self.inner, self.width, self.count = sb.Sequential([nn.Dense(3)]).build(X.shape), 3, 0

        def after_a_store(self, x: Any) -> Any:
            y = x * self.width
            return self.inner(y)

        def in_a_loop(self, x: Any) -> Any:
            for layer in self.inner:
                x = layer(x)
            return x

        def in_a_function(self, x: Any) -> Any:
            return jax.vmap(lambda y: self.inner(y) * self.width)(x)

        def by_itself(self, x: Any) -> Any:
            y = x * self.width
            me = self
            return me.inner(y)

        def by_a_name(self, x: Any) -> Any:
            return getattr(self, "inner")(x) + self.width  # noqa: B009

        def changed(self, x: Any) -> Any:
            self.count += 1
            return self.inner(x)

    class Derived(Model):
        def after_a_store(self, x: Any) -> Any:
            return super().after_a_store(x) * self.width

    with pytest.raises(TypeError, match="a Sequential: its variables would be lost"):
        sb.Sequential([Derived().after_a_store])(X)
    model = Model()
    for name in (
        "after_a_store",
        "in_a_loop",
        "in_a_function",
        "by_itself",
        "by_a_name",
        "changed",
    ):
        with pytest.raises(TypeError, match="a Sequential: its variables would be lost"):
            sb.Sequential([getattr(model, name)]).build(X.shape)


# What an object's methods use

MAPPED_TWICE = jax.vmap(LINEAR)


@jax.jit
def compiled(x: jax.Array) -> jax.Array:
    return MAPPED_TWICE(x)


@functools.wraps(compiled)
def decorated(*args: Any) -> Any:
    return compiled(*args)


class Parts:
    """Uses what is around it, and what its class has."""

    linear = LINEAR
    width = 3

    def __init__(self, shift: jax.Array) -> None:
        self._shift = shift

    @property
    def shift(self) -> jax.Array:
        return self._shift

    def shifted(self, x: Any) -> Any:
        return x + self.shift * self.width

    def helped(self, x: Any) -> Any:
        return self.shifted(x) * 2

    def of_its_class(self, x: Any) -> Any:
        return jax.vmap(self.linear)(x)

    def of_the_globals(self, x: Any) -> Any:
        return MAPPED_TWICE(x)

    def by_a_helper(self, x: Any) -> Any:
        return self.of_the_globals(x)


class Called(Parts):
    def __call__(self, x: Any) -> Any:
        return self.by_a_helper(x)


class Stacked(list[Any]):
    def __call__(self, x: Any) -> Any:
        return x * self[0]


class Private:
    __slots__ = ("__shift",)

    def __init__(self, shift: jax.Array) -> None:
        self.__shift = shift

    def __call__(self, x: Any) -> Any:
        return x + self.__shift


def test_the_methods_that_a_method_calls_are_seen_through() -> None:
    parts = Parts(jnp.ones((1, 3)))
    for function, factor in ((parts.shifted, 1), (parts.helped, 2)):
        learned = sb.Sequential([function])
        (shift,) = learned.vars().values()
        shift.assign(jnp.zeros((1, 3)))
        assert jnp.array_equal(learned(X), X * factor)
    assert float(parts.shift.sum()) == 3.0


@pytest.mark.parametrize("name", ["of_its_class", "of_the_globals", "by_a_helper"])
def test_modules_in_methods_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"would be (lost|constants)"):
        sb.Sequential([getattr(Parts(X), name)]).build(X.shape)


@pytest.mark.parametrize(
    "entry",
    [
        Called(X), Stacked([jnp.ones((1, 3))]),
        lambda x: compiled(x), lambda x: decorated(x),
        (lambda get: lambda x: x * get("w"))({"w": jnp.ones((1, 3))}.get),
        (lambda table: lambda x: x * table[1] * table["1"])({1: 1.0 * X, "1": 2.0 * X}),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_refused(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"(hold|use|hide)s .*(lost|constants|of one name)"):
        sb.Sequential([entry]).build(X.shape)


def test_an_array_in_a_slot_is_lifted() -> None:
    private = Private(jnp.ones((1, 3)))
    learned = sb.Sequential([private])
    (shift,) = learned.vars().values()
    shift.assign(jnp.zeros((1, 3)))
    assert jnp.array_equal(learned(X), X)
    assert jnp.array_equal(private(X), X + 1)


def test_a_method_that_closes_over_an_array() -> None:
    row = jnp.ones((1, 3))

    class Scale:
        def scaled(self, x: Any) -> Any:
            return x * row

        def __call__(self, x: Any) -> Any:
            return x * row

    learned = sb.Sequential([Scale().scaled])
    learned[0]["row"].assign(row * 3)
    assert jnp.array_equal(learned(X), X * 3)
    with pytest.raises(TypeError, match="hides 1 arrays"):
        sb.Sequential([Scale()]).build(X.shape)


class Single:
    """There is one of it."""

    def __init__(self, row: jax.Array) -> None:
        self.row = row

    def __copy__(self) -> Single:
        return self

    def __call__(self, x: Any) -> Any:
        return x * self.row


def test_an_object_whose_copy_is_itself_is_left_as_it_is() -> None:
    single = Single(jnp.ones((1, 3)))
    learned = sb.Sequential([single])
    learned[0]["row"].assign(jnp.zeros((1, 3)))
    assert not learned(X).any()
    assert float(single.row.sum()) == 3.0


class Described:
    """A layer that reads its array by descriptors, which a function's code doesn't show."""

    def __init__(self) -> None:
        self.row = jnp.ones((1, 3))

    @functools.cached_property
    def doubled(self) -> jax.Array:
        return self.row * 2

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(self, x: Any) -> Any:
        return x * self.row

    @sb.jit
    def ours(self, x: Any) -> Any:
        return x * self.row

    @functools.partial(jax.jit, static_argnums=0)
    def with_a_module(self, x: Any) -> Any:
        return MAPPED_TWICE(x)

    def by_a_property(self, x: Any) -> Any:
        return x * self.doubled

    def by_a_compiled_method(self, x: Any) -> Any:
        return self.compiled(x)

    def by_one_of_ours(self, x: Any) -> Any:
        return self.ours(x)

    def by_one_with_a_module(self, x: Any) -> Any:
        return self.with_a_module(x)


@pytest.mark.parametrize("name", ["by_a_property", "by_a_compiled_method", "by_one_of_ours"])
def test_what_descriptors_read_of_an_object_is_lifted(name: str) -> None:
    described = Described()
    learned = sb.Sequential([getattr(described, name)])
    (row,) = learned.vars().values()
    factor = 2 if name == "by_a_property" else 1
    for call in (learned, sb.jit(learned)):
        row.assign(jnp.ones((1, 3)))
        assert jnp.array_equal(call(X), X * factor)
        row.assign(jnp.full((1, 3), 3.0))
        assert jnp.array_equal(call(X), X * 3 * factor)
    (gradient,) = sb.grad(lambda model: model(X).sum())(learned).values()
    np.testing.assert_allclose(gradient, X.sum(0, keepdims=True) * factor, rtol=1e-5)
    assert jnp.array_equal(described.row, jnp.ones((1, 3)))
    assert vars(described).keys() == {"row"}  # no tracer stays in the object


def test_a_module_that_a_descriptor_reads_is_refused() -> None:
    with pytest.raises(TypeError, match="which holds a Linear"):
        sb.Sequential([Described().by_one_with_a_module]).build(X.shape)
