"""Each example runs, from anywhere, and asserts its own claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").rglob("*.py"))
NOTEBOOKS = [path for path in EXAMPLES if path.parent.name == "notebooks"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(example)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout


def test_there_are_examples() -> None:
    assert {"quickstart", "seed_walkthrough"} <= {path.stem for path in EXAMPLES}


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "embeddings_from_a_classifier",
        "mix_three_libraries",
        "port_a_haiku_model",
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_cells_of_text_and_of_code(notebook: Path) -> None:
    lines = notebook.read_text().splitlines()
    assert lines[0] == "# %% [markdown]"
    assert lines[1].startswith("# # ")  # the title
    assert lines.count("# %% [markdown]") >= 5
    assert lines.count("# %%") >= 5
