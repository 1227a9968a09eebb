"""What the machine could do at best: how fast it reads memory, how fast it multiplies; and what a token needs of both.

Runs in a process of its own: `python -m benchmarks.speed.floors 2` prints one JSON object for that many threads.
"""

import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .rows import FLOOR, rounded
from .shapes import VOCAB, Case, Shape

REPEATS = 7
READ_SIZES = [1 << power for power in range(26, 32)]  # 64 MiB: a small model in a large cache; 2 GiB: none is as large
PRODUCTS = [(512, 768, 3072), (2048, 2048, 8192), (4096, 4096, 4096)]  # rows, inputs, outputs
# what the products of a scheme could run on at best
RATES = {"w8a8": "int8", "w4a8": "int8", "w4a16": "bfloat16", "float": "float32"}


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of several runs after one that does not count."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def read_rate(size: int) -> float:
    """Bytes per second at which a buffer of that many bytes is read: the best of several ways to reduce it."""
    floats = torch.ones(size // 4)  # float32
    longs = floats.view(torch.int64)
    matrix = floats.view(-1, 1024)
    vector, half = torch.ones(1024), floats.numel() // 2
    ways = (
        lambda: longs.sum(),
        lambda: floats.sum(),
        lambda: floats.amax(),
        lambda: matrix @ vector,
        lambda: torch.dot(floats[:half], floats[half:]),
    )
    return size / min(best_seconds(way) for way in ways)


def matrix_rate(kind: str) -> float:
    """Operations per second, two for a multiply-add, of the best of several matrix products."""
    rates = []
    for rows, inputs, outputs in PRODUCTS:
        if kind == "int8":
            a, b = (torch.randint(-9, 9, size, dtype=torch.int8) for size in ((rows, inputs), (outputs, inputs)))
            seconds = best_seconds(lambda a=a, b=b: torch._int_mm(a, b.T))
        else:
            dtype = getattr(torch, kind)
            a, b = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
            seconds = best_seconds(lambda a=a, b=b: a @ b.T)
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


def read_rate_at(rates: dict[str, float], size: int) -> float:
    """The rate at which a buffer no smaller than `size` was read, the largest one for what is larger than all."""
    sizes = sorted(int(buffer) for buffer in rates)
    return rates[str(next((buffer for buffer in sizes if buffer >= size), sizes[-1]))]


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


def bytes_per_token(sizes: dict[str, int]) -> int:
    """Bytes of weights that one step reads: all but an embedding table that the head does not share."""
    embedding = sum(size for name, size in sizes.items() if ".embeddings." in name)
    head = sum(size for name, size in sizes.items() if name.startswith("lm_head."))
    untied = head > VOCAB  # a tied head holds scales at most
    return sum(sizes.values()) - (embedding if untied else 0)


def floor_row(scheme: str, shape: Shape, case: Case, weights_bytes: int, machine: dict) -> dict:
    """The row of a scheme at a case: no faster than its products, nor, step by step, than its weights are read.

    The scan, the convolution and the states are left out: a bound, not a forecast.
    """
    operations_s = machine["operations_s"][RATES[scheme]]
    prefill_ops = 2 * (shape.block_macs + shape.head_macs / case.prompt)  # the head sees the last position only
    by_reading = case.batch * read_rate_at(machine["read_bytes_s"], weights_bytes) / weights_bytes
    by_products = operations_s / (2 * shape.parameters)
    return {
        "system": FLOOR,
        "scheme": scheme,
        "shape": case.shape,
        "batch": case.batch,
        "prompt": case.prompt,
        "prefill_tok_s": rounded(operations_s / prefill_ops),
        "decode_tok_s": rounded(min(by_reading, by_products)),
        "memory_bytes": weights_bytes,
    }


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1])), sys.stdout)
