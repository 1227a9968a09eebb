"""Rotate the residual stream: every block reads and writes residual @ H, and the logits stay as they were."""

import torch

from ..models.tying import share_memory
from .fuse_norm import require_fused
from .hadamard import apply_hadamard, rotate_inputs, rotate_outputs


@torch.no_grad()
def rotate_residual(model: torch.nn.Module) -> None:
    """Rotate the residual stream of a Mamba causal LM by H, fused into the weights alone; logits are unchanged.

    Embedding rows and out_proj write the rotated stream (E H, H^T W, bias H); in_proj and lm_head read it (W H).
    An RMSNorm without a weight commutes with the orthonormal H. Changed in place.
    Raises QuambaError, before anything changed, unless `fuse_norm` and `fuse_final_norm` were called.
    Source: QuaRot (arXiv 2404.00456), section 4, stage 1a.
    """
    backbone = model.backbone
    for index, layer in enumerate(backbone.layers):
        require_fused(layer.norm, f"the norm of layer {index}", "fuse_norm(slots)")
    require_fused(backbone.norm_f, "the final norm", "fuse_final_norm(model)")

    embedding, head = backbone.embeddings, model.lm_head
    embedding.weight.copy_(apply_hadamard(embedding.weight))  # rows are vectors of the stream
    if not share_memory(head.weight, embedding.weight):  # a shared tensor is rotated by now
        head.weight.copy_(rotate_inputs(head.weight))
    for layer in backbone.layers:
        in_proj, out_proj = layer.mixer.in_proj, layer.mixer.out_proj
        in_proj.weight.copy_(rotate_inputs(in_proj.weight))
        out_proj.weight.copy_(rotate_outputs(out_proj.weight))
        if out_proj.bias is not None:
            out_proj.bias.copy_(apply_hadamard(out_proj.bias))
