"""Strict JAX for all tests, which then pass with looser settings, too; and the docs' examples."""

import doctest
import gc
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

# Collectives on virtual CPU devices need more threads than a small machine has cores.
os.environ.setdefault("NPROC", "16")
# Thousands of small programs are compiled here and run once or twice: what XLA could improve isn't
# worth its time.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Later ones have but one way, and refuse the flag.
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11):
    FAST += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {FAST}"
)

os.environ["KERAS_BACKEND"] = "jax"

import jax
import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.evaluators.doctest import NUMBER
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A deadline would time the first compilation.
settings.register_profile("seqbridge", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("seqbridge")

# A long message may be wrapped on a page, and what another library says changes with its versions.
PAGES = NUMBER | doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
pytest_collect_file = (
    Sybil(
        parsers=[DocTestParser(optionflags=NUMBER)],
        patterns=["seqbridge/**/*.py", "adapters/*/*.py"],
    )
    + Sybil(
        parsers=[PythonCodeBlockParser(doctest_optionflags=PAGES)],
        patterns=["README.md", "adapters/README.md", "docs/*.md"],
    )
).pytest()

ROOT = Path(__file__).parent
pytest.register_assert_rewrite("helpers", "faults")
pytest_plugins = ["matrix"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with one of them at the end.

    Before them stand those in which JAX looks for leaked tracers: it searches all objects of the
    process, which become more with every test.
    """
    long = [
        "test_checks",
        "test_faults_state",
        "test_examples",
        "test_conformance",
        "test_export",
        "test_port",
        "test_memory",
        "test_repeat",
        "test_pack",
    ]
    items.sort(key=lambda item: long.index(item.path.stem) if item.path.stem in long else len(long))


def pytest_collection_finish() -> None:
    """Keep the objects of imported libraries out of every garbage collection to come."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Install the third-party adapter of the tests once, for all workers and their processes.

    They share what they compile, too: many tests run the same layers.
    """
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(
            prefix="seqbridge-compiled-", ignore_cleanup_errors=True
        )
        config.add_cleanup(cache.cleanup)
        os.environ["SEQBRIDGE_COMPILED"] = cache.name
        folder = tempfile.TemporaryDirectory(prefix="seqbridge-toy-")
        config.add_cleanup(folder.cleanup)
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder.name]
        subprocess.run(build, cwd=ROOT / "tests" / "toy_plugin", check=True, capture_output=True)
        for wheel in Path(folder.name).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder.name)
        os.environ["SEQBRIDGE_TOY"] = folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ["SEQBRIDGE_COMPILED"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    where = os.environ["SEQBRIDGE_TOY"]
    sys.path.append(where)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), where]))
