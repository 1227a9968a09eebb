"""Where hybrids keep their Mamba blocks: found, run in float on our mixers, watched; and what is refused."""

from pathlib import Path

import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
)

from quamba import CalibrationText, QuambaError
from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import HEAD_TAP, install_float_mixers, tap_modules
from quamba.architectures.linear_sites import find_sites
from quamba.architectures.table import ARCHITECTURES
from quamba.calibration.recording import open_activations
from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.run import MixedPrecisionSearch, search_schemes
from quamba.nn.mamba2 import TAPS, Mamba2Mixer
from quamba.pipeline.transform import transform
from quamba.study.observers.capture import capture
from tests.scheme_variants import calibrates, quantize_variant
from tests.tiny_hybrids import (
    ATTENTION,
    CUTS,
    HYBRIDS,
    MAMBA_LAYERS,
    WINDOWS,
    continued,
    logits,
    tiny_bamba,
    tiny_granite,
)

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
LIMITS = {"time_step_limit": (0.2, 0.9)}
OPTIONS = [
    {},
    {"mamba_proj_bias": True},
    {"mamba_conv_bias": False},
    {"mamba_n_groups": 1},
    {"mamba_d_conv": 3},
    LIMITS,
]


@pytest.fixture(params=HYBRIDS)
def tiny_hybrid(request):
    """Every tiny hybrid in turn: builds one."""
    return HYBRIDS[request.param]


def float_model(tiny_hybrid, **options):
    model = tiny_hybrid(**options)
    install_float_mixers(model)
    return model


def state(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(before: dict, model) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_every_row_of_the_table_is_tested():
    hybrids = {name for name, architecture in ARCHITECTURES.items() if architecture.hybrid}
    assert {build().config.model_type for build in HYBRIDS.values()} == hybrids


def test_the_slots_are_those_of_the_mamba_layers(tiny_hybrid):
    model = tiny_hybrid()
    slots = Anatomy.of(model).slots
    assert [slot.index for slot in slots] == MAMBA_LAYERS
    assert all(slot.mixer is slot.layer.mamba and slot.norm is slot.layer.input_layernorm for slot in slots)
    assert Anatomy.of(model).has_blocks == [index in MAMBA_LAYERS for index in range(3)]
    assert slots[1].within("mamba.in_proj") == "in_proj" and slots[1].within("mamba_norm.weight") is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_float_mixers_compute_what_transformers_does(tiny_hybrid, tokens, options):
    expected = logits(tiny_hybrid(**options), tokens)
    model = float_model(tiny_hybrid, **options)
    assert [type(slot.mixer) for slot in Anatomy.of(model).slots] == [Mamba2Mixer] * 2
    torch.testing.assert_close(logits(model, tokens), expected, **TOLERANCE)


@pytest.mark.parametrize("options", [{}, LIMITS], ids=str)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@torch.inference_mode()
def test_a_float_model_reads_a_sequence_in_pieces(tiny_hybrid, tokens, options, cuts):
    model = float_model(tiny_hybrid, **options)
    torch.testing.assert_close(continued(model, tokens, cuts), model(tokens).logits, **TOLERANCE)


@torch.inference_mode()
def test_transformers_has_no_limits_of_dt_in_single_steps(tiny_hybrid, tokens):
    """Comparisons with it have to go round that."""
    model = tiny_hybrid(**LIMITS)
    assert (continued(model, tokens, [1] * 13) - model(tokens).logits).abs().max() > 1e-2


def test_taps_are_those_of_the_mamba_layers_and_of_the_head(tiny_hybrid):
    model = float_model(tiny_hybrid)
    names = [f"layers.{index}.{tap}" for index in MAMBA_LAYERS for tap in TAPS]
    assert list(tap_modules(model, head=True)) == [*names, HEAD_TAP]
    result = quantize_variant(tiny_hybrid(), "w8a8", quantize_lm_head=True).quamba_calibration
    assert list(result.taps) == [*names, HEAD_TAP]


def test_activations_are_recorded_of_layers_that_have_a_mamba_block(tmp_path, tiny_hybrid, tiny_tokenizer):
    text = CalibrationText(str(tmp_path / "text.txt"), data_num=2, seqlen=8)
    Path(text.dataset).write_text(" ".join(f"w{number % 50}" for number in range(400)))
    with pytest.raises(QuambaError, match=r"layer 1 has no Mamba block.*layers \[0, 2\] have one"):
        capture(tiny_hybrid(), tiny_tokenizer, text, tmp_path / "none", ["x"], [ATTENTION])
    capture(tiny_hybrid(), tiny_tokenizer, text, tmp_path / "some", ["x"], [2], progress=False)
    assert [tap.name for tap in open_activations(tmp_path / "some")] == ["layers.2.x"]


@pytest.mark.parametrize("float_activations", [False, True])
def test_the_sites_of_a_layer_are_the_mixers_and_the_others(tokens, float_activations):
    model = float_model(tiny_bamba)
    sites = find_sites(model, tokens[0], float_activations)
    mlp = [("feed_forward.gate_proj", "feed_forward.up_proj"), ("feed_forward.down_proj",)]
    attention = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)]
    mamba = [("mamba.in_proj",), ("mamba.out_proj",)]
    found = [[site.linears for site in layer] for layer in sites]
    assert [sorted(layer) for layer in found] == [sorted(part + mlp) for part in (mamba, attention, mamba)]
    assert all(site.scalable for layer in sites for site in layer)


