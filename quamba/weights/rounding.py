"""The rounding rules: nearest, and flips of some integers that lessen the error of a layer's output.

A flip moves an integer one step to the other side of the real value that it stands for. With D = W - Wq and inputs x,
the outputs are off by D x. Rule "mean" lessens the mean of that, e = D mu, mu = E[x]; rule "hessian" its square,
tr(D H D^T), H = E[x x^T]. The former is the rank-one case of the latter: for H = mu mu^T it is the sum of e^2.

Dims: O out features, I in features, C rows of a chunk, K most flips of a row.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import QuambaError
from .rounding_base import (
    DEFAULT_OPTIONS,
    FlipOptions,
    FlipStatistics,
    InputMoments,
    RoundingRule,
    apply_rounding,
    get_rounding,
    register_rounding,
    rounding_names,
    try_rounding,
)
from .rounding_state import RoundingState
from .statistics import dead_channels

__all__ = [
    "DEFAULT_OPTIONS",
    "FlipOptions",
    "FlipStatistics",
    "InputMoments",
    "RoundingRule",
    "apply_rounding",
    "flip_by_hessian",
    "flip_by_mean",
    "get_rounding",
    "hessian_error",
    "mean_error",
    "register_rounding",
    "round_to_nearest",
    "rounding_names",
    "try_rounding",
]

CHUNK_BYTES = 2**28  # rows are taken in chunks whose temporaries fill about this much
BYTES_PER_WEIGHT = 128  # of the temporaries of a chunk, most of them float64
PRODUCT_ROWS = 1024  # of a float32 H that are float64 at a time
# A sum of n float64 terms is off by less than n eps times the sum of their magnitudes, whatever their order. Flips must
# gain more than what two sums can be off by: then no way of summing sees the error rise.
EPS = 4 * torch.finfo(torch.float64).eps


@register_rounding("nearest")
def round_to_nearest(
    state: RoundingState, statistics: InputMoments, options: FlipOptions = DEFAULT_OPTIONS
) -> tuple[RoundingState, FlipStatistics]:
    """The state as it is: no integer flips."""
    return state, FlipStatistics.of(state.integers, state.integers)


@register_rounding("mean")
def flip_by_mean(
    state: RoundingState, statistics: InputMoments, options: FlipOptions = DEFAULT_OPTIONS
) -> tuple[RoundingState, FlipStatistics]:
    """Flips of each row that bring its mean error e = sum_j E[x_j] (W - Wq)_j closest to 0; |e| never grows.

    Candidates are the weights whose flip takes from e what has its sign (and is more than what the sum may be off by),
    stays in range and is not of an outlier channel; in descending order of their rounding cost |position - integer| (of
    equal ones the lower column first), the prefix that leaves the least |e| flips (of equal ones the shortest), at most
    `options.max_flip_percent` of the row.
    Raises QuambaError for a mean that is not finite or not [I].
    """
    mean = _mean_of(state, statistics)
    return _flip_rows(state, mean, mean, options, _mean_flips)


@register_rounding("hessian")
def flip_by_hessian(
    state: RoundingState, statistics: InputMoments, options: FlipOptions = DEFAULT_OPTIONS
) -> tuple[RoundingState, FlipStatistics]:
    """Flips that lessen the output's squared error tr((W - Wq) H (W - Wq)^T), H = E[x x^T]; it never grows.

    Candidates are the weights whose flip stays in range and is not of an outlier channel, nor of one that is never
    excited. Each row takes, one after the
    other, the flip that lessens its error most, until none does or `options.max_flip_percent` of the row has flipped; a
    weight flips once at most. Raises QuambaError for a mean that is not finite or not [I], and without an H [I, I].
    """
    mean = _mean_of(state, statistics)
    return _flip_rows(state, mean, _second_of(state, statistics), options, _hessian_flips)


def _flip_rows(
    state: RoundingState, mean: Tensor, moment: Tensor, options: FlipOptions, flips: Callable
) -> tuple[RoundingState, FlipStatistics]:
    """Flips chunk by chunk: flips(rows, moment, masked, most) -> (integers, candidates); mean float64 [I]."""
    outliers = options.outliers(mean)
    most = options.most_flips(mean.numel())
    integers, candidates = torch.empty_like(state.integers), 0
    for rows in _chunks(state):
        integers[rows], count = flips(state.rows(rows.start, rows.stop), moment, outliers.mask, most)
        candidates += count
    return state.with_integers(integers), FlipStatistics.of(state.integers, integers, candidates, outliers)


def mean_error(state: RoundingState, mean: Tensor) -> Tensor:
    """e = sum_j E[x_j] (W - Wq)_j of each row, float64 [O]; mean [I]."""
    mean = mean.to(torch.float64)
    return torch.cat([state.rows(rows.start, rows.stop).double().error() @ mean for rows in _chunks(state)])


def hessian_error(state: RoundingState, second: Tensor) -> Tensor:
    """(W - Wq) H (W - Wq)^T of each row, float64 [O]; second: H [I, I]. Their sum is the trace."""
    found = []
    for rows in _chunks(state):
        error = state.rows(rows.start, rows.stop).double().error()  # [C, I]
        found.append((_product(error, second) * error).sum(dim=1))
    return torch.cat(found)


def _chunks(state: RoundingState) -> Iterator[slice]:
    """The rows of a weight in parts whose temporaries are bounded, whatever its size."""
    rows, columns = state.weight.shape
    size = max(1, CHUNK_BYTES // (BYTES_PER_WEIGHT * columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _directions(state: RoundingState, masked: Tensor) -> tuple[Tensor, Tensor]:
    """(direction, cost) float32 [C, I]: +1 or -1 to flip, 0 where it cannot; and |position - integer|."""
    offset = state.positions() - state.integers
    direction = offset.sign()
    moved = state.integers + direction
    allowed = (moved >= state.low) & (moved <= state.high) & ~masked
    return torch.where(allowed, direction, 0), offset.abs()


def _mean_flips(state: RoundingState, mean: Tensor, masked: Tensor, most: int) -> tuple[Tensor, int]:
    """(integers [C, I] with flips, the number of candidates); mean float64 [I], masked bool [I]."""
    wide = state.double()
    direction, cost = _directions(state, masked)
    weighted = wide.error() * mean  # [C, I]
    error = weighted.sum(dim=1)  # [C]
    noise = EPS * mean.numel() * weighted.abs().sum(dim=1)
    taken = mean * direction * wide.per_column(wide.scale)  # [C, I], what a flip takes from the error
    candidate = (taken.sign() * error.sign().unsqueeze(1) > 0) & (taken.abs() > noise.unsqueeze(1))
    cost, order = torch.where(candidate, cost, -1).sort(dim=1, descending=True, stable=True)
    cost, order = cost[:, :most], order[:, :most]  # [C, K]
    taken = torch.where(cost > 0, taken.gather(1, order), 0)  # what is no candidate comes last, and takes nothing
    left = torch.cat([error.unsqueeze(1), error.unsqueeze(1) - taken.cumsum(dim=1)], dim=1).abs()  # [C, K + 1]
    least, length = left.min(dim=1)  # the first, so the shortest prefix, of equal ones
    length = torch.where(least < left[:, 0] - noise, length, 0)
    flips = torch.arange(order.shape[1], device=order.device) < length.unsqueeze(1)
    moves = torch.where(flips, direction.gather(1, order), 0)
    return state.integers.scatter_add(1, order, moves), int(candidate.sum())


def _hessian_flips(state: RoundingState, second: Tensor, masked: Tensor, most: int) -> tuple[Tensor, int]:
    """(integers [C, I] with flips, the number of candidates); second symmetric [I, I], masked bool [I].

    A flip at column j takes s = direction * scale from D_j. That changes D H D^T by s^2 H_jj - 2 s (D H)_j, exactly,
    and D H by -s H_j.
    """
    wide = state.double()
    diagonal = second.diagonal().to(torch.float64)  # [I]
    direction, _ = _directions(state, masked | dead_channels(diagonal))
    error, step = wide.error(), direction * wide.per_column(wide.scale)  # [C, I]
    gradient = _product(error, second)  # D H [C, I]
    # |H_jk| <= sqrt(H_jj H_kk), so this is what the magnitudes of all terms of D H D^T sum to at most, flips included
    magnitude = ((error.abs() + step.abs()) @ diagonal.clamp(min=0).sqrt()).square()  # [C]
    noise = EPS * diagonal.numel() * magnitude
    integers, candidates = state.integers.clone(), int(direction.count_nonzero())
    for _ in range(most):
        change, column = (step * (step * diagonal - 2 * gradient)).min(dim=1, keepdim=True)  # [C, 1]
        improves = change < -noise.unsqueeze(1)
        if not bool(improves.any()):
            break
        taken = torch.where(improves, step.gather(1, column), 0)
        integers.scatter_add_(1, column, taken.sign().to(integers.dtype))
        gradient -= taken * second[column.squeeze(1)]  # [C, I]
        step.scatter_(1, column, 0.0)  # flips once; a row that does not improve is done: nothing in it changes again
    return integers, candidates


def _product(error: Tensor, second: Tensor) -> Tensor:
    """D H, float64 [C, I], of D float64 [C, I]; H [I, I] is never float64 as a whole."""
    product = torch.zeros_like(error)
    for start in range(0, second.shape[0], PRODUCT_ROWS):
        rows = slice(start, start + PRODUCT_ROWS)
        product.addmm_(error[:, rows], second[rows].to(torch.float64))
    return product


def _mean_of(state: RoundingState, statistics: InputMoments) -> Tensor:
    """E[x], float64 [I]."""
    mean, columns = statistics.mean, state.weight.shape[1]
    if mean.shape != (columns,):
        raise QuambaError(f"a weight of {columns} columns needs a mean of as many inputs, not {tuple(mean.shape)}")
    return mean.detach().to(torch.float64)


def _second_of(state: RoundingState, statistics: InputMoments) -> Tensor:
    """E[x x^T], float [I, I], exactly symmetric: the sums of a stream may not be to the last bit."""
    second, columns = statistics.second, state.weight.shape[1]
    if second is None:
        raise QuambaError("rounding rule 'hessian' needs E[x x^T]: collect the statistics with their second moment")
    if second.shape != (columns, columns):
        raise QuambaError(f"a weight of {columns} columns needs an H [{columns}, {columns}], not {tuple(second.shape)}")
    if not bool(second.isfinite().all()):
        raise QuambaError(
            "E[x x^T] of a layer's inputs holds NaN or infinity: check the model and its calibration text"
        )
    return second if torch.equal(second, second.T) else (second + second.T) / 2
