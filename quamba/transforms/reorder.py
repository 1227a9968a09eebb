"""Puts the heads of a Mamba2 block, and the channels of each head, in another order: the block's output stays.

Dims: H hidden_size, S heads, P head_dim, D = S * P d_inner, G SSD groups (of S / G heads each, one behind the other),
N d_state, K conv width, X = D + 2 G N channels of the convolution: x | B | C.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import QuambaError
from ..models.mamba_slot import MambaSlot
from ..nn.mamba2 import Mamba2Mixer, Mamba2Sizes
from .clusters import ChannelOrder


def reorder(slots: Sequence[MambaSlot], orders: Mapping[int, ChannelOrder]) -> None:
    """Gives the layers of a float Mamba2 causal LM the orders of their channels, by layer index; logits unchanged.

    slots: of transformers' mixers or ours, changed in place; a layer without an order is left as it is. Raises
    QuambaError, before anything changed, for a layer that is not there or has no Mamba block, and as `reorder_layer`
    does.
    """
    mixers = {slot.index: slot.mixer for slot in slots}
    for index, order in orders.items():
        if index not in mixers:
            raise QuambaError(f"there is a channel order for layer {index}, but the model has {len(mixers)} layers")
        try:
            _check(mixers[index], order)
        except QuambaError as error:
            raise QuambaError(f"layer {index}: {error}") from error
    for index, order in orders.items():
        reorder_layer(mixers[index], order)


@torch.no_grad()
def reorder_layer(mixer: nn.Module, order: ChannelOrder) -> None:
    """Gives a float Mamba2 mixer the order: what it computes is unchanged up to the order of two sums.

    The sums are those of out_proj and, over each SSD group, of the gated norm. In place and in any dtype, no value is
    computed: in_proj's rows (z, x, dt), conv1d's x channels, dt_bias, A_log, D, norm.weight, out_proj's columns. B and
    C stay. States that were cached before do not fit any more.
    Raises QuambaError, before anything changed, for another kind of mixer, for sizes that do not fit, where a head
    would leave its SSD group, and for an out_proj that is rotated: its columns are no channels any more.
    Source: Quamba2 (arXiv 2503.22879), section 4.2.
    """
    _check(mixer, order)
    sizes, heads, channels = _sizes(mixer), order.head_order, order.permutation()  # [S], [D]
    d_inner, conv_channels, _ = sizes.in_proj_parts
    conv = torch.cat([channels, torch.arange(d_inner, conv_channels)])  # [X]
    in_proj = torch.cat([channels, d_inner + conv, d_inner + conv_channels + heads])  # [D + X + S]
    for linear, rows in ((mixer.in_proj, in_proj), (mixer.conv1d, conv)):
        _permute(linear.weight, rows)
        if linear.bias is not None:
            _permute(linear.bias, rows)
    for parameter in (mixer.dt_bias, mixer.A_log, mixer.D):
        _permute(parameter, heads)
    _permute(mixer.norm.weight, channels)
    _permute(mixer.out_proj.weight, channels, dim=1)


def _permute(parameter: Tensor, order: Tensor, dim: int = 0) -> None:
    parameter.copy_(parameter.index_select(dim, order.to(parameter.device)))


def _sizes(mixer: nn.Module) -> Mamba2Sizes:
    if isinstance(mixer, Mamba2Mixer):
        return mixer.sizes
    return Mamba2Sizes(mixer.num_heads, mixer.head_dim, mixer.n_groups, mixer.ssm_state_size)


def _check(mixer: nn.Module, order: ChannelOrder) -> None:
    """Raises QuambaError where `reorder_layer` does."""
    parameters = dict(mixer.named_parameters())
    if missing := [name for name in ("in_proj.weight", "A_log", "dt_bias", "norm.weight") if name not in parameters]:
        raise QuambaError(f"a {type(mixer).__name__} has no {missing[0]}: only float Mamba2 mixers can be reordered")
    if getattr(mixer, "hadamard_out", False):
        raise QuambaError("out_proj is rotated already, its columns are no channels any more: reorder before rotating")
    sizes, shape = _sizes(mixer), tuple(order.channel_order.shape)
    if shape != (sizes.heads, sizes.head_dim):
        raise QuambaError(
            f"the order is of {shape[0]} heads of {shape[1]}, the mixer has {sizes.heads} of {sizes.head_dim}"
        )
    heads_per_group = sizes.heads // sizes.groups
    moved = order.head_order // heads_per_group != torch.arange(sizes.heads) // heads_per_group
    if bool(moved.any()):
        raise QuambaError(
            f"the order takes head {int(order.head_order[moved][0])} out of its SSD group of {heads_per_group} heads, "
            f"which share B and C: was it made for another n_groups than {sizes.groups}?"
        )
