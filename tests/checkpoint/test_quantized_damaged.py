"""Quantized checkpoints that are damaged, or do not fit: each is told in one error."""

import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

import quamba
from quamba.checkpoint import recipe_of
from quamba.errors import QuambaError
from tests.checkpoint.test_quantized import (
    IN_PROJ,
    IN_SCALE,
    WEIGHT,
    build_quantized,
    edit_config,
    edit_tensors,
    flatten_weights,
    logits,
    write_config,
)


@pytest.fixture
def build(tiny_mamba):
    """`build_quantized` of that model."""
    return partial(build_quantized, tiny_mamba)


@pytest.fixture
def folder(build, tiny_tokenizer, tmp_path):
    """A saved checkpoint that a test may damage."""
    return quamba.save(build(), tiny_tokenizer, tmp_path / "model")


FILE_DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a byte of a tensor": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "a byte of the header": lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
    "a byte of the header's length": lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
}


@pytest.mark.parametrize("load", [quamba.load, AutoModelForCausalLM.from_pretrained], ids=["quamba", "transformers"])
@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_is_named(folder, damage, load):
    file = folder / "model.safetensors"
    file.write_bytes(FILE_DAMAGES[damage](file.read_bytes()))
    with pytest.raises(QuambaError, match=r"model\.safetensors is truncated or damaged"):
        load(str(folder))


def test_a_truncated_file_without_a_hash_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    edit_config(folder, sha256=None)
    with pytest.raises(QuambaError, match=r"model\.safetensors is truncated or damaged"):
        quamba.load(str(folder))


@pytest.mark.parametrize("load", [quamba.load, AutoModelForCausalLM.from_pretrained], ids=["quamba", "transformers"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({IN_PROJ: None}, f"missing: {IN_PROJ} (1 in all)"),
        ({"backbone.norm_f.weight": None}, "missing: backbone.norm_f.weight (1 in all)"),
        ({"best": torch.zeros(3)}, "unknown: best (1 in all)"),
        ({IN_PROJ: torch.zeros(127, 32, dtype=torch.int8)}, f"of another shape or type: {IN_PROJ} (1 in all)"),
        ({IN_PROJ: torch.zeros(128, 32)}, f"of another shape or type: {IN_PROJ} (1 in all)"),
        ({IN_PROJ: torch.zeros(128, 32, dtype=torch.uint8)}, f"of another shape or type: {IN_PROJ} (1 in all)"),
        ({IN_SCALE: torch.ones(128).half()}, f"of another shape or type: {IN_SCALE} (1 in all)"),
        ({IN_PROJ: None, "best": torch.zeros(3)}, f"missing: {IN_PROJ} (1 in all); unknown: best (1 in all)"),
    ],
    ids=["missing", "missing float", "extra", "shape", "type", "integers", "scale", "renamed"],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, message, load):
    edit_tensors(folder, **changes)
    with pytest.raises(QuambaError) as error:
        load(str(folder))
    assert str(error.value).endswith(message)


ACT = {"bits": 8, "symmetric": True, "granularity": "per_tensor", "group_size": None}
GROUPS = {"bits": 4, "symmetric": False, "granularity": "per_group", "group_size": 64}
RECIPE = {
    "scheme": {"name": "w8a8", "weight": WEIGHT, "act": ACT},
    "embedding_bits": None,
    "lm_head_bits": None,
    "tied_head": False,
    "rotate_residual": False,
    "multipliers": [],
    "lm_head_chunks": 0,
    "layers": [],
    "state_bits": 32,
    "reordered": False,
}
LATER = {2: ("multipliers", "lm_head_chunks", "layers", "state_bits", "reordered")}  # fields that formats had not yet
LATER |= {3: LATER[2][2:], 4: ()}
OTHER_SCHEME = RECIPE["scheme"] | {"name": "w4a8", "weight": WEIGHT | {"bits": 4}}
OTHER_WEIGHTS = RECIPE["scheme"] | {"name": "w4a8", "weight": GROUPS}


