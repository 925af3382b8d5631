"""The structure of the core, read from its source: imports, circles, names that are private.

python tests/architecture.py    # prints the numbers
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "seqbridge").rglob("*.py"))
FLOORS = [  # each folder imports from those on the floors before its own, and nothing runs up
    {"_interface"},
    {"_state", "_files"},
    {"_variables", "_entries", "_sharding"},
    {"_layers", "_transforms"},
    {"_passes"},
    {"_model"},
    {"_export", "_port"},
    {"_wrappers"},
    {"__init__", "__main__"},
]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT / "seqbridge"))


def folder_of(file: Path) -> str:
    return file.relative_to(ROOT / "seqbridge").with_suffix("").parts[0]


def imports(source: str) -> set[str]:
    """The modules that are imported, also in functions and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def upward(file: Path) -> list[str]:
    """The modules that a file imports from its own floor's other folders, or from above."""
    own = folder_of(file)
    found = []
    for module in sorted(imports(file.read_text())):
        folder = module.partition("seqbridge.")[2].partition(".")[0]
        if folder and folder != own and FLOOR[folder] >= FLOOR[own]:
            found.append(module)
    return found


def circles() -> list[str]:
    """The circles of files that import one another, each as text."""
    below = {}
    for file in CORE:
        if file.stem != "__init__":
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            below[name] = imports(file.read_text())
    done: set[str] = set()
    found: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            found.append(" -> ".join((*above[above.index(name) :], name)))
        elif name not in done:
            for other in sorted(below[name] & below.keys()):
                visit(other, (*above, name))
            done.add(name)

    for name in below:
        visit(name, ())
    return found


class PrivateRead(NamedTuple):
    """A private name that a file reads, of an object whose class is defined in another file."""

    file: str
    line: int
    name: str


def private_reads() -> list[PrivateRead]:
    """Each read of `x._name` where `x` isn't `self` and the file itself defines no `_name`."""
    found = []
    for file in CORE:
        tree = ast.parse(file.read_text())
        own = set(_defined(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr in own or not _private(node.attr):
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append(PrivateRead(name_of(file), node.lineno, node.attr))
    return found


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(tree: ast.Module) -> Iterator[str]:
    """The names that a file defines: functions, classes, variables, attributes of `self`, slots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Assign) and "__slots__" in map(ast.unparse, node.targets):
            for constant in ast.walk(node.value):
                if isinstance(constant, ast.Constant):
                    yield str(constant.value)


def main() -> None:
    reads = private_reads()
    print(f"{len(CORE)} files in {len(FLOOR) - 2} folders on {len(FLOORS) - 1} floors")
    print(f"{sum(len(upward(file)) for file in CORE)} imports that don't run down")
    print(f"{len(circles())} circles of files")
    print(f"{len(reads)} private names read across files:")
    for file, line, name in reads:
        print(f"  {file}:{line}: {name}")


if __name__ == "__main__":
    main()
