"""Time and peak memory of the weight path on random weights: a Mamba of the 130M shape, a Llama of about 1B.

    python benchmarks/weight_time.py mamba-130m --method awq+gptq --windows 128
    python benchmarks/weight_time.py llama-1b --method awq --windows 32

Nothing is measured but what rounding takes: 4 bits, groups of 128, windows of 512 random tokens, in this process.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba  # before torch: it sets how OpenMP's threads wait

# isort: split
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.speed.make_model import random_model
from benchmarks.speed.shapes import SHAPES
from quamba.weights.method import METHODS, NEAREST, WeightMethod
from quamba.weights.rounding import rounding_names

SEQLEN = 512


def random_llama() -> PreTrainedModel:
    """1.1 B parameters in bfloat16: 22 layers of 2048, grouped queries, as small Llamas are."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


MODELS = {"mamba-130m": lambda: random_model(SHAPES["130m"]), "llama-1b": random_llama}


def main() -> None:
    """Rounds one model and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--method", choices=METHODS, default="awq")
    parser.add_argument("--rounding", choices=rounding_names(), default=NEAREST)
    parser.add_argument("--windows", type=int, default=128, help="of 512 tokens (default: 128)")
    parser.add_argument("--layer_batch_size", type=int, default=16)
    args = parser.parse_args()
    model = MODELS[args.model]()
    windows = torch.randint(0, model.config.vocab_size, (args.windows, SEQLEN))
    weights = WeightMethod(args.method, args.rounding, layer_batch_size=args.layer_batch_size)
    quamba.quantize(model, None, "w4a16", weights=weights, weight_text=windows if weights.calibrated else None)
    if found := model.quamba_weights:
        print(
            f"{args.model} {weights.describe()}: {found['tokens']} tokens, {found['seconds']:.0f} s, "
            f"peak {found['peak_bytes'] / 1e9:.1f} GB, {args.layer_batch_size} layers at a time"
        )


if __name__ == "__main__":
    main()
