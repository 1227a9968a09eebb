"""A backward pass through our layers is refused: PyTorch would go around them, and give the gradient of the rest."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from quamba.errors import QuambaError
from quamba.nn.embedding import QuantHead
from quamba.nn.linear import QuantLinear, WeightOnlyLinear
from quamba.nn.norm import FinalNorm
from quamba.scheme.formats import FLOAT, STATIC, TensorSpec
from tests.scheme_variants import VARIANTS, build_variant, quantize_variant
from tests.tiny_falcon_mamba import tiny_falcon_mamba
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama

REFUSED = r"no gradients.*train the float model.*torch\.no_grad"
INT8, INT4 = TensorSpec(8), TensorSpec(4, symmetric=False, group_size=32)


@pytest.fixture(params=["mamba", "mamba2", "falcon", "bamba"])
def tiny(request):
    """A function that builds a tiny model with Mamba blocks."""
    builders = {"falcon": tiny_falcon_mamba, "bamba": tiny_bamba}
    return builders.get(request.param) or request.getfixturevalue(f"tiny_{request.param}")


def assert_backward_is_refused(y: torch.Tensor) -> None:
    assert y.requires_grad
    with pytest.raises(QuambaError, match=REFUSED):
        y.float().square().sum().backward()


@pytest.mark.parametrize("variant", ["float", *VARIANTS])
@pytest.mark.parametrize("cached", [False, True])
def test_no_gradient_goes_around_the_blocks_to_the_inputs(tiny, variant, cached):
    model = build_variant(tiny, variant)
    inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    expected = model(inputs_embeds=inputs).logits
    assert not expected.requires_grad
    cache = {"past_key_values": DynamicCache(config=model.config)} if cached and tiny is tiny_bamba else {}
    logits = model(inputs_embeds=inputs.clone().requires_grad_(), use_cache=cached, **cache).logits
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-4, atol=1e-4)  # a forward pass alone works
    assert_backward_is_refused(logits)


@pytest.mark.parametrize("variant", ["float", "w8a8", "w4a16"])
def test_no_gradient_comes_to_parameters_before_or_in_the_blocks(tiny, variant, tokens):
    model = build_variant(tiny, variant).requires_grad_(True)
    assert_backward_is_refused(model(tokens).logits)
    with torch.no_grad():
        assert not model(tokens).logits.requires_grad
    with torch.inference_mode():
        assert not model(tokens).logits.requires_grad


@pytest.mark.parametrize("options", [{}, {"quantize_lm_head": True}, {"quantize_embedding": True}])
@pytest.mark.parametrize("variant", ["w8a16", "w4a16"])
def test_no_gradient_goes_through_a_transformer_of_quantized_weights(variant, options, tokens):
    model = quantize_variant(tiny_llama(), variant, **options)
    inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert_backward_is_refused(model(inputs_embeds=inputs).logits)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    assert_backward_is_refused(model(tokens, labels=tokens).loss)


@pytest.mark.parametrize("spec", [INT8, INT4], ids=["int8", "int4"])
def test_no_layer_alone_has_a_gradient(spec):
    float_linear, x = nn.Linear(32, 48), torch.randn(3, 32)
    linears = [kind.from_float(float_linear, spec) for kind in (QuantLinear, WeightOnlyLinear)]
    heads = [QuantHead(32, 48, spec, act) for act in (FLOAT, STATIC)] + [QuantHead(32, 48, spec, FLOAT, chunks=1)]
    for layer in (*linears, *heads, FinalNorm(nn.Parameter(torch.ones(32), requires_grad=False), 1e-5)):
        assert not layer(x).requires_grad
        assert_backward_is_refused(layer(x.clone().requires_grad_()))
    assert_backward_is_refused(FinalNorm(nn.Parameter(torch.ones(32)), 1e-5)(x))
