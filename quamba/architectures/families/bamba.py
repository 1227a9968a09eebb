"""Bamba: Mamba2 blocks in most layers, attention in the others, an MLP in each."""

from dataclasses import replace
from types import SimpleNamespace

from torch import nn
from transformers import PreTrainedConfig

from .mamba2 import ARCHITECTURE as MAMBA2

# what a Mamba2Config calls a size -> what a BambaConfig does
NAMES = {
    "hidden_size": "hidden_size",
    "hidden_act": "hidden_act",
    "num_heads": "mamba_n_heads",
    "head_dim": "mamba_d_head",
    "n_groups": "mamba_n_groups",
    "state_size": "mamba_d_state",
    "conv_kernel": "mamba_d_conv",
    "use_bias": "mamba_proj_bias",
    "use_conv_bias": "mamba_conv_bias",
    "layer_norm_epsilon": "rms_norm_eps",
}


def block_config(config: PreTrainedConfig, mixer: nn.Module) -> SimpleNamespace:
    """Return the sizes under Mamba2's names; the limits of dt are the mixer's own."""
    sizes = {ours: getattr(config, theirs) for ours, theirs in NAMES.items()}
    return SimpleNamespace(**sizes, time_step_limit=mixer.time_step_limit)


ARCHITECTURE = replace(
    MAMBA2, model_types=("bamba",), mixer="mamba", norm="input_layernorm", hybrid=True, block_config=block_config
)
