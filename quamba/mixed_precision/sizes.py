"""What the quantized weights of every layer take, found from the float model: what a budget of mixed precision counts.

Counted are the matrices of linear layers: integers, scales and zero points. Convolutions, norms, biases and the SSM's
own parameters are not: all schemes keep about the same bytes of them, so that they would only blur the mean bits.
3-bit weights are stored as 4 bits and save nothing against those.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from ..scheme.formats import Scheme, TensorSpec

SCALE_BYTES, GROUP_BYTES = 4, 2 + 1  # float32 of a row; float16 and the zero point, uint8, of a group


def matrix_bytes(spec: TensorSpec, out_features: int, in_features: int) -> int:
    """Bytes of a weight [out_features, in_features] in 8, 4 or 3 bits, as a checkpoint holds them."""
    if spec.group_size is None:
        return out_features * (in_features + SCALE_BYTES)
    return out_features * (-(-in_features // 2) + GROUP_BYTES * -(-in_features // spec.group_size))


def layer_sizes(layers: Iterable[nn.Module], schemes: Mapping[str, Scheme]) -> tuple[dict[str, list[int]], int]:
    """(scheme -> bytes of the quantized linear layers of each decoder layer, how many weights all of them have).

    `layers`: float ones, on any device, meta too.
    """
    sizes, weight_count = {name: [] for name in schemes}, 0
    for layer in layers:
        shapes = [module.weight.shape for module in layer.modules() if isinstance(module, nn.Linear)]
        weight_count += sum(shape.numel() for shape in shapes)
        for name, scheme in schemes.items():
            sizes[name].append(sum(matrix_bytes(scheme.weight, *shape) for shape in shapes))
    return sizes, weight_count
