"""Measures what is said about speed and memory, all systems side by side in one run.

python benchmarks/run.py --json out.json --page docs/benchmarks.md --plot docs/benchmarks.svg
python benchmarks/run.py --quick --only training,depth
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clock
from report import SECTIONS, page, write

_MODULES = {"inference": "speed", "training": "speed"}  # others are called like their section
_PACKAGES = ("jax", "flax", "dm-haiku", "equinox", "keras", "optax")
_ENVIRONMENT = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
# Virtual devices wait for each other: with fewer threads than devices XLA may wait for itself.
_DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "NPROC": "16",
    "JAX_PLATFORMS": "cpu",
}


def _section(name: str, quick: bool) -> list[clock.Row]:
    """The rows of a section, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        environment = {**os.environ, **_ENVIRONMENT, **(_DEVICES if name == "devices" else {})}
        command = [
            sys.executable,
            __file__,
            "--worker",
            name,
            "--json",
            str(path),
            *(["--quick"] if quick else []),
        ]
        subprocess.run(command, env=environment, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def _work(name: str, quick: bool, path: Path) -> None:
    if name != "devices":
        clock.pin()
    sys.setrecursionlimit(20_000)  # Keras walks along a chain of layers by recursion
    module = importlib.import_module(
        _MODULES.get(name, name)
    )  # late: Keras reads the environment, XLA counts cores
    rows = getattr(module, name)(quick)
    first: dict[Any, str] = {}
    for row in rows:
        baseline = first.setdefault((row["table"], row["column"]), row["system"])
        row |= {"section": name, "baseline": row["system"] == baseline}
    path.write_text(json.dumps(rows), encoding="utf-8")


def _machine() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
    )
    processor = model or platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    """Measure and write; see `--help`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections; default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, and a few times each: does it run?"
    )
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument(
        "--page", type=Path, help="a markdown file for the tables; default: on the screen"
    )
    parser.add_argument("--plot", type=Path, help="an SVG file for the plot")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _work(options.worker, options.quick, options.json)
    names = options.only.split(",")
    if unknown := set(names) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    results: dict[str, Any] = {
        "machine": _machine(),
        "versions": {"Python": platform.python_version(), **versions},
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "quick": options.quick,
        "rows": [],
    }
    for name in names:
        begin = time.perf_counter()
        results["rows"] += _section(name, options.quick)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        if options.json:  # after each section, lest one that fails takes the others with it
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write(results, options.page, options.plot)
    if not options.page:
        print(page(results, None))
    return None


if __name__ == "__main__":
    main()
