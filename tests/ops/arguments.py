"""Small valid arguments of every op."""

import torch

from quamba.ops.schemas import MAMBA1_STEP_TENSORS, MAMBA2_STEP_TENSORS

from .weights import random_int8_weight, random_uint4_weight


def q(*shape: int) -> torch.Tensor:
    return torch.randint(-100, 100, shape, dtype=torch.int8)


def _linear_arguments() -> dict[str, tuple]:
    """Small valid arguments of the ops with weights in tiles."""
    B, L, I, O = 2, 5, 12, 24  # noqa: E741
    int8, uint4 = random_int8_weight(O, I), random_uint4_weight(O, I, 32)
    x, x_scale, bias, ids = torch.randn(B, L, I), torch.rand(B, L), torch.rand(O), torch.randint(0, O, (B, L))
    return {
        "linear_w8a8": (q(B, L, I), *int8.args, x_scale, bias),
        "linear_w8a8_requant": (q(B, L, I), *int8.args, x_scale, bias, torch.ones(O)),
        "linear_w8a16": (x, *int8.args, bias),
        "linear_w4a8": (q(B, L, I), *uint4.args, x_scale, bias, *uint4.sizes()),
        "linear_w4a8_requant": (q(B, L, I), *uint4.args, x_scale, bias, *uint4.sizes(), torch.ones(O)),
        "linear_w4a16": (x, *uint4.args, bias, *uint4.sizes()),
        "embedding_int8": (ids, *int8.args, I),
        "embedding_int4": (ids, *uint4.args, I, *uint4.sizes()),
    }


def _mamba2_arguments() -> dict[str, tuple]:
    """Small valid arguments of Mamba2's ops; the int8 scan with an int8 state."""
    B, L, S, P, G, N = 2, 5, 4, 3, 2, 6
    shapes = {"x": (B, L, S * P), "B": (B, L, G, N), "C": (B, L, G, N)}
    dt, A, D, dt_bias = torch.randn(B, L, S), -torch.rand(S), torch.ones(S), torch.randn(S)
    x, B_, C = (torch.randn(shape) for shape in shapes.values())
    x8, B8, C8 = (q(*shape) for shape in shapes.values())
    limits = (0.0, 1.0)
    scales = (torch.rand(S * P), torch.rand(G), torch.rand(G), torch.rand(S, P))
    return {
        "ssd_scan": (x, dt, A, B_, C, D, dt_bias, *limits, torch.randn(B, S, P, N)),
        "ssd_scan_int8": (x8, dt, A, B8, C8, D, dt_bias, *limits, q(B, S, P, N), *scales),
        "gated_rms_norm": (x, q(*x.shape), torch.tensor(0.05), 1e-5, G),
    }


def _step_arguments(base: torch.Tensor) -> tuple:
    """Two layers with int8 weights, float activations, and norms of dt, B and C."""
    B, H, D, N, K, R = 2, 20, 8, 3, 4, 5
    sizes = {"in_proj": (2 * D, H), "x_proj": (R + 2 * N, D), "dt_proj": (D, R), "out_proj": (H, D)}
    tensors = dict.fromkeys(MAMBA1_STEP_TENSORS)
    for name, size in sizes.items():
        tensors[f"{name}.weight"], tensors[f"{name}.scale"] = random_int8_weight(*size).args
    tensors |= {"conv_weight": torch.randn(D, K), "A": -torch.rand(D, N), "D": torch.ones(D)}
    conv_states, ssm_states = ([torch.randn(B, D, n) for _ in range(2)] for n in (K, N))
    states = (conv_states, ssm_states)
    return torch.randn(B, H), [*tensors.values()] * 2, *states, base, R, 1e-5, 1e-6, [0, 0], False, None, [], None


def _mamba2_step_arguments(base: torch.Tensor) -> tuple:
    """The same of Mamba2: two groups of two heads."""
    B, H, S, P, G, N, K = 2, 20, 4, 2, 2, 3, 4
    D, X = S * P, S * P + 2 * G * N
    tensors = dict.fromkeys(MAMBA2_STEP_TENSORS)
    for name, size in {"in_proj": (D + X, H), "dt_proj": (S, H), "out_proj": (H, D)}.items():
        tensors[f"{name}.weight"], tensors[f"{name}.scale"] = random_int8_weight(*size).args
    tensors |= {"conv_weight": torch.randn(X, K), "A": -torch.rand(S), "D": torch.ones(S), "dt_bias": torch.randn(S)}
    states = ([torch.randn(B, *size) for _ in range(2)] for size in ((X, K), (S, P, N)))
    sizes = (G, 1e-5, 0.0, float("inf"), [0, 0])
    return torch.randn(B, H), [*tensors.values()] * 2, *states, base, *sizes, False, None, [], None


