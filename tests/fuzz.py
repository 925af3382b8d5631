"""Thousands of damaged and hostile weight files: each gives arrays, or an error that names it.

    python tests/fuzz.py [reader ...] --seconds 60    # 60 seconds in all
    python tests/fuzz.py npz --again FILE             # one file again

The readers called "own" and "checkpoint" are those of seqbridge's own files.

A file may hold anything. Reading it has three allowed outcomes: a value that holds nothing but
arrays of numbers or names, no more of them than a file of its size has room for; a `WeightsError`
that names the file; a `FileNotFoundError`, where a folder lacks a file. Anything else is a finding:
another error, a crash, more memory than some hundred megabytes, a hang, and, for files with
checksums, another value than was saved. Findings are written into a folder, each with its traceback
and the command that repeats it.

The files are whole ones that were changed: bits, bytes, lengths and offsets, pieces of one in
another, and, where a checksum would refuse all of these, the data inside. The same seed makes the
same files. After `pip install atheris`, `--atheris` chooses them by what they reach in the readers
(one reader at a time, one finding a run).
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

NAMES = ("own", "safetensors", "npz", "eqx", "msgpack", "h5", "pickle", "orbax", "checkpoint")
HANG = 20  # seconds, of which a file takes a hundredth, and others may be at work here
MEMORY = 512 * 2**20


def outcome(name: str, path: str) -> str:
    """Return what comes of reading a file, if it is one of the outcomes that are allowed."""
    import seqbridge as sb
    from fuzz_files import READERS, Wrong, check_value

    where = Path(path)
    size = sum(
        f.stat().st_size for f in (where.rglob("*") if where.is_dir() else (where,)) if f.is_file()
    )
    try:
        value = READERS[name].read(path)
    except sb.WeightsError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                raise Wrong("more memory than a file of its size may take") from error
            cause = cause.__cause__ or cause.__context__
        if path not in str(error) or len(str(error)) > 10_000:
            raise Wrong(
                f"the message doesn't name the file, or is too long: {error!s:.500}"
            ) from error
        return "refused"
    except FileNotFoundError:
        return "refused"
    check_value(value, size, READERS[name].expands)
    return "read"


# A worker reads one file after the other, under limits. It may die of one.


class Worker:
    """Read files, with its state on disk, so that another worker goes on where one has died."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state: dict[str, Any] = json.loads((folder / "state").read_text())
        self.file = open(folder / "state", "r+b", buffering=0)  # noqa: SIM115 - until the process ends

    def keep(self) -> None:
        self.file.seek(0)  # over what is there: a new file would go to the disk each time
        self.file.write(json.dumps(self.state).ljust(4000).encode())

    def run(self) -> None:
        while self.state["names"]:
            self.fuzz(self.state["names"][0])
            self.state["names"].pop(0)
            self.state |= {"inputs": 0, "spent": 0.0}
            self.keep()

    def fuzz(self, name: str) -> None:
        from fuzz_files import READERS, files_of, mutated

        reader, state = READERS[name], self.state
        whole = Path(tempfile.mkdtemp(prefix="whole-", dir=self.folder))
        reader.write(whole)
        for path in sorted(whole.iterdir()):
            # Whole files are read, or nothing below says anything.
            assert outcome(name, str(path)) == "read", path
        seeds = [files_of(path) for path in sorted(whole.iterdir())]
        names = [path.name for path in sorted(whole.iterdir())]
        counts = state["counts"].setdefault(name, {})
        start = time.monotonic() - state["spent"]
        while state["inputs"] < state["most"][name] and state["spent"] < state["seconds"]:
            chance = random.Random(f"{state['seed']} {name} {state['inputs']}")
            which = chance.randrange(len(seeds))
            put(
                mutated(seeds[which], seeds, reader, chance),
                path := self.folder / "current" / names[which],
            )
            state |= {"inputs": state["inputs"] + 1, "current": str(path)}
            self.keep()
            with Limits():
                try:
                    counts_as = outcome(name, str(path))
                except BaseException as error:
                    counts_as = "finding"
                    found(
                        self.folder / "findings", name, path, traceback.format_exc(), kind_of(error)
                    )
            counts[counts_as] = counts.get(counts_as, 0) + 1
            state["current"] = ""
            self.keep()
            state["spent"] = time.monotonic() - start
        shutil.rmtree(whole)


