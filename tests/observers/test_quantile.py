"""Exact quantiles, against torch.quantile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba.observers.quantile import PIECE, exact_quantiles, pieces

PS = [0.0, 1e-5, 0.01, 0.5, 0.9, 0.99, 0.99999, 1.0]


def torch_quantiles(x: torch.Tensor, ps: list[float]) -> torch.Tensor:
    return torch.stack([torch.quantile(x.double().flatten(), p) for p in ps])


def assert_exact(x: torch.Tensor, ps: list[float]) -> None:
    tolerance = {"rtol": 1e-6, "atol": 0}
    magnitudes = torch.tensor(exact_quantiles(x, ps), dtype=torch.float64)
    torch.testing.assert_close(magnitudes, torch_quantiles(x.abs(), ps), **tolerance)
    values = torch.tensor(exact_quantiles(x, ps, signed=True), dtype=torch.float64)
    # Interpolating between ranks cancels where neighbours have opposite signs: compare to the largest magnitude there.
    largest = float(x.abs().max())
    torch.testing.assert_close(values, torch_quantiles(x, ps), rtol=1e-6, atol=1e-12 * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (2,), (1025,), (3, 5, 7), (2, 3, 250, 400)])
def test_equals_torch(dtype, shape):
    assert_exact(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype), PS)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_equals_torch_on_any_floats(values, p):
    assert_exact(torch.tensor(values), [p])


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 1e-30, 1e30]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_equals_torch_on_ties(seed, unit, p):
    x = torch.randint(-2, 3, (5000,), generator=torch.Generator().manual_seed(seed)) * unit
    assert_exact(x, [p, 0.9999])


def test_more_elements_than_torch_takes():
    n = 17_000_000
    x = torch.linspace(-1, 1, n)
    with pytest.raises(RuntimeError):
        torch.quantile(x, 0.5)
    assert exact_quantiles(x, [0.5, 0.99999]) == pytest.approx([0.5, 0.99999], rel=1e-6)
    assert exact_quantiles(x, [0.25, 0.99999], signed=True) == pytest.approx([-0.5, 0.99998], rel=1e-6)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.transpose(0, 2),
        lambda x: x[..., 3:17],
        lambda x: x[:, ::2],
        lambda x: x[0, 0, 0],
        lambda x: x[0, 0, :1].expand(50),
    ],
)
def test_views_are_read_as_they_are(view):
    x = view(torch.randn(6, 50, 20, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(list(pieces(x))).sort().values, x.flatten().sort().values)
    assert_exact(x, [0.3, 0.999])


def test_pieces_are_bounded():
    x = torch.empty(3, PIECE + 5, dtype=torch.bfloat16)
    assert all(piece.numel() <= PIECE for piece in pieces(x))
    assert all(piece.numel() <= PIECE for piece in pieces(x[:, 1:]))
    assert all(piece.numel() <= PIECE for piece in pieces(x[0, ::2]))
