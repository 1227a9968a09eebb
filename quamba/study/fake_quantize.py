"""Float models with some taps quantized: what one tap's scale costs by itself, everything else left as it is."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from .. import numerics
from ..convert import tap_modules
from ..errors import QuambaError


@contextlib.contextmanager
def fake_quantized(model: nn.Module, scales: Mapping[str, Tensor], n_bits: int = 8) -> Iterator[nn.Module]:
    """Within the block the named taps (`layers.3.x`, see `tap_modules`) give dequantize(quantize(x)).

    The values are those that the int8 kernels would see; weights and arithmetic stay float. Raises QuambaError for a
    tap that the model does not have.
    """
    modules = tap_modules(model, head=True)
    if unknown := sorted(set(scales) - set(modules)):
        raise QuambaError(f"the model has no tap {unknown[0]}")
    hooks = [modules[name].register_forward_hook(_rounding(scale, n_bits)) for name, scale in scales.items()]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(scale: Tensor, n_bits: int):
    def hook(_module: nn.Module, _args: tuple, x: Tensor) -> Tensor:
        return numerics.dequantize(numerics.quantize(x, scale, bits=n_bits), scale).to(x.dtype)

    return hook
