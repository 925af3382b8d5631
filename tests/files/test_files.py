"""Weight files, as each library writes them, into its own layers; and damaged ones."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import ml_dtypes
import numpy as np
import objax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.core import freeze
from safetensors.numpy import save_file

import seqbridge as sb
from helpers import layer_of, refused, usual_promotion, values_of

# Of Keras' own way to save.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
X = np.ones((2, 4), np.float32)
KEY = jax.random.key(5)


class Stored(NamedTuple):
    """A file that a library has written, and what it was written from."""

    path: Path
    entry: Any
    native: Any
    options: Mapping[str, Any] = {}


class Block(nn.Module):
    """Parameters and statistics."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))


BLOCK = Block().init(KEY, X)
NORMED = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), True))
MLP = hk.transform(lambda x: hk.nets.MLP([5, 3])(x))
with jax.numpy_dtype_promotion("standard"):  # Haiku's moving averages mix ints and floats
    PAIR = NORMED.init(KEY, X)
FLAT: Any = {"/".join(path): np.asarray(leaf) for path, leaf in sb.unnest(BLOCK).items()}


def bytes_of(folder: Path) -> Stored:
    (folder / "w.msgpack").write_bytes(serialization.to_bytes(BLOCK))
    return Stored(folder / "w.msgpack", Block(), BLOCK)


def slashes(folder: Path) -> Stored:
    np.savez(folder / "w.npz", **FLAT)
    return Stored(folder / "w.npz", Block(), BLOCK)


def dots(folder: Path) -> Stored:
    save_file(
        {name.replace("/", "."): array for name, array in FLAT.items()}, folder / "w.safetensors"
    )
    return Stored(folder / "w.safetensors", Block(), BLOCK)


def orbax(folder: Path) -> Stored:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "w", BLOCK)
    return Stored(folder / "w", Block(), BLOCK)


def orbax_steps(folder: Path) -> Stored:
    with ocp.CheckpointManager(folder / "w") as manager:
        for step, tree in ((9, jax.tree.map(jnp.zeros_like, BLOCK)), (10, BLOCK)):
            manager.save(step, args=ocp.args.StandardSave(tree))
    return Stored(folder / "w", Block(), BLOCK)


def orbax_nnx(folder: Path) -> Stored:
    module = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "w", nnx.to_pure_dict(nnx.state(module)))
    other = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(1)), nnx.BatchNorm(3, rngs=nnx.Rngs(1)))
    return Stored(folder / "w", other, nnx.state(module))


def pickled(make: Callable[[Any], Any], protocol: int) -> Callable[[Path], Stored]:
    def write(folder: Path) -> Stored:
        (folder / "w.pkl").write_bytes(pickle.dumps(make(PAIR), protocol))
        return Stored(folder / "w.pkl", NORMED, PAIR, {"allow_pickle": True})

    return write


def scopes(folder: Path) -> Stored:
    params = MLP.init(KEY, X)
    flat: Any = {
        f"{scope}//{name}": np.asarray(w)
        for scope, inner in params.items()
        for name, w in inner.items()
    }
    np.savez(folder / "w.npz", **flat)
    return Stored(folder / "w.npz", MLP, (params, {}))


def leaves(folder: Path, *, state: bool = True) -> Stored:
    def make(key: Any) -> Any:
        return eqx.nn.Sequential(
            [eqx.nn.Linear(4, 3, key=key), eqx.nn.BatchNorm(3, "batch", mode="batch")]
        )

    pair = eqx.nn.make_with_state(make)(KEY)
    eqx.tree_serialise_leaves(folder / "w.eqx", pair if state else pair[0])
    return Stored(folder / "w.eqx", make(jax.random.key(6)), eqx.filter(pair, eqx.is_array))


