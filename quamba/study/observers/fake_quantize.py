"""Float models with some taps quantized: what one tap's scale costs by itself, everything else left as it is."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ... import numerics
from ...architectures.convert import tap_modules
from ...errors import QuambaError


@contextlib.contextmanager
def fake_quantized(model: nn.Module, scales: Mapping[str, Tensor], n_bits: int = 8) -> Iterator[nn.Module]:
    """Within the block the named taps (`layers.3.x`, see `tap_modules`) give dequantize(quantize(x)).

    scales: one value, or one for each of equal runs of channels, as B and C of Mamba2 have for their SSD groups and its
    x for every channel. The values are those that the int8 kernels would see; weights and arithmetic stay float. Raises
    QuambaError for a tap that the model does not have, and where a tap's channels do not split into its scales.
    """
    modules = tap_modules(model, head=True)
    if unknown := sorted(set(scales) - set(modules)):
        raise QuambaError(f"the model has no tap {unknown[0]}")
    hooks = [modules[name].register_forward_hook(_rounding(name, scale, n_bits)) for name, scale in scales.items()]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(name: str, scale: Tensor, n_bits: int):
    def hook(_module: nn.Module, _args: tuple, x: Tensor) -> Tensor:
        channels, scales = x.shape[-1], scale.numel()
        if channels % scales:
            raise QuambaError(f"tap {name} has {channels} channels, which do not split into its {scales} scales")
        steps = scale.flatten().repeat_interleave(channels // scales)  # [channels]
        return numerics.dequantize(numerics.quantize(x, steps, bits=n_bits), steps).to(x.dtype)

    return hook
