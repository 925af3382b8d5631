"""`python -m seqbridge`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from safetensors.numpy import load_file, save_file

import seqbridge as sb
from seqbridge.__main__ import main

MODELS = """
import flax.linen as nn, haiku as hk, seqbridge as sb
from functools import partial

def make():
    return sb.Sequential([nn.Dense(8)]).build((1, 4))

theirs = sb.Sequential([partial(hk.Linear, 8)], seed=5).build((1, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])
    (tmp_path / "models_of_mine.py").write_text(MODELS)
    return tmp_path


def test_inspect_lists_what_a_model_has_saved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sb.Sequential([nn.Dense(3), nn.BatchNorm()]).build((1, 4)).save("m.safetensors")
    assert main(["inspect", "m.safetensors"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(Sequential)[0](Dense).kernel float32 (4, 3) 12 params" in said
    assert "(Sequential)[1](BatchNorm).mean float32 (3,) 3 state" in said
    assert "safetensors: 6 arrays, 27 numbers, 108 bytes" in said
    assert f"jax {jax.__version__}; checksums are right" in said


def test_inspect_reads_every_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 4)))
    params = jax.tree.map(np.asarray, variables["params"])
    (folder / "m.msgpack").write_bytes(serialization.to_bytes(variables))
    (folder / "m.pkl").write_bytes(pickle.dumps(params))
    np.savez("m.npz", **params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", variables)
    for file in ("m.msgpack", "m.npz", "orbax"):
        assert main(["inspect", file]) == 0
        assert "kernel" in capsys.readouterr().out
    assert main(["inspect", "m.pkl"]) == 1
    assert "allow_pickle=True" in capsys.readouterr().err
    assert main(["inspect", "m.pkl", "--allow-pickle"]) == 0


def test_port_carries_a_file_or_a_model_into_a_model_and_saves_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = np.arange(32, dtype=np.float32).reshape(8, 4)
    save_file({"fc.weight": weight, "fc.bias": np.ones(8, np.float32)}, "torch.safetensors")
    arguments = ["port", "torch.safetensors", "out.safetensors", "--into", "models_of_mine:make"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (folder / "out.safetensors").exists()
    assert "transposed (1, 0)" in capsys.readouterr().out
    assert main([*arguments, "--map", "fc=[0]"]) == 0
    np.testing.assert_array_equal(
        load_file("out.safetensors")["(Sequential)[0](Dense).kernel"], weight.T
    )
    assert (
        main(["port", "models_of_mine:theirs", "out.safetensors", "--into", "models_of_mine:make"])
        == 0
    )
    assert sb.Sequential([nn.Dense(8)], seed=3).build((1, 4)).load("out.safetensors").whole


def test_port_stores_the_arrays_of_a_file_as_safetensors(folder: Path) -> None:
    params = hk.transform(lambda x: hk.Linear(3)(x)).init(jax.random.key(0), jnp.ones((1, 4)))
    flat: Any = {f"{scope}//{name}": a for scope, of in params.items() for name, a in of.items()}
    np.savez("haiku.npz", **flat)
    assert main(["port", "haiku.npz", "haiku.safetensors"]) == 0
    np.testing.assert_array_equal(
        load_file("haiku.safetensors")["linear//w"], params["linear"]["w"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "nothing"], "No such file"),
        (["inspect", "models_of_mine.py"], "is of no known format"),
        (["port", "models_of_mine:theirs", "out", "--into", "models_of_mine"], "isn't module:name"),
        (
            ["port", "models_of_mine:theirs", "out", "--into", "models_of_mine:mak"],
            "has no attribute 'mak'",
        ),
        (
            [
                "port",
                "models_of_mine:theirs",
                "out",
                "--into",
                "models_of_mine:make",
                "--map",
                "x=y",
            ],
            "has no 'x'",
        ),
    ],
)
def test_what_can_not_be_done_is_said(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert said in capsys.readouterr().err
