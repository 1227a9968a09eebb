"""Fold RMSNorm weights into the linear layers that read the norm, which leaves norms without a weight of their own."""

from collections.abc import Sequence

import torch

from ..errors import QuambaError
from ..models.mamba_slot import MambaSlot
from ..models.tying import untie_embedding
from ..nn.mixer import FloatMixer


@torch.no_grad()
def fuse_norm(slots: Sequence[MambaSlot]) -> None:
    """Fold the weight of every Mamba block's norm into its in_proj.weight and set it to ones; logits are unchanged.

    slots: of a float model (`Anatomy.slots`), which is changed in place; the products are computed in float32 and
    stored in the weight's dtype.
    """
    for slot in slots:
        _fold(slot.norm, slot.mixer.in_proj)


@torch.no_grad()
def fuse_gated_norm(slots: Sequence[MambaSlot]) -> None:
    """Fold the weight of every Mamba2 block's gated norm into mixer.out_proj.weight; logits are unchanged.

    The norm is over groups of channels, its weight per channel: it moves into the columns of out_proj whatever the
    groups. It has to before out_proj is rotated. Raises QuambaError, before anything changed, where one is already.
    """
    for slot in slots:
        if isinstance(slot.mixer, FloatMixer) and slot.mixer.hadamard_out:
            raise QuambaError(
                f"layer {slot.index}'s out_proj is rotated already: its columns are no channels of the norm"
            )
    for slot in slots:
        _fold(slot.mixer.norm, slot.mixer.out_proj)


@torch.no_grad()
def fuse_final_norm(model: torch.nn.Module) -> None:
    """Fold backbone.norm_f.weight into lm_head.weight and set it to ones; logits are unchanged.

    The head gets a tensor of its own first (`untie_embedding`): the embedding must not change.
    """
    untie_embedding(model)
    _fold(model.backbone.norm_f, model.lm_head)


def require_fused(norm: torch.nn.Module, name: str, remedy: str) -> None:
    """Raises QuambaError unless the norm's weight is all ones: `name` says which norm, `remedy` what to call first."""
    if not torch.equal(norm.weight, torch.ones_like(norm.weight)):
        raise QuambaError(f"{name} still has a weight, which does not commute with a rotation: call {remedy} first")


def _fold(norm: torch.nn.Module, linear: torch.nn.Module) -> None:
    """linear(norm(x)) with the norm's weight moved into the linear: W[:, j] *= norm.weight[j]."""
    folded = linear.weight.to(torch.float32) * norm.weight.to(torch.float32)  # [out, in] * [in]
    linear.weight.copy_(folded)
    norm.weight.fill_(1.0)
