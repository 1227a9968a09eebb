"""Calibration speed at the shape of mamba-130m (random weights: the speed does not depend on their values).

    python benchmarks/calibration.py --data_num 512 --seqlen 512

The floor is the float32 matrix products: the measured rate of one large product of the same machine and run.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba.waiting  # noqa: F401  (before torch: it sets how OpenMP's threads wait)

# isort: split
import torch
from transformers import MambaConfig, MambaForCausalLM

from quamba.architectures.convert import install_float_mixers
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import calibrate
from quamba.pipeline.quantize import transform

SHAPES = {"130m": (768, 24), "370m": (1024, 48)}  # hidden_size, layers
VOCAB = 50280


def matrix_rate() -> float:
    """Multiply-adds per second of a float32 product of the size that in_proj has."""
    x, weight = torch.randn(4096, 768), torch.randn(3072, 768)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        x @ weight.T
        times.append(time.perf_counter() - start)
    return x.shape[0] * weight.numel() / sorted(times)[len(times) // 2]


def main() -> None:
    """Builds the model, calibrates it, and prints tokens per second beside the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="130m")
    parser.add_argument("--data_num", type=int, default=512)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--observer", default="percentile")
    args = parser.parse_args()
    hidden, layers = SHAPES[args.shape]
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=hidden, num_hidden_layers=layers, vocab_size=VOCAB)).eval()
    model.requires_grad_(False)
    install_float_mixers(model)
    transform(model, rotate_residual=False)
    windows = torch.randint(0, VOCAB, (args.data_num, args.seqlen))
    result = calibrate(
        model, windows, parse_observers(args.observer), fingerprint="benchmark", batch_size=args.batch_size
    )
    blocks = sum(p.numel() for name, p in model.named_parameters() if "proj.weight" in name)
    rate = matrix_rate()
    print(f"{result.tokens} tokens in {result.seconds:.1f} s: {result.tokens / result.seconds:.0f} tokens/s")
    print(f"floor of the float32 products ({rate / 1e9:.0f} G multiply-adds/s): {rate / blocks:.0f} tokens/s")


if __name__ == "__main__":
    main()
