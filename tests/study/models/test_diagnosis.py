"""Two models, of which it is known how they differ."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quamba
from quamba.calibration.channel_groups import ChannelGroups
from quamba.errors import QuambaError
from quamba.study.models.diagnosis import diagnose, hidden_states, model_tensors
from quamba.study.models.diagnosis_report import to_dict, to_markdown
from quamba.weights.method import WeightMethod

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3}


def tiny_llama(seed: int = 0, **options) -> LlamaForCausalLM:
    sizes = SIZES | {
        "initializer_range": 0.2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**sizes | options)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(params=["mamba", "llama"])
def model(request, tiny_mamba):
    return tiny_mamba(**SIZES) if request.param == "mamba" else tiny_llama()


@pytest.fixture
def windows(tokens):
    return tokens  # [2, 13]


def run(a, b, windows, **options):
    return diagnose(a, b, windows, progress=False, **options)


def by_name(diagnosis):
    return {difference.name: difference for difference in diagnosis.tensors.differences}


def quantized(model, scheme: str = "w8a16", **options):
    return quamba.quantize(copy.deepcopy(model), None, scheme, progress=False, **options)


# --- float models ---


def test_a_model_and_its_copy_part_nowhere(model, windows):
    diagnosis = run(model, copy.deepcopy(model), windows, tolerance=0)
    assert (diagnosis.logits.kl_mean, diagnosis.logits.kl_max, diagnosis.logits.agreement) == (0, 0, 1)
    assert diagnosis.logits.positions == windows.numel()
    assert [(layer.layer, layer.relative) for layer in diagnosis.layers] == [(-1, 0), (0, 0), (1, 0), (2, 0)]
    assert diagnosis.parting is None
    assert diagnosis.tensors.identical == len(diagnosis.tensors.differences) > 10
    assert (diagnosis.tensors.only_a, diagnosis.tensors.only_b, diagnosis.notes) == ((), (), ())


@pytest.mark.parametrize("layer", [0, 2])
def test_a_changed_layer_is_where_they_part(model, windows, layer):
    other = copy.deepcopy(model)
    block = {name: p for name, p in other.named_parameters() if f"layers.{layer}." in name}
    name = [name for name in block if name.endswith("proj.weight")][-1]
    block[name] *= 1.2
    diagnosis = run(model, other, windows, tolerance=0)
    assert diagnosis.parting.layer == layer
    assert all(before.relative == 0 for before in diagnosis.layers[: layer + 1])
    assert [d.name for d in diagnosis.tensors.differences if d.max_abs] == [name]
    assert by_name(diagnosis)[name].relative == pytest.approx(0.2, rel=1e-5)
    assert diagnosis.logits.kl_mean > 0


def test_a_changed_embedding_shows_before_the_first_layer(model, windows):
    other = copy.deepcopy(model)
    other.get_input_embeddings().weight[windows[0, 0]] += 1
    assert run(model, other, windows).parting.layer == -1


def test_a_tolerance_above_the_difference_finds_none(model, windows):
    other = copy.deepcopy(model)
    other.get_input_embeddings().weight *= 1.001
    assert run(model, other, windows, tolerance=1e-5).parting is not None
    assert run(model, other, windows, tolerance=0.5).parting is None


def test_the_state_behind_the_last_block_is_what_transformers_gives(model, tokens):
    states, logits = hidden_states(model, tokens[0])
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert hooks == []
    with torch.no_grad():
        output = model(tokens[:1], output_hidden_states=True)
    first = 1 if model.config.model_type == "mamba" else 0  # where transformers begins
    for index in (first, 2):  # of 3: the last one comes normalised there
        assert torch.equal(states[index], output.hidden_states[index - first][0])
    assert torch.equal(logits, output.logits[0])


def test_factors_that_moved_from_a_norm_into_the_layers_behind_it_change_no_product(windows):
    """What a weight search folds (AWQ): the norm and the weights differ, the model does not."""
    model = tiny_llama()
    other = copy.deepcopy(model)
    layer, factors = other.model.layers[1], torch.rand(32) + 0.5
    layer.input_layernorm.weight /= factors
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(layer.self_attn, name).weight *= factors
    diagnosis = run(model, other, windows)
    assert diagnosis.parting is None
    names = by_name(diagnosis)
    assert names["model.layers.1.input_layernorm.weight"].relative > 0.1
    assert names["model.layers.1.self_attn.q_proj.weight * input_layernorm"].relative < 1e-6
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "1 norms differ" in diagnosis.notes[0]


def test_models_of_different_depth_are_compared_by_tensors_and_logits_alone(windows):
    diagnosis = run(tiny_llama(), tiny_llama(num_hidden_layers=2), windows)
    assert (diagnosis.layers, diagnosis.parting) == ((), None)
    assert "3 blocks of width 32 and 2 of width 32" in diagnosis.notes[0]
    assert "model.layers.2.mlp.up_proj.weight" in diagnosis.tensors.only_a


def test_models_of_different_vocabularies_are_refused(windows):
    with pytest.raises(QuambaError, match="do not share a vocabulary"):
        run(tiny_llama(), tiny_llama(vocab_size=97), windows)


# --- quantized models ---


def test_a_quantized_mamba_differs_from_its_float_model_by_rounding(tiny_mamba, windows):
    """in_proj with the norm in it and the rotated out_proj too: the float model is rewritten before it is compared."""
    model = tiny_mamba()
    other = quantized(model)
    diagnosis = run(model, other, windows)
    names = by_name(diagnosis)
    for projection in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        difference = names[f"backbone.layers.1.mixer.{projection}.weight"]
        scale = other.backbone.layers[1].mixer.get_submodule(projection).weight_scale
        assert 0 < difference.max_abs <= 0.501 * scale.max().item()
        assert difference.differing_share is None
    for exact in ("mixer.A", "mixer.D", "mixer.conv1d.weight", "mixer.dt_proj.bias"):
        assert names[f"backbone.layers.0.{exact}"].relative == 0
    assert 0 < diagnosis.logits.kl_mean < 1e-2
    assert 0 < diagnosis.layers[-1].relative < 0.1
    assert "backbone.layers.0.norm.weight" in diagnosis.tensors.only_a  # all ones by now
    assert "backbone.layers.0.mixer.in_proj.weight_scale" in diagnosis.tensors.only_b
    assert "norms folded into the linear layers behind them, out_proj rotated" in diagnosis.notes[0]


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_a_quantized_mamba2_differs_from_its_float_model_by_rounding(tiny_mamba2, windows, method):
    """dt's rows of in_proj are compared with the layer that holds them; an AWQ vector is taken back into both."""
    model = tiny_mamba2(use_bias=True)
    text = {} if method == "rtn" else {"weight_text": windows}
    diagnosis = run(model, quantized(model, weights=WeightMethod(method), **text), windows)
    names = by_name(diagnosis)
    for projection in ("in_proj", "dt_proj", "out_proj"):
        assert 0 < names[f"backbone.layers.1.mixer.{projection}.weight"].relative < 0.02
    for exact in ("A", "D", "dt_bias", "in_proj.bias", "dt_proj.bias", "conv1d.weight"):
        assert names[f"backbone.layers.0.mixer.{exact}"].relative == 0
    assert "backbone.layers.0.mixer.norm.weight" in diagnosis.tensors.only_a  # all ones by now
    assert not diagnosis.tensors.unlike


