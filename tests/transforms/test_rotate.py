"""The rotation of the residual stream, alone and together with every other transform."""

import pytest
import torch

from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.transforms import apply_hadamard, fuse_final_norm, fuse_norm, rotate_out_proj, rotate_residual

SIZES = pytest.mark.parametrize("hidden_size", [32, 48, 34])  # d_inner 64, 96 = 12 * 8, and 68 = 17 * 4


@SIZES
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_rotating_the_residual_keeps_the_logits(tiny_ssm, tokens, hidden_size, use_bias, tied):
    model = tiny_ssm(hidden_size=hidden_size, use_bias=use_bias, tie_word_embeddings=tied)
    expected = model(tokens).logits
    fuse_norm(Anatomy.of(model).slots)
    fuse_final_norm(model)
    rotate_residual(model)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@SIZES
def test_the_stream_itself_is_rotated(tiny_ssm, tokens, hidden_size):
    model = tiny_ssm(hidden_size=hidden_size, use_bias=True)
    fuse_norm(Anatomy.of(model).slots)
    fuse_final_norm(model)
    before = model(tokens, output_hidden_states=True).hidden_states
    rotate_residual(model)
    after = model(tokens, output_hidden_states=True).hidden_states
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, apply_hadamard(old), rtol=1e-4, atol=1e-4)


def test_a_tied_head_without_a_norm_weight_stays_tied(tiny_ssm, tokens):
    model = tiny_ssm(tie_word_embeddings=True)
    model.backbone.norm_f.weight.fill_(1.0)
    expected = model(tokens).logits
    fuse_norm(Anatomy.of(model).slots)
    rotate_residual(model)
    assert model.lm_head.weight is model.backbone.embeddings.weight
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@SIZES
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_all_transforms_together_keep_the_logits(tiny_ssm, tokens, hidden_size, use_bias, tied):
    model = tiny_ssm(hidden_size=hidden_size, use_bias=use_bias, tie_word_embeddings=tied)
    expected = model(tokens).logits
    install_float_mixers(model)
    for fuse in Anatomy.of(model).architecture.fusions:
        fuse(Anatomy.of(model).slots)
    fuse_final_norm(model)
    rotate_out_proj(Anatomy.of(model).slots)
    rotate_residual(model)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_norm_weights_must_be_fused_first(tiny_ssm):
    model = tiny_ssm()
    before = model.backbone.embeddings.weight.clone()
    with pytest.raises(QuambaError, match=r"norm of layer 0 .* call fuse_norm\(slots\) first"):
        rotate_residual(model)
    fuse_norm(Anatomy.of(model).slots)
    with pytest.raises(QuambaError, match=r"final norm .* call fuse_final_norm\(model\) first"):
        rotate_residual(model)
    assert torch.equal(model.backbone.embeddings.weight, before)
