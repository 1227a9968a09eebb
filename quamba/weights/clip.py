"""AWQ's search for clipped ranges: per row and group, the shrunk range that leaves the least output error.

As in AWQ (arXiv 2306.00978, end of section 3.2): a few large weights cost the others resolution, and where their inputs
are small it pays to cut them off.

Dims:
    O, o  rows of the weight, of a chunk of it
    I     input channels
    G, c  groups of a row, columns of a group (per channel: G = 1, c = I); the last group is padded with zeros
    n, k  sampled rows of the input; rows that stand for them in a group: min(n, c)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import QuambaError
from .awq import TEMPORARIES, ScaledStatistics, row_chunks
from .grid import Grid
from .statistics import InputStatistics, compact_rows, dead_channels


@torch.no_grad()
def clip_weight(
    weight: Tensor,
    statistics: InputStatistics | ScaledStatistics,
    grid: Grid,
    *,
    n_grid: int = 20,
    max_shrink: float = 0.5,
) -> Tensor:
    """The weight with each group's values clamped to its best range, for any rounding after it: float32 [O, I].

    weight: [O, I], any float dtype, read as float32: the scaled one after an AWQ search, with the statistics of the
    scaled input. The range of a group is [-r a, r a]: a is its largest magnitude, and r the ratios 1 - i / n_grid down
    to 1 - max_shrink; so the longer side of an uneven group is cut first. The least |X_g (W_g - Wq_g)^T|^2 on the
    sampled rows wins, where Wq_g is the clamped W_g rounded to nearest; of equal errors the larger range. max_shrink 0
    gives the weight as it is. No range cuts a weight whose input is never excited: the rows are blind to what that
    costs.
    Raises QuambaError for n_grid below 1 or max_shrink outside [0, 1).
    """
    if n_grid < 1 or not 0 <= max_shrink < 1:
        raise QuambaError(
            f"n_grid {n_grid} and max_shrink {max_shrink:g} are no clip search: n_grid must be at least 1 and "
            "max_shrink at least 0 and below 1"
        )
    columns = weight.shape[1]
    size = grid.columns_per_group(columns)
    ratios = [1 - step / n_grid for step in range(n_grid) if step / n_grid <= max_shrink]
    rows = compact_rows(_grouped(statistics.sample, size).transpose(0, 1))  # [n, G, c] -> [G, k, c]
    per_row = (TEMPORARIES + 4) * columns + 2 * rows.shape[0] * rows.shape[1]
    chunks = [part.detach().to(torch.float32) for part in row_chunks(weight, per_row)]
    dead = dead_channels(statistics.salience)
    return torch.cat([_clip_chunk(part, rows, dead, grid, size, ratios) for part in chunks])


def _clip_chunk(weight: Tensor, rows: Tensor, dead: Tensor, grid: Grid, size: int, ratios: list[float]) -> Tensor:
    """clip_weight of a chunk [o, I]; rows: X of each group, [G, k, c]; dead: bool [I]."""
    largest, uncut = (
        _per_column(_grouped(values, size).abs().amax(dim=-1), size, weight.shape[1])  # [o, I]
        for values in (weight, torch.where(dead, weight, 0))
    )
    best = weight
    least = torch.full((len(weight), len(rows)), torch.inf, dtype=torch.float32, device=weight.device)  # [o, G]
    for ratio in ratios:
        limit = torch.maximum(largest * ratio, uncut)
        clipped = weight.clamp(-limit, limit)
        difference = weight - grid.nearest(clipped).dequantized()  # [o, I]
        error = group_errors(difference, rows, size)  # [o, G]
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(_per_column(better, size, weight.shape[1]), clipped, best)
    return best


def group_errors(difference: Tensor, rows: Tensor, size: int) -> Tensor:
    """|X_g D_g^T|^2 of each row and group: difference D [o, I], rows X [G, k, c] -> float32 [o, G]."""
    groups = _grouped(difference, size).permute(1, 2, 0)  # [G, c, o]
    return (rows @ groups).square().sum(dim=1).T  # [G, k, o] -> [o, G]


def _grouped(x: Tensor, size: int) -> Tensor:
    """[r, I] -> [r, G, c], a short last group filled with zeros."""
    groups = -(-x.shape[1] // size)
    return F.pad(x, (0, groups * size - x.shape[1])).unflatten(1, (groups, size))


def _per_column(groups: Tensor, size: int, columns: int) -> Tensor:
    """A value per group [o, G] -> one per column [o, I]."""
    return groups.repeat_interleave(size, dim=1)[:, :columns]
