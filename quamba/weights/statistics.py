"""What the input of a linear layer looks like over the calibration text: its moments per channel, and a sample of rows.

Dims:
    I  input channels of the layer
    R  rows (tokens) of one batch
    N  rows seen so far
    n  rows of the sample: min(N, sample_rows)
"""

import torch
from torch import Tensor

from ..errors import QuambaError

# E[x^2] of a channel, as a share of the mean of all: what is below is noise, a 10^7th of the others' size, and says
# nothing of what the channel's weights are worth
DEAD_SHARE = 1e-14
# Rows are added up in blocks of this many, whatever the batches: so nothing depends on how the stream is cut.
BLOCK_ROWS = 256


class InputStatistics:
    """A stream over a layer's input: its mean, its second moments and a uniform sample of its rows.

    channels: I. second_moment: whether E[x x^T] is kept too. sample_rows: the most rows the sample has. seed: of the
    sample. What is read depends on the rows and their order only, to the bit, not on how the stream is cut into
    batches. Sums per channel are float64. x x^T is kept once as float32 [I, I] (256 MB where I = 8192) and takes one
    float32 product per 256 rows: its relative error is about 1e-6, far below the damping of GPTQ.
    Raises QuambaError for sizes below 1.
    """

    def __init__(self, channels: int, *, second_moment: bool, sample_rows: int = 2048, seed: int = 0):
        if channels < 1 or sample_rows < 1:
            raise QuambaError(
                f"statistics of {channels} channels and {sample_rows} sampled rows are none: both must be at least 1"
            )
        self.channels, self.second_moment, self.sample_rows = channels, second_moment, sample_rows
        self.count = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0, dtype=torch.float64)  # of the rows of the sample

    def update(self, x: Tensor) -> None:
        """Takes in one batch: float [..., I] of any float dtype, read as float32; no rows at all are allowed.

        Raises QuambaError where `x` is not float, has another number of channels, or holds NaN or infinity; nothing is
        then taken.
        """
        if not x.is_floating_point() or x.shape[-1:] != (self.channels,):
            raise QuambaError(
                f"the input of a layer must be float with {self.channels} channels last, "
                f"not {x.dtype} of shape {tuple(x.shape)}"
            )
        x = x.detach().to(torch.float32).reshape(-1, self.channels)  # [R, I]
        if not bool(x.isfinite().all()):
            raise QuambaError("the input of a layer holds NaN or infinity")
        if len(x) == 0:
            return
        if self.count == 0:
            self._allocate(x.device)
        self._draw(x)
        self._accumulate(x)
        self.count += len(x)

    @property
    def mean(self) -> Tensor:
        """E[x], float32 [I]. Raises QuambaError before the first row."""
        pending = self._pending.to(torch.float64)
        return ((self._sum + pending.sum(dim=0)) / self.count).to(torch.float32)

    @property
    def salience(self) -> Tensor:
        """E[x^2], float32 [I]. Raises QuambaError before the first row."""
        pending = self._pending.to(torch.float64)
        return ((self._squares + pending.square().sum(dim=0)) / self.count).to(torch.float32)

    @property
    def second(self) -> Tensor | None:
        """E[x x^T], float32 [I, I], computed anew at each read; None where it is not kept. Raises before a row."""
        pending = self._pending
        if not self.second_moment:
            return None
        return torch.addmm(self._products, pending.T, pending).div_(self.count)

    @property
    def sample(self) -> Tensor:
        """The sampled rows in the order of the stream, float32 [n, I]. Raises QuambaError before the first row."""
        self._require_rows()
        return self._sample

    def _allocate(self, device: torch.device) -> None:
        self._sum = torch.zeros(self.channels, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self._sum)
        self._block = torch.empty(BLOCK_ROWS, self.channels, dtype=torch.float32, device=device)
        self._sample = self._block[:0].clone()
        if self.second_moment:
            self._products = torch.zeros(self.channels, self.channels, dtype=torch.float32, device=device)

    def _draw(self, x: Tensor) -> None:
        """Reservoir sampling: every row draws a key in the order of the stream, the smallest `sample_rows` stay."""
        drawn = torch.rand(len(x), generator=self._generator, dtype=torch.float64)
        keys = torch.cat([self._keys, drawn])
        kept = keys.argsort(stable=True)[: self.sample_rows].sort().values  # places in `keys`: the stream's order
        old = len(self._keys)
        stay, enter = kept[kept < old], kept[kept >= old] - old
        if len(enter):
            self._keys = keys[kept]
            self._sample = torch.cat([self._sample[stay.to(x.device)], x[enter.to(x.device)]])  # [n, I]

    def _accumulate(self, x: Tensor) -> None:
        """Fills the block with the rows of x [R, I], and adds it to the sums whenever it is full."""
        filled = self.count % BLOCK_ROWS
        while len(x):
            rows, x = x[: BLOCK_ROWS - filled], x[BLOCK_ROWS - filled :]
            self._block[filled : filled + len(rows)] = rows
            filled += len(rows)
            if filled == BLOCK_ROWS:
                wide = self._block.to(torch.float64)
                self._sum += wide.sum(dim=0)
                self._squares += wide.square().sum(dim=0)
                if self.second_moment:
                    self._products.addmm_(self._block.T, self._block)
                filled = 0

    def _require_rows(self) -> None:
        if self.count == 0:
            raise QuambaError("the input of a layer has not been seen: no row of it came by")

    @property
    def _pending(self) -> Tensor:
        """The rows of the block that the sums lack, [N % BLOCK_ROWS, I]."""
        self._require_rows()
        return self._block[: self.count % BLOCK_ROWS]


def dead_channels(salience: Tensor) -> Tensor:
    """Return which channels a text never excites: bool [I] of E[x^2], float [I].

    Their weights have no effect on the text, and every search is blind to them: they are rounded to nearest.
    """
    noise = DEAD_SHARE * salience.mean(dtype=torch.float64).clamp(min=0)
    return (salience >= 0) & (salience <= noise) & salience.isfinite()


def compact_rows(rows: Tensor) -> Tensor:
    """Rows [..., n, I] -> [..., min(n, I), I] whose product with any matrix has the same Frobenius norm.

    It is the triangular factor of rows = Q R, float32: |rows @ D| = |R @ D| as Q only rotates. Fewer rows, less work.
    """
    if rows.shape[-2] <= rows.shape[-1]:
        return rows
    return torch.linalg.qr(rows, mode="r").R
