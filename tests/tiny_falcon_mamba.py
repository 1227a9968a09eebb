"""A tiny random Falcon-Mamba, every tensor random, so that no term can hide behind a 0 or a 1."""

import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM


def tiny_falcon_mamba(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> FalconMambaForCausalLM:
    """In eval mode; two layers of d_inner 64, which `expand` is wrong about, as in falcon-mamba-7b."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3}
    sizes |= {"expand": 16, "intermediate_size": 64, "mixer_rms_eps": 1e-3, "tie_word_embeddings": False}
    torch.manual_seed(seed)
    model = FalconMambaForCausalLM(FalconMambaConfig(**sizes | options)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith(".bias") and "dt_proj" not in name:
            parameter.normal_(std=0.2)
    return model.to(dtype)
