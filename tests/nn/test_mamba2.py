"""The quantized Mamba2 mixer: what its integers mean; in pieces: test_sequences.py."""

import pytest
import torch
from transformers import DynamicCache

from quamba import numerics, ops
from quamba.architectures.convert import convert, install_float_mixers, static_tap_names
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import calibrate
from quamba.errors import QuambaError
from quamba.nn.linear import QuantLinear
from quamba.nn.mamba2 import TAPS, Mamba2Sizes, QuantMamba2Mixer
from quamba.nn.taps import PER_TOKEN_TAPS
from quamba.ops import reference
from quamba.pipeline.fake_quantize import fake_quantized
from quamba.pipeline.transform import transform
from quamba.scheme.formats import get_scheme
from quamba.scheme.recipe import QuantizationRecipe
from quamba.weights.rounded import RoundedWeight
from tests.scheme_variants import VARIANTS, calibrates, quantize_variant

LIMITS = {"time_step_limit": (0.2, 0.9)}
OPTIONS = [{}, {"use_bias": True} | LIMITS, {"use_conv_bias": False, "n_groups": 1}, {"conv_kernel": 3, "n_groups": 4}]
VECTORS = {"conv_in": "D", "x": "D", "B": "G", "C": "G"}  # the taps that may have more than one scale


def quantized_model(tiny_mamba2, variant="w8a8", **options):
    """A tiny model quantized with min-max observers."""
    arguments = {"observer": "all=minmax"} if calibrates(variant) else {}
    return quantize_variant(tiny_mamba2(**options), variant, **arguments)


def transformed(tiny_mamba2, **options):
    """A float model as quantization finds it."""
    model = tiny_mamba2(**options)
    install_float_mixers(model)
    transform(model, rotate_residual=False)
    return model


def relative_error(actual, expected) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def assert_near(actual, expected, variant: str) -> None:
    assert relative_error(actual, expected) < (2e-2 if calibrates(variant) else 1e-5)


def continued(model, tokens, cuts):
    """(logits [B, L, V], cache) of tokens that come in pieces of these lengths."""
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, cache_params=cache, use_cache=True).logits for piece in tokens.split(cuts, dim=1)]
    return torch.cat(pieces, dim=1), cache


# --- what the integers mean ---


def many_scales(model, windows) -> dict[str, torch.Tensor]:
    """Tap name -> static scales, a different one for every place that may have its own."""
    sizes = {"D": model.backbone.layers[0].mixer.sizes.d_inner, "G": model.config.n_groups}
    names = parse_observers("all=minmax", head=False, taps=TAPS)
    scales = calibrate(model, windows, names, fingerprint="", progress=False).scales()
    generator = torch.Generator().manual_seed(0)
    for name in scales:
        if size := VECTORS.get(name.rsplit(".", 1)[-1]):
            scales[name] = scales[name] * (0.8 + 0.4 * torch.rand(sizes[size], generator=generator))
    return scales


@torch.no_grad()
def round_weights(model) -> None:
    """Gives a float model the weights that int8 ones stand for."""
    for layer in model.backbone.layers:
        for weight in (layer.mixer.in_proj.weight, layer.mixer.conv1d.weight, layer.mixer.out_proj.weight):
            scale = numerics.per_channel_scale(weight).reshape(-1, *[1] * (weight.dim() - 1))
            weight.copy_(numerics.dequantize(numerics.quantize(weight, scale), scale))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.inference_mode()
def test_it_computes_what_the_float_model_does_on_rounded_values(tiny_mamba2, tokens, options):
    """With a scale for every channel of conv_in and x and for every group of B and C, every one of them different."""
    model, quantized = (transformed(tiny_mamba2, **options) for _ in range(2))
    scales = many_scales(model, tokens)
    convert(quantized, QuantizationRecipe(get_scheme("w8a8")), scales)
    round_weights(model)
    with fake_quantized(model, scales):
        expected = model(tokens).logits
    assert relative_error(quantized(tokens).logits, expected) < 5e-3
    assert relative_error(expected, tiny_mamba2(**options)(tokens).logits) > 1e-2  # rounding is no detail here


