"""Imports point one way: what stands lower in this list never imports what stands higher (see docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "quamba"
# lowest first: folders, and the modules that every folder uses
LAYERS = [
    ["waiting", "errors"],
    ["borders"],
    ["registry", "plugins"],
    ["storage"],
    ["numerics", "hadamard"],
    ["scheme"],
    ["ops"],
    ["weights"],
    ["observers"],
    ["nn"],
    ["models"],
    ["transforms"],
    ["architectures"],
    ["text"],
    ["calibration"],
    ["generation"],
    ["checkpoint"],
    ["pipeline"],
    ["mixed_precision"],
    ["evaluation"],
    ["study"],
    ["commands"],
    ["__main__"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts != ("__init__.py",))


def imported_modules(path: Path) -> set[str]:
    """Top-level modules of the package that a file imports at any place in it."""
    package = ("quamba", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*target, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "quamba" and len(name) > 1}
        assert not any(name[0] == "utils" for name in names), f"{path} imports utils"
    return found & set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_higher_layer(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in LEVEL, f"add {own} to the layers"
    higher = {module for module in imported_modules(path) if LEVEL[module] > LEVEL[own]}
    assert not higher, f"{own} imports {higher}, which stand above it"


def test_importing_the_package_needs_none_of_the_optional_libraries():
    """A GPU machine may have torch, transformers (with rich and tqdm), safetensors and numpy alone."""
    optional = ["lm_eval", "datasets", "matplotlib", "mamba_ssm", "causal_conv1d", "kneed", "sklearn", "zstandard"]
    code = f"import sys; sys.modules.update(dict.fromkeys({optional})); import quamba, quamba.__main__"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_logs_and_never_prints(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert not any(isinstance(func, ast.Name) and func.id == "print" for func in calls)


LIMITS = {127, 120}
ELSEWHERE = {"histogram.py": {127}}  # the exponent bias of float32


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_quantization_is_spelled_in_numerics_only(path):
    """The integer limits and the rounding of quantization stand in numerics.py (and csrc/common/quantize.h) alone."""
    if path.name == "numerics.py":
        return
    tree = ast.parse(path.read_text("utf-8"))
    constants = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) in (int, float)}
    assert not constants & (LIMITS - ELSEWHERE.get(path.name, set())), "limits of int8 belong into numerics.py"
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not attributes & {"round", "round_"}, "rounding belongs into numerics.py"
