"""Falcon-Mamba: the Mamba block with a norm of dt, B and C, float and quantized; in pieces: test_sequences.py."""

import pytest
import torch
from transformers import DynamicCache

import quamba
from quamba import ops
from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import install_float_mixers, tap_modules
from quamba.architectures.linear_sites import find_sites
from quamba.architectures.table import ARCHITECTURES
from quamba.generation.decoder import Decoder
from quamba.nn.mamba1 import Mamba1Mixer, QuantMamba1Mixer
from quamba.nn.mamba1_step import Mamba1Step
from quamba.ops import reference
from quamba.weights.method import WeightMethod
from tests.nn.plain_recurrence import plain_logits
from tests.scheme_variants import VARIANTS, calibrates, quantize_variant
from tests.tiny_falcon_mamba import tiny_falcon_mamba

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
OPTIONS = [{}, {"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}, {"tie_word_embeddings": True}]
CUTS = [[13], [1] * 13, [6, 7], [3, 1, 1, 8]]


def float_model(**options):
    model = tiny_falcon_mamba(**options)
    install_float_mixers(model)
    return model


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


def continued(model, tokens, cuts) -> tuple[torch.Tensor, DynamicCache]:
    """Logits [B, L, V] of tokens that come in pieces of these lengths, and the cache they leave."""
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, cache_params=cache, use_cache=True).logits for piece in tokens.split(cuts, dim=1)]
    return torch.cat(pieces, dim=1), cache


def test_the_mixers_are_those_of_mamba_with_an_option():
    model = float_model()
    assert Anatomy.of(model).architecture is ARCHITECTURES["falcon_mamba"]
    mixer = model.backbone.layers[0].mixer
    assert type(mixer) is Mamba1Mixer and mixer.ssm_norm_eps == model.config.mixer_rms_eps == 1e-3
    quantized = quantize_variant(tiny_falcon_mamba(), "w8a8").backbone.layers[0].mixer
    assert type(quantized) is QuantMamba1Mixer and quantized.ssm_norm_eps == 1e-3


def test_the_intermediate_size_counts_and_expand_does_not():
    model = quantize_variant(tiny_falcon_mamba(), "w8a8")
    assert model.config.expand * model.config.hidden_size == 512
    assert {layer.mixer.d_inner for layer in model.backbone.layers} == {64}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.inference_mode()
def test_the_float_mixer_computes_what_transformers_does(tokens, options):
    expected = tiny_falcon_mamba(**options)(tokens).logits
    torch.testing.assert_close(float_model(**options)(tokens).logits, expected, **TOLERANCE)


@torch.inference_mode()
def test_the_norms_matter(tokens):
    """What the tests here compare is not the same without them."""
    model = float_model()
    expected = model(tokens).logits
    for layer in model.backbone.layers:
        layer.mixer.ssm_norm_eps = None
    assert relative(model(tokens).logits, expected) > 0.05


