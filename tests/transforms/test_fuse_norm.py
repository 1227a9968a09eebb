"""Norm weights move into the linear layers behind them, and the logits stay."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import install_float_mixers
from quamba.models.tying import untie_embedding
from quamba.transforms import fuse_final_norm, fuse_gated_norm, fuse_norm

TIED_AND_UNTIED = pytest.mark.parametrize("tied", [True, False])


def assert_same_logits(model, tokens, expected):
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-5)


@TIED_AND_UNTIED
@pytest.mark.parametrize("use_bias", [False, True])
def test_fusing_block_norms_keeps_the_logits(tiny_ssm, tokens, tied, use_bias):
    model = tiny_ssm(tie_word_embeddings=tied, use_bias=use_bias)
    expected = model(tokens).logits
    final = model.backbone.norm_f.weight.clone()
    fuse_norm(Anatomy.of(model).slots)
    assert_same_logits(model, tokens, expected)
    assert all(torch.equal(layer.norm.weight, torch.ones(32)) for layer in model.backbone.layers)
    assert torch.equal(model.backbone.norm_f.weight, final)


@pytest.mark.parametrize("options", [{}, {"n_groups": 1}, {"n_groups": 4, "use_bias": True}], ids=str)
@pytest.mark.parametrize("ours", [False, True], ids=["transformers", "ours"])
def test_fusing_gated_norms_keeps_the_logits(tiny_mamba2, tokens, options, ours):
    """The norm is over groups of channels, its weight per channel."""
    model = tiny_mamba2(**options)
    expected = model(tokens).logits
    if ours:
        install_float_mixers(model)
    fuse_gated_norm(Anatomy.of(model).slots)
    assert_same_logits(model, tokens, expected)
    assert all(torch.equal(layer.mixer.norm.weight, torch.ones(64)) for layer in model.backbone.layers)


@TIED_AND_UNTIED
def test_fusing_the_final_norm_keeps_the_logits_and_the_embedding(tiny_ssm, tokens, tied):
    model = tiny_ssm(tie_word_embeddings=tied)
    expected, embedding = model(tokens).logits, model.backbone.embeddings.weight.clone()
    fuse_final_norm(model)
    assert_same_logits(model, tokens, expected)
    assert torch.equal(model.backbone.norm_f.weight, torch.ones(32))
    assert torch.equal(model.backbone.embeddings.weight, embedding)
    assert model.lm_head.weight is not model.backbone.embeddings.weight
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("fuse", [lambda model: fuse_norm(Anatomy.of(model).slots), fuse_final_norm])
def test_fusing_twice_changes_nothing(tiny_ssm, tokens, fuse):
    model = tiny_ssm()
    fuse(model)
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_weights_keep_their_dtype(tiny_ssm):
    model = tiny_ssm().to(torch.bfloat16)
    fuse_norm(Anatomy.of(model).slots)
    fuse_final_norm(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_untying_makes_two_equal_tensors(tiny_ssm, tokens):
    model = tiny_ssm(tie_word_embeddings=True)
    expected = model(tokens).logits
    untie_embedding(model)
    assert model.lm_head.weight.data_ptr() != model.backbone.embeddings.weight.data_ptr()
    assert torch.equal(model(tokens).logits, expected)
    assert model.all_tied_weights_keys == {}
    model.tie_weights()
    assert model.lm_head.weight is not model.backbone.embeddings.weight


def test_an_untied_head_survives_saving(tiny_ssm, tokens, tmp_path):
    model = tiny_ssm(tie_word_embeddings=True)
    expected = model(tokens).logits
    fuse_final_norm(model)
    model.save_pretrained(tmp_path)
    assert_same_logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens, expected)
