"""Hooks of mkdocs for the documentation site.

They make pages of files of the repository, and add `to_<library>` to the API.
"""

from __future__ import annotations

import ast
import copy
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

from seqbridge._state import Stateful

ROOT = Path(__file__).parents[1]
LINK = re.compile(
    r"```.*?```|`[^`]+`|\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)", re.DOTALL
)  # or code, where none is

# Files outside of docs/ that are pages of the site, and what the page is called there.
SHOWN = {
    "README.md": "rules.md",
    "adapters/README.md": "adapters.md",
    "benchmarks/README.md": "benchmarking.md",
} | {
    path.relative_to(ROOT).as_posix(): f"examples/{path.stem}.md"
    for path in sorted(ROOT.glob("examples/*.py"))
}


def on_files(files: Files, config: Any) -> Files:
    for source, page in SHOWN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".py"):
            text = f"---\nhide: [toc]\n---\n\n# {source}\n\n```python\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages, wherever the linked file lies; name what is no page.

    Prompts are shown as prompts.
    """
    where = page.file.src_uri
    source = next((source for source, shown in SHOWN.items() if shown == where), f"docs/{where}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if text is None:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        to = path.removeprefix("docs/") if path.startswith("docs/") else SHOWN.get(path)
        if to is None:
            if not (ROOT / path).exists():
                raise ValueError(f"{source} links to {target}, which isn't there")
            return text if "`" in text else f"`{path}`"
        return f"[{text}]({os.path.relpath(to, posixpath.dirname(where) or '.')}{anchor})"

    return re.sub(r"```python\n(?=>>>)", "```pycon\n", LINK.sub(link, markdown))


class WaysOut(griffe.Extension):
    """Adds `to_<library>`, which seqbridge makes of an adapter's `export` when asked for."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        if pkg.name != "seqbridge":
            return
        _hide_internal_names(pkg)
        arguments = str(pkg["_export"]["export"]["_ARGS"].value)
        first = [
            griffe.Parameter("x", annotation="Any", kind=griffe.ParameterKind.positional_only),
            griffe.Parameter("inputs", annotation="Any", kind=griffe.ParameterKind.var_positional),
            griffe.Parameter(
                "training",
                annotation="bool | None",
                kind=griffe.ParameterKind.keyword_only,
                default="None",
            ),
        ]
        for adapter in sorted(ROOT.glob("adapters/seqbridge_*/_export.py")):
            module: Any = loader.load(adapter.parent.name)
            export = module["_export"]["export"]
            name = f"to_{adapter.parent.name.removeprefix('seqbridge_')}"
            own = [copy.copy(p) for p in export.parameters if p.name != "layer"]
            text = re.sub(
                r"    layer: .*\n", lambda _: ast.literal_eval(arguments), export.docstring.value
            )
            made = griffe.Function(
                name, parameters=griffe.Parameters(*first, *own), returns=export.returns
            )
            made.docstring = griffe.Docstring(text, parent=made, lineno=1)
            pkg.set_member(name, made)


def _hide_internal_names(pkg: griffe.Module) -> None:
    """Leave out what classes have for other folders of the package only."""
    for cls in (Stateful, *_subclasses(Stateful)):
        path = cls.__module__.removeprefix("seqbridge.")
        if not cls.__module__.startswith("seqbridge."):
            continue
        members = pkg[f"{path}.{cls.__name__}"].members
        for name in cls.internal_names:
            members.pop(name, None)


def _subclasses(cls: type[Stateful]) -> Iterator[type[Stateful]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
