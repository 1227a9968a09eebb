"""A tiny random Llama, every tensor random, biases included where its family has them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> LlamaForCausalLM:
    """In eval mode; grouped queries, three layers; sizes that fill no group."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**sizes | options)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.2)
        else:
            parameter.normal_(std=0.15)
        parameter.data = parameter.data.to(dtype)  # not model.to: the frequencies of rotary positions stay float32
    return model