@pytest.mark.parametrize("n_groups", [1, 2])
def test_a_scale_may_be_one_value_or_one_for_each_place(tiny_mamba2, tokens, n_groups):
    model, sizes = transformed(tiny_mamba2, n_groups=n_groups), {"D": 64, "G": n_groups}
    scheme, mixer = get_scheme("w8a8"), model.backbone.layers[0].mixer
    single = {tap: torch.tensor(0.01 * (1 + index)) for index, tap in enumerate(TAPS)}
    several = {tap: single[tap].expand(sizes[VECTORS[tap]]) if tap in VECTORS else single[tap][None] for tap in TAPS}
    ours, theirs = (
        QuantMamba2Mixer.from_float(model.config, mixer, scheme, scales).state_dict() for scales in (single, several)
    )
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    for tap in TAPS:
        shape = (sizes[VECTORS[tap]],) if tap in VECTORS else ()
        assert ours[f"{tap}_scale"].shape == shape
        assert (ours[f"{tap}_scale"] == single[tap]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_taps_with_a_static_scale_have_one(tiny_mamba2, variant):
    mixer = quantized_model(tiny_mamba2, variant).backbone.layers[0].mixer
    stored = {name.removesuffix("_scale") for name in mixer.state_dict() if name.endswith("_scale") and "." not in name}
    dynamic = set(PER_TOKEN_TAPS) if "dynamic" in variant else set()
    assert stored == (set(TAPS) - dynamic if calibrates(variant) else set())
    assert all(getattr(mixer, f"{tap}_scale") is None for tap in set(TAPS) - stored)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w3a8", "w4a16"])
def test_in_proj_is_split_into_z_x_B_C_and_dt(tiny_mamba2, scheme):
    """Rounded as one matrix would be, nearest or by integers that were chosen for all of its rows."""
    model = transformed(tiny_mamba2, use_bias=True)
    recipe = QuantizationRecipe(get_scheme(scheme, None if scheme == "w8a8" else 32))
    linear = model.backbone.layers[0].mixer.in_proj
    whole = QuantLinear.from_float(linear, recipe.scheme.weight)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, 7, linear.weight.shape, generator=generator).to(whole.weight.dtype)
    scale = (0.5 + torch.rand(164, 1, generator=generator)).half().float()  # rows of 32 columns: one group each
    zero = torch.full((164, 1), 3.0)
    input_scales = 0.5 + torch.rand(32, generator=generator)
    rounded = RoundedWeight(chosen, scale, zero, input_scales)
    scales = dict.fromkeys(static_tap_names(model, recipe), torch.tensor(0.1))
    convert(model, recipe, scales, [{}, {"mixer.in_proj": rounded}])
    nearest, given = (layer.mixer for layer in model.backbone.layers)
    assert nearest.in_proj.out_features == 64 + 64 + 2 * 2 * 8 and nearest.dt_proj.out_features == 4
    assert torch.equal(torch.cat([nearest.in_proj.dequantized(), nearest.dt_proj.dequantized()]), whole.dequantized())
    assert torch.equal(torch.cat([nearest.in_proj.bias, nearest.dt_proj.bias]), linear.bias)
    values = (chosen.float() - (0 if scheme == "w8a8" else zero)) * scale
    assert torch.equal(torch.cat([given.in_proj.dequantized(), given.dt_proj.dequantized()]), values)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_quantized_model_is_close_to_the_float_one(tiny_mamba2, tokens, variant):
    expected, actual = tiny_mamba2()(tokens).logits, quantized_model(tiny_mamba2, variant)(tokens).logits
    assert 0 < relative_error(actual, expected) < (0.06 if variant.startswith("w8") else 0.3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "hidden_size": 96}], ids=str)
@torch.inference_mode()
def test_kernels_and_references_agree(tiny_mamba2, tokens, monkeypatch, variant, options):
    model = quantized_model(tiny_mamba2, variant, **options)
    expected = model(tokens).logits
    for name in ops.SCHEMAS:
        monkeypatch.setattr(ops, name, getattr(reference, name))
    assert_near(model(tokens).logits, expected, variant)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_scales_and_states_keep_their_dtype_when_the_model_is_cast(tiny_mamba2, tokens, variant):
    model = quantized_model(tiny_mamba2, variant)
    expected = model(tokens).logits
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        assert torch.equal(buffer, before[name]), name
    assert relative_error(model(tokens).logits, expected) < 0.05


# --- int8 states ---


def with_int8_states(tiny_mamba2, tokens, **options):
    """(the model, its copy whose states are int8 with a scale for every row of N that holds what the model's do)."""
    model = quantized_model(tiny_mamba2, **options)
    twin, floats = quantized_model(tiny_mamba2, **options), transformed(tiny_mamba2, **options)
    with torch.inference_mode():
        states = [layer.recurrent_states[0] for layer in continued(model, tokens, [1] * 13)[1].layers]  # [B, S, P, N]
    for layer, before, state in zip(twin.backbone.layers, floats.backbone.layers, states, strict=True):
        scales = {tap: getattr(layer.mixer, f"{tap}_scale") for tap in TAPS}
        scales["state"] = numerics.symmetric_scale(2 * state.abs().amax(dim=(0, 3)))  # [S, P]
        scheme = layer.mixer.scheme
        layer.mixer = QuantMamba2Mixer.from_float(model.config, before.mixer, scheme, scales, state_bits=8)
    return model, twin


@torch.inference_mode()
def test_int8_states_stay_near(tiny_mamba2, tokens):
    model, int8 = with_int8_states(tiny_mamba2, tokens)
    expected, _ = continued(model, tokens, [1] * 13)
    for cuts in ([1] * 13, [6, 7], [13]):
        logits, cache = continued(int8, tokens, cuts)
        assert cache.layers[0].recurrent_states[0].dtype == torch.int8
        assert cache.layers[0].recurrent_states[0].shape == (2, 4, 16, 8)
        assert relative_error(logits, expected) < 5e-2
    assert relative_error(int8(tokens, use_cache=False).logits, expected) < 2e-2  # without a cache nothing is rounded


def test_int8_states_have_scales_of_their_own(tiny_mamba2, tokens):
    model, int8 = with_int8_states(tiny_mamba2, tokens)
    assert int8.backbone.layers[0].mixer.state_scale.shape == (4, 16)
    assert "state_scale" not in model.backbone.layers[0].mixer.state_dict()
    scheme, config = get_scheme("w8a8"), model.config
    skeleton = QuantMamba2Mixer.from_config(config, 0, scheme, state_bits=8)
    stored = int8.backbone.layers[0].mixer.state_dict()
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == {
        name: tensor.shape for name, tensor in stored.items()
    }


def test_heads_that_do_not_split_into_groups_are_refused():
    with pytest.raises(QuambaError, match="n_groups 3 does not divide the 4 heads"):
        Mamba2Sizes(heads=4, head_dim=16, groups=3, d_state=8)
