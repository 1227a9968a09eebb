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
