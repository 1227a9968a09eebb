"""Streaming histogram of magnitudes.

A bin is read off a float32's own bits: key = bits of |v| >> (23 - mantissa_bits), so every octave [2^e, 2^(e+1)) has
2^mantissa_bits bins of equal relative width (0.05 % at the default 11). A bin keeps how many values fell into it and
their sum, therefore their exact mean: quantiles and quantization errors of the whole stream are read from the bins
without the data. Everything here takes finite values; the observers check that.
"""

import math

import torch
from torch import Tensor

from .. import ops
from .quantile import floats_from_bits, interpolate, pieces

MANTISSA_BITS = 11
SMALLEST = 2.0**-126  # smallest normal float32: anything below counts as zero
THRESHOLDS_AT_A_TIME = 1 << 20


def _octave(value: float) -> int:
    """The biased exponent of a positive float32: value lies in [2^(octave-127), 2^(octave-126))."""
    return math.frexp(value)[1] + 126


class MagnitudeHistogram:
    """Counts and sums of |x| over everything given to `update`, in bins of relative width 2^-mantissa_bits.

    The covered octaves grow on demand, from the lowest occupied to the highest: at most 8 MB, usually about 1 MB.
    counts int64, sums float64: [1 + octaves * 2^mantissa_bits]; bin 0 holds the zeros.
    """

    def __init__(self, mantissa_bits: int = MANTISSA_BITS, octave: int = 1, octaves: int = 0):
        self.mantissa_bits = mantissa_bits
        self.octave = octave  # biased exponent of the lowest covered octave
        self.peak = 0.0  # the largest magnitude, exact
        self.counts = torch.zeros(1 + (octaves << mantissa_bits), dtype=torch.int64)
        self.sums = torch.zeros(self.counts.shape, dtype=torch.float64)

    @property
    def octaves(self) -> int:
        """Return how many octaves are covered."""
        return (self.counts.numel() - 1) >> self.mantissa_bits

    def is_valid(self) -> bool:
        """Return whether what was read from a file, and put in place of what this holds, is a histogram."""
        plain = type(self.mantissa_bits) is int and type(self.octave) is int and isinstance(self.peak, int | float)
        if not plain or not 0 <= self.mantissa_bits <= 23 or not 0 <= self.peak < math.inf:
            return False
        counts, sums, bins = self.counts, self.sums, 1 << self.mantissa_bits
        shaped = counts.shape == sums.shape and counts.dim() == 1 and counts.numel() % bins == 1 % bins
        typed = counts.dtype == torch.int64 and sums.dtype == torch.float64
        if not shaped or not typed or not 1 <= self.octave <= 255 - self.octaves:
            return False
        return bool((counts >= 0).all()) and bool(sums.isfinite().all())

    def empty_like(self) -> "MagnitudeHistogram":
        """An empty histogram that covers the same octaves."""
        return MagnitudeHistogram(self.mantissa_bits, self.octave, self.octaves)

    def update(self, x: Tensor) -> None:
        """Adds the magnitudes of `x`: any shape, any float dtype, finite."""
        self.counts, self.sums = self.counts.to(x.device), self.sums.to(x.device)
        for piece in pieces(x):
            low, high = torch.aminmax(piece)
            peak = max(-float(low), float(high))
            if peak >= SMALLEST:
                self._cover(_octave(peak), _octave(peak))
            self.peak = max(self.peak, peak)
            self._add(piece)
            if self.sums[0] > 0:  # something below the covered octaves fell in with the zeros
                self._move_out_of_zero_bin(piece)

    def merge(self, other: "MagnitudeHistogram") -> None:
        """Adds what `other` has counted: the same as having seen its data (counts exactly)."""
        if other.octaves:
            self._cover(other.octave, other.octave + other.octaves - 1)
        self.peak = max(self.peak, other.peak)
        start = 1 + ((other.octave - self.octave) << self.mantissa_bits)
        end = start + other.counts.numel() - 1
        for mine, theirs in ((self.counts, other.counts), (self.sums, other.sums)):
            theirs = theirs.to(mine.device)
            mine[0] += theirs[0]
            if other.octaves:
                mine[start:end] += theirs[1:]

    def distribution(self) -> "Distribution":
        """The occupied bins, on the CPU, ready to be asked for quantiles and tails."""
        counts, sums = self.counts.cpu(), self.sums.cpu()
        zeros, occupied = int(counts[0]), counts[1:].nonzero().squeeze(1)
        keys = occupied + (self.octave << self.mantissa_bits)
        shift = 23 - self.mantissa_bits
        counts, sums = counts[1:][occupied], sums[1:][occupied]
        low = floats_from_bits(keys << shift)
        high = floats_from_bits((keys + 1) << shift).clamp(max=self.peak)
        return Distribution(zeros, counts, sums / counts, low, high)

    def _add(self, piece: Tensor) -> None:
        first_bin = (self.octave << self.mantissa_bits) - 1  # everything lower lands in bin 0
        ops.magnitude_histogram(piece, self.counts, self.sums, first_bin, self.mantissa_bits)

    def _move_out_of_zero_bin(self, piece: Tensor) -> None:
        magnitudes = piece.abs().to(torch.float32)
        edge = 2.0 ** (self.octave - 127) if self.octaves else math.inf
        small = magnitudes[(magnitudes >= SMALLEST) & (magnitudes < edge)]
        self.sums[0] = 0
        if small.numel():
            self.counts[0] -= small.numel()
            self._cover(_octave(float(small.min())), _octave(float(small.max())))
            self._add(small)

    def _cover(self, lowest: int, highest: int) -> None:
        if self.octaves:
            lowest, highest = min(lowest, self.octave), max(highest, self.octave + self.octaves - 1)
        octaves = highest - lowest + 1
        if octaves == self.octaves:
            return
        start = 1 + ((self.octave - lowest) << self.mantissa_bits) if self.octaves else 1
        for name in ("counts", "sums"):
            old = getattr(self, name)
            grown = old.new_zeros(1 + (octaves << self.mantissa_bits))
            grown[0] = old[0]
            grown[start : start + old.numel() - 1] = old[1:]
            setattr(self, name, grown)
        self.octave = lowest