class Limits:
    """Limits of memory and time. Who takes longer is killed, with a traceback."""

    def __enter__(self) -> None:
        faulthandler.dump_traceback_later(HANG, exit=True)
        if sys.platform == "linux":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def put(files: dict[str, bytes], path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(data)


def kind_of(error: BaseException) -> str:
    """Return what makes two findings one: the error, and where it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {error!s:.40} {frames[-1].filename}:{frames[-1].lineno}"


def found(folder: Path, name: str, path: Path, said: str, kind: str) -> None:
    """Keeps a finding, and one of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = folder / "seen"
    kinds = seen.read_text().splitlines() if seen.exists() else []
    kind = " ".join(f"{name} {kind}".split())
    if kind in kinds:
        return
    seen.write_text("\n".join([*kinds, kind]))
    place = folder / f"{name}-{len(kinds)}"
    place.mkdir()
    (shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name)
    command = f"python tests/fuzz.py {name} --again {shlex.quote(str(place / path.name))}"
    (place / "about.txt").write_text(f"{command}\n\n{said}\n")
    print(f"finding in {place}: {said.strip().splitlines()[-1]:.300}\n    {command}", flush=True)


# The one that starts them


def fuzz(
    most: dict[str, int], seconds: float, seed: int, findings: Path
) -> dict[str, dict[str, int]]:
    """Run workers until all is done; return each reader's counts of read, refused, findings.

    Args:
        most: How many files, by the reader.
        seconds: For all of them.
        seed: Of what is made of the files.
        findings: A folder.
    """
    state = {
        "names": list(most), "seconds": seconds / len(most), "most": most, "seed": seed,
        "inputs": 0, "spent": 0.0, "counts": {}, "current": "",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="seqbridge-fuzz-") as temporary:
        folder = Path(temporary)
        findings.mkdir(parents=True, exist_ok=True)
        (folder / "findings").symlink_to(findings.resolve())
        (folder / "current").mkdir()
        (folder / "state").write_text(json.dumps(state))
        command = [sys.executable, __file__, "--worker", str(folder)]
        while state["names"]:
            worker = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, errors="replace", check=False
            )
            state = json.loads((folder / "state").read_text())
            if worker.returncode:
                if not state["current"]:
                    raise RuntimeError(worker.stderr)
                name, path = state["names"][0], Path(state["current"])
                said = f"{worker.stderr[-20_000:]}\nthe process ended with {worker.returncode}"
                found(
                    findings.resolve(),
                    name,
                    path,
                    said,
                    where_ended(worker.stderr, worker.returncode),
                )
                counts: dict[str, int] = state["counts"].setdefault(name, {})
                counts["finding"] = counts.get("finding", 0) + 1
                state["spent"] += HANG
                state["current"] = ""
                (folder / "state").write_text(json.dumps(state))
    return state["counts"]


def where_ended(said: str, code: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("File ")]
    return f"{code} {lines[0] if lines else ''}"


def guided(name: str, seconds: float, findings: Path) -> None:
    """Fuzz by coverage: what a file reaches in the readers decides what is tried next."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    atheris: Any = importlib.import_module("atheris")  # of which checkers of types know nothing

    with atheris.instrument_imports(
        include=["seqbridge", "seqbridge_equinox", "seqbridge_haiku", "seqbridge_keras"]
    ):
        import seqbridge_equinox  # noqa: F401
        import seqbridge_haiku  # noqa: F401
        import seqbridge_keras  # noqa: F401
    with atheris.instrument_imports(
        include=["seqbridge_linen", "flax.serialization", "zipfile", "msgpack.fallback"]
    ):
        import seqbridge_linen  # noqa: F401
    from fuzz_files import READERS, files_of, mutated

    reader = READERS[name]
    folder = Path(tempfile.mkdtemp(prefix="seqbridge-fuzz-"))
    (folder / "seeds").mkdir()
    reader.write(folder / "seeds")
    assert all(path.is_file() for path in (folder / "seeds").iterdir()), (
        "of folders, atheris knows nothing"
    )
    seeds = [files_of(path) for path in sorted((folder / "seeds").iterdir())]
    path = folder / f"current{next((folder / 'seeds').iterdir()).suffix}"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        outcome(name, str(path))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return atheris.Mutate(data, most)
        try:
            return mutated({"": data}, seeds, reader, chance)[""][:most]
        except Exception:  # what is inside of it can't be changed any more
            return atheris.Mutate(data, most)

    findings.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={HANG}",
        "-rss_limit_mb=4096",
        "-max_len=20000",
    ]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={findings}/{name}-", str(folder / "seeds")],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", metavar="reader", nargs="*", choices=(*NAMES, []), help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together")
    parser.add_argument("--inputs", type=int, default=10**9, help="for each reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--findings", type=Path, default=Path(tempfile.gettempdir()) / "seqbridge-findings"
    )
    parser.add_argument(
        "--again",
        metavar="FILE",
        type=Path,
        help="reads this, as a file of the reader, and nothing else",
    )
    parser.add_argument("--atheris", action="store_true", help="chooses files by what they reach")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        Worker(options.worker).run()
    elif options.again:
        # A whole file first: what that imports isn't counted against the file.
        with tempfile.TemporaryDirectory() as folder:
            importlib.import_module("fuzz_files").READERS[options.names[0]].write(Path(folder))
            outcome(options.names[0], str(next(Path(folder).iterdir())))
        with Limits():
            print(outcome(options.names[0], str(options.again)))
    elif options.atheris:
        guided(options.names[0], options.seconds, options.findings)
    else:
        most: dict[str, int] = dict.fromkeys(options.names or NAMES, options.inputs)
        counts = fuzz(most, options.seconds, options.seed, options.findings)
        print(f"{'reader':12} {'files':>8} {'read':>8} {'refused':>8} {'findings':>8}")
        for name, count in counts.items():
            numbers = [
                sum(count.values()),
                *(count.get(kind, 0) for kind in ("read", "refused", "finding")),
            ]
            print(f"{name:12} " + " ".join(f"{number:8}" for number in numbers))
        sys.exit(any("finding" in count for count in counts.values()))


if __name__ == "__main__":
    main()