def test_channels_in_another_order_are_not_compared(tiny_mamba2, windows):
    """Hidden states are in the order of both; of two models with the same groups the tensors are too."""
    model, options = tiny_mamba2(), {"calibration": windows, "group_heads": ChannelGroups(2, 2)}
    grouped = quantized(model, "w8a8", **options)
    for a, b in ((model, grouped), (grouped, quantized(model, "w8a8", calibration=windows))):
        diagnosis = run(copy.deepcopy(a), b, windows)  # a float model is rewritten
        assert max(layer.relative for layer in diagnosis.layers) < 0.2
        assert not any(".mixer." in name for name in by_name(diagnosis))
        assert by_name(diagnosis)["backbone.norm_f.weight"].relative == 0
        assert any("stand in another order" in note for note in diagnosis.notes)
        assert ".mixer." not in "".join([*diagnosis.tensors.only_a, *diagnosis.tensors.only_b])
    same = run(grouped, quantized(model, "w8a8", **options), windows)
    assert by_name(same)["backbone.layers.0.mixer.in_proj.weight"].relative == 0
    assert not same.notes


@pytest.mark.parametrize("options", [{"state_bits": 8}, {"layer_schemes": ("w8a8", "w8a16")}], ids=str)
def test_layers_of_several_schemes_and_integer_states_differ_by_rounding(tiny_mamba2, windows, options):
    model = tiny_mamba2()
    diagnosis = run(model, quantized(model, "w8a8", calibration=windows, **options), windows)
    for layer in range(2):
        assert 0 < by_name(diagnosis)[f"backbone.layers.{layer}.mixer.in_proj.weight"].relative < 0.02
        assert by_name(diagnosis)[f"backbone.layers.{layer}.mixer.A"].relative == 0


def test_the_quantized_model_may_be_the_reference(tiny_mamba, windows):
    model = tiny_mamba()
    diagnosis = run(quantized(model), model, windows)
    assert by_name(diagnosis)["backbone.layers.1.mixer.in_proj.weight"].relative < 0.02
    assert "the second model's tensors" in diagnosis.notes[0]


