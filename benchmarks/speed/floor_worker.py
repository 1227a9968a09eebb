"""The floor of decoding as a contestant: reads as many bytes a step, or multiplies as many numbers, as a scheme must.

It runs in the same rounds as the systems, so that a share of the floor is a ratio within one run:
`python -m benchmarks.speed.floor_worker`. The scan, the convolution and the states are left out: a bound, no forecast.
Prefill has no part in it: its bound is the best rate of products that the machine was seen to have (`floors`).

Dims: B sequences, M rows.
"""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .floors import RATES, READ_PASSES, best_of, bytes_per_token, checkpoint_sizes, median_seconds
from .serve import Model, serve
from .shapes import SHAPES, Shape

INPUTS, OUTPUTS, MOST_ROWS = 2048, 8192, 2048  # of the products: a size at which a library multiplies at its best


def on_huge_pages(size: int) -> Tensor:
    """float32 ones of that many bytes, where our own weights lie: on 2 MB pages, as far as the system has them."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1)


def rows_for(operations: float) -> Iterator[int]:
    """The rows M of the products [M, INPUTS] x [INPUTS, OUTPUTS] that together are that many operations."""
    rows = max(1, round(operations / (2 * INPUTS * OUTPUTS)))
    while rows > 0:
        yield min(rows, MOST_ROWS)
        rows -= MOST_ROWS


class Products:
    """Matrix products in one number format."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.a = torch.ones(MOST_ROWS, INPUTS).to(dtype)
        self.b = torch.ones(OUTPUTS, INPUTS).to(dtype).T

    def run(self, operations: float) -> None:
        """Multiplies until that many operations (two for a multiply-add) are done."""
        multiply = torch._int_mm if self.dtype == torch.int8 else torch.matmul
        for rows in rows_for(operations):
            multiply(self.a[:rows], self.b)


class Floor:
    """What the weights of one scheme at one shape take, read and multiplied."""

    def __init__(self, shape: Shape, scheme: str, weights_bytes: int):
        self.shape, self.products = shape, Products(getattr(torch, RATES[scheme]))
        self.read = best_of(READ_PASSES, on_huge_pages(weights_bytes // 4096 * 4096))
        self.bounds: dict[int, Callable[[], object]] = {}  # of a step, by batch
        self.step_bound = self.read

    def reset(self, batch: int, prompt: int, steps: int) -> None:
        """A step is bound by reading the weights once for all sequences, or by their products, whichever is slower."""

        def multiply() -> None:
            self.products.run(2 * self.shape.parameters * batch)

        if batch not in self.bounds:
            self.bounds[batch] = max(self.read, multiply, key=median_seconds)
        self.step_bound = self.bounds[batch]

    def prefill(self, tokens: np.ndarray) -> None:
        """Nothing: see above."""

    def step(self, tokens: np.ndarray) -> None:
        """What bounds a token."""
        self.step_bound()


def load(path: str, scheme: str, threads: int) -> Model:
    """The floor of the checkpoint in that folder, which has the name of its scheme and lies in one named by shape."""
    torch.set_num_threads(threads)
    folder = Path(path)
    return Floor(SHAPES[folder.parent.name], scheme, bytes_per_token(checkpoint_sizes(folder)))


if __name__ == "__main__":
    serve(load, {"torch": torch.__version__})