@pytest.mark.parametrize("load", [quamba.load, AutoModelForCausalLM.from_pretrained], ids=["quamba", "transformers"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format_version 1, this version of quamba reads 5"),
        ({"format_version": None}, "format_version None"),
        ({"best": 1}, "fields that this version does not know: ['best']"),
        ({"recipe": None}, "must have a `recipe`"),
        ({"recipe": "w8a8"}, "must have a `recipe`"),
        (
            {"recipe": RECIPE | {"scheme": OTHER_SCHEME}},
            "is not one this version runs (w8a8, w4a8, w3a8, w8a16, w4a16, w3a16)",
        ),
        ({"recipe": RECIPE | {"scheme": OTHER_WEIGHTS}}, "missing: backbone.layers.0.mixer.dt_proj.weight_zero, "),
        ({"recipe": RECIPE | {"best": 1}}, "has 'best', which this version does not know: install"),
        ({"recipe": {"embedding_bits": 8}}, "quantization_config has no 'scheme'"),
        ({"recipe": RECIPE | {"lm_head_chunks": "2"}}, "quantization_config has '2' for lm_head_chunks"),
        ({"recipe": RECIPE | {"tied_head": 1}}, "quantization_config has '1' for tied_head"),
        ({"recipe": RECIPE | {"multipliers": [1]}}, "for multipliers, which is no list of names"),
        ({"recipe": RECIPE | {"embedding_bits": 5}}, "embedding_bits are 3, 4 or 8, not 5"),
        ({"recipe": RECIPE | {"embedding_bits": 8}}, "backbone.embeddings.weight"),
        ({"recipe": RECIPE | {"lm_head_bits": 8}}, "missing: lm_head.head_in_scale, lm_head.linear.weight"),
        ({"recipe": RECIPE | {"layers": [RECIPE["scheme"]]}}, "schemes of 1 layers, but the model has 2"),
        ({"recipe": RECIPE | {"layers": [RECIPE["scheme"], OTHER_SCHEME]}}, "is not one this version runs"),
        ({"recipe": RECIPE | {"layers": None}}, "None for the schemes of layers, which is no list"),
        ({"recipe": RECIPE | {"layers": [RECIPE["scheme"], OTHER_WEIGHTS]}}, "missing: backbone.layers.1.mixer.dt_pr"),
        ({"recipe": RECIPE | {"state_bits": 8}}, "models of type 'mamba' keep float32 states: leave state_bits at 32"),
        ({"recipe": RECIPE | {"state_bits": 16}}, "SSM states have 8 or 32 bits, not 16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_does_not_fit_is_told(folder, changes, message, load):
    edit_config(folder, **changes)
    with pytest.raises(QuambaError) as error:
        load(str(folder))
    assert message in str(error.value)


@pytest.mark.parametrize("version", LATER)
@pytest.mark.parametrize("load", [quamba.load, AutoModelForCausalLM.from_pretrained], ids=["quamba", "transformers"])
def test_earlier_formats_are_read(folder, tokens, version, load):
    model, tokenizer = quamba.load(str(folder))
    expected = logits(model, tokens)
    flatten_weights(folder)
    edit_config(folder, format_version=version, recipe={k: v for k, v in RECIPE.items() if k not in LATER[version]})
    loaded = load(str(folder))
    loaded = loaded[0] if isinstance(loaded, tuple) else loaded
    assert torch.equal(logits(loaded, tokens), expected)
    assert recipe_of(loaded).to_dict() == recipe_of(model).to_dict()
    again, _ = quamba.load(str(quamba.save(loaded, tokenizer, folder)))  # in the format of today
    assert torch.equal(logits(again, tokens), expected)


def test_weights_of_an_earlier_shape_under_this_format_are_told(folder):
    flatten_weights(folder)
    with pytest.raises(QuambaError, match=r"of another shape or type: .*in_proj\.weight"):
        quamba.load(str(folder))


def test_the_same_recipe_written_by_hand_fits(folder):
    edit_config(folder, recipe=RECIPE)
    quamba.load(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"missing: backbone\.layers\.2\.mixer\.A, "),
        ({"num_hidden_layers": 1}, r"unknown: backbone\.layers\.1\.mixer\.A, "),
        ({"vocab_size": 97}, r"of another shape or type: backbone\.embeddings\.weight \(1 in all\)"),
        ({"hidden_size": "wide"}, r"config\.json describes no valid model"),
        ({"model_type": "best"}, "'best' is not a causal language model that transformers knows"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "models of type .llama. cannot be quantized"),
        ({"quantization_config": {"quant_method": "gptq"}}, "was quantized with 'gptq', which quamba does not run"),
    ],
    ids=str,
)
def test_another_models_config_is_told(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    changed = config | changes
    if changed["quantization_config"]["quant_method"] == "quamba":
        write_config(folder, changed)
    else:
        (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(QuambaError, match=message):
        quamba.load(str(folder))


def test_missing_weights_are_told(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(QuambaError, match="holds no weights"):
        quamba.load(str(folder))


def test_a_missing_tokenizer_is_told(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(QuambaError, match=r"has no tokenizer|the tokenizer in .* cannot be read"):
        quamba.load(str(folder))


@pytest.fixture
def shards(build, tiny_tokenizer, tmp_path):
    """A checkpoint of several files, as transformers writes a large one."""
    build().save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    tiny_tokenizer.save_pretrained(tmp_path / "shards")
    return tmp_path / "shards"


def test_a_missing_shard_is_named(shards):
    file = sorted(shards.glob("*.safetensors"))[1]
    file.unlink()
    with pytest.raises(QuambaError, match=f"lacks the shards {file.name}"):
        quamba.load(str(shards))


def test_a_shard_that_the_index_forgot_is_named(folder):
    edit_config(folder, sha256={"model.safetensors": "0" * 64, "more.safetensors": "0" * 64})
    with pytest.raises(QuambaError, match=r"lacks the weight files more\.safetensors that its config\.json records"):
        quamba.load(str(folder))


@pytest.mark.parametrize("content", ["{", None], ids=["damaged", "missing"])
def test_an_index_that_cannot_be_read_is_told(shards, content):
    index = shards / "model.safetensors.index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(QuambaError, match="index of"):
        quamba.load(str(shards))
