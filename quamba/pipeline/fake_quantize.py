"""Float models with some activations quantized: what formats and scales cost, everything else left as it is."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from .. import numerics
from ..architectures.convert import tap_modules
from ..errors import QuambaError


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
    hooks = [modules[name].register_forward_hook(static_hook(name, scale, n_bits)) for name, scale in scales.items()]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def static_hook(name: str, scale: Tensor, n_bits: int) -> Callable:
    """Return a forward hook that rounds a module's output with scales from calibration; `name`: for messages."""

    def hook(_module: nn.Module, _args: tuple, x: Tensor) -> Tensor:
        channels, scales = x.shape[-1], scale.numel()
        if channels % scales:
            raise QuambaError(f"tap {name} has {channels} channels, which do not split into its {scales} scales")
        steps = scale.flatten().repeat_interleave(channels // scales)  # [channels]
        return numerics.dequantize(numerics.quantize(x, steps, bits=n_bits), steps).to(x.dtype)

    return hook


def per_token(x: Tensor, n_bits: int) -> Tensor:
    """Round x [..., C] with a symmetric scale for each of its rows; its dtype stays."""
    steps = numerics.symmetric_scale(x.abs().amax(dim=-1, keepdim=True), n_bits)  # [..., 1]
    return numerics.dequantize(numerics.quantize(x, steps, bits=n_bits), steps).to(x.dtype)


def per_token_hook(n_bits: int) -> Callable:
    """Return a forward hook that rounds a module's output token by token."""
    return lambda _module, _args, x: per_token(x, n_bits)


def per_token_pre_hook(n_bits: int) -> Callable:
    """Return a forward pre-hook, with keyword arguments, that rounds a linear layer's input token by token."""

    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (per_token(args[0], n_bits), *args[1:]), kwargs
        return args, kwargs | {"input": per_token(kwargs["input"], n_bits)}

    return hook
