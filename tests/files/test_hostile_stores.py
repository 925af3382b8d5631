"""Files of Keras and folders of Orbax: whole and in place, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import orbax.checkpoint as ocp
import pytest

import seqbridge as sb
from helpers import layer_of, refused, run_python

# Of Keras' own way to save.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
X = np.linspace(-1, 2, 8, dtype=np.float32).reshape(2, 4)


# What is in an HDF5 file


def link(file: h5py.File, to: Any) -> None:
    file.create_group("layers/dense/vars")["0"] = to


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4, 3))
    file.create_virtual_dataset("layers/dense/vars/0", layout)


def made(*args: Any, **keywords: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file.create_dataset("layers/dense/vars/0", *args, **keywords)


def in_part(file: h5py.File) -> None:
    made((4, 3), "f4", chunks=(2, 3))(file)[:2] = 1


def many_zeros(file: h5py.File) -> None:
    for i in range(8):
        file.create_dataset(
            f"layers/dense/vars/{i}", data=np.zeros(2**22, "f4"), compression="gzip"
        )


def circle(file: h5py.File) -> None:
    dense = file.create_group("layers/dense")
    dense["vars"] = file["layers"]


H5: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "an external link": (lambda file: link(file, h5py.ExternalLink("/etc/passwd", "/x")), "a link"),
    "a soft link": (lambda file: link(file, h5py.SoftLink("/layers")), "a link"),
    "a virtual dataset": (virtual, "in another file"),
    "an external dataset": (
        made((4, 3), "f4", external=[("/etc/passwd", 0, 48)]),
        "in another file",
    ),
    "a shape bomb": (
        made((2**20, 2**20), "f4", chunks=(2**10, 2**10), compression="gzip"),
        "which isn't there",
    ),
    "an array that was never written": (made((4, 3), "f4"), "which isn't there"),
    "an array that was written in part": (in_part, "which isn't there"),
    "a fill value": (made((4, 3), "f4", chunks=(2, 3), fillvalue=0.5), "which isn't there"),
    "zeros, packed": (many_zeros, "which isn't there"),
    "a reference": (lambda file: link(file, np.array([file.ref], h5py.ref_dtype)), "no numbers"),
    "structures": (made(data=np.zeros(3, [("a", "f4")])), "no numbers"),
    "nothing": (lambda file: link(file, h5py.Empty("f4")), "no numbers"),
    "a circle": (circle, "another name, too"),
}


@pytest.mark.parametrize("name", H5)
@pytest.mark.parametrize(
    "entry", [lambda: nn.Dense(3), lambda: keras.layers.Dense(3)], ids=["linen", "keras"]
)
def test_hdf5(name: str, entry: Callable[[], Any], tmp_path: Path) -> None:
    write, match = H5[name]
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        write(file)
    refused(layer_of(entry()), tmp_path / "w.weights.h5", match)


# Which file is for which layer of Keras


class Model(keras.Model):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.first, self.more = (
            keras.layers.Dense(4),
            [keras.layers.Dense(4), keras.layers.Dense(2)],
        )

    def call(self, x: Any) -> Any:
        for layer in (self.first, *self.more):
            x = layer(x)
        return x


class Own(keras.layers.Layer):
    """Has no `build`, so that Keras can't copy it with its weights."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.inner = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.inner(x)


def functional() -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(
        x, keras.layers.Dense(2)(keras.layers.BatchNormalization()(keras.layers.Dense(3)(x)))
    )