def valid_arguments() -> dict[str, tuple]:
    """Small valid arguments of every op."""
    B, L, D, N, K = 2, 5, 12, 3, 4
    scale = torch.tensor(0.05)
    x, base = torch.randn(B, L, D), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    scan = (torch.randn(B, L, D), -torch.rand(D, N), torch.randn(B, L, N), torch.randn(B, L, N), torch.ones(D))
    scan_int8 = (scan[0], scan[1], q(B, L, N), q(B, L, N), scan[4])
    return {
        "quantize": (x, scale),
        "quantize_per_token": (x,),
        "rms_norm": (x, 1e-5),
        "rms_norm_quant": (x, 1e-5, scale),
        **_linear_arguments(),
        **_mamba2_arguments(),
        "causal_conv1d": (x, torch.randn(D, K), torch.randn(D), torch.randn(B, D, K)),
        "causal_conv1d_int8": (q(B, L, D), q(D, K), torch.rand(D), torch.randn(D), scale, q(B, D, K)),
        "selective_scan": (x, *scan, torch.randn(B, L, D), torch.randn(D), torch.randn(B, D, N)),
        "selective_scan_int8": (
            *(q(B, L, D), *scan_int8, q(B, L, D), torch.randn(D), torch.randn(B, D, N)),
            *(scale, scale, scale, scale),
        ),
        "hadamard": (torch.randn(B, L, 8), base),
        "hadamard_quant": (torch.randn(B, L, 8), base, scale),
        "gated_hadamard_quant": (torch.randn(B, L, 8), q(B, L, 8), scale, 1e-5, 2, base, scale, torch.ones(8)),
        "mamba1_step": _step_arguments(base),
        "mamba2_step": _mamba2_step_arguments(base),
        "magnitude_histogram": (x, torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.float64), 500, 3),
    }


def _int8_step(names: tuple[str, ...], sizes: dict[str, tuple], taps: int) -> list:
    """The tensors of a layer of that step with int8 activations: uint4 weights, scales of everything.

    sizes: name of a tensor -> its shape; of a linear layer (out, in).
    """
    tensors = dict.fromkeys(names)
    for name, size in sizes.items():
        if f"{name}.weight" in tensors:
            parts = random_uint4_weight(*size, 32).args
            tensors |= dict(zip((f"{name}.{part}" for part in ("weight", "scale", "zero")), parts, strict=True))
        else:
            tensors[name] = torch.rand(size) + 0.01
    tensors |= {"conv_weight": q(*sizes["conv_weight"]), "tap_scales": torch.rand(taps) + 0.01}
    tensors["A"] = -tensors["A"]
    return [*tensors.values()]


def _head(B: int, H: int, V: int) -> tuple:
    """Norm weight, head and logits of a step."""
    return torch.ones(H), [*random_uint4_weight(V, H, 32).args, torch.tensor(0.05)], torch.zeros(B, V)


def _int8_step_arguments(base: torch.Tensor) -> tuple:
    """One layer of mamba1_step of uint4 weights and int8 activations, and the head."""
    B, H, D, N, K, R = 2, 20, 8, 3, 4, 5
    sizes = {"in_proj": (2 * D, H), "x_proj": (R + 2 * N, D), "dt_proj": (D, R), "out_proj": (H, D)}
    sizes |= {"conv_weight": (D, K), "conv_scale": (D,), "conv_bias": (D,), "A": (D, N), "D": (D,)}
    sizes |= {"in_proj_out_scale": (2 * D,), "x_proj_out_scale": (R + 2 * N,)}
    states = ([q(B, D, K)], [torch.randn(B, D, N)])
    layer = _int8_step(MAMBA1_STEP_TENSORS, sizes, 8)
    return torch.randn(B, H), layer, *states, base, R, 1e-5, None, [32, 32], True, *_head(B, H, 24)


def _int8_mamba2_step_arguments(base: torch.Tensor) -> tuple:
    """The same of mamba2_step, with int8 states and static scales."""
    B, H, S, P, G, N, K = 2, 20, 4, 2, 2, 3, 4
    D, X = S * P, S * P + 2 * G * N
    sizes = {"in_proj": (D + X, H), "dt_proj": (S, H), "out_proj": (H, D), "conv_weight": (X, K), "conv_scale": (X,)}
    sizes |= {"conv_bias": (X,), "A": (S,), "D": (S,), "dt_bias": (S,), "in_proj_out_scale": (D + X,)}
    sizes |= {"conv_out_scale": (X,), "state_scale": (S, P)}
    states = ([q(B, X, K)], [q(B, S, P, N)])
    layer = _int8_step(MAMBA2_STEP_TENSORS, sizes, 3 + 2 * G)
    limits = (0.0, float("inf"))
    return torch.randn(B, H), layer, *states, base, G, 1e-5, *limits, [32, 32], False, *_head(B, H, 24)


def argument_variants() -> dict[str, list[tuple]]:
    """Small valid arguments of every op, of the steps with either kind of activations and weights."""
    base = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    variants = {name: [args] for name, args in valid_arguments().items()}
    variants["mamba1_step"].append(_int8_step_arguments(base))
    variants["mamba2_step"].append(_int8_mamba2_step_arguments(base))
    return variants
