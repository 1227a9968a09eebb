"""What the steps of Mamba1 and Mamba2 share: their layers' slots, linear layers, the head. B batch, I in, O out."""

from torch import Tensor

from .shared import linear_w4a8, linear_w4a16, linear_w8a8, linear_w8a16, quantize, quantize_per_token


def layer_slots(slots: list[Tensor | None], names: tuple[str, ...]) -> list[dict[str, Tensor | None]]:
    """The tensors of each layer by name."""
    count = len(names)
    return [dict(zip(names, slots[i : i + count], strict=True)) for i in range(0, len(slots), count)]


def step_input(x: Tensor, scale: Tensor | None, taps: Tensor | None, dynamic: bool) -> tuple[Tensor, Tensor | None]:
    """float x [B, I] as in_proj, out_proj and the head read it: int8 and its scale, one or [B]; or, without taps, x."""
    if taps is None:
        return x, None
    return quantize_per_token(x) if dynamic else (quantize(x, scale), scale)


def step_linear(
    layer: dict, name: str, x: Tensor, x_scale: Tensor | None, out_features: int, group_size: int
) -> Tensor:
    """float32 [B, O] of a linear layer of `layer` on int8 (with its scale) or float x [B, I]."""
    weight, scale, zero, bias = (layer[f"{name}.{part}"] for part in ("weight", "scale", "zero", "bias"))
    if zero is None:
        return linear_w8a16(x, weight, scale, bias) if x_scale is None else linear_w8a8(x, weight, scale, x_scale, bias)
    if x_scale is None:
        return linear_w4a16(x, weight, scale, zero, bias, out_features, group_size)
    return linear_w4a8(x, weight, scale, zero, x_scale, bias, out_features, group_size)


def step_head(
    x: Tensor, head: list[Tensor | None], taps: Tensor | None, dynamic: bool, vocab: int, group_size: int
) -> Tensor:
    """float32 logits [B, V] of the final norm's output [B, H]; `head`: weight, scale, zero, input scale."""
    weight, scale, zero, in_scale = head
    x, x_scale = step_input(x, in_scale, taps, dynamic)
    parts = {"head.weight": weight, "head.scale": scale, "head.zero": zero, "head.bias": None}
    return step_linear(parts, "head", x, x_scale, vocab, group_size)
