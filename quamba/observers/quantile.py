"""Exact quantiles of tensors of any size, in bounded memory (torch.quantile refuses more than 16M elements)."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .. import ops

PIECE = 1 << 21  # elements handled at a time: temporaries are a few times 8 MB whatever the size of the input
ROW = 1024  # elements whose maximum stands for them in the search for the largest values


def pieces(x: Tensor) -> Iterator[Tensor]:
    """`x` as flat contiguous pieces, in any order (no statistic here depends on it), copying a piece at a time."""
    x = x.detach().permute(sorted(range(x.dim()), key=x.stride, reverse=True))  # a transposed tensor: a view again
    if x.is_contiguous():
        yield from x.view(-1).split(PIECE)
    else:
        for block in x.split(max(1, PIECE * x.shape[0] // max(1, x.numel()))):
            yield from block.reshape(-1).split(PIECE)


def floats_from_bits(bits: Tensor) -> Tensor:
    """float64 values of float32 bit patterns (int64)."""
    return bits.to(torch.int32).view(torch.float32).to(torch.float64)


def interpolate(order_statistic: Callable[[int], float], count: int, p: float) -> float:
    """The p-quantile of `count` values by linear interpolation between ranks, as torch.quantile does."""
    rank = p * (count - 1)
    below = min(math.floor(rank), count - 1)
    value = order_statistic(below)
    if rank > below:
        value += (rank - below) * (order_statistic(below + 1) - value)
    return value


def exact_quantiles(x: Tensor, ps: Sequence[float], signed: bool = False) -> list[float]:
    """The p-quantiles of |x| (of x where `signed`), by linear interpolation between ranks.

    Equal to torch.quantile, at any size and in bounded memory.
    x: any shape and float dtype, finite, not empty.
    """
    if not signed:
        order_statistic = _order_statistic_of(x, torch.abs)
    else:
        positive = _order_statistic_of(x, lambda piece: piece.clamp(min=0))
        negative = _order_statistic_of(x, lambda piece: (-piece).clamp(min=0))

        def order_statistic(rank: int) -> float:
            from_the_top = x.numel() - 1 - rank
            if rank > from_the_top:  # the likelier sign first
                return positive(rank) or -negative(from_the_top)
            return -negative(from_the_top) or positive(rank)

    return [interpolate(order_statistic, x.numel(), p) for p in ps]


def _order_statistic_of(x: Tensor, part: Callable[[Tensor], Tensor]) -> Callable[[int], float]:
    """A function from a rank to that order statistic of part(x), exact; `part` gives magnitudes.

    Ranks near the top (the percentiles that observers ask for) come from the few largest values, others by counting.
    """
    by_counting = _radix_select(x, part)
    largest = x.new_empty(0)

    def order_statistic(rank: int) -> float:
        nonlocal largest
        place = x.numel() - 1 - rank
        if place >= largest.numel():
            if (place + 1) * ROW * 8 > x.numel():
                return by_counting(rank)
            largest = _largest(x, place + 1, part)
        return float(largest[place])

    return order_statistic


def _largest(x: Tensor, k: int, part: Callable[[Tensor], Tensor]) -> Tensor:
    """The k largest of part(x), descending, float32 [k]. They all lie in the k rows with the largest maxima."""
    best = torch.empty(0, dtype=torch.float32, device=x.device)
    for piece in pieces(x):
        values = part(piece)
        whole = values.numel() // ROW * ROW
        rows = values[:whole].view(-1, ROW)
        chosen = rows[rows.amax(1).float().topk(min(k, rows.shape[0])).indices]
        candidates = torch.cat([best, chosen.flatten().float(), values[whole:].float()])
        best = candidates.topk(min(k, candidates.numel())).values
    return best


def _radix_select(x: Tensor, part: Callable[[Tensor], Tensor]) -> Callable[[int], float]:
    """A function from a rank to that order statistic of part(x), exact, by counting float32 bit patterns.

    One pass over the leading 16 bits finds the bin that holds the rank, a second one over the trailing 15 bits of that
    bin finds the value.
    """
    coarse_bits, fine_bits = 8, 15

    @functools.cache
    def ranks(first_key: int, keys: int, mantissa_bits: int) -> Tensor:
        counts = torch.zeros(keys + 2, dtype=torch.int64, device=x.device)  # one bin below the keys, one above
        sums = torch.zeros(keys + 2, dtype=torch.float64, device=x.device)
        for piece in pieces(x):
            ops.magnitude_histogram(part(piece), counts, sums, first_key - 1, mantissa_bits)
        return counts[1:-1].cumsum(0)

    def order_statistic(rank: int) -> float:
        coarse = ranks(0, 255 << coarse_bits, coarse_bits)
        key = int(torch.searchsorted(coarse, rank, right=True))
        before = int(coarse[key - 1]) if key else 0
        fine = ranks(key << fine_bits, 1 << fine_bits, 23)
        bits = (key << fine_bits) + torch.searchsorted(fine, rank - before, right=True)
        return float(floats_from_bits(bits))

    return order_statistic
