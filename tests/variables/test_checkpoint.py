"""`Checkpoint`: a training goes on as if it had never stopped, on whatever devices."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import seqbridge as sb
from helpers import run_python

X = jax.random.normal(jax.random.key(0), (8, 4))


def make(seed: int = 0) -> tuple[sb.Sequential, sb.Optimizer]:
    model = sb.Sequential(
        [nn.Dense(8), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(4)], seed=seed
    ).build((8, 4))
    return model, sb.Optimizer(model, optax.sgd(1e-2, momentum=0.9))


def run(n: int, model: sb.Sequential, optimizer: sb.Optimizer) -> list[float]:
    losses = []
    for _ in range(n):
        loss, grads = sb.value_and_grad(lambda m: (m(X, training=True) ** 2).mean())(model)
        optimizer.update(grads)
        losses.append(float(loss))
    return losses


def test_a_training_goes_on_exactly(tmp_path: Path) -> None:
    model, optimizer = make(1)
    with sb.Checkpoint(
        tmp_path / "run", model=model, optimizer=optimizer, max_to_keep=2
    ) as checkpoint:
        assert checkpoint.restore() is None
        assert checkpoint.steps == ()
        for step in range(3):
            run(1, model, optimizer)
            checkpoint.save(step)  # what comes after doesn't get in
        expected = run(3, model, optimizer)
        checkpoint.wait()
        assert checkpoint.steps == (1, 2)

    model, optimizer = make(2)
    with sb.Checkpoint(tmp_path / "run", model=model, optimizer=optimizer) as checkpoint:
        assert checkpoint.restore() == 2
        assert all(report.whole for report in checkpoint.reports.values())
        assert run(3, model, optimizer) == expected
        assert checkpoint.restore(1) == 1
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 7 in .*: there are 1, 2"):
            checkpoint.restore(7)
        with pytest.raises(ValueError, match="step 2 can't be saved after step 2"):
            checkpoint.save(2)


@pytest.mark.parametrize(("before", "after"), [((8,), (4,)), ((1,), (8,)), ((8,), (1,))])
def test_variables_come_back_as_they_lie_then(tmp_path: Path, before: Any, after: Any) -> None:
    rules = {r"kernel$": PartitionSpec(None, "data")}
    model, optimizer = make(1)
    model[3].kernel.assign(jnp.arange(32.0).reshape(8, 4))
    rules = {r"\[0\].*kernel$": PartitionSpec(None, "data")}
    model.shard(jax.make_mesh(before, ("data",), devices=jax.devices()[: before[0]]), rules)
    with sb.Checkpoint(tmp_path, model=model, optimizer=optimizer) as checkpoint:
        checkpoint.save(0)
    values = {name: np.asarray(jax.device_get(v)) for name, v in model.variables["params"].items()}

    model, optimizer = make(2)
    mesh = jax.make_mesh(after, ("data",), devices=jax.devices()[: after[0]])
    model.shard(mesh, rules)
    with sb.Checkpoint(tmp_path, model=model, optimizer=optimizer) as checkpoint:
        checkpoint.restore()
    for name, v in model.variables["params"].items():
        np.testing.assert_array_equal(v, values[name])
    assert model[0].kernel.value.sharding.spec == PartitionSpec(None, "data")
    assert len(model[0].kernel.value.sharding.device_set) == after[0]


def test_what_does_not_fit_is_one_report_and_changes_nothing(tmp_path: Path) -> None:
    model, optimizer = make(1)
    with sb.Checkpoint(tmp_path, model=model, optimizer=optimizer) as checkpoint:
        checkpoint.save(0)
    other = sb.Sequential(
        [nn.Dense(8), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(6), nn.LayerNorm()]
    ).build((8, 4))
    before = other.variables
    with sb.Checkpoint(tmp_path, model=other) as checkpoint:
        with pytest.raises(sb.WeightsError) as caught:
            checkpoint.restore()
        assert "missing: (Sequential)[4](LayerNorm).scale" in str(caught.value)
        assert (
            "wrong shape: (Sequential)[3](Dense).kernel is (8, 6), and the file has (8, 4)"
            in str(caught.value)
        )
        jax.tree.map(np.testing.assert_array_equal, before, other.variables)
        assert checkpoint.restore(strict=False) == 0
        assert set(checkpoint.reports["model"].wrong) == {
            "(Sequential)[3](Dense).kernel",
            "(Sequential)[3](Dense).bias",
        }
    np.testing.assert_array_equal(other[0].kernel.value, model[0].kernel.value)
    with (
        sb.Checkpoint(tmp_path, modell=model) as checkpoint,
        pytest.raises(sb.WeightsError, match="has no modell; did you mean 'model'"),
    ):
        checkpoint.restore()


def test_another_dtype_is_taken_if_that_is_said(tmp_path: Path) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.arange(3.0))})
    there = sb.VarCollection({"v": sb.Variable(jnp.zeros(3, jnp.bfloat16))})
    with sb.Checkpoint(tmp_path, part=here) as checkpoint:
        checkpoint.save(0)
        checkpoint.wait()
        np.testing.assert_array_equal(sb.read(tmp_path)["part"]["v"], here["v"].value)
    with sb.Checkpoint(tmp_path, part=there) as checkpoint:
        with pytest.raises(sb.WeightsError, match="cast=True takes it"):
            checkpoint.restore()
        assert checkpoint.restore(cast=True) == 0
    np.testing.assert_array_equal(there["v"].value, jnp.arange(3, dtype=jnp.bfloat16))


def test_what_two_parts_share_is_stored_once(tmp_path: Path) -> None:
    model, _ = make(1)
    with sb.Checkpoint(tmp_path, whole=model, head=model[3]) as checkpoint:
        checkpoint.save(0)
    stored = sb.read(tmp_path)
    assert "(Sequential)[3](Dense).kernel" in stored["whole"]
    assert not stored.get("head")
    fresh, _ = make(2)
    with sb.Checkpoint(tmp_path, head=fresh[3]) as checkpoint:
        checkpoint.restore()
    np.testing.assert_array_equal(fresh[3].kernel.value, model[3].kernel.value)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint32", "float16", "bfloat16", "float32", "complex64", "float8_e4m3fn"],
)
def test_dtypes_and_damage_that_only_a_checksum_shows(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = jnp.asarray(np.arange(6).reshape(2, 3) % 2, jnp.dtype(dtype))
    here = sb.VarCollection(
        {"v": sb.Variable(array), "key": sb.Variable(jax.random.key(3), kind="rng")}
    )
    with sb.Checkpoint(tmp_path, here=here) as checkpoint:
        checkpoint.save(0)
        here["v"].assign(jnp.zeros((2, 3), jnp.dtype(dtype)))
        checkpoint.restore()
        np.testing.assert_array_equal(np.asarray(here["v"].value), np.asarray(array))
        real = checkpoint._manager.restore

        def damaged(step: int, **how: Any) -> Any:
            found = real(step, **how)
            if "state" in found:
                value = np.array(found["state"]["here"]["v"])
                value.view(np.uint8).reshape(-1)[-1] ^= 1
                found["state"]["here"]["v"] = jnp.asarray(value)
            return found

        monkeypatch.setattr(checkpoint._manager, "restore", damaged)
        with pytest.raises(sb.WeightsError, match="here v has another checksum"):
            checkpoint.restore()


def test_arrays_of_no_items_and_keys_come_back(tmp_path: Path) -> None:
    """Orbax takes none: it raises, and then never ends."""

    def make(i: int) -> sb.VarCollection:
        return sb.VarCollection({
            "none": sb.Variable(jnp.zeros((0, 3), jnp.bfloat16)),
            "keys": sb.Variable(jax.random.split(jax.random.key(i), (2, 0)), kind="rng"),
            "some": sb.Variable(jnp.full(3, i)),
        })  # fmt: skip

    for which in (None, "none"):
        folder = tmp_path / str(which)
        with sb.Checkpoint(folder, here=make(1).subset(which)) as checkpoint:
            checkpoint.save(0)
        here, want = make(2).subset(which), make(1).subset(which)
        with sb.Checkpoint(folder, here=here) as checkpoint:
            assert checkpoint.restore() == 0
            assert checkpoint.reports["here"].whole
        assert {n: (v.shape, v.dtype) for n, v in here.items()} == {
            n: (v.shape, v.dtype) for n, v in want.items()
        }
        assert which or here["some"].value[0] == 1


def test_a_checksum_is_of_all_bits_of_wide_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax.config.update("jax_enable_x64", True)
    try:
        test_dtypes_and_damage_that_only_a_checksum_shows(tmp_path, "int64", monkeypatch)
    finally:
        jax.config.update("jax_enable_x64", False)


DAMAGED = """
import sys
import jax.numpy as jnp, numpy as np
import seqbridge as sb

