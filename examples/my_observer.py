"""A plug-in observer: the clipping that is optimal for Laplace-distributed values (ACIQ, arXiv 1810.05723).

    python main.py mamba-tiny --quantize --plugin examples/my_observer.py --observer mine

For Laplace values of scale b the expected squared error of clipping at c and rounding to n bits,
2 b^2 e^(-c/b) + c^2 / (3 * 4^n), is least where (c/b) e^(c/b) = 3 * 4^n: at 9.9 b for 8 bits, 5.0 b for 4 bits.
The whole statistic is one sum: b is the mean magnitude. No grid, no histogram; compare it with `--observer mse`.
"""

import math

import torch

from quamba.observers.per_tensor import Observer, register_observer


@register_observer("mine")
class LaplaceClippingObserver(Observer):
    def __init__(self, n_bits: int = 8, clip_ratio: float = 1.0, sym: bool = True):
        super().__init__(n_bits, clip_ratio, sym)
        self.magnitudes = 0.0

    def _update(self, x):
        self.magnitudes += float(x.abs().sum(dtype=torch.float64))

    def _merge(self, other):
        self.magnitudes += other.magnitudes

    def _parameters(self):
        clip, target = 1.0, math.log(3 * 4**self.n_bits)
        for _ in range(50):  # solves clip + log(clip) = target
            clip = target - math.log(clip)
        peak = clip * self.magnitudes / self.count
        return self.range_parameters(max(self.minimum, -peak), min(self.maximum, peak))