LAYERS: dict[str, Callable[[], Any]] = {
    "Sequential": lambda: keras.Sequential(
        [keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    ),
    "Functional": functional,
    "Model": Model,
    "Own": Own,
    "Dense": lambda: keras.layers.Dense(3),
    "BatchNormalization": lambda: keras.layers.BatchNormalization(),
}


def stored(path: Path, make: Callable[[], Any]) -> Any:
    """Stores a new layer with other values; returns what it computes."""
    layer = make()
    net = layer if isinstance(layer, keras.Model) else keras.Sequential([layer])
    net(X)
    for i, weight in enumerate(layer.weights):
        weight.assign(np.random.default_rng(i).uniform(0.5, 1.5, weight.shape))
    net.save_weights(path)
    return net(X)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@jax.numpy_rank_promotion("allow")
def test_a_file_of_keras_and_the_layer_that_it_is_for(
    name: str, built: bool, tmp_path: Path
) -> None:
    want = stored(tmp_path / "w.weights.h5", LAYERS[name])
    entry = LAYERS[name]()
    if built:
        entry(X)
    own = [np.array(weight.value) for weight in entry.weights]
    model = sb.Sequential([entry]).build(X.shape)
    assert not np.array_equal(model(X, training=False), want)
    model[0].load_native(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(model(X, training=False), want, rtol=1e-6)
    assert all(
        np.array_equal(a, weight.value) for a, weight in zip(own, entry.weights, strict=True)
    )
    for other, make in LAYERS.items():
        if other != name:
            stored(tmp_path / "other.weights.h5", make)
            refused(model[0], tmp_path / "other.weights.h5", "doesn't fit")


@jax.numpy_rank_promotion("allow")
def test_what_keras_would_cast_is_refused(tmp_path: Path) -> None:
    for stored_as, own in (("float32", "bfloat16"), ("bfloat16", "float32")):
        stored(
            tmp_path / "w.weights.h5", lambda dtype=stored_as: keras.layers.Dense(3, dtype=dtype)
        )
        layer = layer_of(keras.layers.Dense(3, dtype=own))
        refused(
            layer,
            tmp_path / "w.weights.h5",
            f"arrays of {stored_as}, and this layer weights of {own}",
        )


@jax.numpy_rank_promotion("allow")
def test_a_layer_that_keeps_what_follows_from_its_weights_stays_what_it_was(tmp_path: Path) -> None:
    def normalization(mean: float) -> keras.layers.Layer:
        layer = keras.layers.Normalization()
        layer.adapt(np.random.default_rng(0).normal(mean, 3, (50, 4)).astype("f4"))
        return layer

    keras.Sequential([keras.Input((4,)), normalization(5.0)]).save_weights(
        tmp_path / "w.weights.h5"
    )
    entry = normalization(-5.0)
    before = np.array(entry(X))
    layer = sb.Sequential([entry])[0]
    layer.load_native(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(entry(X), before)
    assert layer.mean.value.mean() > 0


# Folders


TREE = nn.Dense(3).init(jax.random.key(1), X)


def test_folders_of_several_trees_and_of_one_with_another_name(tmp_path: Path) -> None:
    def save(folder: Path, **items: Any) -> Path:
        with ocp.CheckpointManager(folder) as manager:
            manager.save(
                3,
                args=ocp.args.Composite(
                    **{n: ocp.args.StandardSave(tree) for n, tree in items.items()}
                ),
            )
        return folder

    layer = layer_of(nn.Dense(3))
    for folder in (
        save(tmp_path / "one", variables=TREE),
        save(tmp_path / "two", a=TREE, b=TREE) / "3" / "a",
    ):
        layer.kernel.assign(jnp.zeros((4, 3)))
        layer.load_native(folder)
        np.testing.assert_array_equal(layer.kernel, TREE["params"]["kernel"])
    refused(layer, tmp_path / "two", "several trees: give the folder of one, a or b")


DAMAGED = """
import pathlib, sys
import flax.linen as nn, numpy as np
import seqbridge as sb

layer = sb.Sequential([nn.Dense(3)]).build((2, 4))[0]
layer.load_native(sys.argv[1])
before = np.array(layer.kernel.value)
for folder in sys.argv[2:]:
    try:
        layer.load_native(folder)
    except (sb.WeightsError, FileNotFoundError):
        assert (np.array(layer.kernel.value) == before).all()
    else:
        raise SystemExit(f"{folder} was read")
print("all refused")
"""


def test_a_folder_that_is_damaged(tmp_path: Path) -> None:
    """Run in a process of its own: Orbax' threads live on after an error and break later tests."""
    whole = tmp_path / "whole"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(whole, TREE)
    data = next((whole / "d").iterdir()).relative_to(whole)
    folders = []
    # A folder for each, as a thread may still read the last one.
    for victim in (data, "manifest.ocdbt", "_METADATA"):
        for n in range(2):
            folders.append(shutil.copytree(whole, tmp_path / f"damaged{len(folders)}"))
            bytes_of = (folders[-1] / victim).read_bytes()
            (folders[-1] / victim).write_bytes(bytes_of[: len(bytes_of) // 2])
            if n:
                (folders[-1] / victim).unlink()
    run = run_python(DAMAGED, whole, *folders)
    assert run.stdout == "all refused\n", run.stderr


def test_a_folder_that_would_be_too_much(tmp_path: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            tmp_path / "w", {"params": {"kernel": np.zeros((2**13, 2**12), np.float32)}}
        )
    refused(layer_of(nn.Dense(3)), tmp_path / "w", "a bomb")
