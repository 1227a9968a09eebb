"""Tiny random models of the causal LM classes of transformers, built from their configs' own names of sizes."""

from itertools import chain

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, POSITIONS = 64, 64
MOST_PARAMETERS = 20_000_000  # a class whose sizes have other names is not built
_NAMES = {
    VOCAB: "vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd dim hidden_dim embed_dim emb_dim dim_model word_embed_proj_dim embedding_size",
    3: "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers num_decoder_layers",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads num_decoder_attention_heads",
    2: "num_key_value_heads n_kv_heads num_kv_heads num_experts_per_tok moe_topk mamba_expand eos_token_id",
    8: "head_dim dim_head global_head_dim attention_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim state_size "
    "hidden_size_per_layer_input mamba_d_state ssm_state_size mamba_n_heads mamba_num_heads mamba_d_head "
    "mamba_head_dim",
    48: "intermediate_size ffn_dim d_inner n_inner dim_ff decoder_ffn_dim d_ff dff ffn_hidden_size "
    "shared_expert_intermediate_size",
    24: "moe_intermediate_size",
    16: "q_lora_rank kv_lora_rank qk_head_dim",
    1: "mamba_n_groups n_groups bos_token_id",
    0: "pad_token_id",
}
SIZES = {name: value for value, names in _NAMES.items() for name in names.split()}
SIZES |= dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "encoder_attention_heads"), 4)
SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions"), POSITIONS)
SIZES |= {"seq_length": POSITIONS, "max_seq_len": POSITIONS, "lru_width": 32, "encoder_ffn_dim": 48, "is_decoder": True}
# keys and values of two layers serve two more; windows are longer than the sliding ones
_SHARING = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "sliding_window": 6}
_SHARING |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
_ALL_HEADS = {"num_key_value_heads": 4}
_SLIDING, _ROTARY = {"sliding_window": 6}, {"rotary_dim": 4}
_ALIKE = {
    "axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa minicpm3 youtu": _ALL_HEADS,
    "gemma3n_text gemma4_text gemma4_unified_text": _SHARING,
    "gemma2 gemma3_text cohere2": _SLIDING,
    "codegen gptj": _ROTARY,
}
# what a class needs beside, where its defaults do not fit the sizes, or do not show what is its own
MORE = {name: options for names, options in _ALIKE.items() for name in names.split()}
MORE |= {
    "axk1": {"n_group": 1, "topk_group": 1, **_ALL_HEADS},
    "bamba": {"attn_layer_indices": [1]},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {"expert_ffn_hidden_size": 24, "zero_expert_num": 2, **_ALL_HEADS},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "layer_types": ["mamba", "hybrid", "mamba"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def model_types() -> list[str]:
    """Every `model_type` that has a causal LM."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **options) -> PreTrainedConfig:
    """The config that the causal LM class of that type takes; `options` go before all."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    reads_images = name.endswith("ForConditionalGeneration")
    config_class = None if reads_images else getattr(transformers, name).config_class
    return _shrunk(config_class or CONFIG_MAPPING[model_type], MORE.get(model_type, {}) | options)


def _shrunk(config_class: type[PreTrainedConfig], options: dict) -> PreTrainedConfig:
    usual = config_class()
    sizes = {name: value for name, value in SIZES.items() if name in usual.to_dict()}
    parts = {name: getattr(usual, name, None) for name in usual.sub_configs}
    parts = {name: _shrunk(type(part), {}) for name, part in parts.items() if isinstance(part, PreTrainedConfig)}
    return config_class(**sizes | parts | options)


def tiny_causal_lm(model_type: str, **options) -> PreTrainedModel:
    """In eval mode, every matrix random. Raises what the class does where the sizes are not for it, and MemoryError for
    one that stays large."""
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    with torch.device("meta"):
        skeleton = model_class(tiny_config(model_type, **options))
    size = sum(tensor.numel() for tensor in chain(skeleton.parameters(), skeleton.buffers()))
    if size > MOST_PARAMETERS:
        raise MemoryError(f"{size} parameters")
    torch.manual_seed(0)
    model = model_class(tiny_config(model_type, **options)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0  # some classes make it so when they load a model
    return model
