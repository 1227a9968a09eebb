"""Rows of an int8 table."""

import pytest
import torch

from quamba import ops

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
