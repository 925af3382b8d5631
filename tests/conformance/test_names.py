"""The names of variables are those of the architecture: after a copy, and in another process."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
import pytest

import seqbridge as sb
from cases import CASES, Case
from helpers import assert_close, assert_same, usual_promotion

TESTS = Path(__file__).parents[1]

_SCRIPT = """
import json
from cases import CASES
from helpers import usual_promotion

names = {}
with usual_promotion():
    for case in reversed(CASES):
        names[case.name] = list(case.model().vars())
print(json.dumps(names))
"""


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Keras and some cases add arrays of other ranks and dtypes."""
    with usual_promotion():
        yield


@pytest.fixture(scope="module")
def names_elsewhere() -> dict[str, list[str]]:
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_are_the_same_in_a_fresh_process(
    case: Case, names_elsewhere: dict[str, list[str]]
) -> None:
    assert list(case.model().vars()) == names_elsewhere[case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_are_the_same_of_a_copy_and_a_file_fits(case: Case, tmp_path: Path) -> None:
    model, other = case.model(), case.model(seed=4)
    assert list(copy.deepcopy(model).vars()) == list(model.vars())
    if model.vars():
        model.save(tmp_path / "model.safetensors")
        other.load(tmp_path / "model.safetensors")
        assert_same(other.variables["params"], model.variables["params"])


# Keras numbers layers over the whole process, and its own files make them again.


@keras.saving.register_keras_serializable()
class Block(keras.layers.Layer):
    def __init__(self, **options: Any):
        super().__init__(**options)
        self.first = keras.layers.Dense(4)
        self.rest = [keras.layers.Dense(8), keras.layers.Dense(8)]

    def build(self, input_shape: Any) -> None:
        for layer in (self.first, *self.rest):
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, x: Any) -> Any:
        for layer in (self.first, *self.rest):
            x = layer(x)
        return x


def functional() -> keras.Model:
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(4)(inputs)
    hidden = keras.layers.Dense(4, name="mine_dense_2")(hidden)
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.LayerNormalization()])
    return keras.Model(inputs, keras.layers.Dense(2)(hidden + inner(hidden)))


def nested() -> keras.Model:
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3)])
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), inner])


def recurrent() -> keras.Model:
    lstm = keras.layers.LSTM(3, return_sequences=True)
    attention = keras.layers.MultiHeadAttention(2, 4)
    inputs = keras.Input((5, 8))
    hidden = keras.layers.Bidirectional(lstm)(inputs)
    return keras.Model(
        inputs, keras.layers.TimeDistributed(keras.layers.Dense(2))(attention(hidden, hidden))
    )


def blocks() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), Block(), Block()])


def through_a_file(model: keras.Model, folder: Path) -> Any:
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def cloned(model: keras.Model, folder: Path) -> Any:
    made: Any = keras.models.clone_model(model)
    made.set_weights(model.get_weights())
    return made


COPIES: dict[str, Callable[[keras.Model, Path], Any]] = {
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "a file of Keras": through_a_file,
    "clone_model": cloned,
    "pickle twice": lambda model, _: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model)))),
    "a pickled model": lambda model, _: pickle.loads(pickle.dumps(sb.Sequential([model])))[0].entry,
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # by Keras
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [functional, nested, recurrent, blocks])
def test_a_copy_by_keras_has_the_same_names_and_takes_the_file(
    make: Callable[[], keras.Model], way: str, tmp_path: Path
) -> None:
    theirs = make()
    model, again = sb.Sequential([theirs]), sb.Sequential([COPIES[way](theirs, tmp_path)])
    fresh = sb.Sequential([make()])
    names = list(model.vars())
    assert list(again.vars()) == list(fresh.vars()) == names
    assert_same(again.variables["params"], model.variables["params"])
    model.save(tmp_path / "model.safetensors")
    fresh.load(tmp_path / "model.safetensors")
    x = np.ones((1, *theirs.input_shape[1:]), "float32")
    expected = theirs(x)
    for one in (model, again, fresh, pickle.loads(pickle.dumps(again))):
        assert_close(one(x, training=False), expected, rtol=1e-5, atol=1e-6)


def test_names_say_where_a_weight_stands() -> None:
    assert [name.partition(".")[2] for name in sb.Sequential([functional()]).vars()] == [
        "dense.bias",
        "dense.kernel",
        "dense_1.bias",
        "dense_1.kernel",
        "mine_dense_2.bias",
        "mine_dense_2.kernel",
        "sequential.dense.bias",
        "sequential.dense.kernel",
        "sequential.layer_normalization.beta",
        "sequential.layer_normalization.gamma",
    ]
    names = [name.partition(".")[2] for name in sb.Sequential([recurrent()]).vars()]
    assert "bidirectional.backward_lstm.lstm_cell.recurrent_kernel" in names
    assert "multi_head_attention.query.kernel" in names


OLD_NAMES = {
    "dense": "",
    "mine_dense_2": "_1",
    "dense_1": "_2",
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_files_of_earlier_versions_load(tmp_path: Path) -> None:
    model = sb.Sequential([functional()])
    before: dict[str, Any] = {}
    for name, variable in model.vars().items():
        place, _, inner = name.partition(".")
        layer, _, weight = inner.rpartition(".")
        old = f"{weight}{OLD_NAMES[layer]}" if layer in OLD_NAMES else inner.partition(".")[2]
        before[f"{place}.{old}"] = sb.Variable(variable + 1.0)
    assert "(Sequential)[0](Functional).kernel_2" in before
    assert "(Sequential)[0](Functional).dense.kernel" in before  # which was another one
    sb.VarCollection(before).save(tmp_path / "old.safetensors")
    values = model.variables["params"]
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        one.load(tmp_path / "old.safetensors")
        for name, value in values.items():
            assert_close(one.variables["params"][name], value + 1)


@pytest.mark.parametrize("number", ["", "_1", "_17"])
def test_files_with_numbers_of_keras_load(number: str, tmp_path: Path) -> None:
    def make() -> sb.Sequential:
        lstm = keras.layers.Bidirectional(keras.layers.LSTM(3))
        return sb.Sequential([lstm, jnp.tanh]).build((2, 4, 6))

    model, other = make(), make()
    old = model.vars().rename(lambda name: name.replace("ward_lstm", f"ward_lstm{number}"))
    old.save(tmp_path / "old.safetensors")
    other.load(tmp_path / "old.safetensors")
    assert_same(other.variables["params"], model.variables["params"])
    sb.Checkpoint(tmp_path / "steps", model=old).save(1)
    third = make()
    with sb.Checkpoint(tmp_path / "steps", model=third) as checkpoint:
        checkpoint.restore()
    assert_same(third.variables["params"], model.variables["params"])
