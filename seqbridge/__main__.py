"""`python -m seqbridge`: the arrays of a file of weights, and simple conversions."""

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
    """Run a command. Return 0, or 1 if it can't be done and stderr says why."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (WeightsError, OSError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seqbridge", description=__doc__)
    commands = parser.add_subparsers(required=True)
    inspect = commands.add_parser("inspect", help="list the arrays of a file of weights")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("file", help="a file, or a folder of Orbax")
    move = commands.add_parser(
        "port",
        help="port weights to a model of another library, or to another file",
        description="With --into, ports the weights to that model and saves it. Without, stores "
        "the arrays of the file under their own names as safetensors.",
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
        help="port layer A of the source to layer B",
    )
    move.add_argument(
        "--flatten", metavar="A=C,H,W", action="append", default=[], help="see seqbridge.port"
    )
    move.add_argument(
        "--accept", metavar="NAME", action="append", default=[], help="a difference to accept"
    )
    move.add_argument(
        "--partial", action="store_true", help="port what matches, and leave the rest"
    )
    move.add_argument("--dry-run", action="store_true", help="show the plan only")
    for command in (inspect, move):
        command.add_argument(
            "--allow-pickle", action="store_true", help="take arrays and containers out of a pickle"
        )
    return parser


def _inspect(given: argparse.Namespace) -> None:
    path = os.path.expanduser(given.file)
    file_format = format_of(path)
    arrays = dict(_leaves(read(path, allow_pickle=given.allow_pickle)))
    about: dict[str, Any] = {}
    if file_format == "safetensors":
        _, about = read_safetensors(path)
    kinds = {name: note["kind"] for name, note in about.get("variables", {}).items()}
    rows: list[tuple[str, ...]] = []
    numbers = total = 0
    for name, array in arrays.items():
        kind = kinds.get(name, "")
        rows.append((name, str(array.dtype), str(array.shape), str(array.size), kind))
        numbers += array.size
        total += array.nbytes
    print(table(("name", "dtype", "shape", "size", "kind"), rows))
    print(f"{file_format}: {len(arrays)} arrays, {numbers} numbers, {total} bytes")
    if "versions" in about:
        versions = about["versions"]
        print(
            f"saved by seqbridge {versions['seqbridge']}, jax {versions['jax']}; "
            "checksums are right"
        )
    elif about.get("metadata"):
        print(f"metadata: {json.dumps(about['metadata'])}")


def _port(given: argparse.Namespace) -> None:
    if _is_name(given.source):
        source = _named(given.source)
    else:
        source = read(given.source, allow_pickle=given.allow_pickle)
    if given.into is None:
        if isinstance(source, LayerList):
            source.save(given.out)
        else:
            write_safetensors(given.out, dict(_leaves(source)), {})
        return
    target = _named(given.into)
    mapping: dict[str, str | None] = {}
    for pair in given.map:
        old, _, new = pair.partition("=")
        mapping[old] = new or None
    flatten: dict[str, list[int]] = {}
    for pair in given.flatten:
        name, _, sizes = pair.partition("=")
        flatten[name] = [int(size) for size in sizes.split(",")]
    plan = port(
        source,
        target,
        mapping=mapping,
        flatten=flatten,
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
    """Return the model that `module:name` means; a function is called."""
    module, colon, name = text.partition(":")
    if not colon:
        raise TypeError(f"{text!r} isn't module:name, such as mymodels:make_model")
    sys.path.insert(0, os.getcwd())
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, LayerList) else found()


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a tree, each with its name."""
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