def net() -> keras.Sequential:
    layers = keras.layers
    return keras.Sequential(
        [layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    )


def of_keras(
    make: Callable[[], Any], wrap: Callable[[Any], Any], shape: Any = (4,)
) -> Callable[[Path], Stored]:
    def write(folder: Path) -> Stored:
        layer = make()
        with jax.numpy_rank_promotion("allow"):
            model = wrap(layer)
            model.build((None, *shape))
        for weight in layer.weights:
            weight.assign(np.random.default_rng(0).uniform(size=weight.shape))
        model.save_weights(folder / "w.weights.h5")
        return Stored(folder / "w.weights.h5", make(), [weight.value for weight in layer.weights])

    return write


def functional(layer: Any) -> Any:
    given = keras.Input((5, 4))
    return keras.Model(given, layer(given))


def numbered(folder: Path) -> Stored:
    def make() -> Any:
        return objax.nn.Sequential(
            [objax.nn.Linear(4, 3), objax.nn.BatchNorm0D(3), objax.nn.Dropout(0.5)]
        )

    module = make()
    objax.io.save_var_collection(str(folder / "w.npz"), module.vars())
    own = {
        name: box.value
        for name, box in module.vars().items()
        if not isinstance(box, objax.RandomState)
    }
    return Stored(folder / "w.npz", make(), own)


def after_notes(folder: Path) -> Stored:
    entry = eqx.nn.MLP(4, 3, 5, 1, key=KEY)
    with open(folder / "w.eqx", "wb") as file:  # as Equinox' own example has it
        file.write(json.dumps({"width": 5}).encode() + b"\n")
        eqx.tree_serialise_leaves(file, entry)
    other = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(6))
    return Stored(folder / "w.eqx", other, eqx.filter(entry, eqx.is_array))


WRITERS: dict[str, Callable[[Path], Stored]] = {
    "flax to_bytes": bytes_of,
    "npz of paths": slashes,
    "safetensors of paths": dots,
    "orbax": orbax,
    "orbax manager": orbax_steps,
    "orbax of nnx": orbax_nnx,
    "haiku pickle of jax arrays": pickled(lambda pair: pair, 4),
    "haiku pickle of numpy arrays": pickled(lambda pair: jax.tree.map(np.asarray, pair), 2),
    "haiku pickle, latest protocol": pickled(
        lambda pair: jax.tree.map(lambda a: np.array(a, order="F"), pair), 5
    ),
    "haiku pickle of FlatMapping": pickled(
        lambda pair: tuple(map(hk.data_structures.to_immutable_dict, pair)), 3
    ),
    "haiku pickle of FrozenDict": pickled(lambda pair: tuple(map(freeze, pair)), 4),
    "haiku npz": scopes,
    "equinox with state": leaves,
    "equinox without state": lambda folder: leaves(folder, state=False),
    "equinox after a line of JSON": after_notes,
    "keras model": of_keras(net, lambda layer: layer),
    "keras layer, sequential": of_keras(
        lambda: keras.layers.Dense(3), lambda layer: keras.Sequential([layer])
    ),
    "keras layer, functional": of_keras(
        lambda: keras.layers.Bidirectional(keras.layers.LSTM(3, dropout=0.1)), functional, (5, 4)
    ),
    "keras layer, bfloat16": of_keras(
        lambda: keras.layers.Dense(3, dtype="bfloat16"), lambda layer: keras.Sequential([layer])
    ),
    "objax": numbered,
}


def layer_for(stored: Stored) -> sb.Layer:
    shape = (2, 5, 4) if isinstance(stored.entry, keras.layers.Bidirectional) else (2, 4)
    with usual_promotion():
        return sb.Sequential([stored.entry]).build(shape)[0]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_a_library_goes_into_its_layer(name: str, tmp_path: Path) -> None:
    stored = WRITERS[name](tmp_path)
    layer = layer_for(stored)
    own = values_of(layer)
    layer.load_native(str(stored.path), **stored.options)
    got, want = (
        jax.tree.leaves(eqx.filter(layer.native, eqx.is_array)),
        jax.tree.leaves(stored.native),
    )
    assert len(got) >= len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(own, values_of(layer), strict=True)), (
        "it had these values already"
    )


