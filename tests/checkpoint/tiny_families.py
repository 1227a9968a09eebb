"""Tiny random models whose tensors transformers names in files otherwise than in the model, or keeps in buffers."""

import torch
from transformers import (
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedTextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedModel,
)

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4}
SIZES |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
GEMMA = {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 4}
GEMMA |= {"vocab_size_per_layer_input": 60}


def _randomized(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False).normal_(mean=1.0 if "norm" in name else 0.0, std=0.15)
    for name, buffer in model.named_buffers():
        if name in model.state_dict():
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def tiny_neox(tied: bool = False) -> GPTNeoXForCausalLM:
    """Its lm_head is `embed_out` in files."""
    torch.manual_seed(0)
    return _randomized(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, num_hidden_layers=2, tie_word_embeddings=tied)))


def tiny_nemotron() -> NemotronHForCausalLM:
    """Its backbone, `model`, is `backbone` in files; a layer of attention and an MLP."""
    torch.manual_seed(0)
    config = NemotronHConfig(**SIZES, layers_block_type=["attention", "mlp"], num_key_value_heads=2, head_dim=8)
    return _randomized(NemotronHForCausalLM(config))


def tiny_gemma() -> Gemma4UnifiedForCausalLM:
    """Every layer has a float buffer `layer_scalar` that is in the files."""
    torch.manual_seed(0)
    return _randomized(Gemma4UnifiedForCausalLM(Gemma4UnifiedTextConfig(**SIZES, **GEMMA, num_hidden_layers=2)))


FAMILIES = {
    "neox": tiny_neox,
    "tied neox": lambda: tiny_neox(tied=True),
    "nemotron": tiny_nemotron,
    "gemma": tiny_gemma,
}
