"""GPTQ: rounds a weight one column at a time; the columns not yet rounded make up for the error of each.

After Frantar et al., "GPTQ" (2210.17323), section 3 and Algorithm 1: all rows take the columns in one order, the
inverses of the shrinking Hessians are the rows of one Cholesky factor, and updates reach far columns block by block.

Dims: O outputs (rows of the weight), I inputs (columns), G groups of a row, B columns of a block.
Inside, the weight is transposed [I, O] so that a column lies together in memory, with columns in rounding order.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import numerics
from ..errors import QuambaError
from .grid import Grid
from .rounding_state import RoundingState
from .statistics import dead_channels

logger = logging.getLogger(__name__)

RETRIES = 3  # factorizations with stronger damping, after the first one failed
FIRST_RETRY = 1e-4  # the damping of the first retry where none was asked for: zero does not rise tenfold


@dataclass(frozen=True)
class GptqOptions:
    """Say how GPTQ runs. Raises QuambaError for values that there are not.

    damping: share of the Hessian's mean diagonal that is added to its diagonal. act_order: columns by falling diagonal
    of the Hessian, not from left to right. static_groups: scale and zero point of every group come from the weight as
    given; else from the updated weight when the group is reached, which needs the left to right order. block_size:
    columns between two updates of all later columns; it changes the speed, not the result.
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    block_size: int = 128

    def __post_init__(self):
        for name in ("act_order", "static_groups"):
            if type(getattr(self, name)) is not bool:
                raise QuambaError(f"GPTQ's {name} is True or False, not {getattr(self, name)!r}")
        if type(self.damping) not in (int, float) or not 0 <= self.damping < math.inf:
            raise QuambaError(f"GPTQ's damping is a number from 0 up, such as 0.01, not {self.damping!r}")
        if type(self.block_size) is not int or self.block_size < 1:
            raise QuambaError(f"GPTQ's block_size is a whole number from 1 up, such as 128, not {self.block_size!r}")


DEFAULT = GptqOptions()


def gptq(weight: Tensor, second: Tensor, grid: Grid, *, options: GptqOptions = DEFAULT) -> RoundingState:
    """Integers for a weight that keep its outputs close: tr((W - Wq) H (W - Wq)^T) is made small, greedily.

    weight: [O, I], any float dtype. second: [I, I], any float dtype, H = E[x x^T] of the inputs, symmetric; a factor
    on it does not matter (the paper's 2 X X^T does as well). The state has the weight as given in float32, whole
    numbers in the grid's range, and the grid's parameters; all columns in their own order. A column whose input was
    never excited (H_jj = 0, see `dead_channels`) is rounded to nearest and takes no part: nothing makes up for its
    error, and it makes up for none.
    All work is in float64: beside its arguments a call needs about the larger of 24 I^2 and 8 I^2 + 16 O I bytes,
    1.5 GiB for a weight of 8192 x 8192. Weights that share their input are best stacked: one factorization serves all.
    Raises QuambaError where shapes do not fit, where values are NaN or infinite, for act_order without static_groups on
    a grid of groups, and where H stays not positive definite with 1000 times the damping (each rise is logged).
    Source: 2210.17323, section 3.
    """
    _check(weight, second, grid, options)
    weight = weight.detach().to(torch.float32)
    second = second.detach().to(weight.device)
    importance = second.diagonal()  # [I]
    inputs = weight.shape[1]
    if options.act_order:
        order = importance.argsort(descending=True, stable=True)  # [I], position -> column
    else:
        order = torch.arange(inputs, device=weight.device)
    factor = _inverse_factor(second, order, options.damping)  # [I, I]
    columns = weight[:, order].T.to(torch.float64, memory_format=torch.contiguous_format)  # [I, O]

    parameters = grid.parameters(weight)
    scale, zero = (values.T.clone(memory_format=torch.contiguous_format) for values in parameters)  # [G, O]
    rounding = _ColumnRounding(columns, factor, order, scale, zero, grid)
    if options.static_groups or grid.group_size is None:
        rounding.run(options.block_size)
    else:
        rounding.run(options.block_size, refresh_every=grid.group_size)
    integers = torch.empty_like(weight, memory_format=torch.contiguous_format)  # [O, I]
    integers[:, order] = rounding.integers.T
    scale, zero = scale.T.contiguous(), zero.T.contiguous()  # [O, G]
    low, high = numerics.integer_range(grid.bits, grid.symmetric)
    return RoundingState(weight, integers, scale, zero, grid.columns_per_group(inputs), low, high)


