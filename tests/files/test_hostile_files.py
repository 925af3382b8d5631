"""Hostile files and files of no weights are refused before anything runs or is allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest

import seqbridge as sb
from helpers import layer_of, refused

KEY = jax.random.key(5)

# What is no weight file at all


NO_WEIGHTS = {
    "empty": (b"", "is empty"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git lfs pull",
    ),
    "HTML": (b"<!DOCTYPE html>\n<html><head>", "web site"),
    "XML": (b"\n  <?xml version='1.0'?>", "web site"),
    "JSON": (b'{"model_type": "bert"}', "JSON"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\0" * 20, "compressed"),
    "text": (b"epoch,loss\n1,0.5\n", "no known format"),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_no_weight_file_says_what_it_is(name: str, tmp_path: Path) -> None:
    data, match = NO_WEIGHTS[name]
    layer = layer_of(nn.Dense(3))
    for suffix in (".bin", ".npz", ".safetensors", ".msgpack", ".h5", ".pkl", ".eqx"):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(data)
        refused(layer, path, match if name != "text" or suffix == ".bin" else "damaged|pickle")


def test_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    layer = layer_of(nn.Dense(3))
    refused(layer, tmp_path / "none.npz", "No such file", FileNotFoundError)
    (tmp_path / "7").mkdir()
    refused(layer, tmp_path, "no checkpoint")
    os.mkfifo(tmp_path / "pipe")
    refused(layer, tmp_path / "pipe", "neither a file nor a folder")
    for wrong in (b"w.npz", 3, None):
        with pytest.raises(TypeError, match="a path is a str"):
            sb.read(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"no format 'nzp'; did you mean 'npz'"):
        sb.read(tmp_path, format="nzp")


def test_the_whole_files_of_other_libraries_are_told_apart(tmp_path: Path) -> None:
    for name, match in (
        ("archive/data.pkl", "pickle of another library"),
        ("model.weights.h5", "save_weights"),
    ):
        with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
            archive.writestr(name, b"x")
        refused(layer_of(nn.Dense(3)), tmp_path / "w.bin", match)


# Archives


def header(shape: Any, dtype: str = "<f4", data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + data


ARCHIVES: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "a bomb": ([("kernel.npy", header((3 * 10**7,), data=bytes(12 * 10**7)))], "bomb"),
    "a shape beyond memory": (
        [("kernel.npy", header((2**40, 2**10)))],
        "no float32 array of shape",
    ),
    "a shape beyond all numbers": (
        [("kernel.npy", header((2**63, 2**63, 2)))],
        "no float32 array of shape",
    ),
    "a negative shape": (
        [("kernel.npy", header((-1, -3), data=bytes(12)))],
        "no float32 array of shape",
    ),
    "items without a size": ([("kernel.npy", header((2**40,), "|V0"))], "array of shape"),
    "more than it says": ([("kernel.npy", header((2,), data=bytes(99)))], "array of shape"),
    "objects": ([("kernel.npy", header((2,), "|O", b"cos\nsystem\n."))], "objects"),
    "two of a name": (
        [("kernel.npy", header((1,), data=bytes(4)))] * 2,
        "two arrays of one name, kernel",
    ),
    "a NUL in a name": ([("kernel\0.npy", header((1,), data=bytes(4)))], "NUL"),
    "something else": ([("kernel.txt", b"hello")], "no npz file"),
    "no array": ([("kernel.npy", b"hello")], "magic string"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name: str, tmp_path: Path) -> None:
    members, match = ARCHIVES[name]
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        warnings.simplefilter("ignore", UserWarning)
        for member, data in members:
            archive.writestr(member.replace("\0", "~"), data)
    data = (tmp_path / "w.npz").read_bytes()
    if "NUL" in name:
        (tmp_path / "w.npz").write_bytes(data.replace(b"kernel~", b"kernel\0"))
    refused(layer_of(nn.Dense(3)), tmp_path / "w.npz", match)


# Arrays one after the other, and msgpack


@pytest.mark.parametrize(
    "data",
    [
        header((2**40,)),
        header((-1,)),
        header((2**40,), "|V0"),
        header((2,), "|O", b"cos\nsystem\n."),
    ],
)
def test_arrays_without_names_that_claim_too_much(data: bytes, tmp_path: Path) -> None:
    entry = eqx.nn.Linear(4, 3, key=KEY)
    layer = layer_of(entry)
    (tmp_path / "w.eqx").write_bytes(data)
    refused(layer, tmp_path / "w.eqx", "which isn't there")
    for other, match in (
        (eqx.nn.MLP(4, 3, 3, 1, key=KEY), "has 4 arrays, and this layer 2"),
        (eqx.nn.Linear(4, 3, use_bias=False, key=KEY), "has 1 arrays, and this layer 2"),
        (eqx.nn.Linear(3, 4, key=KEY), r"array 0 is float32\[4, 3\], and .weight float32\[3, 4\]"),
        (jax.tree.map(lambda a: a.astype(jnp.bfloat16), entry), r"array 0 is bfloat16\[3, 4\]"),
    ):
        eqx.tree_serialise_leaves(tmp_path / "w.eqx", other)
        refused(layer, tmp_path / "w.eqx", match)
    np.savez(tmp_path / "w.npz", weight=np.ones((3, 4)))
    refused(layer, tmp_path / "w.npz", "in the format npz, not eqx")


def packed(shape: Any, dtype: str, buffer: bytes, code: int = 1) -> Any:
    inner: Any = msgpack.packb((shape, dtype, buffer))
    return msgpack.packb({"params": {"kernel": msgpack.ExtType(code, inner)}})


PACKED: dict[str, tuple[Any, str]] = {
    "a negative shape": (packed((-1, 3), "float32", bytes(48)), "its shape is"),
    "a shape beyond memory": (packed((2**40, 2**40), "float32", bytes(48)), "its shape is"),
    "another shape": (packed((4, 3), "float32", bytes(44)), "its shape is"),
    "structures": (packed((4,), "f4,f4", bytes(32)), "no type of numbers"),
    "objects": (packed((4,), "object", bytes(32)), "damaged|no type of numbers"),
    "an unknown extension": (packed((4, 3), "float32", bytes(48), 77), "of type 77"),
    "text": (
        msgpack.packb({"params": {"kernel": "abc"}}),
        "params.kernel is no array, but of type str",
    ),
    "two of a name": (b"\x82\xa1a\x01\xa1a\x02", "a name stands twice"),
    "depth": (b"\x81\xa1a" * 100_000 + b"\x01", "damaged"),
    "a huge map": (b"\xdf\xff\xff\xff\xff\xa1a\x01", "damaged"),
    "a huge string": (b"\x81\xc6\xff\xff\xff\xffabc", "damaged"),
    "a name that is a number with a point": (msgpack.packb({1.5: 2}), "no string"),
}


@pytest.mark.parametrize("name", PACKED)
def test_msgpack(name: str, tmp_path: Path) -> None:
    data, match = PACKED[name]
    (tmp_path / "w.msgpack").write_bytes(data)
    refused(layer_of(nn.Dense(3)), tmp_path / "w.msgpack", match)


# Pickles


class Runs:
    """An object that runs code when it is unpickled by anybody who doesn't look."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: str) -> dict[str, Any]:
    calls = {
        "system": Runs(os.system, f"touch {marker}"),
        "open": Runs(open, marker, "w"),
        "eval": Runs(eval, f"open({marker!r}, 'w')"),
        "getattr": Runs(getattr, "abc", "upper"),
        "memory": Runs(np.ndarray, (2**45,)),
        "bytes": Runs(bytearray, 2**45),
        "partial": partial(os.system, f"touch {marker}"),
        "set": {1, 2},
        "text": "abc",
        "objects": np.array([Runs(os.system, f"touch {marker}")], object),
    }
    hidden = {
        name: {"linear": {"w": np.ones((4, 3), np.float32), "b": call}}
        for name, call in calls.items()
    }
    return calls | {f"{name} among arrays": tree for name, tree in hidden.items()}


