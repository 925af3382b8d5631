"""Files of every reader that are cut off, too long, or have a flipped bit; and interrupted saves.

At length: `test_saving.py` and `test_checkpoint.py` for our own files, `test_files.py` for what
then goes into layers.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import jax
import numpy as np
import pytest

import seqbridge as sb
from fuzz import outcome
from fuzz_files import READERS
from helpers import run_python

SINGLE = ("own", "safetensors", "npz", "eqx", "msgpack", "h5", "pickle")


def whole(name: str, folder: Path) -> list[Path]:
    READERS[name].write(folder)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", SINGLE)
def test_a_file_that_is_cut_off_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    for path in whole(name, tmp_path):
        data = path.read_bytes()
        for length in (*range(0, len(data), 64), len(data) - 1):
            path.write_bytes(data[:length])
            # Between two arrays a file of Equinox may end: it doesn't say how many it has, but a
            # layer does.
            assert outcome(name, str(path)) == "refused" or (
                name == "eqx" and len(sb.read(path)) < 8
            ), length


# A file of h5 knows where its end is.
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "h5"])
def test_a_file_that_goes_on_is_refused(name: str, tmp_path: Path) -> None:
    for path in whole(name, tmp_path):
        data = path.read_bytes()
        for more in (b"\0", b"x", bytes(64), b"\n<html>"):
            path.write_bytes(data + more)
            assert outcome(name, str(path)) == "refused"


# fuzz.py has h5, in a process of its own.
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "h5"])
def test_flipped_bits_give_arrays_or_an_error_and_where_there_are_checksums_the_same_arrays(
    name: str, tmp_path: Path
) -> None:
    chance = Random(0)
    paths = whole(name, tmp_path)
    for path in paths:
        data = path.read_bytes()
        right = READERS[name].read(str(path))
        for _ in range(500 // len(paths)):
            at = chance.randrange(8 * len(data))
            path.write_bytes(
                data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]
            )
            if outcome(name, str(path)) == "read" and name == "npz":
                jax.tree.map(np.testing.assert_array_equal, READERS[name].read(str(path)), right)


# What a save leaves

CHECKPOINTS = """
import resource, signal, sys, numpy as np, seqbridge as sb
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
v = sb.VarCollection({"v": sb.Variable(np.ones((300, 1000), np.float32))})
with sb.Checkpoint(sys.argv[1], v=v) as checkpoint:
    checkpoint.save(0)
    checkpoint.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
v["v"].assign(np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32))
checkpoint = sb.Checkpoint(sys.argv[1], v=v)
try:
    checkpoint.save(1)
    checkpoint.wait()
except Exception as error:
    print(type(error).__name__, flush=True)
import os
os._exit(0)  # Orbax' threads may wait for what can't be written
"""


def test_a_disk_that_is_full_leaves_the_checkpoints_that_are_there(tmp_path: Path) -> None:
    run = run_python(CHECKPOINTS, tmp_path, timeout=120)
    assert run.stdout.strip(), run.stderr
    here = sb.VarCollection({"v": sb.Variable(np.zeros((300, 1000), np.float32))})
    with sb.Checkpoint(tmp_path, v=here) as checkpoint:
        assert checkpoint.restore() == 0
    assert (here["v"].value == 1).all()


KILLED = """
import os, signal, sys, numpy as np, seqbridge as sb
v = sb.VarCollection({"v": sb.Variable(np.full(1000, 2, np.float32))})
# at the last moment at which it can be
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
v.save(sys.argv[1])
"""


def test_what_a_process_that_is_killed_leaves_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "f"
    here = sb.VarCollection({"v": sb.Variable(np.full(1000, 1, np.float32))})
    here.save(path)
    killed = run_python(KILLED, path)
    assert killed.returncode == -signal.SIGKILL
    assert here.load(path).whole
    assert (here["v"].value == 1).all()
    left = [name for name in os.listdir(tmp_path) if name != "f"]
    assert len(left) == 1
    assert left[0].startswith(".f.")  # hidden, of another name each time, and never read
    assert left[0].endswith(".tmp")
    here.save(path)
    assert here.load(path).whole


HOSTILE: dict[str, Any] = {
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "page": b"\xef\xbb\xbf \n<!DOCTYPE html>",
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_download_gives_instead_of_a_file_is_named(
    name: str, what: str, tmp_path: Path
) -> None:
    path = whole(name, tmp_path)[0]
    path.write_bytes(HOSTILE[what])
    with pytest.raises(
        sb.WeightsError, match="git lfs pull" if what == "lfs" else "a page of a web site"
    ):
        READERS[name].read(str(path))
