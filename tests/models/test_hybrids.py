"""Hybrids of Mamba blocks and attention: their Mamba layers are quantized, all other linear layers by weight alone."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

import quamba
from quamba import QuambaError
from quamba.architectures.anatomy import Anatomy
from quamba.calibration.channel_groups import ChannelGroups
from quamba.generation.decoder import Decoder
from quamba.models.layer_stack import decoder_layers
from quamba.nn.linear import QuantLinear, WeightOnlyLinear
from quamba.nn.mamba2 import QuantMamba2Mixer
from quamba.nn.norm import PassThroughNorm
from quamba.weights.method import WeightMethod
from tests.scheme_variants import TABLES, VARIANTS, calibrates, quantize_variant
from tests.tiny_hybrids import ATTENTION, CUTS, HYBRIDS, WINDOWS, continued, logits, tiny_granite

# the mask: else token 0, which pads, is taken for padding
GREEDY = {"do_sample": False, "eos_token_id": None, "attention_mask": torch.ones(2, 13, dtype=torch.int64)}


@pytest.fixture(params=HYBRIDS)
def tiny_hybrid(request):
    """Every tiny hybrid in turn: builds one."""
    return HYBRIDS[request.param]


def relative(a, b) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


# --- the float model on our mixers ---


# --- quantized ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_mamba_layers_are_quantized_and_other_linear_layers_by_weight(tiny_hybrid, variant):
    model = quantize_variant(tiny_hybrid(), variant)
    for index, layer in enumerate(decoder_layers(model)):
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, QuantLinear)}
        beside = {name for name in linears if not name.startswith("mamba.")}
        assert all(type(linears[name]) is WeightOnlyLinear for name in beside)
        assert not any(isinstance(module, nn.Linear) for module in layer.modules())
        assert isinstance(layer.input_layernorm, PassThroughNorm) == (index != ATTENTION)
        assert len([name for name in beside if name.startswith("self_attn")]) == (4 if index == ATTENTION else 0)
        assert beside and (index == ATTENTION or isinstance(layer.mamba, QuantMamba2Mixer))
    scales = {
        name for name, _ in Anatomy.of(model).slots[0].mixer.named_buffers(recurse=False) if name.endswith("_scale")
    }
    assert ("x_scale" in scales) == calibrates(variant) and "state_scale" not in scales


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_quantized_model_is_close_to_the_float_one(tiny_hybrid, tokens, variant):
    error = relative(logits(quantize_variant(tiny_hybrid(), variant), tokens), logits(tiny_hybrid(), tokens))
    assert 0 < error < (0.08 if variant.startswith("w8") else 0.4)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_prefill_chunks_and_single_steps_agree(tiny_hybrid, tokens, variant, cuts):
    """Attention is float, so that an activation may round to the next step."""
    model = quantize_variant(tiny_hybrid(), variant)
    error = relative(continued(model, tokens, cuts), model(tokens).logits)
    assert error < (2e-2 if calibrates(variant) else 1e-5)


@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_a_left_padded_row_has_the_logits_it_has_alone(tiny_hybrid, tokens, variant):
    model = quantize_variant(tiny_hybrid(mamba_proj_bias=True), variant)
    padded = torch.cat([torch.full((2, 4), 7), tokens], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    together = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 4:]
    assert relative(together, logits(model, tokens)) < (2e-2 if calibrates(variant) else 1e-5)


@pytest.mark.parametrize("variant", ["w8a8 dynamic", "w4a16"])
def test_generate_continues_a_prompt_with_the_models_own_cache(tiny_hybrid, tokens, variant):
    model = quantize_variant(tiny_hybrid(), variant)
    found = model.generate(tokens, max_new_tokens=5, output_logits=True, return_dict_in_generate=True, **GREEDY)
    states = found.past_key_values.layers[0]
    assert states.conv_states[0].dtype == (torch.int8 if calibrates(variant) else torch.float32)
    assert states.recurrent_states[0].dtype == torch.float32
    expected = logits(model, found.sequences)[:, 12:-1]  # [B, 5, V]: of all tokens at once
    assert relative(torch.stack(found.logits, dim=1), expected) < (3e-2 if calibrates(variant) else 1e-5)


def test_beams_take_their_states_along(tiny_hybrid, tokens):
    model = quantize_variant(tiny_hybrid(), "w8a16")
    options = {"max_new_tokens": 4, "num_beams": 3, **GREEDY}
    found = model.generate(tokens, **options)
    assert torch.equal(model.generate(tokens, use_cache=False, **options), found)


@pytest.mark.parametrize("rows", [256, 8], ids=["in one piece", "4 tokens at a time"])
@pytest.mark.parametrize("variant", ["float", "w8a8", "w4a16", "int8 states"])
def test_the_decoder_reads_token_by_token(tiny_hybrid, tokens, variant, rows):
    """Positions of attention go on where the last token was; twice, for a reset forgets them."""
    model, bound = tiny_hybrid(), {"float": 1e-5, "w4a16": 1e-5, "int8 states": 0.1}.get(variant, 3e-2)
    if variant != "float":
        options = {"state_bits": 8} if variant == "int8 states" else {}
        model = quantize_variant(model, "w8a8" if options else variant, quantize_lm_head=True, **options)
    expected, decoding = logits(model, tokens), Decoder(model)
    decoding.prefill_rows = rows
    for _ in range(2):
        assert relative(decoding.prefill(tokens[:, :9]), expected[:, 8]) < bound
        for position in range(9, 13):
            assert relative(decoding.step(tokens[:, position]), expected[:, position]) < bound
        decoding.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("variant", ["w8a8", "w4a8 dynamic", "w4a16"])
def test_a_saved_model_has_the_same_logits_bit_for_bit(tmp_path, tiny_tokenizer, tokens, variant, tables, dtype):
    model = quantize_variant(tiny_granite(dtype=dtype), variant, **tables)
    check_reloaded(model, tiny_tokenizer, tmp_path, tokens, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("variant", ["w8a8", "w4a8", "w4a16"])
def test_every_method_of_the_weight_path(tmp_path, tiny_tokenizer, tokens, tiny_hybrid, variant, method, dtype):
    expected = logits(tiny_hybrid(dtype=dtype), tokens)
    options = {"weights": WeightMethod(method), "weight_text": WINDOWS, "quantize_lm_head": True}
    model = quantize_variant(tiny_hybrid(dtype=dtype), variant, **options)
    assert 0 < relative(logits(model, tokens), expected) < (0.1 if variant.startswith("w8") else 0.4)
    if method != "gptq":  # vectors, of what reads an int8 input with one scale too: of Mamba2's, all may have one
        assert Anatomy.of(model).slots[0].mixer.in_proj.input_multiplier is not None
        assert decoder_layers(model)[ATTENTION].self_attn.q_proj.input_multiplier is not None
    check_reloaded(model, tiny_tokenizer, tmp_path, tokens, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"state_bits": 8},
        {"group_heads": ChannelGroups(2, 2)},
        {"state_bits": 8, "group_heads": ChannelGroups(2, 4), "weights": WeightMethod("awq"), "weight_text": WINDOWS},
        {"layer_schemes": ["w8a8", "w4a16", "w4a8"]},
    ],
    ids=["int8 states", "groups of heads", "both and vectors", "schemes of layers"],
)
def test_what_mamba2_has_hybrids_have(tmp_path, tiny_tokenizer, tiny_hybrid, tokens, options):
    model = quantize_variant(tiny_hybrid(), "w8a8", **options)
    assert 0 < relative(logits(model, tokens), logits(tiny_hybrid(), tokens)) < 0.4
    again = check_reloaded(model, tiny_tokenizer, tmp_path, tokens, torch.float32)
    cache = DynamicCache(config=again.config)
    with torch.inference_mode():
        again(tokens, past_key_values=cache, use_cache=True)
    int8_states = options.get("state_bits") == 8
    assert cache.layers[0].recurrent_states[0].dtype == (torch.int8 if int8_states else torch.float32)
    assert len(Anatomy.of(again).slots[0].mixer.x_scale.unique()) > 1 or "group_heads" not in options


def check_reloaded(model, tokenizer, tmp_path, tokens, dtype):
    """Saved and loaded by us and by transformers; the model as we load it."""
    expected, folder = logits(model, tokens), quamba.save(model, tokenizer, tmp_path / "saved")
    ours, theirs = quamba.load(str(folder))[0], AutoModelForCausalLM.from_pretrained(folder)
    for loaded in (ours, theirs):
        assert type(loaded) is type(model) and loaded.dtype == model.dtype == dtype
        assert torch.equal(logits(loaded, tokens), expected)
    return ours


def test_rotary_frequencies_stay_float32(tiny_hybrid):
    options = {"position_embedding_type": "rope"} if tiny_hybrid is tiny_granite else {}
    model, plain = quantize_variant(tiny_hybrid(dtype=torch.bfloat16, **options), "w8a8"), tiny_hybrid(**options)
    assert torch.equal(model.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", ["w4a16", "w8a16"])
def test_dequantized_it_is_transformers_own(tmp_path, tiny_tokenizer, tiny_hybrid, tokens, variant):
    options = {"weights": WeightMethod("awq"), "weight_text": WINDOWS, "quantize_embedding": True}
    model = quantize_variant(tiny_hybrid(mamba_proj_bias=True), variant, **options)
    quamba.checkpoint.save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(plain.model.layers[0].mamba).__module__.startswith("transformers.")
    torch.testing.assert_close(logits(plain, tokens), logits(model, tokens), rtol=1e-3, atol=1e-3)


def test_an_earlier_calibration_is_reused(tiny_hybrid, tokens):
    first = quantize_variant(tiny_hybrid(), "w8a8", group_heads=ChannelGroups(2, 2))
    again = quantize_variant(
        tiny_hybrid(), "w8a8", group_heads=ChannelGroups(2, 2), calibration=first.quamba_calibration
    )
    assert torch.equal(logits(again, tokens), logits(first, tokens))


def test_a_granite_of_attention_alone_is_any_causal_model(tokens):
    options = {"layer_types": ["full_attention"] * 3}
    model = quantize_variant(tiny_granite(**options), "w4a16")
    assert 0 < relative(logits(model, tokens), logits(tiny_granite(**options), tokens)) < 0.4
    with pytest.raises(QuambaError, match="no layer of this GraniteMoeHybridForCausalLM has a Mamba block"):
        quantize_variant(tiny_granite(**options), "w8a8")
