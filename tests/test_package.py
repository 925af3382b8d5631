"""The package as it is shipped: the wheel, the sdist, the adapters and their entry points."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import seqbridge as sb
import toy_layers
from cases import CASES
from helpers import run_python
from targets import TARGETS

ROOT = Path(__file__).parents[1]
ADAPTERS = sorted(
    path for path in (ROOT / "adapters").iterdir() if path.name.startswith("seqbridge_")
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
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
        "mkdocs.yml",
        "docs/site_hooks.py",
        "tests/cases/__init__.py",
        "examples/quickstart.py",
    ):
        assert needed in names


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_every_adapter_is_typed_has_an_entry_point_and_cases(adapter: Path) -> None:
    assert (adapter / "py.typed").exists()
    takes, knows = (
        [
            p
            for p in entry_points(group=f"seqbridge.{group}")
            if p.value.startswith(f"{adapter.name}:")
        ]
        for group in ("adapters", "layouts")
    )
    assert takes or knows  # one that knows weights in files alone takes no entries
    assert [case for case in CASES if f"seqbridge_{case.ecosystem}" == adapter.name] or not takes


def test_every_adapter_that_takes_entries_has_an_extra() -> None:
    extras = metadata("seqbridge").get_all("Provides-Extra") or []
    taking = {p.value.partition(":")[0] for p in entry_points(group="seqbridge.adapters")} & {
        a.name for a in ADAPTERS
    }
    assert {name.removeprefix("seqbridge_") for name in taking} <= set(extras)


def test_an_adapter_of_somebody_else_is_found_by_its_entry_point() -> None:
    (point,) = entry_points(group="seqbridge.adapters", name="toy_layers")
    assert point.dist is not None
    assert point.dist.name == "seqbridge-toy"
    assert sb.Sequential([toy_layers.Gain()])[0].pure.ecosystem == "toy"
    assert {case.ecosystem for case in CASES} >= {"toy"}


def test_two_distributions_that_claim_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("first", "second"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[seqbridge.adapters]\nmine = shared:adapt\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import seqbridge as sb
sb.Sequential([abs])
"""
    run = run_python(code)
    assert run.returncode
    assert re.search(
        r"two adapters claim 'mine': (first|second) .* and (first|second) .*Uninstall", run.stderr
    )


def test_the_documented_matrices_are_those_of_the_suites_and_all_green() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text()
    properties, ways = (
        [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in part.splitlines()
            if line.startswith("|")
        ]
        for part in page.split("# What goes where")
    )
    suite = (ROOT / "tests" / "test_conformance.py").read_text()
    ecosystems = list(dict.fromkeys(case.ecosystem for case in CASES))
    assert properties[0][1:] == ecosystems
    assert {row[0] for row in properties[2:]} == {
        n.replace("_", " ") for n in re.findall(r"def test_(\w+)\(", suite)
    }
    assert ways[0][1:] == [f"to {target}" for target in TARGETS]
    assert [row[0] for row in ways[2:]] == [f"from {ecosystem}" for ecosystem in ecosystems]
    for row in (*properties[2:], *ways[2:]):
        assert all(cell.startswith("✓ ") and int(cell[2:]) for cell in row[1:])


def test_every_public_name_is_documented() -> None:
    for name, value in vars(sb).items():
        if not name.startswith("_") and callable(value):
            assert value.__doc__
            assert len(value.__doc__) > 60, name


def test_the_api_page_has_every_public_name_once() -> None:
    shown = re.findall(
        r"^::: seqbridge\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE
    )
    ours = {adapter.name for adapter in ADAPTERS}
    ways = {
        f"to_{p.name}"
        for p in entry_points(group="seqbridge.exports")
        if p.value.partition(":")[0] in ours
    }
    public = {
        name
        for name in vars(sb)
        if not name.startswith("_") and not inspect.ismodule(getattr(sb, name))
    }
    assert sorted(shown) == sorted(public | ways)
