"""Embedding and head are one table or two as the tensors are, whatever the config says; the config is corrected."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

import quamba
from quamba.checkpoint import recipe_of
from quamba.models.tying import is_one_table, state_tying, untie_embedding
from quamba.weights.method import WeightMethod
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2


def tiny_neox(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, num_attention_heads=4, **options)).eval().requires_grad_(False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.normal_(std=0.3)
    return model


MODELS = {"mamba2": tiny_mamba2, "bamba": tiny_bamba, "llama": tiny_llama, "neox": tiny_neox}
TABLES = {
    "none": {},
    "embedding": {"quantize_embedding": True},
    "head": {"quantize_lm_head": True},
    "both": {"quantize_embedding": True, "quantize_lm_head": True},
    "untied": {"quantize_embedding": True, "quantize_lm_head": True, "untie": True},
}


def made(name: str, called_tied: bool, one: bool):
    """A model of that kind whose config says `called_tied` and whose tables are one, or two of different values."""
    model = MODELS[name](tie_word_embeddings=True)
    if not one:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.flip(0).clone(), requires_grad=False)
    model.config.tie_word_embeddings = called_tied
    return model


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(torch.arange(40).view(2, 20)).logits.float()


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("one", [True, False], ids=["one", "two"])
@pytest.mark.parametrize("called_tied", [True, False], ids=["called-tied", "called-untied"])
@pytest.mark.parametrize("name", MODELS)
def test_tables_are_what_the_tensors_are(name, called_tied, one, tables, tmp_path):
    model = made(name, called_tied, one)
    expected = logits(model)
    quamba.quantize(model, None, "w8a16", weights=WeightMethod("rtn"), progress=False, **TABLES[tables])
    quantized = logits(model)
    assert (quantized - expected).norm() < 0.05 * expected.norm()
    assert recipe_of(model).tied_head == (one and tables == "both")
    assert model.config.tie_word_embeddings == (one and tables == "none")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), quantized)


def test_one_table_is_the_same_memory_or_a_copy_that_is_called_tied():
    model = made("llama", called_tied=True, one=True)
    head = model.lm_head
    assert is_one_table(model)
    head.weight = torch.nn.Parameter(head.weight.data, requires_grad=False)  # another object of the same memory
    assert is_one_table(model)
    model.config.tie_word_embeddings = False
    assert is_one_table(model)
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    assert not is_one_table(model)  # a copy that the config calls a table of its own
    model.config.tie_word_embeddings = True
    assert is_one_table(model)
    head.weight[0, 0] += 1
    assert not is_one_table(model)


def test_untying_parts_memory_that_is_shared_by_two_objects():
    model = made("llama", called_tied=True, one=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data, requires_grad=False)
    untie_embedding(model)
    model.lm_head.weight.zero_()
    assert model.model.embed_tokens.weight.any()
    assert not model.config.tie_word_embeddings and not model.all_tied_weights_keys


@pytest.mark.parametrize("one", [True, False])
def test_the_config_is_corrected_both_ways(one):
    model = made("llama", called_tied=not one, one=one)
    state_tying(model)
    assert model.config.tie_word_embeddings == one
    assert bool(model.all_tied_weights_keys) == one
    model.tie_weights()  # as lm-eval's wrapper calls it
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == one
