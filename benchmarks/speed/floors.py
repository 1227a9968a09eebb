"""How fast the machine reads memory and multiplies matrices, and how many bytes a token reads.

Runs in a process of its own: `python -m benchmarks.speed.floors 2` prints one JSON object for that many threads.
"""

import functools
import json
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .rows import rounded
from .shapes import VOCAB, Case, Shape

REPEATS = 7
READ_SIZES = [1 << power for power in range(26, 32)]  # 64 MiB: a small model in a large cache; 2 GiB: none is as large
PRODUCTS = [(512, 768, 3072), (2048, 2048, 8192), (4096, 4096, 4096)]  # rows, inputs, outputs
# what the products of a scheme could run on at best
RATES = {"w8a8": "int8", "w4a8": "int8", "w4a16": "bfloat16", "float": "float32"}

# ways to read a float32 vector once; which is the fastest differs from machine to machine
READ_PASSES: tuple[Callable[[Tensor], object], ...] = (
    torch.sum,
    lambda values: values.view(torch.int64).sum(),
    lambda values: values.view(-1, 1024) @ torch.ones(1024),
    lambda values: torch.dot(*values.chunk(2)),
)


def median_seconds(work: Callable[[], object]) -> float:
    """The median of several runs after one that does not count."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def best_of(passes: tuple[Callable[[Tensor], object], ...], values: Tensor) -> Callable[[], object]:
    """The fastest of the passes, bound to what it reads."""
    return min((functools.partial(read, values) for read in passes), key=median_seconds)


def read_rate(size: int) -> float:
    """Bytes per second at which a buffer of that many bytes is read."""
    return size / median_seconds(best_of(READ_PASSES, torch.ones(size // 4)))


def matrix_rate(kind: str) -> float:
    """Operations per second, two for a multiply-add, of the best of several matrix products."""
    rates = []
    for rows, inputs, outputs in PRODUCTS:
        if kind == "int8":
            a, b = (torch.randint(-9, 9, size, dtype=torch.int8) for size in ((rows, inputs), (outputs, inputs)))
            seconds = median_seconds(lambda a=a, b=b: torch._int_mm(a, b.T))
        else:
            dtype = getattr(torch, kind)
            a, b = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
            seconds = median_seconds(lambda a=a, b=b: a @ b.T)
        rates.append(2 * rows * inputs * outputs / seconds)
    return max(rates)


def measure(threads: int) -> dict:
    """`read_bytes_s` by buffer size, and operations per second by number format."""
    torch.set_num_threads(threads)
    kinds = ("int8", "bfloat16", "float32")
    return {
        "read_bytes_s": {str(size): rounded(read_rate(size)) for size in READ_SIZES},
        "operations_s": {kind: rounded(matrix_rate(kind)) for kind in kinds},
    }


def tensor_sizes(file: Path) -> dict[str, int]:
    """Tensor name -> bytes, from the header of a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def checkpoint_sizes(folder: Path) -> dict[str, int]:
    """Tensor name -> bytes, of all safetensors files of a checkpoint."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        sizes |= tensor_sizes(file)
    return sizes


def bytes_per_token(sizes: dict[str, int]) -> int:
    """Bytes of weights that one step reads: all but an embedding table that the head does not share."""
    embedding = sum(size for name, size in sizes.items() if ".embeddings." in name)
    head = sum(size for name, size in sizes.items() if name.startswith("lm_head."))
    untied = head > VOCAB  # a tied head holds scales at most
    return sum(sizes.values()) - (embedding if untied else 0)


def prefill_bound(scheme: str, shape: Shape, case: Case, operations_s: dict[str, float]) -> float:
    """Tokens per second that the products alone allow at the best rates; the head reads the last position only."""
    return operations_s[RATES[scheme]] / (2 * (shape.block_macs + shape.head_macs / case.prompt))


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1])), sys.stdout)
