"""Rewrites of a float model that leave its logits as they were and make its tensors easier to quantize."""

from .fuse_norm import fuse_final_norm, fuse_norm, untie_embedding
from .hadamard import apply_hadamard, rotate_out_proj
from .rotate import rotate_residual

__all__ = [
    "apply_hadamard",
    "fuse_final_norm",
    "fuse_norm",
    "rotate_out_proj",
    "rotate_residual",
    "untie_embedding",
]