RAW = {
    "a note with a huge number": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a huge string": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"abc.",
    "something outside": b"\x80\x02Q.",
    "more behind it": pickle.dumps({}) + b"more",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "tuples of tuples": b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 40 + b".",
    "other defaults for others": (
        b"\x80\x02ccollections\nOrderedDict\nN}U\x0c__defaults__}U\x01xK\x07s\x85s\x86b."
    ),
    "another shape": pickle.dumps(np.ones(3), 2).replace(b"K\x03\x85", b"K\x04\x85"),
}


@pytest.mark.parametrize("what", ["shape", "chunks"])
def test_a_folder_of_few_bytes_that_would_be_many(what: str, tmp_path: Path) -> None:
    layer = layer_of(nn.Dense(3))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "folder", layer.native)
    about = tmp_path / "folder" / "params.kernel" / ".zarray"
    layer.load_native(tmp_path / "folder")
    about.write_text(json.dumps(json.loads(about.read_text()) | {what: [2**16, 2**16]}))
    refused(layer, tmp_path / "folder", "bomb")


def test_no_pickle_runs_anything(tmp_path: Path) -> None:
    layer = layer_of(hk.transform(lambda x: hk.Linear(3)(x)))
    path, marker = tmp_path / "w.pkl", tmp_path / "marker"
    data = {name: pickle.dumps(bad) for name, bad in payloads(str(marker)).items()}
    for raw in (data | RAW).values():
        path.write_bytes(raw)
        refused(layer, path, "allow_pickle=True")
        refused(layer, path, None, allow_pickle=True)
        assert not marker.exists()


def test_no_pickle_changes_how_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(RAW["other defaults for others"])
    refused(layer_of(nn.Dense(3)), path, "it changes what arrays are made by", allow_pickle=True)
    path.write_bytes(pickle.dumps(OrderedDict(w=np.ones(2))))
    assert list(sb.read(path, allow_pickle=True)) == ["w"]