here = sb.VarCollection({"v": sb.Variable(jnp.zeros(1000))})
refused = 0
for folder in sys.argv[1:]:
    here["v"].assign(jnp.zeros(1000))
    try:
        with sb.Checkpoint(folder, here=here) as checkpoint:
            checkpoint.restore()
    except (sb.WeightsError, FileNotFoundError):
        refused += 1
        assert not here["v"].value.any()
    else:
        assert (np.array(here["v"].value) == np.arange(1000.0)).all(), folder
print("refused", refused)
"""


def test_files_that_are_damaged(tmp_path: Path) -> None:
    """Run in a process of its own: Orbax' threads live on after an error and break later tests."""
    whole = tmp_path / "whole"
    with sb.Checkpoint(
        whole, here=sb.VarCollection({"v": sb.Variable(jnp.arange(1000.0))})
    ) as checkpoint:
        checkpoint.save(0)
    rng = np.random.default_rng(0)
    folders = []
    for file in [
        p.relative_to(whole)
        for p in (whole / "0").rglob("*")
        if p.is_file() and p.stat().st_size > 8
    ]:
        for _ in range(4):
            folders.append(shutil.copytree(whole, tmp_path / f"damaged{len(folders)}"))
            data = bytearray((folders[-1] / file).read_bytes())
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            (folders[-1] / file).write_bytes(data)
    run = run_python(DAMAGED, *folders)
    assert run.stdout.startswith("refused "), run.stderr
    assert int(run.stdout.split()[1]) >= 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[["two", "v"]]', '[["tWo", "v"]]'),
        ('"shape": [3]', '"shape": [1]'),
        ('"params"', '"state"'),
        ('"sum"', '"sun"'),
    ],
)
def test_what_is_said_of_the_arrays_is_damaged(tmp_path: Path, old: str, new: str) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.arange(3.0))})
    with sb.Checkpoint(tmp_path, one=here, two=here) as checkpoint:
        checkpoint.save(0)
    file = tmp_path / "0" / "about" / "metadata"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    here["v"].assign(jnp.zeros(3))
    damaged = pytest.raises(sb.WeightsError, match=f"checkpoint 0 in {tmp_path} is damaged")
    with sb.Checkpoint(tmp_path, one=here, two=here) as checkpoint, damaged:
        checkpoint.restore()
    assert not here["v"].value.any()