@torch.inference_mode()
def test_dt_b_and_c_are_tapped_behind_their_norms(tokens):
    model, seen = float_model(mixer_rms_eps=1e-12), {}
    for name, module in tap_modules(model, head=False).items():
        module.register_forward_hook(lambda _m, _args, out, name=name: seen.__setitem__(name, out))
    model(tokens)
    for tap in ("dt_rank", "B", "C"):
        mean_squares = seen[f"layers.1.{tap}"].square().mean(-1)
        torch.testing.assert_close(mean_squares, torch.ones(2, 13), rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@torch.inference_mode()
def test_the_float_mixer_computes_the_recurrence_in_pieces_of_any_length(tokens, options, cuts):
    expected = plain_logits(tiny_falcon_mamba(**options), tokens)
    torch.testing.assert_close(continued(float_model(**options), tokens, cuts)[0], expected, **TOLERANCE)


@torch.inference_mode()
def test_transformers_forgets_the_state_between_pieces(tokens):
    """Comparisons with it have to go round that."""
    model = tiny_falcon_mamba()
    expected = plain_logits(model, tokens)
    torch.testing.assert_close(continued(model, tokens, [13])[0], expected, **TOLERANCE)
    assert (continued(model, tokens, [6, 7])[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_quantized_model_is_close_to_the_float_one(tokens, variant):
    expected = float_model()(tokens).logits
    error = relative(quantize_variant(tiny_falcon_mamba(), variant)(tokens).logits, expected)
    assert 0 < error < (0.04 if variant.startswith("w8") else 0.15)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_kernels_and_references_agree(tokens, monkeypatch, variant):
    """Activations that round to neighbouring steps may differ by one: 1 % of the logits' norm in all."""
    model = quantize_variant(tiny_falcon_mamba(use_bias=True), variant)
    expected = model(tokens).logits
    for name in ops.SCHEMAS:
        monkeypatch.setattr(ops, name, getattr(reference, name))
    assert relative(model(tokens).logits, expected) < (1e-2 if calibrates(variant) else 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_decoder_takes_all_blocks_as_one_op(tokens, variant):
    model = quantize_variant(tiny_falcon_mamba(), variant, quantize_lm_head=True)
    decoder, expected = Decoder(model), model(tokens).logits
    assert isinstance(decoder._blocks, Mamba1Step)
    found = [decoder.prefill(tokens[:, :6]), *(decoder.step(tokens[:, position]) for position in range(6, 13))]
    if calibrates(variant):
        assert torch.equal(torch.stack(found, dim=1), expected[:, 5:])
    else:
        torch.testing.assert_close(torch.stack(found, dim=1), expected[:, 5:], **TOLERANCE)


def test_generate_continues_a_prompt(tokens):
    model = quantize_variant(tiny_falcon_mamba(), "w8a8")
    found = model.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None)
    ids = tokens
    with torch.inference_mode():
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids)


# --- weights, from end to end ---

WINDOWS = torch.randint(0, 60, (8, 24), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("float_activations", [False, True])
def test_the_sites_are_those_of_a_mamba(tokens, float_activations):
    sites = {site.linears[0]: site.scalable for site in find_sites(float_model(), tokens[0], float_activations)[0]}
    assert sites == {
        "mixer.in_proj": True,
        "mixer.x_proj": float_activations,
        "mixer.dt_proj": float_activations,
        "mixer.out_proj": True,
    }


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("variant", ["w8a8", "w4a8", "w4a16"])
@torch.inference_mode()
def test_every_method_stays_near_the_float_model(tokens, variant, method):
    expected = float_model()(tokens).logits
    options = {"weights": WeightMethod(method), "weight_text": WINDOWS}
    model = quantize_variant(tiny_falcon_mamba(), variant, **options)
    assert 0 < relative(model(tokens).logits, expected) < (0.04 if variant.startswith("w8") else 0.15)


@pytest.mark.parametrize("tables", [{}, {"quantize_embedding": True, "quantize_lm_head": True}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_has_the_same_logits_bit_for_bit(tmp_path, tiny_tokenizer, tokens, variant, tables):
    options = {"weights": WeightMethod("awq"), "weight_text": WINDOWS, **tables}
    model = quantize_variant(tiny_falcon_mamba(), variant, **options)
    again, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "saved")))
    assert type(again) is type(model)
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_dequantized_it_is_transformers_own(tmp_path, tiny_tokenizer, tokens):
    options = {"weights": WeightMethod("awq"), "weight_text": WINDOWS, "quantize_lm_head": True}
    model = quantize_variant(tiny_falcon_mamba(use_bias=True), "w4a16", **options)
    quamba.checkpoint.save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain = type(model).from_pretrained(tmp_path / "plain")
    assert type(plain.backbone.layers[0].mixer).__name__ == "FalconMambaMixer"
    with torch.inference_mode():
        torch.testing.assert_close(plain(tokens).logits, model(tokens).logits, rtol=1e-3, atol=1e-3)
