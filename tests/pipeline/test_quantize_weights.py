"""The weight path from end to end: `quamba.quantize` with a method for the weights, saved and loaded."""

import dataclasses

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import quamba
from quamba.errors import QuambaError
from quamba.nn.linear import QuantLinear
from quamba.pipeline.resume import ResumeFolder
from quamba.scheme.formats import SCHEMES
from quamba.weights import method
from quamba.weights.method import WeightMethod
from quamba.weights.rounding import FlipOptions
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(0, 50, (12, 24), generator=torch.Generator().manual_seed(4))
AWQ = WeightMethod("awq", layer_batch_size=1)


def quantized(model, scheme="w4a16", weights=AWQ, **options):
    activations = {} if scheme.endswith("a16") else {"calibration": WINDOWS, "observer": "all=minmax"}
    group_size = None if scheme.startswith("w8") else 32
    options = {"group_size": group_size, "weight_text": WINDOWS if weights.calibrated else None} | activations | options
    return quamba.quantize(model, None, scheme, weights=weights, progress=False, **options)


@torch.inference_mode()
def logits(model, tokens):
    return model(tokens).logits


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_method_at_every_scheme_stays_near_the_float_model(tiny_ssm, tokens, scheme, method):
    expected = logits(tiny_ssm(), tokens)
    model = quantized(tiny_ssm(), scheme, WeightMethod(method))
    error = relative(logits(model, tokens), expected)
    assert 0 < error < {"8": 0.15, "4": 0.3, "3": 0.6}[scheme[1]]


@pytest.mark.parametrize("method", [AWQ, WeightMethod("awq+gptq", "hessian", FlipOptions(max_flip_percent=0.1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_llama_is_quantized_saved_and_loaded(tmp_path, tiny_tokenizer, tokens, method, dtype):
    expected = logits(tiny_llama(dtype=dtype), tokens)
    model = quantized(tiny_llama(dtype=dtype), weights=method)
    found = logits(model, tokens)
    assert relative(found.float(), expected.float()) < 0.45  # four bits, rows of 32 weights
    quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    again, _ = quamba.load(str(tmp_path / "saved"))
    assert again.dtype == model.dtype == dtype
    assert torch.equal(logits(again, tokens), found)
    assert type(again) is type(tiny_llama())


FAMILIES = {
    "Mistral": (MistralConfig, MistralForCausalLM),
    "Qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "Qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "OLMo 2": (Olmo2Config, Olmo2ForCausalLM),  # its norms come behind the layers: nothing to fold into
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_rounded_too(tmp_path, tiny_tokenizer, tokens, family):
    """Each near its float model, the same after a reload, and with input scales for every linear layer or in a norm."""
    config, model_class = FAMILIES[family]
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    torch.manual_seed(1)
    plain = model_class(config(**sizes, num_attention_heads=4, num_key_value_heads=4)).eval().requires_grad_(False)
    expected = logits(plain, tokens)
    model = quantized(plain)
    found = logits(model, tokens)
    assert 0 < relative(found, expected) < 0.3
    quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    assert torch.equal(logits(quamba.load(str(tmp_path / "saved"))[0], tokens), found)
    linears = [module for module in model.modules() if isinstance(module, QuantLinear)]
    folded = sum(module.input_multiplier is None for module in linears)
    assert len(linears) == 2 * 7
    assert folded == (0 if family == "OLMo 2" else 2 * 5)


def test_the_input_scales_are_where_they_cost_nothing(tokens):
    """Of linear layers that alone read a norm in its weight, of others beside the weights."""
    model, plain = quantized(tiny_llama()), tiny_llama()
    for layer, before in zip(model.model.layers, plain.model.layers, strict=True):
        assert layer.self_attn.q_proj.input_multiplier is None and layer.mlp.up_proj.input_multiplier is None
        assert layer.self_attn.o_proj.input_multiplier is not None and layer.mlp.down_proj.input_multiplier is not None
        assert not torch.equal(layer.input_layernorm.weight, before.input_layernorm.weight)


def test_a_folded_norm_in_16_bits_is_exact(tokens):
    """The folded weight needs no rounding with input scales chosen so: the norm's output times it is as before."""
    model, plain = quantized(tiny_llama(dtype=torch.bfloat16)), tiny_llama(dtype=torch.bfloat16)
    layer, before = model.model.layers[0], plain.model.layers[0]
    weight = layer.self_attn.q_proj.dequantized() * layer.input_layernorm.weight.float()  # what the norm's weight meets
    expected = before.self_attn.q_proj.weight.float() * before.input_layernorm.weight.float()
    assert relative(weight, expected) < 0.12


@pytest.mark.parametrize("tables", [{"quantize_lm_head": True}, {"quantize_embedding": True, "quantize_lm_head": True}])
@pytest.mark.parametrize("tied", [False, True])
def test_the_tables_of_a_llama_too(tmp_path, tiny_tokenizer, tokens, tables, tied):
    build = {"tie_word_embeddings": tied}
    expected = logits(tiny_llama(**build), tokens)
    model = quantized(tiny_llama(**build), **tables)
    assert relative(logits(model, tokens), expected) < 0.6
    quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    assert torch.equal(logits(quamba.load(str(tmp_path / "saved"))[0], tokens), logits(model, tokens))


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8", "w8a8", "w3a8"])
def test_a_mamba_with_input_scales_is_saved_and_loaded(tmp_path, tiny_ssm, tiny_tokenizer, tokens, scheme):
    model = quantized(tiny_ssm(), scheme)
    quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    again, _ = quamba.load(str(tmp_path / "saved"))
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    assert again.backbone.layers[0].mixer.out_proj.input_multiplier is not None


def test_activation_scales_are_of_the_divided_inputs(tiny_mamba, monkeypatch):
    """Input scales of a thousand on every channel: the scales at in_proj and out_proj come a thousand times smaller."""
    plain = quantized(tiny_mamba(), "w8a8", WeightMethod())
    large = method.search_scales

    def thousandfold(*args, **options):
        return dataclasses.replace(large(*args, **options), alpha=1.0, scales=torch.full_like(args[1].mean, 1000.0))

    monkeypatch.setattr(method, "search_scales", thousandfold)
    scaled = quantized(tiny_mamba(), "w8a8")
    for a, b in zip(plain.backbone.layers, scaled.backbone.layers, strict=True):
        torch.testing.assert_close(b.mixer.in_scale * 1000, a.mixer.in_scale, rtol=0.1, atol=0)
        torch.testing.assert_close(b.mixer.out_scale * 1000, a.mixer.out_scale, rtol=0.1, atol=0)
        torch.testing.assert_close(b.mixer.x_scale, a.mixer.x_scale, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("scheme", "default"),
    [("w8a16", WeightMethod()), ("w4a16", WeightMethod("gptq")), ("w3a8", WeightMethod("gptq", "hessian"))],
    ids=["w8a16", "w4a16", "w3a8"],
)
def test_the_method_follows_from_the_bits_where_none_is_named(tiny_mamba, tokens, scheme, default):
    text = WINDOWS if default.calibrated else None
    expected = quantized(tiny_mamba(), scheme, default)
    activations = {} if scheme.endswith("a16") else {"calibration": WINDOWS, "observer": "all=minmax"}
    options = {"group_size": None if scheme.startswith("w8") else 32, "weight_text": text, **activations}
    model = quamba.quantize(tiny_mamba(), None, scheme, progress=False, **options)
    assert torch.equal(logits(model, tokens), logits(expected, tokens))


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "w4a8"])
def test_mamba2s_dt_reads_in_projs_vector(tiny_mamba2, tokens, monkeypatch, scheme):
    """Vectors of twos instead of ones move exponents alone: the model computes the same."""
    search, found = method.search_scales, []
    for value in (1.0, 2.0):

        def constant(*args, value=value, **options):
            scales = torch.full_like(args[1].mean, value)
            return dataclasses.replace(search(*args, **options), alpha=1.0, scales=scales)

        monkeypatch.setattr(method, "search_scales", constant)
        model = quantized(tiny_mamba2(), scheme)
        found.append(logits(model, tokens))
        assert model.backbone.layers[0].mixer.in_proj.input_multiplier.unique().tolist() == [1 / value]
        assert model.backbone.layers[0].mixer.dt_proj.input_multiplier is None
    assert relative(*found) < 1e-5


def test_three_bits_fit_the_four_bit_layout(tiny_mamba):
    weight = quantized(tiny_mamba(), "w3a16", WeightMethod()).backbone.layers[0].mixer.in_proj
    integers = quamba.numerics.unpack_uint4(weight.rows()["weight"], weight.in_features)
    assert integers.max() == 7


def test_what_became_of_the_weights_is_kept(tiny_mamba):
    account = quantized(tiny_mamba()).quamba_weights
    assert account["tokens"] == WINDOWS.numel() and account["seconds"] > 0
    assert 0 <= account["reports"]["layers.1.mixer.out_proj"]["alpha"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "w4a8"}, "activations of models of type 'llama' cannot be quantized"),
        ({"weights": WeightMethod(), "weight_text": WINDOWS}, "weight_text does nothing with the weight method 'rtn'"),
        ({"resume": True, "weights": WeightMethod(), "weight_text": None}, "nothing to resume"),
        ({"rotate_residual": True}, "rotate_residual is for Mamba"),
    ],
)
def test_what_does_not_fit_is_one_error(options, message):
    with pytest.raises(QuambaError, match=message):
        quantized(tiny_llama(), **options)