class _ColumnRounding:
    """The loop of Algorithm 1. `columns` float64 [I, O] is used up; `scale` and `zero` [G, O] may be refreshed."""

    def __init__(self, columns: Tensor, factor: Tensor, order: Tensor, scale: Tensor, zero: Tensor, grid: Grid):
        self.columns, self.factor, self.scale, self.zero, self.grid = columns, factor, scale, zero, grid
        self.groups = (order // grid.columns_per_group(len(order))).tolist()  # position -> group
        self.integers = torch.empty_like(columns, dtype=torch.float32)

    def run(self, block_size: int, refresh_every: int | None = None) -> None:
        """Rounds every column; with `refresh_every`, the group size, a group's parameters follow from its updates."""
        total, start = len(self.columns), 0
        while start < total:
            end = min(start + block_size, total)
            if refresh_every is not None:
                # no block crosses the start of a group: there, all columns of the group must have had every update
                end = min(end, (self.groups[start] + 1) * refresh_every)
                if start % refresh_every == 0:
                    self._refresh(self.groups[start], self.columns[start : start + refresh_every])
            errors = self._round_block(start, end)  # [B, O]
            self.columns[end:].addmm_(self.factor[start:end, end:].T, errors, alpha=-1)
            start = end

    def _round_block(self, start: int, end: int) -> Tensor:
        """Rounds the columns of one block and updates those within it; gives the scaled errors float64 [B, O]."""
        errors = torch.empty_like(self.columns[start:end])
        for position in range(start, end):
            error = errors[position - start]  # [O], a view
            torch.sub(self.columns[position], self._round(position), out=error)
            error /= self.factor[position, position]
            rest = slice(position + 1, end)
            # an outer product as a matrix product: BLAS keeps it on one thread, which `addr_` does not; it is small
            self.columns[rest].addmm_(self.factor[position, rest, None], error[None], alpha=-1)
        return errors

    def _round(self, position: int) -> Tensor:
        """Stores the integers of one column and gives the values float32 [O] that they stand for."""
        group = self.groups[position]
        scale, zero = self.scale[group], None if self.grid.symmetric else self.zero[group]
        q = numerics.quantize(self.columns[position], scale, zero, self.grid.bits)
        self.integers[position] = q
        return numerics.dequantize(q, scale, zero)

    def _refresh(self, group: int, columns: Tensor) -> None:
        scale, zero = self.grid.parameters(columns.T.to(torch.float32))  # [O, 1]
        self.scale[group], self.zero[group] = scale[:, 0], zero[:, 0]


def _inverse_factor(second: Tensor, order: Tensor, damping: float) -> Tensor:
    """U float64 [I, I], upper triangular, with H^-1 = U^T U for H = `second` damped, rows and columns in `order`.

    Row j of U is row j of the inverse that is left when the columns before j are rounded, over the root of its
    diagonal (2210.17323, section 3.3). Dead columns get the diagonal 1 and nothing beside it, and have no share in
    the mean diagonal, so that neither their number nor a factor on H changes the others.
    """
    # H = R R^T with R upper triangular gives U = R^-1. R is the usual factor L of H read backwards, read backwards:
    # one factorization and one triangular inverse, and the inverse of H itself is never formed.
    backwards = order.flip(0)
    hessian = second[backwards[:, None], backwards].to(torch.float64)  # [I, I]
    diagonal = hessian.diagonal()
    dead = dead_channels(diagonal)
    if bool(dead.any()):
        hessian[dead], hessian[:, dead] = 0, 0
    mean = float(diagonal.sum() / (~dead).sum().clamp(min=1))
    diagonal[dead] = 1
    lower = _damped_cholesky(hessian, mean, damping)
    del hessian, diagonal  # I is large: at most three matrices at a time
    inverse = torch.eye(len(order), dtype=torch.float64, device=second.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return inverse.flip(0, 1)


def _damped_cholesky(hessian: Tensor, mean: float, damping: float) -> Tensor:
    """Lower Cholesky factor of `hessian` + damping * mean on the diagonal; changes `hessian`.

    Where it fails the damping rises tenfold, up to RETRIES times. Raises QuambaError where the last one fails.
    """
    diagonal = hessian.diagonal()
    undamped = diagonal.clone()
    for attempt in range(RETRIES + 1):
        diagonal.copy_(undamped + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return lower
        if attempt < RETRIES:
            stronger = 10 * damping or FIRST_RETRY
            logger.warning("GPTQ: no Cholesky factor of H with damping %g: trying %g", damping, stronger)
            damping = stronger
    raise QuambaError(
        f"the second moment is not positive definite, even with damping {damping:g}: "
        "calibrate with more tokens, or round to nearest"
    )


def _check(weight: Tensor, second: Tensor, grid: Grid, options: GptqOptions) -> None:
    if weight.dim() != 2 or weight.numel() == 0:
        raise QuambaError(f"GPTQ rounds a weight [outputs, inputs], not a tensor of shape {tuple(weight.shape)}")
    inputs = weight.shape[1]
    if second.shape != (inputs, inputs):
        raise QuambaError(
            f"a weight of {inputs} inputs needs a second moment [{inputs}, {inputs}], not {tuple(second.shape)}"
        )
    for name, tensor in (("weight", weight), ("second moment", second)):
        if not tensor.is_floating_point():
            raise QuambaError(f"GPTQ needs the {name} as floats, not as {tensor.dtype}")
        if not tensor.isfinite().all():
            raise QuambaError(f"the {name} holds NaN or infinity: GPTQ needs finite values")
    if options.act_order and not options.static_groups and grid.group_size is not None:
        raise QuambaError(
            f"act_order takes the columns of a group of {grid.group_size} at scattered times, so its scale cannot "
            "follow their updates: use static_groups, or turn act_order off"
        )
