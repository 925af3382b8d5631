"""What may import what, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from architecture import (
    CORE,
    FLOOR,
    ROOT,
    circles,
    folder_of,
    imports,
    name_of,
    private_reads,
    upward,
)

ECOSYSTEMS = {"flax", "linen", "nnx", "haiku", "equinox", "keras", "objax", "stax", "optax", "chex"}


def names_an_ecosystem(source: str) -> set[str]:
    """Identifiers, imports and string constants, docstrings apart, with an ecosystem's name."""
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


ADAPTERS = sorted((ROOT / "adapters").glob("*/*.py"))


@pytest.mark.parametrize("file", CORE, ids=name_of)
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


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_imports_run_down_from_floor_to_floor(file: Path) -> None:
    assert upward(file) == []


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_a_folder_is_entered_by_its_door(file: Path) -> None:
    for module in imports(file.read_text()):
        inside = module.partition("seqbridge.")[2]
        if inside and inside.partition(".")[0] != folder_of(file):
            assert "." not in inside, f"{name_of(file)}: import what {module} has from its folder"


def test_no_files_import_one_another_in_a_circle() -> None:
    assert circles() == []


# Private names that are read across files, with the reason of each. The list may only get shorter.
PRIVATE = {
    "_getframe": "Python's own name of the stack",
    "_replace": "a method of named tuples",
    "_fields": "an attribute of named tuples",
    "_repr_html_": "what notebooks ask for",
    "_asdict": "a method of named tuples",
}


def test_private_names_are_read_in_their_own_files() -> None:
    unknown = [read for read in private_reads() if read.name not in PRIVATE]
    assert unknown == []
    assert len(private_reads()) <= 40


@pytest.mark.parametrize("folder", sorted(FLOOR.keys() - {"__init__", "__main__"}))
def test_a_folder_says_what_it_is_for(folder: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "seqbridge" / folder / "__init__.py").read_text()))
    assert text is not None
    assert len(text.split()) >= 10


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_the_core_needs_jax_and_numpy_only(file: Path) -> None:
    late = {
        "_files/safetensors.py": {"safetensors"},
        "_files/readers.py": {"orbax"},
        "_interface/tables.py": {"rich"},
        "_model/plot.py": {"resvg_py"},
        "_passes/summary.py": {"rich"},
        "_state/treescope.py": {"treescope"},
        "_variables/checkpoint.py": {"orbax"},
    }
    roots = {name.partition(".")[0] for name in imports(file.read_text())}
    allowed = {"jax", "numpy", "seqbridge"} | late.get(name_of(file), set())
    assert roots - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize("file", ADAPTERS, ids=lambda f: f.parent.name)
def test_an_adapter_sees_the_public_names_of_the_core_only(file: Path) -> None:
    found = {name for name in imports(file.read_text()) if name.startswith(("seqbridge", "_"))}
    own = {name for name in found if name.startswith(f"{file.parent.name}._")}
    assert found - own <= {"seqbridge", "__future__"}


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
    code = """
import functools
import haiku as hk
import seqbridge as sb
sb.Sequential([functools.partial(hk.Linear, 3)]).build((1, 2))
"""
    adapters = "import sys; print(*[m for m in sys.modules if 'seqbridge_' in m])"
    assert "haiku" in run(code + LOADED.removeprefix("; "))
    assert "seqbridge_linen" not in run(code + adapters)


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
    libraries = {"flax", "haiku", "equinox", "keras", "objax", "tensorflow"}
    roots = f"; import sys; print(*{libraries!r}.intersection(sys.modules))"
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

    public = """
    MODE_FLAGS Annotated Checkpoint Layer Optimizer Part PureLayer Repeat Sequential Untyped
    VarCollection Variable Variables Weight WeightsError as_method call_text cond diff eval_shape
    explicit feed fori_loop freeze from_native grad jit nest path_text plot port read register
    register_export remat scan signature_of switch to_pure training_of unnest value_and_grad
    vmap while_loop
    """
    assert {name for name in vars(seqbridge) if not name.startswith("_")} == set(public.split())
