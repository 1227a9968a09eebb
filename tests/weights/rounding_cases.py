"""Weights, inputs and checks that the tests of the rounding rules share.

Dims: O out features, I in features.
"""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from quamba.weights.grid import Grid
from quamba.weights.rounding import FlipOptions
from quamba.weights.rounding_state import RoundingState

GRIDS = [Grid(3, False, 8), Grid(4, False, 32), Grid(4, False, None), Grid(8, False, 8), Grid(8, True, None)]


@dataclass
class Moments:
    """What a rule knows of the inputs: mean [I], second [I, I] or None."""

    mean: Tensor
    second: Tensor | None = None


def random_case(
    seed: int, rows: int, columns: int, grid: Grid, ties: bool = False, samples: int = 50
) -> tuple[RoundingState, Moments]:
    """A weight rounded to nearest, and the moments of random inputs, whose channels differ in size and correlate.

    ties: every number is a small multiple of a power of two, so that sums are exact and many of them equal.
    """
    generator = torch.Generator().manual_seed(seed)
    if ties:
        weight = torch.randint(-8, 9, (rows, columns), generator=generator) / 16
        x = torch.randint(-2, 3, (4, columns), generator=generator).float()
        groups = grid.parameters(weight)[0].shape[1]
        zero = torch.zeros(rows, groups) if grid.symmetric else torch.full((rows, groups), 3.0)
        state = grid.nearest(weight, torch.full((rows, groups), 0.25), zero)
    else:
        state = grid.nearest(torch.randn(rows, columns, generator=generator))
        size = torch.randn(columns, generator=generator).exp()
        common = torch.randn(samples, 1, generator=generator)
        noise = torch.randn(samples, columns, generator=generator)
        x = (0.5 * torch.randn(columns, generator=generator) + common + noise) * size  # [samples, I]
    second = x.double().T @ x.double() / len(x)
    return state, Moments(x.mean(dim=0), (second + second.T) / 2)


def cancelling_case(rows: int = 64, large: float = 1e8) -> tuple[RoundingState, Moments]:
    """Weights [rows, 3] whose first column lies half-way between two integers, so that its flip turns its error around.

    The errors of the other two, of large means, cancel but for the rounding of sums, which differs from row to row.
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.randint(1024, 2048, (rows, 1), generator=generator) / 1024  # so that 1.5 steps are exact
    weight = torch.rand(rows, 3, generator=generator)
    weight[:, :1], weight[:, 2] = 1.5 * scale, weight[:, 1]
    mean = torch.tensor([0.1, large, -large])
    return Grid(4, False, None).nearest(weight, scale), Moments(mean, mean.double().outer(mean.double()))


cases = st.builds(
    random_case,
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    columns=st.integers(1, 41),
    grid=st.sampled_from(GRIDS),
    ties=st.booleans(),
)
some_options = st.builds(
    FlipOptions,
    outlier_percent=st.sampled_from([None, 0.0, 0.05, 0.3, 0.5]),
    knee_tolerance=st.sampled_from([0.0, 0.1]),
    max_flip_percent=st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]),
)


def flat(state: RoundingState) -> RoundingState:
    """The same state without groups: every column has a scale and a zero of its own."""
    scale, zero = (state.per_column(values).clone() for values in (state.scale, state.zero))
    return replace(state, scale=scale, zero=zero, group_size=1)


def assert_only_flips(before: RoundingState, after: RoundingState, masked: Tensor, most: int) -> None:
    """Of a state rounded to nearest: integers moved by one, across their real value, in range, unmasked, `most` a row.

    Nothing but the integers differs.
    """
    moved = after.integers - before.integers
    assert set(moved.unique().tolist()) <= {-1.0, 0.0, 1.0}
    positions = before.positions()
    across = (positions - before.integers) * (positions - after.integers) < 0
    assert across[moved != 0].all()
    assert after.integers.min() >= before.low
    assert after.integers.max() <= before.high
    assert not moved[:, masked].any()
    assert (moved != 0).sum(dim=1).max() <= most
    assert all(getattr(after, name) is getattr(before, name) for name in ("weight", "scale", "zero"))
