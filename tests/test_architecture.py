"""What may import what, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ECOSYSTEMS = {"flax", "linen", "nnx", "haiku", "equinox", "keras", "objax", "stax", "optax", "chex"}
ORDER = [  # each module imports only from those before it
    "_trace", "_keys", "_stateful", "_operators", "_within", "_dtypes", "_bare", "_variable", "_pack", "_cells",
    "_names", "_safetensors", "_fit", "_saving", "_trainable", "_collection", "_paths", "_parts", "_pure",
    "_registry", "_npz", "_files", "_uses", "_callable", "_opened", "_hidden", "_function", "_adapt", "_pickle",
    "_dispatch", "_layout", "_live", "_layer", "_apply", "_mesh", "_structure", "_forward", "_outputs", "_build",
    "_functional", "_sharing", "_list", "_flops", "_table", "_rows", "_summary", "_looks", "_diff", "_sequential",
    "_tree", "_neutral", "_picture", "_export", "_copies", "_around", "_repeat", "_home", "_pieces", "_match",
    "_carry", "_plan", "_port", "_processes", "_spread", "_arguments", "_freeze", "_program", "_jit", "_grad",
    "_transforms", "_optimizer", "_digest", "_checkpoint", "__init__", "__main__",
]  # fmt: skip


def imports(source: str) -> set[str]:
    """The modules that are imported when the source runs, or in one of its functions."""
    found = set()
    for node in ast.walk(_without_type_checking(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        n
        for n in tree.body
        if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    ]
    return tree


def names_an_ecosystem(source: str) -> set[str]:
    """Every identifier, import or string constant, docstrings apart, that has an ecosystem's name in it."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words |= set(node.value.lower().replace(".", " ").split())
        if isinstance(node, ast.Name):
            words.add(node.id.lower())
        if isinstance(node, ast.Attribute):
            words.add(node.attr.lower())
    modules = {part for name in imports(source) for part in name.split(".")}
    return (words | modules) & ECOSYSTEMS


CORE = sorted((ROOT / "seqbridge").glob("*.py"))
ADAPTERS = sorted((ROOT / "adapters").glob("*/*.py"))


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.name)
def test_the_core_names_no_ecosystem(file: Path) -> None:
    assert not names_an_ecosystem(file.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import flax.linen as nn",
        "def f(x):\n  return x.haiku",
        "x = 'an equinox module'",
        "from keras import layers",
    ],
)
def test_that_check_can_fail(source: str) -> None:
    assert names_an_ecosystem(source)


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.name)
def test_imports_run_one_way(file: Path) -> None:
    # Imported inside functions: a layer that is called alone is a list of one; a tree shows all
    # that hold variables.
    late = {"_layer": {"_sequential"}, "_stateful": {"_tree"}}
    own = {
        name.partition(".")[2]
        for name in imports(file.read_text())
        if name.startswith("seqbridge.")
    }
    allowed = set(ORDER[: ORDER.index(file.stem)]) | late.get(file.stem, set())
    assert own <= allowed


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.name)
def test_the_core_needs_jax_and_numpy_only(file: Path) -> None:
    late = {
        "_safetensors": {"safetensors"}, "_checkpoint": {"orbax"}, "_files": {"orbax"}, "_table": {"rich"},
        "_summary": {"rich"}, "_tree": {"treescope"}, "_picture": {"resvg_py"},
    }  # fmt: skip
    roots = {name.partition(".")[0] for name in imports(file.read_text())}
    assert roots - set(sys.stdlib_module_names) <= {"jax", "numpy", "seqbridge"} | late.get(
        file.stem, set()
    )


@pytest.mark.parametrize("file", ADAPTERS, ids=lambda f: f.parent.name)
def test_an_adapter_sees_the_public_names_of_the_core_only(file: Path) -> None:
    found = {name for name in imports(file.read_text()) if name.startswith(("seqbridge", "_"))}
    own = {name for name in found if name.startswith(f"{file.parent.name}._")}
    assert found - own <= {"seqbridge", "__future__"}


@pytest.mark.parametrize("file", [*CORE, *ADAPTERS], ids=lambda f: f"{f.parent.name}/{f.name}")
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 300


def run(code: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


LOADED = f"; import sys; print(*({ECOSYSTEMS!r} & set(sys.modules)))"


def test_importing_seqbridge_imports_no_framework() -> None:
    assert run("import seqbridge" + LOADED) == []


def test_a_model_of_functions_loads_no_framework() -> None:
    code = "import seqbridge as sb, jax; sb.Sequential([jax.nn.relu, lambda x: x + 1])(1.0)"
    assert run(code + LOADED) == []


def test_one_ecosystem_loads_no_other() -> None:
    code = "import seqbridge as sb, haiku as hk, functools; sb.Sequential([functools.partial(hk.Linear, 3)]).build((1, 2))"
    assert "haiku" in run(code + LOADED)
    assert "seqbridge_linen" not in run(
        code + "; import sys; print(*[m for m in sys.modules if 'seqbridge_' in m])"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import equinox as eqx, jax; entry = eqx.nn.Linear(2, 2, key=jax.random.key(0))",
        "from flax import nnx; entry = nnx.Linear(2, 2, rngs=nnx.Rngs(0))",
        "from jax.example_libraries import stax; entry = stax.Dense(2)",
        "import objax; entry = objax.nn.Linear(2, 2)",
    ],
)
def test_a_layer_wakes_no_library_but_its_own(code: str) -> None:
    run_it = "; import seqbridge as sb; sb.Sequential([entry, lambda x: x]).build((3, 2))"
    roots = "; import sys; print(*{'flax', 'haiku', 'equinox', 'keras', 'objax', 'tensorflow'}.intersection(sys.modules))"
    assert set(run(code + run_it + roots)) == set(run(code + roots))


def test_keras_on_another_backend_is_refused_with_the_cure() -> None:
    code = """
import os
os.environ["KERAS_BACKEND"] = "numpy"
import keras
import seqbridge as sb
try:
    sb.Sequential([keras.layers.Dense(2)])
except TypeError as error:
    print(error)
"""
    assert any("KERAS_BACKEND" in word for word in run(code))


def test_that_check_of_imports_can_fail() -> None:
    assert run("import seqbridge, haiku" + LOADED) != []


def test_the_public_names_are_these() -> None:
    import seqbridge

    assert {name for name in vars(seqbridge) if not name.startswith("_")} == {
        "MODE_FLAGS", "Annotated", "Checkpoint", "Layer", "Optimizer", "Part", "PureLayer", "Repeat", "Sequential",
        "Untyped", "VarCollection", "Variable", "Variables", "Weight", "WeightsError", "as_method", "call_text",
        "diff", "eval_shape", "explicit", "feed", "freeze", "from_native", "grad", "jit", "nest", "path_text", "plot",
        "port", "read", "register", "register_export", "remat", "scan", "signature_of", "to_pure", "training_of",
        "unnest", "value_and_grad", "vmap",
    }  # fmt: skip
