"""Mutation testing: change one thing in a module, and report the changes that no test notices.

    python tests/mutation.py _layers.sharing _interface.messages    # without any: all of `ABOUT`

At most `--sample` mutants of a module run, drawn by a fixed seed, `--workers` at once. `--log FILE`
gets each result as it comes, `--reached FOLDER` keeps what each test reaches for the next run.
`--again LOG` runs those that survived in it; `--also test_export ...` adds the tests of other
files. `mutation_survivors.md` explains mutants that change nothing that could be seen.

The tests run once with a tracer that notes the lines that each reaches. Then each mutant is a fork
of a process that has imported JAX and the libraries, but not the package: it imports the package
with the mutated module in place and runs the tests that reach the line, the cheapest first. A
failure, a crash and a hang are kills.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mutants import Chosen, Prepared, Reached, mutants

ROOT = Path(__file__).parents[1]
LISTS = ("test_list", "test_list_properties", "test_entries", "test_ecosystems")
VALUES = ("test_variables", "test_faults_state")
CALLS = ("test_keywords", "test_faults_calls")
FUNCTIONS = ("test_transforms", "test_faults_state", "test_freeze")
FILES = ("test_saving", "test_faults_files", "test_files")
ABOUT = {  # the test files that are about a module
    "_interface.dispatch": CALLS,
    "_interface.messages": (*CALLS, "test_saving", "test_variables"),
    "_state.dtypes": (*VALUES, "test_transforms"),
    "_state.frames": (*FUNCTIONS, *VALUES),
    "_state.variable": (*VALUES, "test_transforms"),
    "_state.version": LISTS,
    "_variables.checkpoint": ("test_checkpoint",),
    "_variables.collection": VALUES,
    "_variables.matching": FILES,
    "_variables.saving": FILES,
    "_layers.layer_list": (*LISTS, *VALUES),
    "_layers.module_tree": (*LISTS, *VALUES),
    "_layers.parents": LISTS,
    "_layers.sharing": LISTS,
    "_transforms.grad": FUNCTIONS,
    "_transforms.loops": FUNCTIONS,
    "_wrappers.remat": FUNCTIONS,
}
# Seconds of tests that run for a line which they reach: of the module's own tests, and of others.
OWN, OTHER = 60.0, 6.0
OPTIONS = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
UNCHANGED = "no change"
LIBRARIES = (
    "jax flax.linen flax.nnx haiku equinox keras optax orbax.checkpoint hypothesis safetensors "
    "rich objax sybil"
)


def run(
    workers: int,
    tasks: list[tuple[Callable[[], Any], list[str], float, Callable[[str, float], None]]],
) -> None:
    """Run tests in forks, so many at once.

    A task is a plugin, the files, the time that it may take, and what is told how it ended.
    """
    running: dict[int, tuple[float, float, Callable[[str, float], None]]] = {}
    while running or tasks:
        if tasks and len(running) < workers:
            plugin, files, limit, done = tasks.pop(0)
            if child := os.fork():
                running[child] = time.monotonic(), limit, done
                continue
            try:
                os.setsid()
                null = os.open(os.devnull, os.O_RDWR)
                if "MUTATION_SHOW" not in os.environ:
                    for stream in (0, 1, 2):
                        os.dup2(null, stream)
                code = pytest.main([*OPTIONS, *files], plugins=[Prepared(), plugin()])
                sys.stdout.flush()
                os._exit(int(code))
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(99)
        for child, (began, limit, done) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - began
            if not ended and seconds > limit:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if ended or seconds > limit:
                del running[child]
                if not ended:
                    done("hung", seconds)
                else:
                    done("survived" if status == 0 else "killed", seconds)
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", default=list(ABOUT))
    parser.add_argument("--sample", type=int, default=80)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--also", nargs="*", default=[])
    parser.add_argument("--reached")
    parser.add_argument("--log", default=os.devnull)
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ["KERAS_BACKEND"] = "jax"
    # JAX warns of forks; its threads come with the first array, which is made in a fork.
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]
    importlib.import_module("conftest").pytest_configure(
        types.SimpleNamespace(add_cleanup=atexit.register)
    )
    for name in LIBRARIES.split():
        importlib.import_module(name)

    about = {
        module: [source_of(module), *(path_of(name) for name in (*ABOUT[module], *args.also))]
        for module in args.modules
    }
    reached: dict[str, tuple[float, set[tuple[str, int]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(args.reached or folder)
        kept.mkdir(exist_ok=True)
        names = {name: kept / name.replace("/", ".") for names in about.values() for name in names}
        missing = {name: file for name, file in names.items() if not file.exists()}
        run(
            args.workers,
            [
                (partial(Reached, file), [name], 600.0, lambda *_: None)
                for name, file in missing.items()
            ],
        )
        for file in names.values():
            for name, (seconds, lines) in json.loads(file.read_text()).items():
                reached[name] = seconds, {(module, line) for module, line in lines}
    print(f"{len(reached)} tests pass", flush=True)

    results: dict[str, Counter[str]] = {module: Counter() for module in args.modules}
    explained = Path(__file__).with_name("mutation_survivors.md").read_text().replace("\n  ", " ")
    again = args.again and {
        line.partition(" tests, ")[2] for line in args.again.open() if line.startswith("survived")
    }
    tasks: list[tuple[int, Any]] = []
    for module in args.modules:
        file = ROOT / source_of(module)
        found = [m for m in mutants(module, file) if again is None or f"{m[0]}\n" in again]
        random.Random(0).shuffle(found)
        if not found:
            continue
        control = f"`{module}`: {UNCHANGED}"
        unchanged = control, [set(range(999))], compile(file.read_text(), str(file), "exec")
        for turn, (text, spans, code) in enumerate([unchanged, *found[: args.sample]]):
            tests = choose(module, spans, reached, about[module])
            limit = 20 + 4 * sum(reached[name][0] for name in tests)

            def done(
                how: str,
                seconds: float,
                module: str = module,
                control: str = control,
                text: str = text,
                n: int = len(tests),
            ) -> None:
                how = "explained" if how == "survived" and text in explained else how
                results[module][how] += text != control
                with open(args.log, "a") as log:
                    print(f"{how:<9} {seconds:5.1f} s, {n:3d} tests, {text}", file=log)
                if text == control and how != "survived":
                    print(f"{module}: the tests fail without any change", flush=True)

            if tests:
                # Modules last, as in a whole run.
                files = sorted({name.partition("::")[0] for name in tests}, reverse=True)
                tasks.append((turn, (partial(Chosen, module, code, tests), files, limit, done)))
            else:
                done("survived", 0.0)
    run(args.workers, [task for _, task in sorted(tasks, key=lambda task: task[0])])
    print("| module | mutants | killed | explained | survived | score |\n|---|---|---|---|---|---|")
    for module, how in results.items():
        killed = how["killed"] + how["hung"]
        score = (killed + how["explained"]) / max(1, how.total())
        print(
            f"| `{module}` | {how.total()} | {killed} | {how['explained']} | {how['survived']} | "
            f"{score:.1%} |"
        )


def source_of(module: str) -> str:
    """Return where a module of the package stands, relative to the root."""
    return f"seqbridge/{module.replace('.', '/')}.py"


def path_of(name: str) -> str:
    """Return where a test file stands, relative to the root."""
    (file,) = (ROOT / "tests").rglob(f"{name}.py")
    return str(file.relative_to(ROOT))


def choose(
    module: str, spans: list[set[int]], reached: Mapping[str, Any], own: list[str]
) -> list[str]:
    """Return the tests that reach the lines, or else the function, or else the module.

    The cheapest come first.
    """
    hits: list[tuple[float, str]] = []
    for span in spans:
        hits = hits or sorted(
            (s, name)
            for name, (s, lines) in reached.items()
            if any((module, n) in lines for n in span)
        )
    chosen, spent = [], {True: 0.0, False: 0.0}
    for seconds, name in hits:
        about = name.partition("::")[0] in own
        spent[about] += seconds
        if spent[about] < (OWN if about else OTHER) or not chosen:
            chosen.append(name)
    return chosen


if __name__ == "__main__":
    main()
