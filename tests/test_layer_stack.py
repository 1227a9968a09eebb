"""Decoder layers run outside of their model, on what the model calls them with."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from quamba.errors import QuambaError
from quamba.layer_stack import LayerStack, decoder_layers, final_norm
from tests.tiny_llama import tiny_llama


@torch.inference_mode()
def by_layers(model, tokens):
    stack = LayerStack(model, tokens[0])
    hidden = stack.embed(tokens)
    for index in range(len(stack.layers)):
        hidden = stack.run(index, hidden)
    return final_norm(model)(hidden)


@torch.inference_mode()
def test_a_llama_layer_by_layer_is_the_whole_model(tokens):
    """With other tokens and another number of windows than the probe had."""
    model, others = tiny_llama(), torch.cat([tokens.flip(0), tokens])
    torch.testing.assert_close(by_layers(model, others), model.base_model(others).last_hidden_state)


@torch.inference_mode()
def test_a_mamba_layer_by_layer_is_the_whole_model(tiny_mamba, tokens):
    model = tiny_mamba()
    torch.testing.assert_close(by_layers(model, tokens), model.backbone(tokens).last_hidden_state)


@torch.inference_mode()
def test_the_first_layers_input_is_the_embedding(tokens):
    model = tiny_llama()
    assert torch.equal(LayerStack(model, tokens[0]).embed(tokens), model.get_input_embeddings()(tokens))


def test_no_hook_stays(tokens):
    model = tiny_llama()
    LayerStack(model, tokens[0]).embed(tokens)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_model_without_one_list_of_layers_is_refused():
    model = OPTForCausalLM(
        OPTConfig(
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=9,
            word_embed_proj_dim=16,
            max_position_embeddings=16,
        )
    )
    with pytest.raises(QuambaError, match="OPTForCausalLM cannot be quantized: its backbone has 0 lists of 2 layers"):
        decoder_layers(model)
