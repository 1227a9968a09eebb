"""Float kernels of other libraries in place of ours: stand-ins in torch, with the libraries' layouts and arguments."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import quamba
from quamba.nn import float_kernels
from quamba.ops import reference


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    """x [B, D, L] with channels innermost, weight [D, K], initial_states [B, D, K - 1] likewise -> [B, D, L]."""
    assert activation == "silu" and x.stride(1) == 1 and x.shape[1] % 8 == 0
    assert initial_states is None or initial_states.stride(1) == 1
    context = x.new_zeros(*x.shape[:2], weight.shape[1] - 1) if initial_states is None else initial_states
    padded = torch.cat([context, x], dim=-1)
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """u, delta, z [B, D, L], B and C [B, N, L] -> [B, D, L], from a state of zeros."""
    assert delta_softplus and all(t is None or t.stride(-1) == 1 for t in (u, delta, z, B, C))
    rows = [None if t is None else t.transpose(1, 2) for t in (u, delta, B, C, z)]
    x, dt, B, C, z = rows
    return reference.selective_scan(x, dt, A, B, C, D, z, delta_bias, None).transpose(1, 2)


def mamba_chunk_scan_combined(
    x,
    dt,
    A,
    B,
    C,
    chunk_size,
    D=None,
    dt_bias=None,
    initial_states=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
    return_final_states=False,
):
    """x [B, L, S, P], B and C [B, L, G, N] -> y [B, L, S, P] and the last state [B, S, P, N]."""
    assert dt_softplus and return_final_states and chunk_size > 0
    groups, (batch, _, heads, head_dim) = B.shape[2], x.shape
    state = x.new_zeros(batch, heads, head_dim, B.shape[3]) if initial_states is None else initial_states.clone()
    assert heads % groups == 0
    y = reference.ssd_scan(x.flatten(-2), dt, A, B, C, D, dt_bias, *dt_limit, state)
    return y.unflatten(-1, (heads, head_dim)), state


LIBRARIES = {
    "causal_conv1d": causal_conv1d_fn,
    "mamba_ssm.ops.selective_scan_interface": selective_scan_fn,
    "mamba_ssm.ops.triton.ssd_combined": mamba_chunk_scan_combined,
}


@pytest.fixture
def calls(monkeypatch):
    """Installs the stand-ins for this machine's device; the names of those that were called."""
    called = []
    for name, function in LIBRARIES.items():
        module = ModuleType(name)

        def recorded(*args, function=function, **options):
            called.append(function.__name__)
            return function(*args, **options)

        setattr(module, function.__name__, recorded)
        monkeypatch.setitem(sys.modules, name, module)
    for package in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setattr(float_kernels, "DEVICES", {"cpu"})
    float_kernels._function.cache_clear()
    yield called
    float_kernels._function.cache_clear()


def calibrated(model) -> dict[str, torch.Tensor]:
    """Every static scale that calibration finds."""
    windows = torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(5))
    model = quamba.quantize(model, None, calibration=windows, progress=False)
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith("_scale")}


def test_calibration_finds_the_same_scales_with_the_libraries_kernels(tiny_ssm, calls, monkeypatch):
    found = calibrated(tiny_ssm())
    assert len(set(calls)) == 2
    monkeypatch.setattr(float_kernels, "DEVICES", set())
    calls.clear()
    expected = calibrated(tiny_ssm())
    assert not calls
    assert found.keys() == expected.keys()
    for name, scale in found.items():
        torch.testing.assert_close(scale, expected[name], rtol=1e-4, atol=0, msg=name)


@pytest.mark.parametrize("tokens", [1, 2, 13])
@pytest.mark.parametrize("width", [2, 4])
def test_a_convolution_continues_from_its_state_and_moves_it_on(calls, tokens, width):
    x, weight, bias = torch.randn(2, tokens, 8), torch.randn(8, width), torch.randn(8)
    state = torch.randn(2, 8, width)
    expected_state = state.clone()
    expected = reference.causal_conv1d(x, weight, bias, expected_state)
    torch.testing.assert_close(float_kernels.causal_conv1d(x, weight, bias, state), expected)
    assert torch.equal(state, expected_state)
    assert calls == ["causal_conv1d_fn"]


@pytest.mark.parametrize(("channels", "width"), [(12, 4), (8, 5), (8, 1)])
def test_a_convolution_that_the_library_has_not_is_ours(calls, channels, width):
    x, weight = torch.randn(1, 5, channels), torch.randn(channels, width)
    torch.testing.assert_close(
        float_kernels.causal_conv1d(x, weight, None, None), reference.causal_conv1d(x, weight, None, None)
    )
    assert not calls


def test_a_selective_scan_from_a_state_is_ours(calls):
    x, dt, z = torch.randn(3, 1, 5, 4).unbind()
    A, B, C = -torch.rand(4, 3), torch.randn(1, 5, 3), torch.randn(1, 5, 3)
    state = torch.randn(1, 4, 3)
    expected_state = state.clone()
    expected = reference.selective_scan(x, dt, A, B, C, None, z, None, expected_state)
    torch.testing.assert_close(float_kernels.selective_scan(x, dt, A, B, C, None, z, None, state), expected)
    torch.testing.assert_close(state, expected_state)
    assert not calls


def test_mamba2s_scan_moves_its_state_on_in_place(calls):
    x, dt = torch.randn(2, 5, 12), torch.randn(2, 5, 4)
    B, C = torch.randn(2, 2, 5, 2, 6).unbind()
    A, D, state = -torch.rand(4), torch.randn(4), torch.randn(2, 4, 3, 6)
    expected_state = state.clone()
    expected = reference.ssd_scan(x, dt, A, B, C, D, None, 0.0, 0.5, expected_state)
    torch.testing.assert_close(float_kernels.ssd_scan(x, dt, A, B, C, D, None, 0.0, 0.5, state), expected)
    torch.testing.assert_close(state, expected_state)
    assert calls == ["mamba_chunk_scan_combined"]


def test_without_the_libraries_our_kernels_serve(tiny_ssm, monkeypatch, caplog):
    monkeypatch.setattr(float_kernels, "DEVICES", {"cpu"})
    float_kernels._function.cache_clear()
    with caplog.at_level("INFO", logger="quamba"):
        found = calibrated(tiny_ssm())
    float_kernels._function.cache_clear()
    assert "our own float kernels run" in caplog.text
    monkeypatch.setattr(float_kernels, "DEVICES", set())
    expected = calibrated(tiny_ssm())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
