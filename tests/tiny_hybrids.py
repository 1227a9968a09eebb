"""Tiny random hybrids of Mamba2 blocks and attention, every tensor random: no term can hide behind a 0 or a 1."""

import torch
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    DynamicCache,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    PreTrainedModel,
)

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 4}
SIZES |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
ATTENTION, MAMBA_LAYERS = 1, [0, 2]
CUTS = [[13], [1] * 13, [6, 7], [3, 1, 1, 8]]  # pieces that 13 tokens come in
WINDOWS = torch.randint(0, 60, (8, 24), generator=torch.Generator().manual_seed(4))  # calibration text


def tiny_bamba(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> BambaForCausalLM:
    """Three layers, the one in the middle of attention; an MLP in each."""
    sizes = {"intermediate_size": 40, "attn_layer_indices": [ATTENTION]}
    torch.manual_seed(seed)
    return _randomized(BambaForCausalLM(BambaConfig(**SIZES | sizes | options)), dtype)


def tiny_granite(seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> GraniteMoeHybridForCausalLM:
    """The same of Granite-4-H: a dense MLP, multipliers that are not 1, a tied head."""
    sizes = {"shared_intermediate_size": 40, "num_local_experts": 0, "tie_word_embeddings": True}
    sizes |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    sizes |= {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
    torch.manual_seed(seed)
    return _randomized(GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig(**SIZES | sizes | options)), dtype)


HYBRIDS = {"bamba": tiny_bamba, "granite": tiny_granite}


def _randomized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        if name.endswith(("norm.weight", "mamba.D")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("A_log"):
            parameter.uniform_(-2, 1)
        elif name.endswith("dt_bias"):
            parameter.uniform_(-3, 1)
        elif name.endswith("bias"):
            parameter.normal_(std=0.2)
        elif "embed" in name or "lm_head" in name:
            parameter.normal_(std=0.3)
        else:
            parameter.normal_(std=0.15)
        parameter.data = parameter.data.to(dtype)  # not model.to: the frequencies of rotary positions stay float32
    return model


@torch.inference_mode()
def logits(model, tokens, **options) -> torch.Tensor:
    """[B, L, V]."""
    return model(tokens, **options).logits


def continued(model, tokens, cuts) -> torch.Tensor:
    """Logits [B, L, V] of tokens that come in pieces of these lengths, on the model's own kind of cache."""
    cache, start, pieces = DynamicCache(config=model.config), 0, []
    for piece in tokens.split(cuts, dim=1):
        positions = torch.arange(start, start + piece.shape[1])[None]
        start += piece.shape[1]
        output = model(piece, past_key_values=cache, use_cache=True, position_ids=positions)
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1)
