"""Quantized models of families whose tensors transformers renames in float files, or keeps in buffers."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Transpose, WeightConverter

import quamba
from quamba.checkpoint.verify import verify_tensors
from quamba.errors import QuambaError
from quamba.weights.method import WeightMethod
from tests.checkpoint.test_quantized import edit_tensors
from tests.checkpoint.test_quantized_damaged import FILE_DAMAGES
from tests.checkpoint.tiny_families import FAMILIES, tiny_gemma, tiny_neox

TABLES = {"quantize_embedding": True, "quantize_lm_head": True}
OPTIONS = [(family, {}) for family in FAMILIES] + [(family, TABLES) for family in FAMILIES if family != "gemma"]
LOADS = pytest.mark.parametrize(
    "load", [quamba.load, AutoModelForCausalLM.from_pretrained], ids=["quamba", "transformers"]
)


def quantized(model, scheme="w4a16", **options):
    return quamba.quantize(model, None, scheme, weights=WeightMethod(), progress=False, **options)


@torch.inference_mode()
def logits(model, tokens):
    return model(tokens).logits


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    """A saved GPT-NeoX that a test may damage."""
    return quamba.save(quantized(tiny_neox()), tiny_tokenizer, tmp_path / "model")


@pytest.mark.parametrize(("family", "name"), [("neox", "embed_out.weight"), ("nemotron", "backbone.norm_f.weight")])
def test_transformers_renames_the_float_tensors(tmp_path, family, name):
    """Else the tests below show nothing."""
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path)
    assert name in load_file(tmp_path / "model.safetensors")
    assert name not in model.state_dict()


@pytest.mark.parametrize("origin", ["made here", "loaded"])
@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_a_saved_model_has_the_same_logits_bit_for_bit(tmp_path, tiny_tokenizer, tokens, family, options, origin):
    """Whoever saves and loads, in whichever order; the tensors have the names of the modules."""
    model = FAMILIES[family]()
    if origin == "loaded":  # transformers remembers what it renamed
        model.save_pretrained(tmp_path / "float")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    expected = logits(quantized(model, **options), tokens)
    folders = [quamba.save(model, tiny_tokenizer, tmp_path / "ours"), tmp_path / "theirs", tmp_path / "again"]
    model.save_pretrained(folders[1])
    AutoModelForCausalLM.from_pretrained(folders[0]).save_pretrained(folders[2])
    for saved in folders:
        tiny_tokenizer.save_pretrained(saved)
        assert torch.equal(logits(quamba.load(str(saved))[0], tokens), expected)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(saved), tokens), expected)
        names = model.state_dict().keys() - model.all_tied_weights_keys.keys()
        assert load_file(saved / "model.safetensors").keys() == names


@pytest.fixture
def transposed():
    """transformers transposes a square matrix of GPT-NeoX between files and model."""
    family, matrix = "GPTNeoXForCausalLM", "attention.dense.weight"
    before = get_checkpoint_conversion_mapping(family)
    converter = WeightConverter(matrix, matrix, operations=[Transpose(0, 1)])
    register_checkpoint_conversion_mapping(family, [converter], overwrite=True)
    yield f"gpt_neox.layers.0.{matrix}"
    register_checkpoint_conversion_mapping(family, before, overwrite=True)


def test_integers_are_not_converted_as_floats_are(tmp_path, tiny_tokenizer, tokens, transposed):
    """Their scales would not follow."""
    model = tiny_neox()
    model.save_pretrained(tmp_path / "float")
    assert torch.equal(load_file(tmp_path / "float/model.safetensors")[transposed], model.state_dict()[transposed].T)
    quantized(model, "w8a16")
    quamba.save(model, tiny_tokenizer, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded.state_dict()[transposed], model.state_dict()[transposed])
        assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_our_files_do_not_depend_on_what_transformers_remembers(tmp_path, tiny_tokenizer, tokens):
    model = quantized(tiny_neox())
    del model._weight_conversions
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


@LOADS
@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_is_named(folder, damage, load):
    file = folder / "model.safetensors"
    file.write_bytes(FILE_DAMAGES[damage](file.read_bytes()))
    with pytest.raises(QuambaError, match=r"model\.safetensors is truncated or damaged"):
        load(str(folder))


@LOADS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm_head.weight": None}, "missing: lm_head.weight (1 in all)"),
        (
            {"lm_head.weight": None, "embed_out.weight": torch.zeros(60, 32)},
            "missing: lm_head.weight (1 in all); unknown: embed_out.weight (1 in all)",
        ),
        ({"lm_head.weight": torch.zeros(60, 31)}, "of another shape or type: lm_head.weight (1 in all)"),
    ],
    ids=["missing", "renamed", "shape"],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, message, load):
    edit_tensors(folder, **changes)
    with pytest.raises(QuambaError) as error:
        load(str(folder))
    assert str(error.value).endswith(message)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_buffer_of_the_float_model_is_cast_as_its_parameters_are(tmp_path, tiny_tokenizer, saved, dtype):
    model = quantized(tiny_gemma().to(saved))
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")), dtype=dtype)
    scalars = [layer.layer_scalar for layer in model.model.layers]
    for layer, scalar in zip(loaded.model.layers, scalars, strict=True):
        assert torch.equal(layer.layer_scalar, scalar.to(dtype))


@pytest.mark.parametrize("stored", [torch.ones(1, dtype=torch.int64), torch.ones(2)], ids=["type", "shape"])
def test_a_buffer_of_the_float_model_that_does_not_fit_is_named(tmp_path, tiny_tokenizer, stored):
    folder = quamba.save(quantized(tiny_gemma()), tiny_tokenizer, tmp_path / "model")
    edit_tensors(folder, **{"model.layers.1.layer_scalar": stored})
    with pytest.raises(QuambaError, match=r"another shape or type: model\.layers\.1\.layer_scalar \(1 in all\)"):
        quamba.load(str(folder))


def test_a_buffer_of_integers_needs_integers(tmp_path):
    model = tiny_neox()
    model.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
    model.save_pretrained(tmp_path, save_original_format=False)
    verify_tensors(model, [tmp_path / "model.safetensors"])
    model.steps = model.steps.float()
    with pytest.raises(QuambaError, match=r"another shape or type: steps \(1 in all\)"):
        verify_tensors(model, [tmp_path / "model.safetensors"])