FILES = [name for name in WRITERS if not name.startswith("orbax")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_or_goes_on_is_refused(name: str, tmp_path: Path) -> None:
    stored = WRITERS[name](tmp_path)
    data, layer = stored.path.read_bytes(), layer_for(stored)
    for length in sorted({0, 1, 2, 7, 9, 12, *range(20, len(data), len(data) // 9), len(data) - 1}):
        stored.path.write_bytes(data[:length])
        refused(layer, stored.path, None, (sb.WeightsError, FileNotFoundError), **stored.options)
    if stored.path.suffix != ".h5":  # which knows where its end is
        stored.path.write_bytes(data + b"\0" * 3)
        refused(layer, stored.path, None, (sb.WeightsError, FileNotFoundError), **stored.options)


# Not HDF5: its own library may take for ever over a damaged header, whoever asks it.
@pytest.mark.parametrize("name", [name for name in FILES if "keras" not in name])
def test_flipped_bits_are_errors_or_found_by_a_checksum(name: str, tmp_path: Path) -> None:
    stored, chance = WRITERS[name](tmp_path), random.Random(3)
    data, layer = stored.path.read_bytes(), layer_for(stored)
    layer.load_native(stored.path, **stored.options)
    whole = values_of(layer)
    summed = stored.path.suffix == ".npz"
    # Damaged; or, where no checksum tells, there may be another name, shape or dtype.
    errors = (sb.WeightsError,) if summed else (sb.WeightsError, KeyError, ValueError, TypeError)
    for _ in range(300 if summed else 40):
        at = chance.randrange(8 * len(data))
        stored.path.write_bytes(
            data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]
        )
        with contextlib.suppress(*errors):
            layer.load_native(stored.path, **stored.options)
        if summed:
            assert all(np.array_equal(a, b) for a, b in zip(whole, values_of(layer), strict=True))


GOOD = {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}


def test_the_format_is_seen_from_the_content_and_held_against_the_one_that_is_asked_for(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "w.npz", **GOOD)
    path = (tmp_path / "w.npz").rename(tmp_path / "w.safetensors")
    assert sb.read(path)["kernel"].shape == (4, 3)
    with pytest.raises(sb.WeightsError, match="in the format npz, not h5"):
        sb.read(path, format="h5")
    (tmp_path / "weights").write_bytes(serialization.msgpack_serialize({"params": GOOD}))
    layer = layer_of(nn.Dense(3))
    layer.load_native(tmp_path / "weights")
    np.testing.assert_array_equal(layer.kernel, GOOD["kernel"])


def test_what_is_read_belongs_to_nobody_else_and_has_the_machines_own_bytes(tmp_path: Path) -> None:
    arrays = {
        "big": np.arange(3, dtype=">f4"),
        "half": np.ones(2, ml_dtypes.bfloat16),
        "none": np.zeros((0, 3)),
    }
    np.savez(tmp_path / "w.npz", **arrays)
    got = sb.read(tmp_path / "w.npz")
    assert {name: a.dtype.name for name, a in got.items()} == {
        "big": "float32",
        "half": "bfloat16",
        "none": "float64",
    }
    for name, array in got.items():
        assert array.flags.writeable
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, arrays[name])
    for bad in (np.zeros(2, "V3"), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")])):
        np.savez(tmp_path / "w.npz", kernel=bad)
        refused(layer_of(nn.Dense(3)), tmp_path / "w.npz", "no numbers")


def test_a_file_of_more_than_the_layer_is_refused(tmp_path: Path) -> None:
    with jax.numpy_rank_promotion("allow"):
        two = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(3)])
        two.build((None, 4))
    two.save_weights(tmp_path / "w.weights.h5")
    refused(
        layer_of(keras.layers.Dense(3)),
        tmp_path / "w.weights.h5",
        "it has 4 arrays, and this layer takes 2",
    )
