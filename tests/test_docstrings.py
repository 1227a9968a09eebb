"""A docstring is read out of its context, in an editor's hover: its opening stands alone."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "quamba"
FILES = sorted(PACKAGE.rglob("*.py"))
# pronouns whose antecedent is elsewhere, and clauses that are the object of a verb which is missing
LEANING = re.compile(
    r"(Those|That|This|These|It|Its|They|Their|Them|The same|What|Whether|How|Where|For|By|Of|As|With|To)\b"
)
KINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_first_sentence_stands_alone(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, KINDS)]
    openings = {node.name: (ast.get_docstring(node) or "").split("\n")[0] for node in nodes}
    assert {name: text for name, text in openings.items() if LEANING.match(text)} == {}
