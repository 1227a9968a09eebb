"""The recurrent states of one layer, in transformers' cache and under padding. Dims: as in mamba1.py and mamba2.py."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..errors import QuambaError

PACKED = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")  # what separates several sequences of one row


def check_options(options: Mapping) -> None:
    """Raises QuambaError for what a model passes on to its mixers that would change what ours compute."""
    if packed := [name for name in PACKED if options.get(name) is not None]:
        raise QuambaError(
            f"{packed[0]} packs several sequences into one row, and quamba's Mamba blocks would carry the states of "
            "one into the next: give each sequence a row of its own, padded, with an attention_mask"
        )


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
    Raises QuambaError where the cache holds states of other shapes or dtypes: of another batch or another model.
    """
    if cache is None:
        return None, None
    if getattr(cache.layers[layer_idx] if layer_idx < len(cache.layers) else None, "record_past", False):
        raise QuambaError(
            "this cache records past states to be cropped later (activate_past_recording, assisted generation), and a "
            "recurrent state cannot be taken back: give a cache that does not"
        )
    conv_state = cache.get_conv_state(layer_idx, state_idx=0)
    if conv_state is None:
        cache.update_conv_state(torch.zeros(conv_shape, dtype=conv_dtype, device=device), layer_idx)
        cache.update_recurrent_state(torch.zeros(ssm_shape, dtype=ssm_dtype, device=device), layer_idx)
        conv_state = cache.get_conv_state(layer_idx, state_idx=0)
    ssm_state = cache.get_recurrent_state(layer_idx, state_idx=0)
    for state, shape, dtype in ((conv_state, conv_shape, conv_dtype), (ssm_state, ssm_shape, ssm_dtype)):
        if tuple(state.shape) != tuple(shape) or state.dtype != dtype:
            raise QuambaError(
                f"the cache holds a state {list(state.shape)} of {state.dtype} for layer {layer_idx}, where this model "
                f"and batch have {list(shape)} of {dtype}: give a new cache (past_key_values, cache_params)"
            )
    return conv_state, ssm_state


def each_row(
    recurrence: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    states: Sequence[Tensor | None],
    attention_mask: Tensor | None,
    width: int,
) -> Tensor:
    """Return what `recurrence(*tensors, *states)` makes of [B, L, ...] tensors, float32 [B, L, width], padding left
    out.

    Without padding it is called once. With some it is called for every row, on the row's real tokens and states
    [1, ...] alone: wherever the padding is, outputs and states are those of the row without it. At a padded position
    the output is 0.
    Raises QuambaError for a mask that `real_tokens` does not take.
    """
    batch, length = tensors[0].shape[:2]
    rows = real_tokens(attention_mask, batch, length)
    if rows is None:
        return recurrence(*tensors, *states)
    out = torch.zeros(batch, length, width, dtype=torch.float32, device=tensors[0].device)
    for row, tokens in enumerate(rows):
        if isinstance(tokens, slice) and tokens.start == tokens.stop:
            continue  # the row's states stay as they are
        alone = [None if state is None else state[row : row + 1] for state in states]
        out[row, tokens] = recurrence(*(tensor[row : row + 1, tokens] for tensor in tensors), *alone)[0]
    return out


def real_tokens(attention_mask: Tensor | None, batch: int, length: int) -> list[slice | Tensor] | None:
    """Return where the real ones among the `length` tokens of every row are, as an index each; None: all of them are
    real.

    attention_mask: 1 or True for what is real, [B, L], or more columns where it covers earlier tokens too: then the
    last L count. Raises QuambaError for a mask of another shape, and for other values, as additive masks have.
    """
    if attention_mask is None:
        return None
    takes = f"a Mamba block takes an attention mask [{batch}, {length} or more] of ones and zeros"
    if attention_mask.dim() != 2 or len(attention_mask) != batch or attention_mask.shape[1] < length:
        raise QuambaError(f"{takes}, not {list(attention_mask.shape)}")
    mask = attention_mask[:, attention_mask.shape[1] - length :]  # [B, L]
    real = mask == 1
    if bool(real.all()):
        return None
    if not bool((real | (mask == 0)).all()):
        raise QuambaError(f"{takes}, not one of other values: 1 is a token, 0 is padding")
    return [_places(row).to(mask.device) if _has_gaps(row) else _run(row) for row in real.cpu()]


def _places(row: Tensor) -> Tensor:
    """Return where a row bool [L] is true, int64 [n]."""
    return row.nonzero().flatten()


def _has_gaps(row: Tensor) -> bool:
    places = _places(row)
    return len(places) > 0 and int(places[-1] - places[0]) >= len(places)


def _run(row: Tensor) -> slice:
    """The places of a row without gaps."""
    places = _places(row)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
