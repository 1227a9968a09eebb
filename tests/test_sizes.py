"""Files and functions stay small enough to be read at once."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh", ".inc")
MAX_LINES, MAX_FUNCTION, MAX_MODULES, MAX_FILES = 350, 60, 11, 16
TOO_LONG = {"quamba/pipeline/quantize.py: quantize"}  # its docstring is the interface; it is to take plans
TOO_MANY = {"quamba/nn": 17}


def tracked() -> list[Path]:
    """The sources of the repository, or of a copy without one."""
    try:
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
    except (OSError, subprocess.CalledProcessError):
        folders = ("quamba", "tests", "benchmarks", "tools", "examples", "csrc")
        names = [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")]
    return [ROOT / name for name in names if name.endswith(SUFFIXES) and "/assets/" not in name]


FILES = tracked()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_not_too_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


def test_no_function_is_too_long():
    found = set()
    for path in FILES:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION:
                found.add(f"{path.relative_to(ROOT)}: {node.name}")
    assert found == TOO_LONG


def test_no_folder_of_the_package_is_too_full():
    folders: dict[str, int] = {}
    for path in FILES:
        name = str(path.parent.relative_to(ROOT))
        if name.split("/")[0] == "quamba" and path.suffix == ".py":
            folders[name] = folders.get(name, 0) + 1
    assert folders["quamba"] <= MAX_MODULES
    assert {name: count for name, count in folders.items() if count > MAX_FILES} == TOO_MANY
