"""Faults of files: no weights, damaged, of another model, or in the way of a save."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import seqbridge as sb
from faults import Kept, Row, Table, X, filled, name_of
from helpers import bits

table = Table()
fault, design = table.fault, table.design


def small() -> sb.Sequential:
    return filled(sb.Sequential([nn.Dense(3), nn.BatchNorm(), nn.Dropout(0.5)]).build((2, 3)))


# At length: test_saving.py, test_hostile_files.py, test_hostile_stores.py, test_checkpoint.py.


class Harm:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


NO_WEIGHTS = "holds no weights: it is"
for name, data, words in (
    ("nothing", b"", "is empty: it was not written, or not downloaded, to the end"),
    (
        "a pointer of git-lfs",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "git lfs pull",
    ),
    (
        "a web page",
        b"<!doctype html><html></html>",
        f"{NO_WEIGHTS} a page of a web site. Download the file itself",
    ),
    ("JSON", b'{"layers": []}', f"{NO_WEIGHTS} JSON"),
    (
        "a pickle",
        pickle.dumps(Harm()),
        r"no safetensors file \(it looks like pickle\).*model\[i\]\.load_native\(path\)",
    ),
    ("an archive", b"PK\x03\x04" + bytes(40), r"no safetensors file \(it looks like npz\)"),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(40), r"no safetensors file \(it looks like h5\)"),
    ("zeros", bytes(40), "is damaged, or no safetensors file"),
    (
        "a header of a terabyte",
        (2**40).to_bytes(8, "little") + b"{}",
        "is damaged, or no safetensors file",
    ),
):

    def load(model: sb.Sequential, folder: Path, data: bytes = data) -> None:
        (folder / "file").write_bytes(data)
        try:
            model.load(folder / "file")
        finally:
            assert not Path("harm").exists()

    fault(f"{name} as a file", sb.WeightsError, words)(load)

fault("a file that isn't there", FileNotFoundError, "file")(
    lambda model, folder: model.load(folder / "file")
)
fault(
    "the name of another format",
    ValueError,
    r"is saved is a safetensors file, and .*m\.npz isn't called like one",
)(lambda model, folder: model.save(folder / "m.npz"))
fault(
    "the variables of what isn't built",
    RuntimeError,
    r"this isn't built, so it has no variables yet",
)(lambda folder: sb.Sequential([nn.Dense(3)]).vars().subset("kernel").save(folder / "file"))
fault("a text as a flag", TypeError, "cast= is True or False, not 'no'")(
    lambda model: model.load("file", cast="no")
)
fault("a folder as a file", IsADirectoryError, "directory")(
    lambda model, folder: model.load(folder)
)
fault("no path at all", TypeError, "'' is no path")(lambda model: model.save(""))
fault("a number as a path", TypeError, "a path is a str or a Path, not int")(
    lambda model: model.load(3)
)


@fault("a pipe as a file", sb.WeightsError, "pipe is neither a file nor a folder")
def read_a_pipe(model: sb.Sequential, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    model.load(folder / "pipe")


def damaged(model: sb.Sequential, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    model.save(folder / "file")
    (folder / "file").write_bytes(damage((folder / "file").read_bytes()))
    model.load(folder / "file")


fault("a file that is cut off", sb.WeightsError, "file is damaged")(
    partial(damaged, damage=lambda data: data[:-9])
)
fault("a file with more at its end", sb.WeightsError, "file is damaged")(
    partial(damaged, damage=lambda data: data + b"x")
)
fault(
    "a flipped bit",
    sb.WeightsError,
    r"file is damaged: its array .* has another checksum than it was saved with",
)(partial(damaged, damage=lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]))
fault(
    "a file in a folder that isn't there",
    FileNotFoundError,
    "can't be written: there is no folder .*nowhere",
)(lambda model, folder: model.save(folder / "nowhere" / "file"))
fault("a folder in place of a file", IsADirectoryError, "is a folder: give the name of a file")(
    lambda model, folder: model.save(folder)
)


@fault(
    "a pipe in place of a file", OSError, "pipe can't be written: it is neither a file nor a folder"
)
def save_to_a_pipe(model: sb.Sequential, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    try:
        model.save(folder / "pipe")
    finally:
        assert os.listdir(folder) == ["pipe"]
        assert (folder / "pipe").is_fifo()


@fault("a save that is interrupted", KeyboardInterrupt)
def interrupt_a_save(model: sb.Sequential, folder: Path) -> None:
    model.save(folder / "file")
    before = (folder / "file").read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            model.save(folder / "file")
    finally:
        assert os.listdir(folder) == ["file"]
        assert (folder / "file").read_bytes() == before


@design("two that save to one path at once leave the whole file of one")
def two_saves_at_once_leave_one_whole_file(folder: Path) -> None:
    models = [small() for _ in range(2)]
    models[1][0].bias.assign(jnp.zeros(3))
    barrier = threading.Barrier(2)

    def save(model: sb.Sequential) -> None:
        barrier.wait(10)
        for _ in range(10):
            model.save(folder / "file")

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert os.listdir(folder) == ["file"]
    assert small().load(folder / "file").whole


def written(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    save_file(arrays, folder / "file")
    return folder / "file"


fault(
    "names that would be paths",
    sb.WeightsError,
    r"doesn't fit, and nothing was loaded.*unexpected: \.\./\.\./x",
)(lambda model, folder: model.load(written(folder, {"../../x": np.ones(3, np.float32)})))


@fault(
    "a file of another model",
    sb.WeightsError,
    "doesn't fit, and nothing was loaded",
    r"missing: \(Sequential\)\[1\]\(Dense\)\.kernel",
    r"unexpected: \(Sequential\)\[1\]\(BatchNorm\)\.scale",
    r"wrong shape: \(Sequential\)\[0\]\(Dense\)\.bias is \(4,\), and the file has \(3,\)",
    r"strict=False loads what fits; rename=|rename= may help",
)
def load_the_file_of_another_model(folder: Path) -> None:
    small().save(folder / "file")
    kept = Kept(filled(sb.Sequential([nn.Dense(4), nn.Dense(3)]).build((2, 3))))
    try:
        kept.model.load(folder / "file")
    finally:
        kept.check()


@fault(
    "ints for floats",
    sb.WeightsError,
    r"wrong dtype: \(Sequential\)\[0\]\(Dense\)\.bias is float32, and the file has int32",
)
def load_ints_for_floats(folder: Path) -> None:
    model = filled(sb.Sequential([nn.Dense(3)]).build((2, 3)))
    arrays = {
        name: np.asarray(array).astype(np.int32) for name, array in model.vars().tensors().items()
    }
    kept = Kept(model)
    try:
        model.load(written(folder, arrays))
    finally:
        kept.check()


fault(
    "a file for what isn't built",
    RuntimeError,
    r"isn't built, so it has no variables yet: call build\(\.\.\.\) first",
)(lambda folder: sb.Sequential([nn.Dense(3)]).load(written(folder, {"x": np.ones(3, np.float32)})))
fault("a rename of nothing", sb.WeightsError, r"rename: nothing is called 'module\.x'")(
    lambda model, folder: model.load(
        written(folder, {"x": np.ones(3, np.float32)}), rename={"module.x": "x"}
    )
)


@design("prefixes of other tools go by a rule")
def a_rule_renames_prefixes_of_other_tools(folder: Path) -> None:
    model = small()
    arrays = {
        f"module.{name}": np.asarray(a)
        for name, a in model.vars().tensors().items()
        if "rng" not in name
    }
    made = copy.deepcopy(model)
    made[0].bias.assign(jnp.zeros(3))
    made.load(written(folder, arrays), rename=(r"^module\.", ""), strict=False)
    assert jnp.array_equal(made[0].bias.value, model[0].bias.value)


@design("weights that fit and mean something else show in the outputs")
def weights_of_another_meaning_show_in_the_outputs() -> None:
    # Gates, heads, flattened images and the like: test_port.py.
    source = filled(sb.Sequential([partial(hk.Linear, 3)]).build((2, 3)))
    target = sb.Sequential([eqx.nn.Linear(3, 3, key=jax.random.key(0))])
    assert sb.port(source, target, check=X).difference == pytest.approx(0, abs=1e-6)
    target.append(lambda x: 2 * x)
    assert (sb.port(source, target, check=X).difference or 0) > 0.1


@fault(
    "weights that don't fit",
    sb.WeightsError,
    "port: nothing was written, since the results would differ",
    r"\(3, 4\)",
)
def port_weights_of_another_shape(model: sb.Sequential) -> None:
    sb.port(sb.Sequential([partial(hk.Linear, 4)]).build((2, 3)), model[5])


@design("dtypes that few files know, and arrays in any order, come back")
def rare_dtypes_and_strided_arrays_come_back(folder: Path) -> None:
    values = {
        "half": jnp.arange(3, dtype=jnp.bfloat16), "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)), "complex": jnp.array([1 + 2j], jnp.complex64),
        "scalar": jnp.zeros(()), "turned": jnp.asarray(np.asarray(X).T),
    }  # fmt: skip
    made = sb.VarCollection({name: sb.Variable(array, name=name) for name, array in values.items()})
    made.save(folder / "file")
    blank = sb.VarCollection(
        {name: sb.Variable(jnp.zeros_like(array), name=name) for name, array in values.items()}
    )
    blank.load(folder / "file")
    assert {n: bits(v.value) for n, v in blank.items()} == {
        n: bits(array) for n, array in values.items()
    }


@fault(
    "a file of a later version",
    sb.WeightsError,
    "was saved by seqbridge .*: install that, or later",
)
def load_a_file_of_a_later_version(model: sb.Sequential, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqbridge._variables.saving.FORMAT", 99)
        model.save(folder / "file")
    model.load(folder / "file")


@fault(
    "a checkpoint that isn't there", FileNotFoundError, "there is no checkpoint 7 in .*: there are"
)
def restore_a_checkpoint_that_is_missing(model: sb.Sequential, folder: Path) -> None:
    with sb.Checkpoint(folder / "run", model=model) as checkpoint:
        checkpoint.restore(7)


@pytest.mark.parametrize("row", table, ids=name_of)
def test_faults(row: Row, tmp_path: Path) -> None:
    row.check(tmp_path)
