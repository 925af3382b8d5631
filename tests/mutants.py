"""Mutants: one change in a module that a test should notice; and plugins that run tests on them.

Comparisons, `and` and `or`, `not`, conditions, `+` and `-`, whole numbers, flags, what is returned,
calls for their effect, assignments where there is another value, and the contexts of with-blocks;
nothing of annotations and of errors.
"""

from __future__ import annotations

import ast
import importlib.machinery
import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = str(Path(__file__).parents[1] / "seqbridge") + "/"

SWAPS = [
    (ast.Eq, ast.NotEq),
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
]
SWAPS += [(ast.And, ast.Or), (ast.Add, ast.Sub)]
SWAPPED: dict[type[Any], type[Any]] = {**dict(SWAPS), **{b: a for a, b in SWAPS}}
# The function, its node, the node that is shown, and how to change it.
Site = tuple[str, ast.AST, ast.AST, Callable[[], None]]


def sites(tree: ast.AST, where: str, scope: ast.AST) -> Iterator[Site]:
    """All that can be changed, one at a time, in an order that the source fixes."""
    for field, child in ast.iter_fields(tree):
        if isinstance(tree, ast.Raise) or field in ("annotation", "returns", "decorator_list"):
            continue
        for i, node in enumerate(child if isinstance(child, list) else [child]):
            if not isinstance(node, ast.AST) or for_checkers(node):
                continue
            for shown, owner, key, new in changes(node, tree, where, scope):
                owner = child if owner is tree and isinstance(child, list) else owner
                if isinstance(owner, list):
                    key = i if owner is child else key
                    yield where, scope, shown, lambda o=owner, k=key, new=new: o.__setitem__(k, new)
                else:
                    yield where, scope, shown, lambda o=owner, k=key, new=new: setattr(o, k, new)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield from sites(node, f"{where}.{node.name}".strip("."), node)
            else:
                yield from sites(node, where, scope)


def for_checkers(node: ast.AST) -> bool:
    """Whether only checkers of types look at it."""
    if isinstance(node, ast.FunctionDef):
        return any(isinstance(by, ast.Name) and by.id == "overload" for by in node.decorator_list)
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def changes(
    node: Any, parent: ast.AST, where: str, scope: ast.AST
) -> Iterator[tuple[ast.AST, Any, Any, Any]]:
    """Yield the node to show, the object that changes, its field or index, and the new value."""
    match node:
        case ast.Compare():
            yield from ((node, node.ops, at, SWAPPED[type(op)]()) for at, op in enumerate(node.ops))
        case ast.UnaryOp(op=ast.Not()):
            yield node, node, "operand", ast.UnaryOp(ast.Not(), node.operand)
        case ast.If() | ast.IfExp() | ast.While():
            for value in (False,) if isinstance(node, ast.While) else (True, False):
                yield node, node, "test", ast.Constant(value)
        case ast.comprehension(ifs=[_, *_]):
            yield node, node, "ifs", []
        case ast.Constant(value=bool() | int() as old):
            new = not old if isinstance(old, bool) else old + 1
            yield parent if isinstance(parent, ast.expr | ast.keyword) else node, node, "value", new
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, node, "value", ast.Constant(None)
        case ast.Expr(value=ast.Call()):
            yield node, node, "value", ast.Constant(None)
        case ast.Assign() | ast.AugAssign() if _spare(node, where, scope):
            yield node, parent, None, ast.Pass()
        case ast.With() if not any(item.optional_vars for item in node.items):
            yield node, parent, None, ast.If(ast.Constant(True), node.body, [])
    if isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(node.op) in SWAPPED:
        yield node, node, "op", SWAPPED[type(node.op)]()


def _spare(node: ast.Assign | ast.AugAssign, where: str, scope: ast.AST) -> bool:
    """Whether what is assigned has another value, from before or of another assignment."""
    names = [
        n.id for n in ast.walk(scope) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]
    names += [n.arg for n in ast.walk(scope) if isinstance(n, ast.arg)]
    kept = [
        not isinstance(t, ast.Name) or names.count(t.id) > 1 for t in getattr(node, "targets", ())
    ]
    return (
        all(kept)
        and isinstance(scope, ast.FunctionDef)
        and not where.endswith(("__init__", "__new__"))
    )


def mutants(module: str, file: Path) -> Iterator[tuple[str, list[set[int]], types.CodeType]]:
    """Yield each mutant's text, the lines that a test should reach (or else which), and code."""
    tree = ast.parse(source := file.read_text())
    for number in range(len(list(sites(tree, "", tree)))):
        tree = ast.parse(source)
        where, scope, node, change = list(sites(tree, "", tree))[number]
        spans = [
            (n.lineno, n.end_lineno or 0)
            for n in (node, scope)
            if isinstance(n, ast.stmt | ast.expr)
        ]
        if isinstance(node, ast.If | ast.While | ast.With):
            spans[0] = node.lineno, node.body[0].lineno - 1
        before = ast.unparse(node).strip().splitlines()[0]
        change()
        after = ast.unparse(node).strip().splitlines()[0]
        code = compile(ast.fix_missing_locations(tree), str(file), "exec")
        lines = [set(range(a, max(a, b) + 1)) for a, b in [*spans, (1, 999)]]
        yield (
            f"`{module}.{where}`: `{before}` -> `{after if after != before else 'pass'}`",
            lines,
            code,
        )


class Reached:
    """Record which lines of the package each passing test reaches, and how long it takes."""

    def __init__(self, file: Path) -> None:
        self.file, self.tests, self.failed = file, {}, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        lines: set[tuple[str, int]] = set()

        def trace(frame: types.FrameType, event: str, arg: Any) -> Any:
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            if event == "line":
                file = frame.f_code.co_filename[len(PACKAGE) : -len(".py")]
                lines.add((file.replace("/", "."), frame.f_lineno))
            return trace

        start = time.monotonic()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = time.monotonic() - start, sorted(lines)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= {report.nodeid} if report.failed else set()

    def pytest_sessionfinish(self) -> None:
        self.file.write_text(
            json.dumps({n: t for n, t in self.tests.items() if n not in self.failed})
        )


class Chosen:
    """Run these tests, in this order, of a mutated module."""

    def __init__(self, module: str, code: types.CodeType, tests: list[str]) -> None:
        self.name, self.code, self.tests = f"seqbridge.{module}", code, tests
        if self.name in sys.modules:
            raise ImportError(f"{self.name} was imported before its mutant")
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == self.name else None
        if spec is not None:
            spec.loader.get_code = lambda name: self.code  # type: ignore[union-attr]
        return spec

    def pytest_configure(self, config: Any) -> None:
        config.option.maxfail = 1
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]  # before pytest's own, which rewrites files with doctests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {name: i for i, name in enumerate(self.tests)}
        # Each example of a page goes on from those before.
        examples = [item for item in items if "::line:" in item.nodeid]
        chosen = [item for item in items if item.nodeid in order and item not in examples]
        items[:] = [*sorted(chosen, key=lambda item: order[item.nodeid]), *examples]


class Prepared:
    """Tell `conftest.py` that what it prepares is there."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: Any) -> None:
        config.workerinput = {"workerid": "gw0", "workercount": 1, "testrunuid": "mutation"}
