"""`python -m seqbridge`: what is in a file of weights, and simple conversions."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seqbridge._files import WeightsError, format_of, read, read_safetensors, write_safetensors
from seqbridge._interface import table
from seqbridge._layers import LayerList
from seqbridge._port import port


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 1 if it can't be done, and why stands on stderr."""
    parser = argparse.ArgumentParser(prog="python -m seqbridge", description=__doc__)
    commands = parser.add_subparsers(required=True)
    inspect = commands.add_parser("inspect", help="list the arrays of a file of weights")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("file", help="a file, or a folder of Orbax")
    move = commands.add_parser(
        "port",
        help="carry weights into a model of another library, or into another file",
        description="With --into, carries the weights into that model and saves it. Without, stores the arrays of the "
        "file under their own names as safetensors.",
    )
    move.set_defaults(run=_port)
    move.add_argument(
        "source", help="a file; or module:name of a model, or of a function that makes one"
    )
    move.add_argument("out", help="the safetensors file to write")
    move.add_argument(
        "--into", metavar="MODULE:NAME", help="a built Sequential, or a function that makes one"
    )
    move.add_argument(
        "--map",
        metavar="A=B",
        action="append",
        default=[],
        help="carry layer A of the source into B",
    )
    move.add_argument(
        "--flatten", metavar="A=C,H,W", action="append", default=[], help="see seqbridge.port"
    )
    move.add_argument(
        "--accept", metavar="NAME", action="append", default=[], help="a difference that may be"
    )
    move.add_argument(
        "--partial", action="store_true", help="carry what matches, and leave the rest"
    )
    move.add_argument("--dry-run", action="store_true", help="show the plan only")
    for command in (inspect, move):
        command.add_argument(
            "--allow-pickle", action="store_true", help="take arrays and containers out of a pickle"
        )
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except (WeightsError, OSError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


def _inspect(given: argparse.Namespace) -> None:
    path = os.path.expanduser(given.file)
    kind = format_of(path)
    arrays = dict(_leaves(read(path, allow_pickle=given.allow_pickle)))
    about = read_safetensors(path)[1] if kind == "safetensors" else {}
    kinds = {name: note["kind"] for name, note in about.get("variables", {}).items()}
    rows = [
        (name, str(a.dtype), str(a.shape), str(a.size), kinds.get(name, ""))
        for name, a in arrays.items()
    ]
    print(table(("name", "dtype", "shape", "size", "kind"), rows))
    total = sum(a.nbytes for a in arrays.values())
    print(
        f"{kind}: {len(arrays)} arrays, {sum(a.size for a in arrays.values())} numbers, {total} "
        f"bytes"
    )
    if "versions" in about:
        print(
            f"saved by seqbridge {about['versions']['seqbridge']}, jax {about['versions']['jax']}; "
            f"checksums are right"
        )
    elif about.get("metadata"):
        print(f"metadata: {json.dumps(about['metadata'])}")


def _port(given: argparse.Namespace) -> None:
    source = (
        _named(given.source)
        if _is_name(given.source)
        else read(given.source, allow_pickle=given.allow_pickle)
    )
    if given.into is None:
        if isinstance(source, LayerList):
            source.save(given.out)
        else:
            write_safetensors(given.out, dict(_leaves(source)), {})
        return
    target = _named(given.into)
    plan = port(
        source,
        target,
        mapping={old: new or None for old, _, new in (pair.partition("=") for pair in given.map)},
        flatten={
            name: [int(n) for n in sizes.split(",")]
            for name, _, sizes in (f.partition("=") for f in given.flatten)
        },
        accept=given.accept,
        strict=not given.partial,
        dry_run=given.dry_run,
    )
    print(plan)
    if not given.dry_run:
        target.save(given.out)


def _is_name(text: str) -> bool:
    _, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and not os.path.exists(text)


def _named(text: str) -> Any:
    """The model that `module:name` means; a function is called."""
    module, colon, name = text.partition(":")
    if not colon:
        raise TypeError(f"{text!r} isn't module:name, such as mymodels:make_model")
    sys.path.insert(0, os.getcwd())
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, LayerList) else found()


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, Mapping):
        for name, inner in tree.items():
            yield from _leaves(inner, (*path, str(name)))
    elif isinstance(tree, list | tuple):
        for i, inner in enumerate(tree):
            yield from _leaves(inner, (*path, str(i)))
    else:
        yield ".".join(path), np.asarray(tree)


if __name__ == "__main__":
    sys.exit(main())
