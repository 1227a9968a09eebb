"""The stub of quamba.ops says what the schemas say."""

import ast

from quamba import ops
from quamba.ops.schemas import SCHEMAS
from tools import op_stubs


def test_the_stub_is_that_of_the_schemas():
    assert op_stubs.STUB.read_text("utf-8") == op_stubs.stub(), "python -m tools.op_stubs"


def test_every_op_and_its_arguments_are_in_the_stub():
    declared = {node.name: node for node in ast.parse(op_stubs.stub()).body if isinstance(node, ast.FunctionDef)}
    assert set(SCHEMAS) < set(declared)
    for name in SCHEMAS:
        expected = [argument.name for argument in getattr(ops, name).default._schema.arguments]
        assert [argument.arg for argument in declared[name].args.args] == expected
    assert all(hasattr(ops, name) for name in declared)


def test_shapes_stand_above_the_ops():
    text = op_stubs.stub()
    assert "# x [..., H] -> int8 [..., H]: RMSNorm" in text and text.count("\n# ") > len(SCHEMAS) / 2
