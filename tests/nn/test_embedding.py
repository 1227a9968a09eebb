"""Quantized embedding and head, 8 and 4 bits, apart and as one table."""

import pytest
import torch
from torch import nn

from quamba import numerics
from quamba.nn.embedding import QuantEmbedding, QuantHead
from quamba.scheme.formats import DYNAMIC, FLOAT, STATIC, weight_spec

SPECS = [weight_spec(8), weight_spec(4, 32), weight_spec(4)]
by_format = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.describe())
V, H = 20, 37


@by_format
def test_the_embedding_gives_the_rows_that_its_integers_stand_for(spec):
    embedding, ids = nn.Embedding(V, H), torch.tensor([[3, 19, 0]])
    quantized = QuantEmbedding.from_float(embedding, spec)
    torch.testing.assert_close(quantized(ids), quantized.dequantized()[ids], rtol=1e-6, atol=0)
    error = (quantized(ids) - embedding(ids)).abs()
    assert error.max() <= quantized.weight_scale.float().max() * (0.501 if spec.symmetric else 1.01)


@by_format
@pytest.mark.parametrize("act", [STATIC, DYNAMIC, FLOAT], ids=lambda act: act.describe())
def test_a_head_tied_to_an_embedding_uses_its_table_and_stores_none(spec, act):
    embedding = QuantEmbedding.from_float(nn.Embedding(V, H), spec)
    head = QuantHead(H, V, spec, act, tied_to=embedding)
    hidden = torch.randn(2, 3, H)
    if act == STATIC:
        head.head_in_scale = torch.tensor(0.02)
        seen = numerics.dequantize(numerics.quantize(hidden, 0.02), 0.02)
    elif act == DYNAMIC:
        scale = numerics.symmetric_scale(hidden.abs().amax(dim=-1, keepdim=True))
        seen = numerics.dequantize(numerics.quantize(hidden, scale), scale)
    else:
        seen = hidden
    torch.testing.assert_close(head(hidden), seen @ embedding.dequantized().T, rtol=1e-5, atol=1e-5)
    assert list(head.state_dict()) == (["head_in_scale"] if act == STATIC else [])


@by_format
@pytest.mark.parametrize("act", [STATIC, DYNAMIC, FLOAT], ids=lambda act: act.describe())
def test_the_head_says_that_it_takes_float32(spec, act):
    assert QuantHead(H, V, spec, act).to(torch.bfloat16).weight.dtype == torch.float32
