"""How a Mamba is laid out in a GGUF file: keys, tensor names, and what is done to each tensor. No imports but numpy.

Dims: H hidden, D d_inner, N d_state, R dt_rank, K conv width, V vocabulary; Mamba2: S heads, G n_groups, X = D + 2GN.
Source of the facts: the GGUF specification and llama.cpp's loader of the architectures "mamba" and "mamba2".
"""

import re

import numpy as np

CONTEXT_LENGTH = 1 << 20  # a state-space model has no limit of its own

# name in transformers' checkpoint, below the layer -> name in the GGUF file, below `blk.N`
BLOCK_TENSORS = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",  # [2D, H]; Mamba2 [D + X + S, H]
    "mixer.conv1d.weight": "ssm_conv1d.weight",  # [D, 1, K] -> [D, K]; Mamba2 [X, 1, K]
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.A_log": "ssm_a",  # [D, N], as A = -exp(A_log); Mamba2 [S] -> [S, 1]
    "mixer.D": "ssm_d",  # [D]; Mamba2 [S] -> [S, 1]
    "mixer.out_proj.weight": "ssm_out.weight",  # [H, D]
    "mixer.x_proj.weight": "ssm_x.weight",  # Mamba: [R + 2N, D]
    "mixer.dt_proj.weight": "ssm_dt.weight",  # Mamba: [D, R]
    "mixer.dt_proj.bias": "ssm_dt.bias",  # Mamba
    "mixer.dt_bias": "ssm_dt.bias",  # Mamba2: [S]
    "mixer.norm.weight": "ssm_norm.weight",  # Mamba2: [D] -> [1, D], n_groups 1
}
MODEL_TENSORS = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight"}
TIED = {"lm_head.weight"}  # absent from the file, the loader takes token_embd for it

_LAYER = re.compile(r"backbone\.layers\.(\d+)\.(.+)")


def metadata(config: dict) -> dict[str, int | float | str]:
    """The keys of the file for a transformers MambaConfig or Mamba2Config, given as the dict of its config.json.

    Raises ValueError for a Mamba2 of several groups, whose gated norm is laid out otherwise.
    """
    keys = {
        "context_length": CONTEXT_LENGTH,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "block_count": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.state_size": config["state_size"],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
    }
    if config["model_type"] == "mamba2":
        if config["n_groups"] != 1:
            raise ValueError(f"n_groups {config['n_groups']}: only a Mamba2 of one group is written here")
        heads = config["num_heads"]
        keys |= {"ssm.inner_size": heads * config["head_dim"], "ssm.time_step_rank": heads, "ssm.group_count": 1}
    else:
        keys |= {"ssm.inner_size": config["intermediate_size"], "ssm.time_step_rank": config["time_step_rank"]}
    named = {f"{config['model_type']}.{key}": value for key, value in keys.items()}
    return named | {"tokenizer.ggml.model": "no_vocab"}  # tokens come and go as numbers


def tensor_name(name: str) -> str | None:
    """The GGUF name of a tensor of transformers' checkpoint, None for a tied head. Raises KeyError on others."""
    if name in TIED:
        return None
    layer = _LAYER.fullmatch(name)
    return f"blk.{layer[1]}.{BLOCK_TENSORS[layer[2]]}" if layer else MODEL_TENSORS[name]


def convert_tensor(name: str, tensor: np.ndarray, model_type: str) -> np.ndarray:
    """The float32 values that the GGUF file holds for a tensor of transformers' checkpoint.

    `model_type`: mamba or mamba2, as config.json names it. D has one axis in both, and llama.cpp wants two of Mamba2's.
    """
    tensor = np.asarray(tensor, np.float32)
    if name.endswith(".A_log"):
        tensor = -np.exp(tensor)
    if name.endswith((".A_log", ".D")) and model_type == "mamba2":
        return tensor[:, None]  # [S] -> [S, 1]
    if name.endswith("mixer.norm.weight"):
        return tensor[None]  # [D] -> [1, D]
    if name.endswith("conv1d.weight"):
        return tensor.squeeze(1)  # [D, 1, K] -> [D, K]
    return tensor
