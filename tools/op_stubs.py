"""The type stub of quamba.ops, from the schemas: an editor finds `ops.NAME` and its arguments.

    python -m tools.op_stubs            # writes quamba/ops/__init__.pyi

A test compares the file with the schemas.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

from torch._C import parse_schema

from quamba.ops.schemas import SCHEMAS
from quamba.storage.files import write_text_atomically

PACKAGE = Path(__file__).resolve().parent.parent / "quamba" / "ops"
STUB = PACKAGE / "__init__.pyi"
TYPES = {
    "Tensor": "Tensor",
    "Optional[Tensor]": "Tensor | None",
    "List[Tensor]": "list[Tensor]",
    "List[Optional[Tensor]]": "list[Tensor | None]",
    "List[int]": "list[int]",
    "Optional[float]": "float | None",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "NoneType": "None",
}
HEAD = '''"""Written by tools/op_stubs.py from schemas.py, which says what the ops compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

'''


def comments() -> dict[str, list[str]]:
    """Return the comment lines above each schema: the shapes of its arguments."""
    found, above = {}, []
    for line in (PACKAGE / "schemas.py").read_text("utf-8").split("\n"):
        text = line.strip()
        if text.startswith("# "):
            above.append(text)
        elif match := re.match(r'"(\w+)": ', text):
            found.setdefault(match.group(1), above)  # the fakes below have the same names
            above = []
        else:
            above = above if above and text.startswith('"') else []
    return found


def op(name: str) -> str:
    """Return the declaration of one op."""
    schema = parse_schema(name + SCHEMAS[name])
    arguments = []
    for argument in schema.arguments:
        default = " = None" if argument.has_default_value() else ""
        arguments.append(f"{argument.name}: {TYPES[str(argument.type)]}{default}")
    returned = [TYPES[str(value.type)] for value in schema.returns]
    result = returned[0] if len(returned) == 1 else f"tuple[{', '.join(returned)}]" if returned else "None"
    return "\n".join([*comments().get(name, []), f"def {name}({', '.join(arguments)}) -> {result}: ..."])


def others() -> list[str]:
    """Return the declarations of the constants and functions that quamba/ops/__init__.py defines itself."""
    declared = []
    for node in ast.parse((PACKAGE / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and (name := getattr(node.targets[0], "id", "_")).isupper():
            kind = {"KERNELS": "str | None", "INT8_PRODUCTS": "tuple[str, ...]", "BUILD_CUDA": "str"}.get(name, "bool")
            declared.append(f"{name}: {kind}")
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
            signature = f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ..."
            declared.append("\n".join([*lines, signature]))
    return declared


def stub() -> str:
    """Return the whole file."""
    text = HEAD + "\n".join([*others(), *(op(name) for name in SCHEMAS)]) + "\n"
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(STUB), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=PACKAGE).stdout


if __name__ == "__main__":
    write_text_atomically(STUB, stub())
