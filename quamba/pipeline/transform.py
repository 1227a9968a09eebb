"""Every rewrite of a float model before its quantization, in order."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from ..architectures.anatomy import Anatomy
from ..errors import QuambaError
from ..transforms import fuse_final_norm, reorder, rotate_out_proj
from ..transforms import rotate_residual as rotate_residual_stream
from ..transforms.clusters import ChannelOrder


@torch.no_grad()
def transform(model: PreTrainedModel, rotate_residual: bool, orders: Mapping[int, ChannelOrder] | None = None) -> None:
    """The float-equivalent rewrites that the quantized block relies on: same logits, easier activations.

    `orders`: of the channels of Mamba2's layers, by layer index. Raises QuambaError, before anything changed, for the
    residual stream of a hybrid.
    """
    anatomy = Anatomy.of(model)
    if rotate_residual and not anatomy.has_blocks_alone:
        raise QuambaError(
            f"rotate_residual is for models of Mamba blocks alone, not for {type(model).__name__}: drop it"
        )
    if orders:
        reorder(anatomy.slots, orders)
    for fuse in anatomy.architecture.fusions:
        fuse(anatomy.slots)
    if rotate_residual:
        fuse_final_norm(model)
        rotate_residual_stream(model)
    rotate_out_proj(anatomy.slots)
