"""Arrays that a function uses and doesn't hold: the trace finds them wherever they hide."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqbridge as sb

X = jnp.arange(1.0, 7.0).reshape(2, 3)
ROW = jnp.array([[1.0, 2.0, 3.0]])  # a global, and so a constant
INDICES = jnp.array([2, 0, 1])
COLUMNS = types.SimpleNamespace(order=INDICES + 0)
CONFIG = types.SimpleNamespace(row=ROW + 0, other=types.SimpleNamespace(row=ROW + 1))
TABLES = {"row": ROW + 2}
LINEAR = eqx.nn.Linear(3, 3, key=jax.random.key(0))


class Lookup:
    row = ROW + 3

    @property
    def doubled(self) -> jax.Array:
        return 2 * self.row

    def __call__(self, x: Any) -> Any:
        return x * self.doubled


class Settings:
    """Reads an array that is neither in the object nor in its class."""

    def __getattr__(self, name: str) -> Any:
        if name == "row":
            return CONFIG.row
        raise AttributeError(name)


SETTINGS = Settings()


@functools.lru_cache
def cached() -> jax.Array:
    return jnp.full((1, 3), 4.0)


cached()


def helper(x: Any) -> Any:
    return x * CONFIG.row


compiled = jax.jit(helper)
lookup = Lookup()


def of_a_closure() -> Callable[[Any], Any]:
    row = ROW + 4
    return jax.jit(lambda x: x * row)


CLOSED = of_a_closure()
KEYS = types.SimpleNamespace(key=jax.random.key(1))

HIDDEN: dict[str, tuple[Callable[..., Any], str]] = {
    "a class": (lambda x: x * Lookup.row, r"float32\[1,3\] \(Lookup\.row\)"),
    "an instance": (lambda x: lookup(x), r"float32\[1,3\] \(lookup\.row\)"),
    "a callable object's class": (Lookup(), r"float32\[1,3\] \(self\.row\)"),
    "a global object": (lambda x: x * CONFIG.row, r"float32\[1,3\] \(CONFIG\.row\)"),
    "an object in an object": (lambda x: x * CONFIG.other.row, r"\(CONFIG\.other\.row\)"),
    "a container": (lambda x: x * TABLES["row"], r"\(TABLES\['row'\]\)"),
    "a cache": (lambda x: x * cached(), r"1 arrays, float32\[1,3\]: they would be constants"),
    "an attribute made by hand": (lambda x: x * SETTINGS.row, r"1 arrays, float32\[1,3\]"),
    "a helper": (lambda x: helper(x), r"\(CONFIG\.row\)"),
    "a compiled helper": (lambda x: compiled(x), r"\(CONFIG\.row\)"),
    "a compiled closure": (lambda x: CLOSED(x), r"float32\[1,3\] \(row\)"),
    "jit inside": (lambda x: jax.jit(lambda y: y * CONFIG.row)(x), r"\(CONFIG\.row\)"),
    "vmap inside": (lambda x: jax.vmap(lambda y: y * CONFIG.row[0])(x), r"\(CONFIG\.row\)"),
    "grad inside": (lambda x: jax.grad(lambda y: (y * CONFIG.row).sum())(x), r"\(CONFIG\.row\)"),
    "remat inside": (lambda x: jax.checkpoint(lambda y: y * CONFIG.row)(x), r"\(CONFIG\.row\)"),
    "a loop": (
        lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y * CONFIG.row, x),
        r"\(CONFIG\.row\)",
    ),
    "a branch": (
        lambda x: jax.lax.cond(x.sum() > 0, lambda y: y * CONFIG.row, lambda y: y, x),
        r"\(CONFIG\.row\)",
    ),
    "a module": (lambda x: jax.vmap(LINEAR)(x), "holds LINEAR: .* would be lost"),
    "a weight of a module": (lambda x: x @ LINEAR.weight, "holds LINEAR: .* would be lost"),
    "a key": (
        lambda x: x + jax.random.normal(KEYS.key, x.shape),
        r"key<fry>\[\] \(KEYS\.key\).* key",
    ),
}


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _apply(model: sb.Sequential) -> Any:
    return model.apply(model.variables, X)


RUNS: dict[str, Callable[[sb.Sequential], Any]] = {
    "call": lambda model: model(X),
    "build": lambda model: model.build(X.shape),
    "build of an open batch": lambda model: model.build((None, 3)),
    "apply": _apply,
    "apply, compiled": lambda model: jax.jit(model.apply)(model.variables, X),
    "sb.jit": lambda model: sb.jit(model)(X),
    "jax.grad": lambda model: jax.grad(lambda x: model(x).sum())(X),
    "sb.grad": lambda model: sb.grad(lambda whole: whole(X).sum())(
        sb.Sequential([lambda x, shift=2 * ROW: x + shift, model])
    ),
    "sb.vmap": lambda model: sb.vmap(lambda model, x: model(x), in_axes=(None, 0))(model, X[None]),
    "Repeat": lambda model: sb.Sequential([sb.Repeat(model, 2)]).build(X.shape)(X),
    "nested": lambda model: sb.Sequential([jnp.tanh, model])(X),
    "remat": lambda model: sb.Sequential([sb.remat(sb.Sequential([nn.Dense(3), *model]))])(X),
    "summary": lambda model: model.summary(X.shape),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_hidden_array_is_refused_however_a_model_runs(run: Callable[[Any], Any]) -> None:
    function, words = HIDDEN["a class"]
    with pytest.raises(TypeError, match=words):
        run(sb.Sequential([function]))


@pytest.mark.parametrize(("function", "words"), HIDDEN.values(), ids=HIDDEN)
def test_a_hidden_array_is_refused_wherever_it_hides(
    function: Callable[..., Any], words: str
) -> None:
    for run in (RUNS["call"], RUNS["build"]):
        model = sb.Sequential([function])
        for _ in range(2):  # it isn't forgotten
            with pytest.raises(TypeError, match=words):
                run(model)


def test_an_edit_that_brings_a_hidden_array_changes_nothing() -> None:
    model = sb.Sequential([nn.Dense(3)]).build(X.shape)
    with pytest.raises(TypeError, match=r"Lookup\.row"):
        model.append(lambda x: x * Lookup.row)
    assert len(model) == 1
    assert model(X).shape == X.shape


def test_a_branch_that_a_keyword_takes_is_looked_at() -> None:
    def scale(x: Any, *, learned: bool = False) -> Any:
        return x * CONFIG.row if learned else 2 * x

    model = sb.Sequential([scale])
    for _ in range(2):
        assert jnp.array_equal(model(X), 2 * X)
        with pytest.raises(TypeError, match=r"CONFIG\.row"):
            model(X, learned=True)

    def in_training(x: Any, training: bool) -> Any:
        return x * CONFIG.row if training else 2 * x

    model = sb.Sequential([in_training])
    assert jnp.array_equal(model(X, training=False), 2 * X)
    with pytest.raises(TypeError, match=r"CONFIG\.row"):
        model(X, training=True)


def test_a_model_is_named_with_its_variable() -> None:
    inner = sb.Sequential([nn.Dense(3)]).build(X.shape)
    holder = types.SimpleNamespace(inner=inner)
    with pytest.raises(TypeError, match=r"holder\.inner, a Sequential.*\.bias, float32\[3\], say"):
        sb.Sequential([lambda x: holder.inner(x)])(X)


def test_modules_among_the_globals_of_a_transform_are_refused_when_they_are_used() -> None:
    used = hk.transform(lambda x: jax.vmap(LINEAR)(hk.Linear(3)(x)))
    with pytest.raises(TypeError, match=r"holds a Linear \(equinox\) in a function"):
        sb.Sequential([used])(X)
    named = hk.transform(lambda x: hk.Linear(LINEAR.out_features)(x))
    assert sb.Sequential([named])(X).shape == (2, 3)


def test_gradients_of_what_was_refused_and_is_given_as_the_message_says() -> None:
    given = sb.Sequential([lambda x, row=CONFIG.row: x * row])
    (gradient,) = sb.grad(lambda model: model(X).sum())(given).values()
    np.testing.assert_allclose(gradient, X.sum(0, keepdims=True))
    row = np.asarray(CONFIG.row)
    constant = sb.Sequential([lambda x: x * row])
    assert not constant.vars()
    assert jnp.array_equal(constant(X), X * CONFIG.row)


def made_under_evaluation(x: Any) -> Any:
    with jax.ensure_compile_time_eval():
        row = jnp.array([[1.0, 2.0, 3.0]]) * 2
    return x * row


@jax.jit
def made_in_a_compiled_function(x: Any) -> Any:
    return x * jnp.array([[2.0, 4.0, 6.0]])


WELCOME: dict[str, tuple[Callable[..., Any], Any]] = {
    "a list": (lambda x: x * jnp.array([1.0, 2.0, 3.0]), X * ROW),
    "a NumPy array": (lambda x: x * jnp.asarray(np.array([1.0, 2, 3], np.float32)), X * ROW),
    "device_put": (lambda x: x * jax.device_put(np.array([1.0, 2, 3], np.float32)), X * ROW),
    "a range": (lambda x: x * (jnp.arange(3.0) + 1), X * ROW),
    "a number": (lambda x: x * jnp.float32(2), X * 2),
    "an array made at compile time": (made_under_evaluation, X * ROW * 2),
    "one in a compiled function": (lambda x: made_in_a_compiled_function(x), X * ROW * 2),
    "a global": (lambda x: x * ROW, X * ROW),
    "a global, compiled": (lambda x: jax.jit(lambda y: y * ROW)(x), X * ROW),
    "a table of ints": (lambda x: x[:, INDICES], X[:, np.array([2, 0, 1])]),
    "ints of an object": (lambda x: x[:, COLUMNS.order], X[:, np.array([2, 0, 1])]),
}


@pytest.mark.parametrize(("function", "expected"), WELCOME.values(), ids=WELCOME)
def test_constants_are_welcome(function: Callable[..., Any], expected: Any) -> None:
    for run in (lambda model: model, sb.jit):
        model = sb.Sequential([function]).build(X.shape)
        assert not model.vars()
        for _ in range(2):
            np.testing.assert_allclose(run(model)(X), expected, rtol=1e-6)
    np.testing.assert_allclose(_apply(sb.Sequential([function]))[0], expected, rtol=1e-6)


def test_a_table_of_a_library_is_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("a_library_with_a_table")
    exec("def scaled(x): return x * TABLE", vars(library))
    library.TABLE = ROW + 0  # pyright: ignore[reportAttributeAccessIssue]
    scaled = library.scaled
    for function in (scaled, lambda x: scaled(x), jax.jit(scaled)):
        assert jnp.array_equal(sb.Sequential([function])(X), X * ROW)  # of no module that is known
    monkeypatch.setitem(sys.modules, library.__name__, library)
    del scaled.__globals__["__builtins__"]
    assert jnp.array_equal(sb.Sequential([scaled])(X), X * ROW)


class Distilled:
    teacher = sb.freeze(sb.Sequential([nn.Dense(3)]).build(X.shape))


TEACHER = types.SimpleNamespace(model=Distilled.teacher)


@pytest.mark.parametrize(
    "student",
    [
        lambda x: Distilled.teacher(x),
        lambda x: TEACHER.model(x),
        lambda x: jax.vmap(TEACHER.model)(x[:, None])[:, 0],
        lambda x: jax.jit(TEACHER.model)(x),
        lambda x: jax.checkpoint(TEACHER.model)(x),
        lambda x: jax.lax.scan(lambda c, _: (TEACHER.model(x), None), x, length=1)[0],
    ],
)
def test_a_frozen_model_is_a_constant_wherever_it_hides(student: Callable[[Any], Any]) -> None:
    model = sb.Sequential([student]).build(X.shape)
    assert not model.vars()
    np.testing.assert_allclose(model(X), Distilled.teacher(X), rtol=1e-5)
    np.testing.assert_allclose(sb.jit(model)(X), Distilled.teacher(X), rtol=1e-5)


def test_gradients_through_a_frozen_model() -> None:
    model = sb.Sequential([lambda x: jax.grad(lambda y: TEACHER.model(y).sum())(x)])
    expected = jax.grad(lambda y: Distilled.teacher(y).sum())(X)
    np.testing.assert_allclose(model(X), expected, rtol=1e-5)


def test_values_of_a_transform_around_are_no_constants() -> None:
    def loss(row: jax.Array) -> jax.Array:
        holder = types.SimpleNamespace(row=row)
        inside = sb.Sequential([lambda x: x * max([holder], key=id).row])
        return inside(X).sum()

    np.testing.assert_allclose(jax.grad(loss)(ROW), X.sum(0, keepdims=True), rtol=1e-6)
    assert float(jax.jit(loss)(ROW)) == float((X * ROW).sum())


def test_what_cannot_be_traced_runs() -> None:
    def concrete(x: Any) -> Any:
        return x * 2 if float(x.sum()) > 0 else x

    model = sb.Sequential([concrete])
    for _ in range(2):
        assert jnp.array_equal(model(X), X * 2)
        assert jnp.array_equal(model(-X), -X)


def test_an_error_names_the_module_beside_it() -> None:
    with pytest.raises(ZeroDivisionError, match=r"holds LINEAR: .*Put the module into the list"):
        sb.Sequential([lambda x: LINEAR if x is None else 1 / 0])(X)
    with pytest.raises(ZeroDivisionError) as caught:
        sb.Sequential([lambda x: 1 / 0])(X)
    assert not any("would be" in note for note in caught.value.__notes__)


BUILT = sb.Sequential([nn.Dense(3)]).build(X.shape)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: BUILT(x) if float(x.sum()) > 0 else x, "holds BUILT, a Sequential"),
        (lambda x: jax.vmap(LINEAR)(x) if float(x.sum()) > 0 else x, "holds LINEAR"),
    ],
)
def test_what_cannot_be_traced_is_asked_by_its_names(function: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        sb.Sequential([function])(X)


class Holder:
    """Holds a module, a model and arrays, of which each method uses some."""

    def __init__(self) -> None:
        self.linear = eqx.nn.Linear(3, 3, key=jax.random.key(1))
        self.policy = BUILT
        self.row, self.other = 2 * ROW, 3 * ROW

    def __call__(self, x: Any) -> Any:
        return jax.vmap(self.linear)(x)

    def scaled(self, x: Any) -> Any:
        return x * self.row

    def both(self, x: Any) -> Any:
        return self.scaled(self(x))


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("__call__", ["linear.bias", "linear.weight"]),
        ("both", ["linear.bias", "linear.weight", "row"]),
    ],
)
def test_a_module_in_an_object_is_lifted_where_the_object_is_called(
    method: str, names: list[str]
) -> None:
    holder = Holder()
    entry = holder if method == "__call__" else getattr(holder, method)
    model = sb.Sequential([entry])
    assert [name.rpartition(").")[2] for name in model.vars()] == names
    np.testing.assert_allclose(model(X), entry(X), rtol=1e-6)
    grads = sb.grad(lambda model: model(X).sum())(model)
    assert all(np.abs(grad).sum() > 0 for grad in grads.values())


def test_what_a_function_keeps_of_its_first_call_is_the_call_itself() -> None:
    kept: list[Any] = []

    def tap(x: Any) -> Any:
        kept[:] = [x]
        return x

    model = sb.Sequential([tap])
    for x in (X, X[0], X.astype(jnp.int32)):
        model(x)
        assert jnp.array_equal(kept[0], x)


def test_two_modules_of_one_name_are_refused() -> None:
    first, second = (eqx.nn.Linear(3, 3, key=jax.random.key(seed)) for seed in (1, 2))
    modules = {0: first, "0": second}
    with pytest.raises(TypeError, match="two arrays of one name"):
        sb.Sequential([lambda x: jax.vmap(modules["0"])(jax.vmap(modules[0])(x))])
