"""A tiny random Mamba2, every tensor random, so that no term can hide behind a 0 or a 1."""

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM


def tiny_mamba2(
    seed: int = 0, heads: int = 8, head_dim: int = 8, dtype: torch.dtype = torch.float32, **options
) -> Mamba2ForCausalLM:
    """In eval mode; two layers of `heads` heads, one SSD group unless n_groups says otherwise, chunks of 4 tokens."""
    sizes = {"vocab_size": 96, "hidden_size": heads * head_dim // 2, "num_hidden_layers": 2, "state_size": 4}
    sizes |= {"num_heads": heads, "head_dim": head_dim, "n_groups": 1, "chunk_size": 4}
    torch.manual_seed(seed)
    model = Mamba2ForCausalLM(Mamba2Config(**sizes | options)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("A_log"):
            parameter.uniform_(-1, 1)
        elif name.endswith("dt_bias"):
            parameter.uniform_(-3, 0)
        elif name.endswith("bias"):
            parameter.normal_(std=0.2)
        elif parameter.dim() > 1:
            parameter.normal_(std=0.3)
    return model.to(dtype)