# --- what is refused, before anything changes ---

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 2}
SIZES |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def tiny_jamba():
    sizes = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "expert_layer_period": 2}
    return JambaForCausalLM(JambaConfig(**SIZES, **sizes, mamba_d_state=4, use_mamba_kernels=False))


def tiny_falcon_h1():
    sizes = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_chunk_size": 4}
    return FalconH1ForCausalLM(FalconH1Config(**SIZES, **sizes, head_dim=8))


def tiny_nemotron_h():
    sizes = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    sizes |= {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16, "head_dim": 8}
    return NemotronHForCausalLM(NemotronHConfig(**sizes, n_groups=2, ssm_state_size=8, chunk_size=4))


UNKNOWN = {"jamba": tiny_jamba, "falcon_h1": tiny_falcon_h1, "nemotron_h": tiny_nemotron_h}


@pytest.mark.parametrize("family", UNKNOWN)
@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_hybrids_that_the_table_does_not_hold_are_refused_by_name(family, variant):
    model = UNKNOWN[family]()
    before = state(model)
    with pytest.raises(QuambaError) as error:
        quantize_variant(model, variant)
    assert (f"'{family}'" if calibrates(variant) else f"{type(model).__name__} cannot be quantized") in str(error.value)
    assert same_state(before, model)


@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_experts_are_refused_by_name(variant):
    model = tiny_granite(num_local_experts=2, num_experts_per_tok=1, intermediate_size=16)
    before = state(model)
    with pytest.raises(QuambaError, match=r"layers\.0\.block_sparse_moe\.\w+, .*experts and convolutions"):
        quantize_variant(model, variant)
    assert same_state(before, model)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({}, {"rotate_residual": True}, "rotate_residual is for Mamba models, not for '{}': drop it"),
        ({"mamba_d_conv": 17}, {}, "conv_kernel 17 has no kernels"),
        ({"mamba_n_groups": 3}, {}, "n_groups 3 does not divide the 4 heads"),
        ({"hidden_size": 134, "mamba_n_heads": 67, "mamba_n_groups": 67}, {}, "no Hadamard rotation of size 268"),
        ({}, {"layer_schemes": ["w8a8", "w4a8"]}, "schemes of 2 layers, but the model has 3"),
    ],
)
def test_what_has_no_kernels_or_no_meaning_is_refused(tiny_hybrid, sizes, options, message):
    model = tiny_hybrid(**sizes)
    before = state(model)
    with pytest.raises(QuambaError, match=message.format(model.config.model_type)):
        quantize_variant(model, "w8a8", **options)
    assert same_state(before, model)


def test_the_residual_stream_is_not_rotated_by_any_other_way(tiny_hybrid):
    model = float_model(tiny_hybrid)
    before = state(model)
    with pytest.raises(QuambaError, match=f"not for {type(model).__name__}"):
        transform(model, rotate_residual=True)
    assert same_state(before, model)


def test_the_search_of_schemes_is_for_mamba_alone(tiny_hybrid):
    model = tiny_hybrid()
    before = state(model)
    with pytest.raises(QuambaError, match=f"not of '{model.config.model_type}'"):
        search_schemes(model, WINDOWS, MixedPrecisionSearch(Budget.parse("6")), {}, progress=False)
    assert same_state(before, model)
