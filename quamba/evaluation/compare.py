"""Paired comparisons of two models measured on the same windows or items.

Quantization moves a perplexity or an accuracy by far less than it varies between texts. Both models saw the same ones,
so the bootstrap resamples the pairs: what the texts share cancels out (Efron & Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13: percentile intervals).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import QuambaError
from .perplexity import PerplexityResult

STATISTICS = ("difference", "ratio")
_CHUNK = 1000  # resamples that are drawn at a time


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    weights: Sequence[float] | None = None,
    statistic: str = "difference",
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return how `b` differs from `a`, with the percentile interval of a bootstrap over the pairs.

    `a`, `b`: one value per window or item, of the same ones in the same order; `weights`: of each pair, equal by
    default. The weighted mean difference d = sum w (b - a) / sum w is the statistic "difference"; "ratio" is exp(d),
    the ratio of perplexities where the values are mean nll and the weights token counts.
    Raises QuambaError for unequal or empty inputs and unknown statistics.
    """
    if statistic not in STATISTICS:
        raise QuambaError(f"unknown statistic {statistic!r}: choose one of {', '.join(STATISTICS)}")
    difference = np.asarray(b, dtype=np.float64) - _same_length(a, b)
    weight = np.ones_like(difference) if weights is None else _same_length(weights, b)
    n = len(difference)
    weighted = weight * difference
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        # how often each pair is drawn in a resample of n pairs
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start))
        means.append((counts @ weighted) / (counts @ weight))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    values = weighted.sum() / weight.sum(), low, high
    return Interval(*(float(np.exp(value)) if statistic == "ratio" else float(value) for value in values))


def _same_length(values: Sequence[float], other: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or len(array) != len(other):
        raise QuambaError(f"a paired comparison needs as many values on both sides, not {len(array)} and {len(other)}")
    return array


def perplexity_ratio(base: PerplexityResult, other: PerplexityResult, **options) -> Interval:
    """The perplexity of `other` over that of `base`, both on the same windows. Options as in `paired_bootstrap`."""
    if not np.array_equal(base.window_tokens, other.window_tokens):
        raise QuambaError("these perplexities were measured on different windows: they cannot be compared in pairs")
    return paired_bootstrap(base.window_nll, other.window_nll, base.window_tokens, statistic="ratio", **options)


def metric_differences(
    base: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], **options
) -> dict[str, Interval]:
    """`other` minus `base` for every metric that both have, from per-item values (`TaskResults.items` of one task).

    In the metric's own unit: an accuracy's difference of 0.01 is one point of a hundred.
    """
    return {
        metric: paired_bootstrap(base[metric], other[metric], statistic="difference", **options)
        for metric in base
        if metric in other
    }
