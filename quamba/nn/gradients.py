"""Quantized layers have no gradients: a backward pass through one is refused, where PyTorch would go around it."""

import torch
from torch import Tensor

from ..errors import QuambaError

NO_GRADIENT = (
    "quamba's layers compute no gradients, so this backward pass would give wrong ones: train the float model, loaded "
    "by transformers itself; where none is needed, run under torch.no_grad()"
)


class _NoGradient(torch.autograd.Function):
    """The identity, whose backward pass is an error."""

    @staticmethod
    def forward(_context, y: Tensor, *_inputs: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(_context, *_gradients):
        raise QuambaError(NO_GRADIENT)


def without_gradient(y: Tensor, *inputs: Tensor) -> Tensor:
    """Return `y`, computed from `inputs` by ops without gradients: a backward pass through it raises QuambaError.

    Costs nothing under torch.no_grad() and torch.inference_mode(), nor where no input needs a gradient.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _NoGradient.apply(y, *inputs)
    return y
