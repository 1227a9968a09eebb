"""Rotations by H = kron(Sylvester(2**k), base) / sqrt(n) on the weight side, and the one before out_proj.

Row vectors throughout: activations become x @ H and the weights that read them W @ H, so that
(x H)(W H)^T = x W^T. Paley I matrices are not symmetric: x H pairs with W H, never with W H^T.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import QuambaError
from ..hadamard import check_kernel_size, hadamard_base
from ..models.mamba_slot import MambaSlot
from ..nn.mixer import FloatMixer
from .fuse_norm import require_fused


def apply_hadamard(x: Tensor) -> Tensor:
    """x @ H / sqrt(n) along the last dimension, orthonormal, without forming H.

    x: float [..., n]. Returns the same shape and dtype; computed in float64.
    Source: the fast Walsh-Hadamard transform, used for rotations as in QuaRot (arXiv 2404.00456), section 3.
    """
    n = x.shape[-1]
    k, base = hadamard_base(n)
    y = x.to(torch.float64).reshape(-1, 2**k, base.shape[0]) @ base.to(x.device, torch.float64)  # [rows, 2**k, m]
    for level in range(k):
        halves = y.reshape(y.shape[0], -1, 2, 2**level, base.shape[0])  # pairs of blocks 2**level apart
        first, second = halves.unbind(2)
        y = torch.stack((first + second, first - second), dim=2).reshape(y.shape)
    return (y / n**0.5).reshape(x.shape).to(x.dtype)


def rotate_inputs(weight: Tensor) -> Tensor:
    """The weight that reads rotated activations: W @ H. weight: float [out, in]; same shape and dtype back."""
    return apply_hadamard(weight)


def unrotate_inputs(weight: Tensor) -> Tensor:
    """The weight that reads unrotated activations again: W @ H^T. weight: float [out, in]; shape and dtype stay."""
    matrix = apply_hadamard(torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device))  # H
    return (weight.to(torch.float64) @ matrix.mT).to(weight.dtype)


def rotate_outputs(weight: Tensor) -> Tensor:
    """The weight that writes rotated activations: H^T @ W. weight: float [out, in]; same shape and dtype back."""
    return apply_hadamard(weight.mT).mT.contiguous()


@torch.no_grad()
def rotate_out_proj(slots: Sequence[MambaSlot]) -> None:
    """Rotate the gated scan output before every out_proj: W <- W @ H here, and the mixer computes y @ H at run time.

    slots: of a float model whose mixers are this package's own, changed in place. Raises QuambaError, before anything
    changed, for other mixers, for a second call, for sizes without kernels, and for Mamba2's unless `fuse_gated_norm`
    was called.
    Source: the rotation of the SSM output in Quamba (arXiv 2410.13229).
    """
    mixers = {slot.index: slot.mixer for slot in slots}
    for index, mixer in mixers.items():
        if not isinstance(mixer, FloatMixer):
            raise QuambaError(
                f"layer {index} has a {type(mixer).__name__}, which cannot rotate its output: "
                "call quamba.architectures.convert.install_float_mixers(model) first"
            )
        if mixer.hadamard_out:
            raise QuambaError(f"layer {index}'s out_proj is rotated already")
        if mixer.gated_norm is not None:
            require_fused(mixer.gated_norm, f"the gated norm of layer {index}", "fuse_gated_norm(slots)")
        check_kernel_size(mixer.out_proj.weight.shape[1])
    for mixer in mixers.values():
        mixer.out_proj.weight.copy_(rotate_inputs(mixer.out_proj.weight))
        mixer.hadamard_out = True
