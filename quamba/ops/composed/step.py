"""What the steps of Mamba1 and Mamba2 share: their layers' tensors, linear layers, the head. B batch, I in, O out."""

from torch import Tensor


def layer_tensors(
    tensors: list[Tensor | None],
    names: tuple[str, ...],
    states: tuple[list[Tensor], list[Tensor]],
    group_sizes: list[int],
    has_head: bool,
) -> list[dict[str, Tensor | None]]:
    """The tensors of each layer by name. Raises ValueError where a list is not as long as the others say."""
    count, layers = len(names), len(states[0])
    if not layers or len(states[1]) != layers or len(tensors) != layers * count:
        raise ValueError(
            f"layers must be {count} tensors for each of the {layers} conv_states and {len(states[1])} ssm_states, "
            f"got {len(tensors)}"
        )
    if len(group_sizes) != layers + has_head:
        raise ValueError(
            f"group_sizes must be one of each layer and of the head: {layers + has_head}, got {len(group_sizes)}"
        )
    return [dict(zip(names, tensors[i : i + count], strict=True)) for i in range(0, len(tensors), count)]


def multiplied(x: Tensor, multiplier: Tensor | None) -> Tensor:
    """x, times a vector where there is one."""
    return x if multiplier is None else x * multiplier


def normalized(
    ops, x: Tensor, eps: float, multiplier: Tensor | None, scale: Tensor | None, dynamic: bool
) -> tuple[Tensor, Tensor | None]:
    """RMSNorm of float x [B, I] as a linear layer reads it: int8 and its scale, one or [B]; float without `scale`."""
    if scale is None or dynamic:
        return _unscaled(ops, ops.rms_norm(x, eps, multiplier), scale)
    return ops.rms_norm_quant(x, eps, scale, multiplier), scale


def rotated(
    ops, x: Tensor, base: Tensor, multiplier: Tensor | None, scale: Tensor | None, dynamic: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the input of a linear layer of x [B, D] after its Hadamard transform."""
    if scale is None or dynamic:
        return _unscaled(ops, ops.hadamard(x, base, multiplier), scale)
    return ops.hadamard_quant(x, base, scale, multiplier), scale


def _unscaled(ops, x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Quantized with a scale for every row [B], or left float where no tap has a scale."""
    return (x, None) if scale is None else ops.quantize_per_token(x)


def linear(
    ops,
    layer: dict,
    name: str,
    x: Tensor,
    x_scale: Tensor | None,
    out_features: int,
    group_size: int,
    out_scale: Tensor | None = None,
) -> Tensor:
    """A linear layer of `layer` on int8 (with its scale) or float x [B, I] -> float32 [B, O], or int8 with `out_scale`
    [O]."""
    weight, scale, zero, bias = (layer[f"{name}.{part}"] for part in ("weight", "scale", "zero", "bias"))
    if zero is None:
        if x_scale is None:
            return ops.linear_w8a16(x, weight, scale, bias)
        product = (x, weight, scale, x_scale, bias)
        return ops.linear_w8a8(*product) if out_scale is None else ops.linear_w8a8_requant(*product, out_scale)
    if x_scale is None:
        return ops.linear_w4a16(x, weight, scale, zero, bias, out_features, group_size)
    product = (x, weight, scale, zero, x_scale, bias, out_features, group_size)
    return ops.linear_w4a8(*product) if out_scale is None else ops.linear_w4a8_requant(*product, out_scale)


def predict(
    ops,
    hidden: Tensor,
    eps: float,
    norm_weight: Tensor,
    head: list[Tensor | None],
    act: tuple[bool, bool],
    group_size: int,
    logits: Tensor,
) -> None:
    """The final norm and the head on hidden [B, H], into float32 logits [B, V].

    `head`: weight, scale, zero, scale of head_in. `act`: whether its input is int8, and with a scale for every row.
    """
    if norm_weight is None or len(head) != 4:
        raise ValueError("logits need norm_weight and a head of weight, scale, zero and the scale of head_in")
    weight, scale, zero, in_scale = head
    int8, dynamic = act
    x, x_scale = ops.rms_norm(hidden, eps) * norm_weight, None  # [B, H]
    if int8:
        x, x_scale = ops.quantize_per_token(x) if dynamic else (ops.quantize(x, in_scale), in_scale)
    parts = {"head.weight": weight, "head.scale": scale, "head.zero": zero, "head.bias": None}
    logits.copy_(linear(ops, parts, "head", x, x_scale, logits.shape[1], group_size))
