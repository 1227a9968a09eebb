"""The mixers: the float one equals transformers', the quantized one is near it; in pieces: test_sequences.py."""

import pytest
import torch

from quamba import numerics, ops
from quamba.architectures.convert import HEAD_TAP, convert, install_float_mixers, tap_modules
from quamba.nn.mamba1 import TAPS
from quamba.nn.taps import PER_TOKEN_TAPS
from quamba.ops import reference
from quamba.pipeline.transform import transform
from quamba.scheme.formats import get_scheme
from quamba.scheme.recipe import QuantizationRecipe
from tests.scheme_variants import VARIANTS, calibrates, quantize_variant

OPTIONS = [{}, {"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}, {"tie_word_embeddings": False}]


def float_model(tiny_mamba, **options):
    model = tiny_mamba(**options)
    install_float_mixers(model)
    return model


def quantized_model(tiny_mamba, variant="w8a8", **options):
    """A tiny model quantized with min-max observers."""
    arguments = {"observer": "all=minmax"} if calibrates(variant) else {}
    return quantize_variant(tiny_mamba(**options), variant, **arguments)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.inference_mode()
def test_the_float_mixer_computes_what_transformers_does(tiny_mamba, tokens, options):
    expected = tiny_mamba(**options)(tokens).logits
    torch.testing.assert_close(float_model(tiny_mamba, **options)(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_left_padding_matches_transformers(tiny_mamba, tokens):
    """Without in_proj's bias: transformers masks only before in_proj, so the bias leaks into the convolution."""
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    expected = tiny_mamba()(tokens, attention_mask=mask).logits
    actual = float_model(tiny_mamba)(tokens, attention_mask=mask).logits
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_quantized_model_is_close_to_the_float_one(tiny_mamba, tokens, variant):
    expected, actual = float_model(tiny_mamba)(tokens).logits, quantized_model(tiny_mamba, variant)(tokens).logits
    error = (actual - expected).square().mean() / expected.square().mean()
    assert 0 < error < (1e-3 if variant.startswith("w8") else 2e-2)  # little is lost, and something is


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "hidden_size": 96}], ids=str)
@torch.inference_mode()
def test_kernels_and_references_agree(tiny_mamba, tokens, monkeypatch, variant, options):
    """Activations that round to neighbouring steps may differ by one: 1 % of the logits' norm in all."""
    model = quantized_model(tiny_mamba, variant, **options)
    expected = model(tokens).logits
    for name in ops.SCHEMAS:
        monkeypatch.setattr(ops, name, getattr(reference, name))
    error = (model(tokens).logits - expected).norm() / expected.norm()
    assert error < (1e-2 if calibrates(variant) else 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scales_and_states_keep_their_dtype_when_the_model_is_cast(tiny_mamba, variant):
    model = quantized_model(tiny_mamba, variant)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        assert torch.equal(buffer, before[name]), name
    assert model.backbone.norm_f.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_bfloat16_model_runs_and_stays_near(tiny_mamba, tokens, variant):
    model = quantized_model(tiny_mamba, variant)
    expected = model(tokens).logits
    actual = model.to(torch.bfloat16)(tokens).logits
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_taps_with_a_static_scale_have_one(tiny_mamba, variant):
    mixer = quantized_model(tiny_mamba, variant).backbone.layers[0].mixer
    stored = {name.removesuffix("_scale") for name in mixer.state_dict() if name.endswith("_scale") and "." not in name}
    dynamic = set(PER_TOKEN_TAPS) if "dynamic" in variant else set()
    assert stored == (set(TAPS) - dynamic if calibrates(variant) else set())
    assert all(getattr(mixer, f"{tap}_scale") is None for tap in set(TAPS) - stored)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_convolutions_state_is_int8_or_float_as_the_activations_are(tiny_mamba, tokens, variant):
    states = quantized_model(tiny_mamba, variant)(tokens, use_cache=True).cache_params.layers[0]
    assert states.conv_states[0].dtype == (torch.int8 if calibrates(variant) else torch.float32)
    assert states.recurrent_states[0].dtype == torch.float32


@torch.inference_mode()
def test_a_dynamic_scale_serves_a_token_that_is_much_larger_than_calibration_saw(tiny_mamba, tokens):
    """Static scales clamp it: the larger token's output is lost with them, not with scales per token."""
    errors = {}
    for variant in ("w8a8", "w8a8 dynamic"):
        models = float_model(tiny_mamba), quantized_model(tiny_mamba, variant)
        outputs = []
        for model in models:
            mixer, quantized = model.backbone.layers[0].mixer, model is models[1]
            y = 50 * torch.randn(1, 4, mixer.d_inner, generator=torch.Generator().manual_seed(0))
            if quantized:
                outputs.append(mixer.out_proj(*mixer._out_proj_input(y)))
            else:
                outputs.append(mixer.out_proj(y))
        errors[variant] = (outputs[1] - outputs[0]).norm() / outputs[0].norm()
    assert errors["w8a8 dynamic"] < 0.02 < 0.2 < errors["w8a8"]


def test_the_block_holds_integers_of_its_weights(tiny_mamba):
    model = float_model(tiny_mamba)
    transform(model, rotate_residual=False)
    floats = {n: getattr(model.backbone.layers[0].mixer, n).weight.clone() for n in ("in_proj", "x_proj", "out_proj")}
    scales = dict.fromkeys([f"layers.{i}.{tap}" for i in range(2) for tap in TAPS], torch.tensor(0.1))
    convert(model, QuantizationRecipe(get_scheme("w8a8")), scales)
    mixer = model.backbone.layers[0].mixer
    for name, weight in floats.items():
        layer = getattr(mixer, name)
        restored = numerics.dequantize(layer.weight, layer.weight_scale[:, None])
        assert ((restored - weight).abs() <= layer.weight_scale[:, None] / 2 * 1.001).all()
    assert all(getattr(mixer, f"{tap}_scale") == torch.tensor(0.1) for tap in TAPS)


def test_every_layer_has_every_tap(tiny_mamba):
    model = float_model(tiny_mamba)
    assert list(tap_modules(model, head=True)) == [f"layers.{i}.{t}" for i in range(2) for t in TAPS] + [HEAD_TAP]
