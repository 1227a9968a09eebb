"""Rows of a group-wise uint4 table."""

import pytest
import torch

from quamba import ops
from quamba.ops import reference

from .weights import random_uint4_weight


@pytest.mark.parametrize("hidden", [1, 31, 100, 256])
@pytest.mark.parametrize("group_size", [32, 128])
def test_rows_are_dequantized_group_by_group(hidden, group_size):
    table, ids = random_uint4_weight(21, hidden, group_size), torch.tensor([[0, 20, 3], [3, 16, 1]])
    actual = ops.embedding_int4(ids, *table.args, hidden, *table.sizes())
    assert torch.equal(actual, table.dequantized()[ids])
    assert torch.equal(actual, reference.embedding_int4(ids, *table.args, hidden, *table.sizes()))


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_vocabulary_is_refused(token):
    """11 lies within the table's padding."""
    with pytest.raises(IndexError, match=f"token id {token} is outside the vocabulary of 11"):
        ops.embedding_int4(torch.tensor([token]), *random_uint4_weight(11, 40, 32).args, 40, 11, 32)


def test_ids_must_be_integers():
    with pytest.raises(ValueError, match="ids must be integers"):
        ops.embedding_int4(torch.tensor([1.5]), *random_uint4_weight(11, 40, 32).args, 40, 11, 32)


@pytest.mark.parametrize("ids", [torch.tensor(4), torch.tensor([[3, 0], [1, 2]]).T, torch.empty(2, 0).long()], ids=str)
def test_ids_may_have_any_shape_and_strides(ids):
    table = random_uint4_weight(11, 40, 32)
    assert torch.equal(ops.embedding_int4(ids, *table.args, 40, 11, 32), table.dequantized()[ids])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.ones(11, 20, dtype=torch.uint8)}, "weight must have shape"),
        ({"weight": torch.ones(1, 5, 16, 4, dtype=torch.int8)}, "weight must be"),
        ({"scale": torch.ones(1, 3, 16).half()}, "scale must have shape"),
        ({"scale": torch.ones(1, 2, 16)}, "scale must be"),
        ({"zero": torch.ones(1, 3, 16, dtype=torch.uint8)}, "zero must have shape"),
        ({"hidden": 48}, "weight must have shape"),
        ({"vocab": 17}, "weight must have shape"),
        ({"group_size": 48}, "group_size must be .* got 48"),
    ],
)
def test_misfitting_arguments_are_refused_by_name(changed, message):
    arguments = dict(zip(("weight", "scale", "zero"), random_uint4_weight(11, 40, 32).args, strict=True))
    arguments |= {"hidden": 40, "vocab": 11, "group_size": 32}
    ops.embedding_int4(torch.tensor([1]), **arguments)
    with pytest.raises(ValueError, match=message):
        ops.embedding_int4(torch.tensor([1]), **arguments | changed)