def test_an_interrupted_quantization_is_resumed(tmp_path, tokens, monkeypatch):
    expected = logits(quantized(tiny_llama()), tokens)
    keep = ResumeFolder.keep

    def fail_after_two(self, layers, *args):
        keep(self, layers, *args)
        if len(layers) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResumeFolder, "keep", fail_after_two)
        with pytest.raises(KeyboardInterrupt):
            quantized(tiny_llama(), progress_dir=tmp_path / "partial")
    model = quantized(tiny_llama(), progress_dir=tmp_path / "partial", resume=True)
    assert torch.equal(logits(model, tokens), expected)
    again = quantized(tiny_llama(), progress_dir=tmp_path / "partial", resume=True)  # a finished run costs nothing
    assert torch.equal(logits(again, tokens), expected)


def test_progress_takes_nothing_else_in_its_folder_with_it(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    quantized(tiny_llama(), progress_dir=tmp_path)
    ResumeFolder(tmp_path).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_windows_for_activations_serve_the_weights_too(tiny_mamba, tokens):
    named = quantized(tiny_mamba(), "w4a8")
    assert torch.equal(logits(quantized(tiny_mamba(), "w4a8", weight_text=None), tokens), logits(named, tokens))


def test_experts_are_refused_before_anything_is_changed():
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    with pytest.raises(QuambaError, match=r"layers\.0\.mlp.*MixtralForCausalLM cannot be quantized \(experts"):
        quantized(model)


def test_a_folded_channel_of_16_bits_is_neither_lost_nor_infinite():
    norm, scales = torch.tensor([1.0, 1.0, 0.0, -2.0], dtype=torch.float16), torch.tensor([1e-9, 1e9, 3.0, 1e-5])
    found = method.foldable(scales, norm)
    folded = norm.float() / found
    assert found.isfinite().all() and (found > 0).all()
    assert torch.equal(folded.half().float(), folded) and folded.isfinite().all()
    assert (folded != 0).tolist() == [True, True, False, True]