class Distribution:
    """Hold what a magnitude histogram has counted, to be read. All float64, on the CPU.

    Within a bin the values are taken to be spread evenly over the widest interval that lies in the bin and is centred
    on their mean: a single value, or one value repeated at the bin's edge (all of float16 and bfloat16), is exact.
    """

    def __init__(self, zeros: int, counts: Tensor, mean: Tensor, low: Tensor, high: Tensor):
        half_width = torch.minimum(mean - low, high - mean).clamp(min=0)
        half_width[counts == 1] = 0
        self.zeros = zeros
        self.last_rank = zeros + counts.cumsum(0) - 1  # of each bin, counting from 0
        self.count = zeros + int(counts.sum())
        self.square_sum = float((counts * (mean**2 + half_width**2 / 3)).sum())
        # Past the end: an empty bin, so that every threshold has one to fall into.
        self.counts, self.low, self.high = (_append_zero(v) for v in (counts, mean - half_width, mean + half_width))
        self.tail_counts, self.tail_sums = (
            _append_zero(v.to(torch.float64).flip(0).cumsum(0).flip(0)) for v in (counts, counts * mean)
        )

    def order_statistic(self, rank: int) -> float:
        """The value of that rank, 0 <= rank < count, in ascending order."""
        if rank < self.zeros:
            return 0.0
        bin_ = int(torch.searchsorted(self.last_rank, rank))
        n, low, high = int(self.counts[bin_]), float(self.low[bin_]), float(self.high[bin_])
        place = rank - (int(self.last_rank[bin_]) - n)  # 1..n
        return low + (high - low) * (place - 0.5) / n

    def quantile(self, p: float) -> float:
        """The p-quantile of the magnitudes, within one bin's relative width."""
        return interpolate(self.order_statistic, self.count, p)

    def above(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many magnitudes exceed each threshold (float64, any shape, positive), and their sum."""
        bin_ = torch.searchsorted(self.high[:-1], thresholds, right=True)  # the first bin that reaches above
        low, high = self.low[bin_], self.high[bin_]
        share = ((high - thresholds) / (high - low)).clamp(0, 1)
        split = self.counts[bin_] * share
        beyond = (bin_ + 1).clamp(max=self.high.numel() - 1)
        return (
            split + self.tail_counts[beyond],
            split * (torch.maximum(low, thresholds) + high) / 2 + self.tail_sums[beyond],
        )


def _append_zero(v: Tensor) -> Tensor:
    return torch.cat([v, v.new_zeros(1)])


class SignedHistogram:
    """A magnitude histogram of the positive values and one of the negative values."""

    def __init__(self, mantissa_bits: int = MANTISSA_BITS):
        self.count = 0
        self.positive, self.negative = MagnitudeHistogram(mantissa_bits), MagnitudeHistogram(mantissa_bits)

    def empty_like(self) -> "SignedHistogram":
        """An empty histogram that covers the same octaves."""
        empty = SignedHistogram()
        empty.positive, empty.negative = self.positive.empty_like(), self.negative.empty_like()
        return empty

    def update(self, x: Tensor) -> None:
        """Adds the values of `x`: any shape, any float dtype, finite."""
        for piece in pieces(x):
            self.positive.update(piece.clamp(min=0))
            self.negative.update((-piece).clamp(min=0))
        self.count += x.numel()

    def merge(self, other: "SignedHistogram") -> None:
        """Adds what `other` has counted: the same as having seen its data (counts exactly)."""
        self.positive.merge(other.positive)
        self.negative.merge(other.negative)
        self.count += other.count

    def magnitudes(self) -> Distribution:
        """The distribution of |x|."""
        both = self.positive.empty_like()
        both.merge(self.positive)
        both.merge(self.negative)
        both.counts[0] -= self.count  # each side counted the other's values among its zeros
        return both.distribution()

    def distribution(self) -> "SignedDistribution":
        """The occupied bins of both signs, ready to be asked for quantiles and quantization errors."""
        return SignedDistribution(self.count, self.positive.distribution(), self.negative.distribution())


class SignedDistribution:
    """Hold what a signed histogram has counted, to be read; each side counts the other side's values as zeros."""

    def __init__(self, count: int, positive: Distribution, negative: Distribution):
        self.count, self.positive, self.negative = count, positive, negative

    def quantile(self, p: float) -> float:
        """The p-quantile of the signed values, within one bin's relative width."""
        return interpolate(self._order_statistic, self.count, p)

    def _order_statistic(self, rank: int) -> float:
        value = self.positive.order_statistic(rank)
        return value if value > 0 else -self.negative.order_statistic(self.count - 1 - rank)

    def mean_square(self) -> float:
        """E[x^2]."""
        return (self.positive.square_sum + self.negative.square_sum) / self.count

    def mean_squared_error(self, scale: Tensor, positive_levels: Tensor | int, negative_levels: Tensor | int) -> Tensor:
        """E[(x - dequantize(quantize(x)))^2] for each of several formats at once; float64 [n].

        scale [n]: the step. positive_levels, negative_levels: integers above and below the one that zero maps to
        (127 and 128 for symmetric 8 bits), one for all or [n].

        Exact for every bin that lies inside one integer's cell. A magnitude x above (k + 1/2) s belongs to the next
        integer, which changes its squared error from (x - k s)^2 by s^2 (2 k + 1) - 2 s x: summed over k, only the
        count and the sum of the magnitudes above each cell boundary are needed.
        """
        scale = scale.to(torch.float64)
        total = torch.full_like(scale, self.positive.square_sum + self.negative.square_sum)
        for side, levels in ((self.positive, positive_levels), (self.negative, negative_levels)):
            levels = torch.as_tensor(levels).expand(scale.shape)
            k = torch.arange(int(levels.max()), dtype=torch.float64)
            rows = max(1, THRESHOLDS_AT_A_TIME // max(1, k.numel()))
            for start in range(0, scale.numel(), rows):
                s, limit = scale[start : start + rows, None], levels[start : start + rows, None]
                counts, sums = side.above((k + 0.5) * s)
                change = s**2 * (2 * k + 1) * counts - 2 * s * sums
                total[start : start + rows] += (change * (k < limit)).sum(1)
        return total.clamp(min=0) / self.count