def test_a_checkpoint_of_which_nothing_can_be_said_is_named_at_once(tmp_path: Path) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.arange(3.0))})
    with sb.Checkpoint(tmp_path, here=here) as checkpoint:
        checkpoint.save(0)
    (tmp_path / "0" / "_CHECKPOINT_METADATA").write_text('{"init_timestamp_nsecs": "today"}')
    with pytest.raises(sb.WeightsError, match=f"a checkpoint in {tmp_path} is damaged"):
        sb.Checkpoint(tmp_path, here=here)


def test_a_number_of_a_checkpoint_is_a_whole_number(tmp_path: Path) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.arange(3.0))})
    with sb.Checkpoint(tmp_path, here=here) as checkpoint:
        for bad in (1.0, 0.5, True, "5", None, np.float32(4), -1):
            with pytest.raises((TypeError, ValueError), match=r"is 0, 1, 2, \.\.\., not"):
                checkpoint.save(bad)  # pyright: ignore[reportArgumentType]
        checkpoint.save(np.int64(4))  # pyright: ignore[reportArgumentType]
        checkpoint.save(jnp.array(5))  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match=r"not 4\.0"):
            checkpoint.restore(4.0)  # pyright: ignore[reportArgumentType]
    with sb.Checkpoint(tmp_path, here=here) as checkpoint:
        assert checkpoint.restore() == 5


