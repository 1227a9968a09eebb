"""The tensors of quantized modules as plain floats, under the names of the float modules.

Dims: I in features, O out features, X channels of a convolution, K conv width.
"""

from torch import Tensor

from ..nn.conv1d import QuantConv1d
from ..nn.linear import QuantLinear
from ..nn.mixer import QuantMixer
from ..transforms.hadamard import unrotate_inputs


def plain_linear(linear: QuantLinear) -> dict[str, Tensor]:
    """Return weight and bias of a linear layer of inputs as they come: input scales are taken back into the weight."""
    weight = linear.multiplied(linear.dequantized())  # [O, I]
    return {"weight": weight} | ({} if linear.bias is None else {"bias": linear.bias})


def plain_conv1d(conv: QuantConv1d) -> dict[str, Tensor]:
    """Return weight and bias of a convolution, the weight as nn.Conv1d has it."""
    weight = conv.dequantized().unsqueeze(1)  # [X, K] -> [X, 1, K]
    return {"weight": weight} | ({} if conv.bias is None else {"bias": conv.bias})


def plain_out_proj(mixer: QuantMixer) -> dict[str, Tensor]:
    """Return weight and bias of a mixer's out_proj, of inputs that are not rotated."""
    tensors = plain_linear(mixer.out_proj)
    return tensors | {"weight": unrotate_inputs(tensors["weight"])}


def named(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the module of that name, by their names outside of it."""
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}
