"""How a Mamba is laid out in a GGUF file: keys, tensor names, and what is done to each tensor. No imports but numpy.

Dims: H hidden, D d_inner, N d_state, R dt_rank, K conv width, V vocabulary.
Source of the facts: the GGUF specification and llama.cpp's loader of the architecture "mamba".
"""

import re

import numpy as np

ARCHITECTURE = "mamba"
CONTEXT_LENGTH = 1 << 20  # a state-space model has no limit of its own

# name in transformers' checkpoint, below the layer -> name in the GGUF file, below `blk.N`
BLOCK_TENSORS = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",  # [2D, H]
    "mixer.conv1d.weight": "ssm_conv1d.weight",  # [D, 1, K] -> [D, K]
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",  # [R + 2N, D]
    "mixer.dt_proj.weight": "ssm_dt.weight",  # [D, R]
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",  # [D, N], as A = -exp(A_log)
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",  # [H, D]
}
MODEL_TENSORS = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight"}
TIED = {"lm_head.weight"}  # absent from the file, the loader takes token_embd for it

_LAYER = re.compile(r"backbone\.layers\.(\d+)\.(.+)")


def metadata(config: dict) -> dict[str, int | float | str]:
    """The keys of the file for a transformers MambaConfig, given as the dict of its config.json."""
    return {
        "mamba.context_length": CONTEXT_LENGTH,
        "mamba.embedding_length": config["hidden_size"],
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.block_count": config["num_hidden_layers"],
        "mamba.vocab_size": config["vocab_size"],
        "mamba.ssm.conv_kernel": config["conv_kernel"],
        "mamba.ssm.inner_size": config["intermediate_size"],
        "mamba.ssm.state_size": config["state_size"],
        "mamba.ssm.time_step_rank": config["time_step_rank"],
        "mamba.attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "tokenizer.ggml.model": "no_vocab",  # tokens come and go as numbers
    }


def tensor_name(name: str) -> str | None:
    """The GGUF name of a tensor of transformers' checkpoint, None for a tied head. Raises KeyError on others."""
    if name in TIED:
        return None
    layer = _LAYER.fullmatch(name)
    return f"blk.{layer[1]}.{BLOCK_TENSORS[layer[2]]}" if layer else MODEL_TENSORS[name]


def convert_tensor(name: str, tensor: np.ndarray) -> np.ndarray:
    """The float32 values that the GGUF file holds for a tensor of transformers' checkpoint."""
    tensor = np.asarray(tensor, np.float32)
    if name.endswith("A_log"):
        return -np.exp(tensor)
    if name.endswith("conv1d.weight"):
        return tensor.squeeze(1)  # [D, 1, K] -> [D, K]
    return tensor