def test_several_of_one_folder_take_turns(tmp_path: Path) -> None:
    here, there = (sb.VarCollection({"v": sb.Variable(jnp.full(3, n))}) for n in (1.0, 0.0))
    training = sb.Checkpoint(tmp_path / "run", part=here, max_to_keep=2)
    training.save(0)
    with sb.Checkpoint(tmp_path / "run", part=there) as reading:
        training.save(1)
        assert reading.restore() == 1
        assert there["v"].value[0] == 1
        with pytest.raises(ValueError, match="step 1 can't be saved after step 1"):
            reading.save(1)
        reading.save(2)
        with pytest.raises(ValueError, match="step 2 can't be saved after step 2"):
            training.save(2)
    here["v"].assign(jnp.full(3, 3.0))
    training.save(3)
    assert training.restore() == 3
    training.close()
    for use in (lambda: training.save(4), training.restore):
        with pytest.raises(RuntimeError, match="is closed: make another one"):
            use()
    training.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, and checkpoints need a folder"):
        sb.Checkpoint(tmp_path / "file", here=here)


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="model= takes a model, a layer, an optimizer or a collection, not dict"
    ):
        sb.Checkpoint(tmp_path, model={})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="name what is to be saved"):
        sb.Checkpoint(tmp_path)
    with sb.Checkpoint(tmp_path, model=sb.Sequential([nn.Dense(3)])) as checkpoint:
        with pytest.raises(RuntimeError, match=r"call build\(...\) first"):
            checkpoint.save(0)
        assert repr(checkpoint).endswith("model; steps: none)")


KILLED = """
import sys, numpy as np, jax.numpy as jnp, seqbridge as sb
v = sb.VarCollection({"v": sb.Variable(np.zeros((1000, 1000), np.float32))})
with sb.Checkpoint(sys.argv[1], v=v, max_to_keep=2) as checkpoint:
    for step in range(10_000):
        v["v"].assign(np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32) + step)
        checkpoint.save(step)
        if step == 1:
            checkpoint.wait()
            print("saved", flush=True)
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saved\n"
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    here = sb.VarCollection({"v": sb.Variable(jnp.zeros((1000, 1000)))})
    with sb.Checkpoint(tmp_path, v=here) as checkpoint:
        step = checkpoint.restore()
    assert step is not None
    assert step >= 1
    expected = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32) + np.float32(
        step
    )
    np.testing.assert_allclose(here["v"].value, expected, atol=1e-5)


def test_where_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.arange(3.0))})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("~/of home", "of the place"):
        with sb.Checkpoint(folder, here=here) as checkpoint:
            checkpoint.save(0)
        assert (tmp_path / folder.removeprefix("~/") / "0").is_dir()


def test_the_names_of_a_shared_variable_lead_to_it(tmp_path: Path) -> None:
    v = sb.Variable(jnp.arange(3.0))
    with sb.Checkpoint(tmp_path, part=sb.VarCollection({"a": v, "b": v})) as checkpoint:
        checkpoint.save(0)
    there = sb.VarCollection({"b": sb.Variable(jnp.zeros(3))})
    with sb.Checkpoint(tmp_path, part=there) as checkpoint:
        checkpoint.restore()
    np.testing.assert_array_equal(there["b"].value, v.value)


def test_a_later_format_and_a_transform_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.arange(3.0))})
    with sb.Checkpoint(tmp_path, here=here) as checkpoint:
        with monkeypatch.context() as later:
            later.setattr("seqbridge._variables.checkpoint.FORMAT", 2)
            checkpoint.save(0)
        with pytest.raises(
            sb.WeightsError, match=r"was saved by seqbridge .*: install that, or later"
        ):
            checkpoint.restore()
        for what, use in (("saving", lambda: checkpoint.save(1)), ("loading", checkpoint.restore)):
            with pytest.raises(RuntimeError, match=f"{what} inside a JAX transform"):
                jax.jit(lambda x, use=use: use())(1.0)
        assert checkpoint.steps == (0,)


def test_control_c_in_a_save_leaves_a_checkpoint_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sb.VarCollection({"v": sb.Variable(jnp.zeros(3))})
    with sb.Checkpoint(tmp_path, here=here, max_to_keep=2) as checkpoint:
        checkpoint.save(0)
        checkpoint.wait()
        manager = checkpoint._manager

        def interrupted(*_: Any, **__: Any) -> None:  # which it takes for saved
            monkeypatch.setattr(manager, "latest_step", lambda: 1)
            monkeypatch.setattr(manager, "all_steps", lambda: [0, 1])
            raise KeyboardInterrupt

        monkeypatch.setattr(manager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(1)
        assert checkpoint.restore() == 0
        here["v"].assign(jnp.ones(3))
        checkpoint.save(2)
        assert checkpoint.restore() == 2


@pytest.mark.parametrize("number", [0, -1, "a"])
def test_a_checkpoint_keeps_one_or_more(tmp_path: Path, number: Any) -> None:
    model = sb.Sequential([nn.Dense(2)]).build((1, 3))
    with pytest.raises(ValueError, match="max_to_keep= is how many are kept"):
        sb.Checkpoint(tmp_path / "run", model=model, max_to_keep=number)
