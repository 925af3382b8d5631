"""`save` and `load`: one file, whole or not there, and all of it or nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
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
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import seqbridge as sb
from helpers import as_numpy, assert_same, run_python
from seqbridge._files.safetensors import write_safetensors

X = jnp.ones((4, 3))


def mixed(seed: int = 0) -> sb.Sequential:
    return sb.Sequential(
        [
            nn.Dense(4),
            partial(hk.Linear, 4),
            nn.BatchNorm(),
            partial(eqx.nn.Linear, 4, 4),
            nnx.Linear(4, 4, rngs=nnx.Rngs(seed)),
            nn.Dropout(0.5),
        ],
        seed=seed,
    ).build((4, 3))


def values(holder: Any) -> dict[str, np.ndarray]:
    return {name: as_numpy(v.value) for name, v in holder.vars().items()}


def test_a_model_of_several_libraries_comes_back_bit_by_bit_with_its_keys(tmp_path: Path) -> None:
    model, other = mixed(1), mixed(2)
    model(X, training=True)
    model.save(tmp_path / "m.safetensors")
    report = other.load(tmp_path / "m.safetensors")
    assert report.whole
    assert set(report.loaded) == set(model.vars())
    assert_same(values(model), values(other))
    # The same masks, too.
    np.testing.assert_array_equal(model(X, training=True), other(X, training=True))


def test_training_goes_on_exactly_from_one_file(tmp_path: Path) -> None:
    def run(n: int, model: Any, optimizer: Any) -> list[float]:  # optax' adam isn't strict
        losses = []
        for _ in range(n):
            loss, grads = sb.value_and_grad(lambda m: (m(X, training=True) ** 2).mean())(model)
            with jax.numpy_dtype_promotion("standard"):
                optimizer.update(grads)
            losses.append(float(loss))
        return losses

    model = mixed(1)
    optimizer = sb.Optimizer(model, optax.adam(1e-2))
    run(3, model, optimizer)
    (model.vars() + optimizer.vars()).save(tmp_path / "all.safetensors")
    expected = run(3, model, optimizer)

    model = mixed(5)
    optimizer = sb.Optimizer(model, optax.adam(1e-2))
    (model.vars() + optimizer.vars()).load(tmp_path / "all.safetensors")
    assert run(3, model, optimizer) == expected


@pytest.mark.parametrize(
    "dtype",
    [
        *(
            "bool",
            "int8",
            "uint8",
            "int16",
            "uint32",
            "int32",
            "float16",
            "bfloat16",
            "float32",
            "complex64",
        ),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4"),
    ],
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_dtypes_and_shapes(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = jnp.asarray(np.arange(int(np.prod(shape))).reshape(shape) % 2, jnp.dtype(dtype))
    there = sb.VarCollection({"v": sb.Variable(array)})
    here = sb.VarCollection({"v": sb.Variable(jnp.zeros(shape, jnp.dtype(dtype)))})
    there.save(tmp_path / "f")
    here.load(tmp_path / "f")
    assert here["v"].dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(here["v"].value), np.asarray(array))


@given(axes=st.permutations(range(3)), step=st.sampled_from([1, 2, -1]))
def test_the_order_in_memory_makes_no_difference(
    tmp_path_factory: Any, axes: list[int], step: int
) -> None:
    """The writer of safetensors 0.8 takes the bytes as they lie, whatever the strides."""
    path = tmp_path_factory.mktemp("order") / "f"
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5).transpose(axes)[::step]
    sb.VarCollection({"v": sb.Variable(array)}).save(path)
    np.testing.assert_array_equal(load_file(path)["v"], array)


def test_other_tools_read_the_file_and_what_it_says(tmp_path: Path) -> None:
    model = mixed()
    model.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert set(file.keys()) == set(model.vars())
        np.testing.assert_array_equal(
            file.get_tensor("(Sequential)[0](Dense).kernel"), model[0].kernel.value
        )
        about = json.loads(file.metadata()["seqbridge"])["about"]
    assert about["versions"]["jax"] == jax.__version__
    kinds = {name: note["kind"] for name, note in about["variables"].items()}
    assert kinds["(Sequential)[2](BatchNorm).mean"] == "state"
    assert kinds["(Sequential).rng"] == "rng"


def test_what_is_shared_is_stored_once(tmp_path: Path) -> None:
    dense = nn.Dense(3)
    model = sb.Sequential([dense, jnp.tanh, dense]).build((4, 3))
    model.save(tmp_path / "f")
    assert set(load_file(tmp_path / "f")) == {
        "(Sequential)[0](Dense).kernel",
        "(Sequential)[0](Dense).bias",
    }
    again = sb.Sequential([dense, jnp.tanh, dense], seed=3).build((4, 3))
    assert again.load(tmp_path / "f").whole
    # Where the two are no longer one layer, each gets the values that it had.
    untied = sb.Sequential([nn.Dense(3), jnp.tanh, nn.Dense(3)], seed=4).build((4, 3))
    assert untied.load(tmp_path / "f").whole
    np.testing.assert_array_equal(untied(X), model(X))


def test_what_is_shared_goes_under_other_names(tmp_path: Path) -> None:
    dense = nn.Dense(3)
    sb.Sequential([dense, jnp.tanh, dense]).build((4, 3)).save(tmp_path / "f")
    named = sb.Sequential({"first": dense, "between": jnp.tanh, "last": nn.Dense(3)}, seed=3).build(
        (4, 3)
    )
    rename = {re.compile(r"\[0\]"): ".first", re.compile(r"\[2\]"): ".last"}
    assert named.load(tmp_path / "f", rename=rename).whole
    np.testing.assert_array_equal(named.first.kernel.value, named["last"].kernel.value)


def test_two_values_for_what_is_shared_are_refused(tmp_path: Path) -> None:
    dense = nn.Dense(3)
    sb.Sequential([nn.Dense(3), jnp.tanh, nn.Dense(3)]).build((4, 3)).save(tmp_path / "f")
    tied = sb.Sequential([dense, jnp.tanh, dense], seed=3).build((4, 3))
    with pytest.raises(sb.WeightsError, match=r"two arrays for .*kernel, which is shared"):
        tied.load(tmp_path / "f")


@pytest.mark.parametrize(
    ("second", "taken"),
    [
        (np.array([1, np.nan], np.float32), True),
        (np.array([2, np.nan], np.float32), False),
        (np.array([1, 1], np.float32), False),
        (np.array([1], np.float32), False),
        (np.array([1, np.nan], np.float16), False),
    ],
)
def test_two_arrays_for_what_is_shared_must_be_one_value(
    tmp_path: Path, second: Any, taken: bool
) -> None:
    save_file({"a": np.array([1, np.nan], np.float32), "b": second}, tmp_path / "f")
    shared = sb.Variable(jnp.zeros(2))
    here = sb.VarCollection({"a": shared, "b": shared})
    if taken:
        assert here.load(tmp_path / "f").loaded == ("a",)
    else:
        with pytest.raises(
            sb.WeightsError,
            match=r"two arrays for a, which is shared: b is another value|wrong shape",
        ):
            here.load(tmp_path / "f")


def test_layers_and_slices_and_nested_models_have_files_of_their_own(tmp_path: Path) -> None:
    model = sb.Sequential([nn.Dense(3), sb.Sequential([nn.Dense(3), jnp.tanh])]).build((4, 3))
    before = values(model)
    model[0].save(tmp_path / "layer")
    model[1].save(tmp_path / "inner")
    model[:1].save(tmp_path / "slice")
    for v in model.vars().values():
        v.assign(v.value + 1)
    model[0].load(tmp_path / "layer")
    model[1].load(tmp_path / "inner")
    assert_same(values(model), before)
    model[0].bias.assign(jnp.ones(3))
    assert model.load(tmp_path / "slice", strict=False).missing
    assert_same(values(model), before)


class _Block(sb.Sequential):
    pass


def test_names_of_classes_need_not_be_the_same(tmp_path: Path) -> None:
    sb.Sequential([nn.Dense(3)]).build((4, 3)).save(tmp_path / "f")
    other = _Block([nn.DenseGeneral(3)], seed=3).build((4, 3))
    assert other.load(tmp_path / "f").loaded == (
        "(_Block)[0](DenseGeneral).bias",
        "(_Block)[0](DenseGeneral).kernel",
    )


@pytest.mark.parametrize(
    "rename",
    [
        {"w": "(Sequential)[0](Dense).kernel", "b": "(Sequential)[0](Dense).bias", "step": None},
        {re.compile("^w$"): "[0].kernel", re.compile("^b$"): "[0].bias", "step": None},
        [("^w$", "[0].kernel"), ("^b$", "[0].bias"), ("step", None)],
        lambda name: {"w": "[0].kernel", "b": "[0].bias"}.get(name),
    ],
    ids=["dict", "patterns", "pairs", "function"],
)
def test_rename(tmp_path: Path, rename: Any) -> None:
    w = np.arange(9, dtype=np.float32).reshape(3, 3)
    save_file({"w": w, "b": np.ones(3, np.float32), "step": np.array(7)}, tmp_path / "f")
    model = sb.Sequential([nn.Dense(3)]).build((4, 3))
    assert model.load(tmp_path / "f", rename=rename).whole
    np.testing.assert_array_equal(model[0].kernel.value, w)


def test_one_pair_renames_all(tmp_path: Path) -> None:
    sb.Sequential({"old": nn.Dense(3)}).build((4, 3)).save(tmp_path / "f")
    model = sb.Sequential({"new": nn.Dense(3)}).build((4, 3))
    with pytest.raises(
        sb.WeightsError,
        match=r"missing: .*\.new\(Dense\)\.bias; did you mean '.*\.old\(Dense\)\.bias'",
    ):
        model.load(tmp_path / "f")
    assert model.load(tmp_path / "f", rename=(r"\.old", ".new")).whole


@pytest.mark.parametrize(
    ("rename", "error", "match"),
    [
        (
            {"(Sequential)[0](Dense).kernal": "x"},
            sb.WeightsError,
            "nothing is called .*; did you mean",
        ),
        (lambda name: "same", sb.WeightsError, "would both be called same"),
        ("kernel", TypeError, "a dict from old to new names"),
        (["kernel"], TypeError, "pairs of a regular expression"),
    ],
)
def test_a_wrong_rename_says_what_is_wrong(
    tmp_path: Path, rename: Any, error: Any, match: str
) -> None:
    model = sb.Sequential([nn.Dense(3)]).build((4, 3))
    model.save(tmp_path / "f")
    with pytest.raises(error, match=match):
        model.load(tmp_path / "f", rename=rename)


def test_everything_that_is_wrong_stands_in_one_report_and_nothing_changes(tmp_path: Path) -> None:
    source = sb.Sequential({"a": nn.Dense(3), "b": nn.Dense(5), "old": nn.Dense(2)}).build((4, 3))
    source.save(tmp_path / "f")
    target = sb.Sequential(
        {
            "a": nn.Dense(3, dtype=jnp.float32, param_dtype=jnp.bfloat16),
            "b": nn.Dense(4),
            "new": nn.Dense(2),
        },
        seed=2,
    )
    target.build((4, 3))
    before = values(target)
    with pytest.raises(sb.WeightsError) as caught:
        target.load(tmp_path / "f")
    said = str(caught.value)
    assert (
        "missing: (Sequential).new(Dense).bias; did you mean '(Sequential).old(Dense).bias'?"
        in said
    )
    assert "unexpected: (Sequential).old(Dense).bias" in said
    assert "wrong shape: (Sequential).b(Dense).kernel is (3, 4), and the file has (3, 5)" in said
    assert (
        "wrong dtype: (Sequential).a(Dense).kernel is bfloat16, and the file has float32 "
        "(cast=True takes it)" in said
    )
    assert_same(values(target), before)
    report = target.load(tmp_path / "f", strict=False, cast=True)
    assert report.loaded == ("(Sequential).a(Dense).bias", "(Sequential).a(Dense).kernel")
    assert set(report.wrong) == {"(Sequential).b(Dense).bias", "(Sequential).b(Dense).kernel"}
    np.testing.assert_array_equal(target.a.kernel.value, source.a.kernel.value.astype(jnp.bfloat16))


def test_what_fits_nowhere_is_an_error_even_if_not_strict(tmp_path: Path) -> None:
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "f")
    for strict in (True, False):
        with pytest.raises(sb.WeightsError, match="rename= may help"):
            sb.Sequential([nn.Dense(3)]).build((4, 3)).load(tmp_path / "f", strict=strict)


@pytest.mark.parametrize(
    ("stored", "wanted", "how"),
    [
        (np.float16(1.5), "float32", {}),
        (np.int8(3), "int32", {}),
        (np.float64(1.5), "float32", {"cast": True}),
        (np.int64(3), "int32", {"cast": True}),
        (np.int32(3), "float32", {"cast": True}),
    ],
)
def test_dtypes_that_hold_the_values_are_taken(
    tmp_path: Path, stored: Any, wanted: str, how: Any
) -> None:
    save_file({"v": np.asarray(stored)}, tmp_path / "f")
    here = sb.VarCollection({"v": sb.Variable(jnp.zeros((), wanted))})
    if how:
        with pytest.raises(sb.WeightsError, match="cast=True takes it"):
            here.load(tmp_path / "f")
    here.load(tmp_path / "f", **how)
    assert float(here["v"].value) == float(stored)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(np.float32(1.5), "int32"), (np.int64(2**40), "int32"), (np.float64(1e300), "float32")],
)
def test_dtypes_that_do_not_are_not(tmp_path: Path, stored: Any, wanted: str) -> None:
    save_file({"v": np.asarray(stored)}, tmp_path / "f")
    here = sb.VarCollection({"v": sb.Variable(jnp.zeros((), wanted))})
    with pytest.raises(sb.WeightsError, match="wrong dtype"):
        here.load(tmp_path / "f", cast=True)


def test_a_key_is_no_array(tmp_path: Path) -> None:
    save_file({"v": np.zeros(2, np.uint32)}, tmp_path / "f")
    here = sb.VarCollection({"v": sb.Variable(jax.random.key(0), kind="rng")})
    with pytest.raises(sb.WeightsError, match="wrong"):
        here.load(tmp_path / "f")
    here = sb.VarCollection({"v": sb.Variable(jax.random.key(0, impl="rbg"), kind="rng")})
    sb.VarCollection({"v": sb.Variable(jax.random.key(1), kind="rng")}).save(tmp_path / "f")
    with pytest.raises(sb.WeightsError, match="key<rbg>, and the file has key<fry>"):
        here.load(tmp_path / "f")


def test_what_has_no_variables_yet_and_transforms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"call build\(...\) first"):
        sb.Sequential([nn.Dense(3)]).save(tmp_path / "f")
    model = sb.Sequential([nn.Dense(3)]).build((4, 3))
    model.save(tmp_path / "f")
    for action in (model.save, model.load):
        with pytest.raises(RuntimeError, match="inside a JAX transform"):
            jax.jit(lambda x, do=action: do(tmp_path / "f"))(1.0)
    with pytest.raises(TypeError, match="a path is a str or a Path"):
        model.save(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError):
        model.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        model.load(tmp_path)


# Damage


@pytest.fixture
def small(tmp_path: Path) -> tuple[sb.Sequential, Path, bytes]:
    model = sb.Sequential([nn.Dense(3), nn.Dropout(0.5)]).build((4, 3))
    model.save(tmp_path / "f")
    return model, tmp_path / "f", (tmp_path / "f").read_bytes()


def assert_never_wrong(model: sb.Sequential, path: Path) -> bool:
    """Check that a file is refused or gives what was saved; return whether it was refused."""
    right = values(model)
    for v in model.vars().subset("params").values():
        v.assign(v.value + 1)
    before = values(model)
    try:
        model.load(path)
    except sb.WeightsError:
        assert_same(values(model), before)
        refused = True
    else:
        assert_same(values(model), right)
        refused = False
    model.assign({"params": {n: right[n] for n in model.vars().subset("params")}})
    return refused


def test_a_truncated_file(small: Any) -> None:
    model, path, data = small
    for n in [*range(64), *range(64, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:n])
        assert assert_never_wrong(model, path)


def test_a_flipped_bit(small: Any) -> None:
    model, path, data = small
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        refused += assert_never_wrong(model, path)
    assert refused > 390  # of what pads the header, a bit may be anything


def test_bytes_at_the_end(small: Any) -> None:
    model, path, data = small
    path.write_bytes(data + b"x")
    assert assert_never_wrong(model, path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (2**60).to_bytes(8, "little") + b"{}",
        (200_000_000).to_bytes(8, "little") + b"{}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"<!DOCTYPE html><html></html>",
        b"PK\x03\x04" + bytes(40),
    ],
    ids=["empty", "a header of 2**60 bytes", "a header of 200 MB", "git-lfs", "html", "zip"],
)
def test_what_is_no_safetensors_file(small: Any, data: bytes) -> None:
    model, path, _ = small
    path.write_bytes(data)
    assert assert_never_wrong(model, path)


def header(entries: str, data: bytes = b"") -> bytes:
    return len(entries).to_bytes(8, "little") + entries.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        header('{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 1, bytes(4)),
        header(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        header("[" * 100_000),
    ],
    ids=[
        "a huge shape",
        "too many bytes",
        "a negative shape",
        "no such dtype",
        "cut off",
        "a name twice",
        "deep",
    ],
)
def test_a_hostile_header(small: Any, data: bytes) -> None:
    model, path, _ = small
    path.write_bytes(data)
    assert assert_never_wrong(model, path)


@pytest.mark.parametrize(
    "about",
    [
        {"format": "1"},
        {"format": 1, "variables": {"(Sequential)[0](Dense).kernel": {"key": "no such generator"}}},
        {"format": 1, "variables": [1]},
        {"format": 1, "variables": {"(Sequential)[0](Dense).kernel": 3}},
    ],
)
def test_what_a_file_says_of_itself_is_not_believed(small: Any, about: Any) -> None:
    """Whoever makes a file on purpose makes its checksums, too."""
    model, path, _ = small
    write_safetensors(
        str(path), {"(Sequential)[0](Dense).kernel": np.zeros((3, 3), np.float32)}, about
    )
    assert assert_never_wrong(model, path)


@pytest.mark.parametrize(
    "note", [{}, {"crc32": 0}, {"crc32": 0, "dtype": "object", "shape": [1]}, 3]
)
def test_what_a_file_says_of_its_arrays_is_not_believed(small: Any, note: Any) -> None:
    model, path, _ = small
    text = json.dumps({"about": {}, "arrays": {"v": note}})
    crc = str(zlib.crc32(repr((text, [("v", "float32", (2,))])).encode()))
    save_file({"v": np.zeros(2, np.float32)}, path, {"seqbridge": text, "crc32": crc})
    assert assert_never_wrong(model, path)


def test_names_are_never_paths(tmp_path: Path) -> None:
    here = sb.VarCollection(
        {"../../evil": sb.Variable(jnp.ones(3)), "/etc/x\0y": sb.Variable(jnp.ones(2))}
    )
    here.save(tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]
    assert here.load(tmp_path / "f").whole


def test_a_file_of_a_later_version_is_refused(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, _ = small
    monkeypatch.setattr("seqbridge._variables.saving.FORMAT", 2)
    model.save(path)
    monkeypatch.undo()
    with pytest.raises(sb.WeightsError, match=r"was saved by seqbridge .*: install that, or later"):
        model.load(path)


# What happens meanwhile

KILLED = """
import sys, numpy as np, seqbridge as sb
v = sb.VarCollection({
    "v": sb.Variable(np.zeros((2000, 2000), np.float32)),
    "w": sb.Variable(np.zeros(1000)),
})
v.save(sys.argv[1])
print("saved", flush=True)
for i in range(1, 10_000):
    for box in v.values():
        box.assign(np.full(box.shape, i, np.float32))
    v.save(sys.argv[1])
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    here = sb.VarCollection(
        {"v": sb.Variable(np.zeros((2000, 2000))), "w": sb.Variable(np.zeros(1000))}
    )
    for seconds in (0.03, 0.11, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        here.load(path)
        assert len({float(x) for v in here.values() for x in np.unique(v.value)}) == 1


FULL = """
import resource, signal, sys, numpy as np, seqbridge as sb
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
v = sb.VarCollection({"v": sb.Variable(np.ones((1000, 1000), np.float32))})
v.save(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
v["v"].assign(np.zeros((1000, 1000)))
try:
    v.save(sys.argv[1])
except OSError as error:
    print("OSError")
"""


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    run = run_python(FULL, path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "OSError\n"
    assert os.listdir(tmp_path) == ["f"]
    assert load_file(path)["v"].all()


def test_a_link_stays_one_and_the_mode_stays(tmp_path: Path) -> None:
    v = sb.VarCollection({"v": sb.Variable(jnp.ones(3))})
    (tmp_path / "link").symlink_to(tmp_path / "file")
    v.save(tmp_path / "link")
    plain = tmp_path / "plain"
    plain.touch()
    assert os.stat(tmp_path / "file").st_mode == os.stat(plain).st_mode  # what new files get here
    os.chmod(tmp_path / "file", 0o640)
    v.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert os.stat(tmp_path / "file").st_mode & 0o777 == 0o640


def together(*work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_a_thread_saves_is_of_one_moment(tmp_path: Path) -> None:
    v = sb.VarCollection({"a": sb.Variable(jnp.zeros(3)), "b": sb.Variable(jnp.zeros(3))})

    def change() -> None:
        for i in range(200):
            v.assign({"a": np.full(3, i), "b": np.full(3, i)})

    def save() -> None:
        for _ in range(30):
            v.save(tmp_path / "f")
            stored = load_file(tmp_path / "f")
            np.testing.assert_array_equal(stored["a"], stored["b"])

    together(change, save)


def test_rules_of_a_dict_hold_once_and_pairs_one_after_the_other(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "f")
    here = sb.VarCollection({"b": sb.Variable(jnp.zeros(3))})
    assert here.load(tmp_path / "f", rename={"a": "b", re.compile("b|a"): "c"}).whole
    there = sb.VarCollection({"c": sb.Variable(jnp.zeros(3))})
    assert there.load(tmp_path / "f", rename=[("a", "b"), ("b", "c")]).whole


@pytest.mark.parametrize(
    ("rename", "match"),
    [
        ([("a", "b"), ("a", "b", "c")], "takes pairs"),
        ([("a", "b", "c")], "takes pairs"),
        (["ab", "c", "d"], "takes pairs"),
        ({re.compile("nothing"): "x"}, "nothing is called 'nothing'"),
    ],
)
def test_what_is_no_rule(tmp_path: Path, rename: Any, match: str) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "f")
    with pytest.raises((TypeError, sb.WeightsError), match=match):
        sb.VarCollection({"b": sb.Variable(jnp.zeros(3))}).load(tmp_path / "f", rename=rename)


@pytest.mark.parametrize("n", [12, 13])
def test_a_long_report_is_cut(tmp_path: Path, n: int) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "f")
    here = sb.VarCollection({f"long{i}": sb.Variable(jnp.zeros(3)) for i in range(n)})
    with pytest.raises(sb.WeightsError) as caught:
        here.load(tmp_path / "f")
    lines = str(caught.value).splitlines()
    assert sum(line.startswith("missing: ") for line in lines) == 12
    assert [line for line in lines if line.startswith("...")] == ["... and 1 more"] * (n - 12)


def test_a_name_that_could_be_of_two_is_of_none(tmp_path: Path) -> None:
    save_file({"(A)[0](Dense).kernel": np.ones(3, np.float32)}, tmp_path / "f")
    names = ("(B)[0](Dense).kernel", "(C)[0](Conv).kernel")
    here = sb.VarCollection({name: sb.Variable(jnp.zeros(3)) for name in names})
    with pytest.raises(sb.WeightsError, match=r"unexpected: \(A\)"):
        here.load(tmp_path / "f")
    only = sb.VarCollection({names[0]: sb.Variable(jnp.zeros(3))})
    assert only.load(tmp_path / "f").whole


def test_a_key_and_numbers_are_told_apart_in_both_directions(tmp_path: Path) -> None:
    sb.VarCollection({"v": sb.Variable(jax.random.key(1), kind="rng")}).save(tmp_path / "f")
    here = sb.VarCollection({"v": sb.Variable(jnp.zeros(()))})
    with pytest.raises(
        sb.WeightsError, match=r"wrong dtype: v is float32, and the file has key<fry>"
    ):
        here.load(tmp_path / "f")


def test_what_is_not_built_says_so_before_it_looks_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"call build\(...\) first, then load"):
        sb.Sequential([nn.Dense(3)]).load(tmp_path / "nothing")


def test_a_hint_is_given_where_it_helps(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "f")
    here = sb.VarCollection({"a": sb.Variable(jnp.zeros(3)), "c": sb.Variable(jnp.zeros(3))})
    with pytest.raises(sb.WeightsError, match="strict=False loads what fits"):
        here.load(tmp_path / "f")


def test_two_values_for_one_shared_variable_are_none_for_it(tmp_path: Path) -> None:
    save_file({name: np.full(3, n, np.float32) for n, name in enumerate("abc")}, tmp_path / "f")
    v, c = sb.Variable(jnp.full(3, 7.0)), sb.Variable(jnp.zeros(3))
    report = sb.VarCollection({"a": v, "b": v, "c": c}).load(tmp_path / "f", strict=False)
    assert report.loaded == ("c",)
    assert "two arrays for a, which is shared" in report.wrong["a"]
    assert v.value[0] == 7
