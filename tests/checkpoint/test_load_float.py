"""Loading a float checkpoint in the transformers format, and what is said about a broken one."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from quamba.checkpoint import load_float, resolve_checkpoint
from quamba.errors import QuambaError
from tests.checkpoint.same_model import assert_same_model


@pytest.fixture
def save(tmp_path, tiny_tokenizer):
    """A function that saves a model and the tokenizer as a transformers checkpoint and returns its folder."""

    def save_pretrained(model, **options):
        model.save_pretrained(tmp_path / "model", **options)
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save_pretrained


def load(folder, **options):
    return load_float(resolve_checkpoint(str(folder)), **options)


def edit_tensors(folder, **changes):
    """Replace tensors of model.safetensors, or drop them where the new value is None."""
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file(tensors, file, metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_bit_for_bit(save, tiny_mamba, tokens, tied):
    model = tiny_mamba(tie_word_embeddings=tied)
    loaded, tokenizer = load(save(model))
    assert type(loaded) is type(model)
    assert_same_model(loaded, model, tokens)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert tokenizer("w1 w2").input_ids == [1, 2]


def test_shards_load(save, tiny_mamba, tokens):
    model = tiny_mamba()
    folder = save(model, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_same_model(load(folder)[0], model, tokens)


def test_bin_weights_load(save, tiny_mamba, tokens):
    model = tiny_mamba()
    folder = save(model)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same_model(load(folder)[0], model, tokens)


def test_the_dtype_is_the_one_asked_for(save, tiny_mamba):
    folder = save(tiny_mamba().to(torch.bfloat16))
    assert {parameter.dtype for parameter in load(folder)[0].parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load(folder, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}


def test_other_causal_models_load(save, tokens):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    assert_same_model(load(save(model))[0], model, tokens)


def test_loading_is_silent_and_leaves_transformers_as_it_was(save, tiny_mamba, capfd):
    from transformers.utils import logging as transformers_logging

    folder = save(tiny_mamba())
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_a_head_that_differs_is_kept_and_the_config_corrected(save, tiny_mamba, tokens):
    model = tiny_mamba(tie_word_embeddings=False)
    folder = save(model)
    edit_config(folder, tie_word_embeddings=True)
    loaded, _ = load(folder)
    assert loaded.config.tie_word_embeddings is False
    assert_same_model(loaded, model, tokens)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_weights_are_named(save, tiny_mamba, name, share):
    model = tiny_mamba()
    folder = save(model)
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(QuambaError, match=f"{name} is truncated or damaged: copy or download it again"):
        load(folder)


def test_missing_weights_and_shards_are_named(save, tiny_mamba):
    folder = save(tiny_mamba(), max_shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(QuambaError, match=f"lacks the shards {shard.name}"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(QuambaError, match=r"index\.json cannot be read as an index of shards"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(QuambaError, match=r"holds no weights: expected model\.safetensors or pytorch_model\.bin"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.layers.1.mixer.D": None}, "missing: backbone.layers.1.mixer.D"),
        ({"backbone.layers.1.mixer.E": torch.ones(2)}, "not part of the model: backbone.layers.1.mixer.E"),
        (
            {"backbone.layers.1.mixer.D": torch.ones(2)},
            r"wrong shape: backbone.layers.1.mixer.D \[2\] instead of \[64\]",
        ),
        ({"backbone.embeddings.weight": None}, "missing: backbone.embeddings.weight, lm_head.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(save, tiny_mamba, changes, message):
    folder = save(tiny_mamba())
    edit_tensors(folder, **changes)
    with pytest.raises(QuambaError, match=message):
        load(folder)


def test_many_missing_tensors_stay_one_short_message(save, tiny_mamba):
    folder = save(tiny_mamba())
    edit_config(folder, num_hidden_layers=3)
    with pytest.raises(QuambaError, match=r"missing: .* and \d+ more") as caught:
        load(folder)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nosuch"}, "'nosuch' is not a causal language model"),
        ({"model_type": "t5"}, "'t5' is not a causal language model"),
        ({"hidden_size": "wide"}, r"config\.json describes no valid model: .*hidden_size"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantized already .*'gptq'"),
    ],
)
def test_configs_that_cannot_be_used_are_refused(save, tiny_mamba, changes, message):
    folder = save(tiny_mamba())
    edit_config(folder, **changes)
    with pytest.raises(QuambaError, match=message):
        load(folder)


def test_a_folder_without_a_tokenizer_is_refused(tiny_mamba, tmp_path):
    tiny_mamba().save_pretrained(tmp_path)
    with pytest.raises(QuambaError, match=r"has no tokenizer: copy its tokenizer\.json"):
        load(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_warned_about(save, tiny_mamba, caplog):
    with caplog.at_level(logging.WARNING):
        load(save(tiny_mamba(vocab_size=40)))
    assert "the tokenizer has 50 tokens, the embedding 40 rows" in caplog.text
