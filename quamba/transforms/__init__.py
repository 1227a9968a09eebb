"""Rewrites of a float model that leave its logits as they were and make its tensors easier to quantize."""

from .clusters import ChannelOrder, cluster_channels
from .fuse_norm import fuse_final_norm, fuse_gated_norm, fuse_norm
from .hadamard import apply_hadamard, rotate_out_proj
from .reorder import reorder, reorder_layer
from .rotate import rotate_residual

__all__ = [
    "ChannelOrder",
    "apply_hadamard",
    "cluster_channels",
    "fuse_final_norm",
    "fuse_gated_norm",
    "fuse_norm",
    "reorder",
    "reorder_layer",
    "rotate_out_proj",
    "rotate_residual",
]
