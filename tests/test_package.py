"""What is shipped: the wheel, the sdist, the adapters and their entry points."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

import seqbridge as sb
from cases import CASES
from seqbridge import _registry

ROOT = Path(__file__).parents[1]
ADAPTERS = sorted(path for path in (ROOT / "adapters").iterdir() if path.name.startswith("seqbridge_"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target)], cwd=ROOT, check=True, capture_output=True
    )
    return target


def test_the_wheel_holds_the_core_and_the_adapters_and_no_more(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"seqbridge", *(path.name for path in ADAPTERS)}
    assert {f"{name}/py.typed" for name in top} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_a_developer_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "tests/cases/__init__.py",
        "examples/quickstart.py",
    ):
        assert needed in names


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_every_adapter_is_typed_has_an_entry_point_and_cases(adapter: Path) -> None:
    assert (adapter / "py.typed").exists()
    assert [p for p in entry_points(group="seqbridge.adapters") if p.value.startswith(f"{adapter.name}:")]
    assert [case for case in CASES if f"seqbridge_{case.ecosystem}" == adapter.name]


def test_two_claims_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def claims(group: str) -> list[Any]:
        return [EntryPoint("mine", value, group) for value in ("first:adapt", "second:adapt")]

    monkeypatch.setattr(_registry, "entry_points", claims)
    _registry._installed.cache_clear()
    with pytest.raises(RuntimeError, match="two adapters claim 'mine': first:adapt and second:adapt"):
        _registry._installed()
    monkeypatch.undo()
    _registry._installed.cache_clear()
    assert "haiku" in _registry.known()


def test_every_public_name_is_documented() -> None:
    for name, value in vars(sb).items():
        if not name.startswith("_") and callable(value):
            assert value.__doc__
            assert len(value.__doc__) > 60, name