def test_a_rotated_residual_stream_is_no_difference(tiny_mamba, windows):
    model = tiny_mamba()
    diagnosis = run(model, quantized(model, rotate_residual=True), windows)
    assert max(layer.relative for layer in diagnosis.layers) < 0.1
    names = by_name(diagnosis)
    for name in ("backbone.embeddings.weight", "lm_head.weight", "backbone.layers.0.mixer.out_proj.weight"):
        assert names[name].relative < 0.02


def test_of_two_quantized_models_of_which_one_is_rotated_no_rotated_weight_is_compared(tiny_mamba, windows):
    model = tiny_mamba()
    diagnosis = run(quantized(model), quantized(model, rotate_residual=True), windows)
    assert max(layer.relative for layer in diagnosis.layers) < 0.1
    compared = set(by_name(diagnosis))
    assert "backbone.layers.0.mixer.x_proj.weight" in compared
    assert not any(name.endswith(("in_proj.weight", "out_proj.weight", "embeddings.weight")) for name in compared)


def test_quantized_tables_are_compared_with_the_float_ones(tiny_mamba, windows):
    model = tiny_mamba()
    diagnosis = run(model, quantized(model, quantize_embedding=True, quantize_lm_head=True), windows)
    assert 0 < by_name(diagnosis)["backbone.embeddings.weight"].relative < 0.02
    names = {*diagnosis.tensors.only_a, *diagnosis.tensors.only_b}
    assert not any("head" in name for name in names)  # tied on both sides: the table, once
    diagnosis = run(tiny_mamba(), quantized(tiny_mamba(), quantize_lm_head=True), windows)
    assert 0 < by_name(diagnosis)["lm_head.weight"].relative < 0.02


def test_two_quantized_models_tell_by_their_integers_which_weight_changed(tiny_mamba, windows):
    model = tiny_mamba()
    changed = copy.deepcopy(model)
    changed.backbone.layers[1].mixer.x_proj.weight[0, 0] += 1
    first, second = (quantized(m, "w4a16", weights=WeightMethod("rtn")) for m in (model, changed))
    diagnosis = run(first, second, windows)
    name = "backbone.layers.1.mixer.x_proj.weight"
    assert by_name(diagnosis)[name].differing_share > 0
    assert {d.name for d in diagnosis.tensors.differences if d.max_abs} <= {name, f"{name}_scale", f"{name}_zero"}
    assert diagnosis.parting is None or diagnosis.parting.layer == 1


@pytest.mark.parametrize("chunks", [2, 3])
def test_what_a_weight_search_folds_is_no_difference(model, windows, chunks):
    """AWQ's vectors lie in norms, beside weights and, one for each chunk of rows, beside the head."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter[:3] *= 8  # channels that the search scales
    search = WeightMethod("awq", lm_head_chunks=chunks)
    other = quantized(model, "w8a16", weights=search, weight_text=windows, quantize_lm_head=True)
    diagnosis = run(model, other, windows)
    weights = {name: d for name, d in by_name(diagnosis).items() if "proj.weight" in name or name == "lm_head.weight"}
    assert len(weights) == 1 + 3 * (4 if model.config.model_type == "mamba" else 7)
    assert max(difference.relative for difference in weights.values()) < 0.03
    assert diagnosis.logits.kl_mean < 0.1


def test_the_names_are_those_of_the_checkpoint(tiny_mamba):
    model = tiny_mamba()
    assert set(model_tensors(model)) == set(model.state_dict())
    other = quantized(model, quantize_lm_head=True)
    assert "lm_head.weight" in model_tensors(other)
    assert not any("linear" in name for name in model_tensors(other))


# --- the report ---


@pytest.fixture
def diagnosis(tiny_mamba, windows):
    model = tiny_mamba()
    return run(model, quantized(model), windows, tolerance=1e-6)


def test_markdown_says_where_they_part_and_lists_the_worst_tensors(diagnosis):
    text = to_markdown(diagnosis, ["float", "w8a16"], "two windows", top=2)
    assert text.startswith("float (a) and w8a16 (b) on two windows\n")
    assert f"They part at layer {diagnosis.parting.layer}: " in text
    table = text[text.index("| tensor") :].split("\n\n")[0].splitlines()
    assert len(table) == 2 + 2
    assert diagnosis.tensors.differences[0].name in table[2]
    assert "In float alone: backbone.layers.*.norm.weight (2)" in text
    assert "Note: the first model's tensors are compared as its quantization finds them" in text


def test_plain_data_has_everything(diagnosis):
    data = to_dict(diagnosis, top=3)
    assert data["tensors"]["compared"] == len(diagnosis.tensors.differences) > len(data["tensors"]["differences"]) == 3
    assert data["parting"] == data["layers"][diagnosis.parting.layer + 1]
    assert set(data["logits"]) == {"kl_mean", "kl_max", "agreement", "positions"}
