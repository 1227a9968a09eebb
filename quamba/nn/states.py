"""The recurrent states of one layer, in transformers' cache and under padding. Dims: as in mamba1.py and mamba2.py."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache


def layer_states(
    cache: Cache | None,
    layer_idx: int,
    conv_shape: tuple,
    conv_dtype: torch.dtype,
    ssm_shape: tuple,
    device,
    ssm_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor | None, Tensor | None]:
    """The states of a layer, updated in place by the ops, zeros at first; None both without a cache.

    Of the convolution [B, D, K] ([B, X, K] in Mamba2), and of the recurrence [B, D, N] ([B, S, P, N] in Mamba2).
    """
    if cache is None:
        return None, None
    conv_state = cache.get_conv_state(layer_idx, state_idx=0)
    if conv_state is None:
        cache.update_conv_state(torch.zeros(conv_shape, dtype=conv_dtype, device=device), layer_idx)
        cache.update_recurrent_state(torch.zeros(ssm_shape, dtype=ssm_dtype, device=device), layer_idx)
        conv_state = cache.get_conv_state(layer_idx, state_idx=0)
    return conv_state, cache.get_recurrent_state(layer_idx, state_idx=0)


def zero_padding(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """x [B, L, ...] with padded positions zero; the mask may cover earlier tokens too: its last L columns count."""
    if attention_mask is None:
        return x
    keep = attention_mask[:, -x.shape[1] :, None].to(torch.bool)  # [B, L, 1]
    return x.masked_fill(~keep, 0)
