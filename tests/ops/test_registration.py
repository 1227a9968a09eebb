"""Every op has a schema, a fake, a reference and a kernel, and says what runs."""

import os
import subprocess
import sys

import pytest
import torch

from quamba import ops
from quamba.errors import QuambaError
from quamba.ops import reference
from quamba.ops.schemas import FAKES, MAMBA2_STEP_SLOTS, MAX_CONV_WIDTH, SCHEMAS, STEP_SLOTS

from .weights import random_int8_weight, random_uint4_weight


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_op_of_the_schema_list_has_a_cpu_kernel(name):
    assert ops.has_kernel(name, "cpu"), f"the built extension lacks {name}"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_op_has_a_reference_and_a_fake(name):
    assert callable(getattr(reference, name))
    assert name in FAKES


def test_backends_names_the_instruction_set_of_each_op(capability):
    assert ops.cpu_capability() == capability
    assert ops.backends("cpu") == dict.fromkeys(SCHEMAS, capability)


def test_a_capability_that_the_machine_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match=r"avx9000.*portable"), ops.force_cpu_capability("avx9000"):
        pass


def test_the_environment_forces_a_capability():
    code = "from quamba import ops; print(ops.cpu_capability())"
    env = {**os.environ, "QUAMBA_CPU_CAPABILITY": "portable"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert run.stdout.strip() == "portable"


def test_the_reference_runs_only_when_asked_for():
    code = "from quamba import ops; print(ops.cpu_capability(), *set(ops.backends('cpu').values()))"
    env = {**os.environ, "QUAMBA_REFERENCE": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert run.stdout.split() == ["reference", "reference"]


@pytest.mark.parametrize("device", ["cuda", "warp-drive"])
def test_a_device_without_kernels_is_refused_by_name(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(QuambaError, match=device):
        ops.check_device(device)


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
    slots = dict.fromkeys(STEP_SLOTS)
    for name, size in sizes.items():
        slots[f"{name}.weight"], slots[f"{name}.scale"] = random_int8_weight(*size).args
    slots |= {"conv_weight": torch.randn(D, K), "A": -torch.rand(D, N), "D": torch.ones(D)}
    conv_states, ssm_states = ([torch.randn(B, D, n) for _ in range(2)] for n in (K, N))
    states = (conv_states, ssm_states)
    return torch.randn(B, H), [*slots.values()] * 2, *states, base, R, 1e-5, 1e-6, [0, 0], False, None, [], None


def _mamba2_step_arguments(base: torch.Tensor) -> tuple:
    """The same of Mamba2: two groups of two heads."""
    B, H, S, P, G, N, K = 2, 20, 4, 2, 2, 3, 4
    D, X = S * P, S * P + 2 * G * N
    slots = dict.fromkeys(MAMBA2_STEP_SLOTS)
    for name, size in {"in_proj": (D + X, H), "dt_proj": (S, H), "out_proj": (H, D)}.items():
        slots[f"{name}.weight"], slots[f"{name}.scale"] = random_int8_weight(*size).args
    slots |= {"conv_weight": torch.randn(X, K), "A": -torch.rand(S), "D": torch.ones(S), "dt_bias": torch.randn(S)}
    states = ([torch.randn(B, *size) for _ in range(2)] for size in ((X, K), (S, P, N)))
    sizes = (G, 1e-5, 0.0, float("inf"), [0, 0])
    return torch.randn(B, H), [*slots.values()] * 2, *states, base, *sizes, False, None, [], None


def _arguments() -> dict[str, tuple]:
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


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_fake_and_kernel_agree(name):
    """torch's own checks: declared mutations are the real ones, and the fake gives the kernel's shapes and dtypes."""
    torch.library.opcheck(
        getattr(torch.ops.quamba, name).default, _arguments()[name], test_utils=("test_schema", "test_faketensor")
    )


def test_a_wrong_capability_in_the_environment_is_one_error():
    code = "from quamba import ops; ops.check_device('cpu')"
    env = {**os.environ, "QUAMBA_CPU_CAPABILITY": "avx9000"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert "QuambaError: QUAMBA_CPU_CAPABILITY: CPU capability 'avx9000'" in run.stderr.splitlines()[-1]


def test_the_width_limit_is_the_kernels():
    x = torch.randn(1, 2, 3)
    ops.causal_conv1d(x, torch.randn(3, MAX_CONV_WIDTH), None, None)
    with pytest.raises(ValueError, match="conv width"):
        ops.causal_conv1d(x, torch.randn(3, MAX_CONV_WIDTH + 1), None, None)
