"""Llama and the classes with its layers: norms that nothing but linear layers reads take AWQ's input scales in."""

# class of the model -> norm of a layer -> all linear layers that read it
_LAYER = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
NORM_READERS = dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), _LAYER)
