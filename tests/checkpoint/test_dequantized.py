"""A quantized model as plain floats: transformers alone computes what the integers mean."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import quamba
from quamba.checkpoint import save_dequantized
from quamba.checkpoint.dequantized import plain_tensors
from quamba.errors import QuambaError
from quamba.weights.method import WeightMethod
from tests.checkpoint.tiny_families import FAMILIES, tiny_gemma
from tests.scheme_variants import TABLES
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(0, 50, (8, 24), generator=torch.Generator().manual_seed(4))


def quantized(model, tables, method="awq", **options):
    options = {"rotate_residual": False, "weight_text": WINDOWS} | options
    weights = WeightMethod(method)
    return quamba.quantize(model, None, "w4a16", weights=weights, group_size=32, progress=False, **tables, **options)


@torch.inference_mode()
def logits(model, tokens):
    return model(tokens).logits


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
def test_a_mamba_without_us_gives_the_same_logits(tmp_path, tiny_ssm, tiny_tokenizer, tokens, tables):
    model = quantized(tiny_ssm(use_bias=True), tables)
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(plain.backbone.layers[0].mixer).__module__.startswith("transformers.")
    torch.testing.assert_close(logits(plain, tokens), logits(model, tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("tied", [False, True])
def test_so_does_a_llama(tmp_path, tiny_tokenizer, tokens, tables, tied):
    model = quantized(tiny_llama(tie_word_embeddings=tied), tables)
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain, tokens), logits(model, tokens), rtol=1e-3, atol=1e-3)


def test_it_is_in_the_dtype_that_is_asked_for(tmp_path, tiny_tokenizer):
    save_dequantized(quantized(tiny_llama(), {}), tiny_tokenizer, tmp_path / "plain", torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}


LOADED = """
import sys, torch
from transformers import AutoModelForCausalLM
tokens = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), (folder, told)
    with torch.inference_mode():
        torch.save(model(tokens).logits, folder + "/logits")
assert "quamba" not in sys.modules
"""


def test_every_family_loads_where_quamba_is_unknown(tmp_path, tiny_mamba, tiny_tokenizer, tokens):
    """No tensor is missing, none too many, though transformers gives those of some families other names in files."""
    builders = {"mamba": tiny_mamba, "llama": tiny_llama} | FAMILIES
    expected = {}
    for family, build in builders.items():
        model = build()
        model.save_pretrained(tmp_path / "float" / family)
        model = quantized(AutoModelForCausalLM.from_pretrained(tmp_path / "float" / family), {})
        folder = save_dequantized(model, tiny_tokenizer, tmp_path / family, torch.float32)
        expected[folder] = logits(model, tokens)
        names = load_file(tmp_path / "float" / family / "model.safetensors").keys()
        assert load_file(folder / "model.safetensors").keys() == names
    torch.save(tokens, tmp_path / "tokens")
    subprocess.run([sys.executable, "-c", LOADED, tmp_path / "tokens", *expected], check=True, cwd=tmp_path)
    for folder, values in expected.items():
        torch.testing.assert_close(torch.load(folder / "logits"), values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tables", [TABLES["float"], TABLES["both"]], ids=["float", "both"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma"])
def test_so_do_tables(tmp_path, tiny_tokenizer, tokens, family, tables):
    model = quantized(FAMILIES[family](), tables)
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain, told = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(told.values())
    torch.testing.assert_close(logits(plain, tokens), logits(model, tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_buffer_of_the_float_model_is_kept(tmp_path, tiny_tokenizer, dtype):
    model = quantized(tiny_gemma(), {})
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", dtype)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    for layer, kept in zip(model.model.layers, plain.model.layers, strict=True):
        assert torch.equal(kept.layer_scalar, layer.layer_scalar.to(dtype))


def test_the_generation_config_goes_along(tmp_path, tiny_tokenizer):
    model = quantized(tiny_llama(), {})
    model.generation_config.update(max_new_tokens=7, do_sample=True, top_k=3)
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
    assert plain.generation_config.max_new_tokens == 7


def test_a_rotated_residual_stays_consistent(tmp_path, tiny_ssm, tiny_tokenizer, tokens):
    model = quantized(tiny_ssm(), {}, rotate_residual=True)
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain, tokens), logits(model, tokens), rtol=1e-3, atol=1e-3)


def test_all_tensors_are_those_of_the_float_model(tiny_ssm):
    expected = {name: tensor.shape for name, tensor in tiny_ssm(tie_word_embeddings=False).state_dict().items()}
    tensors = plain_tensors(quantized(tiny_ssm(tie_word_embeddings=False), TABLES["both"]))
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected


def test_mistakes_are_one_error(tmp_path, tiny_ssm, tiny_tokenizer):
    with pytest.raises(QuambaError, match="only quantized models have weights to dequantize"):
        save_dequantized(tiny_ssm(), tiny_tokenizer, tmp_path / "plain", torch.float32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(QuambaError, match="exists already"):
        save_dequantized(quantized(tiny_ssm(), {}), tiny_tokenizer, tmp_path / "full", torch.float32)
    assert (tmp_path / "full" / "file").read_text() == "mine"
