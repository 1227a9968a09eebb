"""Rows of an int8 table."""

import pytest
import torch

from quamba import ops
from quamba.ops import reference

from .conftest import random_int8
from .weights import random_int8_weight


def test_rows_are_dequantized_with_their_own_scales():
    table, ids = random_int8_weight(21, 9), torch.tensor([[0, 20, 3], [3, 16, 1]])
    assert torch.equal(ops.embedding_int8(ids, *table.args, 9), table.dequantized()[ids])


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(IndexError, match=f"token id {token} is outside the vocabulary of 11"):
        ops.embedding_int8(torch.tensor([token]), *random_int8_weight(11, 9).args, 9)


def test_ids_must_be_integers():
    with pytest.raises(ValueError, match="ids must be integers"):
        ops.embedding_int8(torch.tensor([1.5]), *random_int8_weight(11, 9).args, 9)


@pytest.mark.parametrize(("vocab", "hidden"), [(1, 1), (40, 64), (33, 129)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_every_row_is_the_references(vocab, hidden, dtype):
    table, ids = random_int8_weight(vocab, hidden), torch.arange(vocab, dtype=dtype)
    expected = reference.embedding_int8(ids, *table.args, hidden)
    assert torch.equal(ops.embedding_int8(ids, *table.args, hidden), expected)
    assert torch.equal(expected, table.dequantized())


@pytest.mark.parametrize("ids", [torch.tensor(4), torch.tensor([[3, 0], [1, 2]]).T, torch.empty(2, 0).long()], ids=str)
def test_ids_may_have_any_shape_and_strides(ids):
    table = random_int8_weight(11, 9)
    assert torch.equal(ops.embedding_int8(ids, *table.args, 9), table.dequantized()[ids])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": random_int8(11, 9)}, "weight must have shape"),
        ({"weight": torch.ones(1, 3, 16, 4, dtype=torch.uint8)}, "weight must be"),
        ({"scale": torch.rand(17)}, "weight must have shape"),
        ({"scale": torch.rand(11, 1)}, "scale must have shape"),
        ({"scale": torch.rand(11).half()}, "scale must be"),
        ({"hidden": 13}, "weight must have shape"),
    ],
)
def test_misfitting_arguments_are_refused_by_name(changed, message):
    arguments = dict(zip(("weight", "scale"), random_int8_weight(11, 9).args, strict=True)) | {"hidden": 9}
    ops.embedding_int8(torch.tensor([1]), **arguments)
    with pytest.raises(ValueError, match=message):
        ops.embedding_int8(torch.tensor([1]), **arguments | changed)
