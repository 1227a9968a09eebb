"""Rows of an int8 table."""

import pytest
import torch

from quamba import numerics, ops

from .conftest import random_int8


def test_rows_are_dequantized_with_their_own_scales():
    weight, scale, ids = random_int8(11, 9), torch.rand(11), torch.tensor([[0, 10, 3], [3, 3, 1]])
    expected = numerics.dequantize(weight, scale[:, None])[ids]
    assert torch.equal(ops.embedding_int8(ids, weight, scale), expected)


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(IndexError, match=f"token id {token} is outside the vocabulary of 11"):
        ops.embedding_int8(torch.tensor([token]), random_int8(11, 9), torch.rand(11))


def test_ids_must_be_integers():
    with pytest.raises(ValueError, match="ids must be integers"):
        ops.embedding_int8(torch.tensor([1.5]), random_int8(11, 9), torch.rand(11))
