"""Int8 embedding and head."""

import torch
from torch import nn

from quamba import numerics
from quamba.nn.embedding import QuantEmbedding, QuantHead


def test_the_embedding_gives_rows_within_half_a_step():
    embedding = nn.Embedding(20, 12)
    quantized, ids = QuantEmbedding.from_float(embedding), torch.tensor([[3, 19, 0]])
    error = (quantized(ids) - embedding(ids)).abs()
    assert (error <= quantized.weight_scale[ids][..., None] / 2 * 1.001).all()


def test_a_head_tied_to_an_embedding_uses_its_table_and_stores_none():
    embedding = QuantEmbedding.from_float(nn.Embedding(20, 12))
    head = QuantHead(12, 20, tied_to=embedding)
    head.head_in_scale = torch.tensor(0.02)
    hidden = torch.randn(2, 3, 12)
    table = numerics.dequantize(embedding.weight, embedding.weight_scale[:, None])
    expected = numerics.dequantize(numerics.quantize(hidden, 0.02), 0.02) @ table.T
    torch.testing.assert_close(head(hidden), expected)
    assert list(head.state_dict()) == ["head_in_scale"]


def test_the_head_says_that_it_takes_float32():
    assert QuantHead(12, 20).weight.dtype == torch.float32
