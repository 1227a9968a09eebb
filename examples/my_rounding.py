"""A plug-in rounding rule: after rounding to nearest, each output row flips the one weight that helps its mean most.

    python main.py mamba-tiny --quantize --w_bits 4 --a_bits 16 --plugin examples/my_rounding.py \
        --use_heuristic --flip_objective one_flip

A flip moves an integer one step to the other side of the real value, and takes E[x_j] * direction * scale_j from the
row's mean error e = sum_j E[x_j] (W - Wq)_j. Compare it with the built-in rules `mean`, which flips more of them, and
`hessian`, which looks at the squared error.
"""

import torch

from quamba.weights.rounding import FlipStatistics, register_rounding


@register_rounding("one_flip")
def flip_one(state, statistics, options):
    mean = statistics.mean.double()  # [I]
    direction = (state.positions() - state.integers).sign()  # [O, I]
    moved = state.integers + direction
    allowed = (direction != 0) & (moved >= state.low) & (moved <= state.high) & ~options.outliers(statistics.mean).mask
    error = state.error().double() @ mean  # [O]
    left = (error[:, None] - mean * direction * state.per_column(state.scale)).abs()  # [O, I] after each flip
    left = torch.where(allowed, left, torch.inf)
    least, column = left.min(dim=1, keepdim=True)  # [O, 1]
    helps = least < error.abs()[:, None]
    integers = state.integers.scatter_add(1, column, torch.where(helps, direction.gather(1, column), 0))
    return state.with_integers(integers), FlipStatistics.of(state.integers, integers)
