"""The last bits that `pytest --perturb-blas` draws: others for another key, few of them, none where a sum is exact."""

import torch

from tests.blas_noise import NOISE, _noisy


def test_a_value_that_float32_holds_is_every_blas_s():
    exact = torch.tensor([0.0, -3.0, 0.5, 2.0**20])
    assert torch.equal(_noisy(exact.double(), torch.float32, (0, 1)), exact)


def test_another_key_or_shape_draws_other_bits_and_the_same_key_the_same():
    exact = torch.rand(5, 40, dtype=torch.float64) + 1
    noisy = _noisy(exact, torch.float32, (0, 1, 0))
    assert torch.equal(noisy, _noisy(exact, torch.float32, (0, 1, 0)))
    for key in ((1, 1, 0), (0, 2, 0), (0, 1, 32)):  # seed, threads, where an operand lies
        assert not torch.equal(noisy, _noisy(exact, torch.float32, key))
    assert not torch.equal(noisy[:3], _noisy(exact[:3], torch.float32, (0, 1, 0)))
    assert 0 < ((noisy - exact) / exact).abs().max() < 2 * NOISE
