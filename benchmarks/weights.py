"""What each method of the weight path costs in perplexity: rounding, scaling, flips, on small trained models.

    python benchmarks/weights.py ../shared/checkpoints/mamba-tiny ../shared/checkpoints/llama-tiny [--windows 200]

Weights of the blocks only, float activations. Every method of a seed shares its statistics: those of the float model on
the same 128 slices of 256 tokens of the embedded text (the layers of these models are one batch; --layer_by_layer adds
rows that take them one by one, each on the rounded ones before it). Every model predicts the same test windows. Mean
and range of the ratio to float over the calibration seeds, 0, 1 and 2. The rows are written as they are measured, and
--resume measures those that are missing.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba
from quamba.calibration.run import CalibrationText
from quamba.evaluation.compare import paired_bootstrap
from quamba.evaluation.perplexity import perplexity
from quamba.storage.files import write_output
from quamba.text.data import evaluation_windows, load_text
from quamba.weights.method import WeightMethod
from quamba.weights.rounding import FlipOptions

TEXT, SEQLEN, SLICES = "stdlib", 256, 128
FIXED = FlipOptions(outlier_percent=0.05)
METHODS = {
    "rtn": WeightMethod("rtn"),
    "gptq": WeightMethod("gptq"),
    "awq": WeightMethod("awq"),
    "awq, clipped": WeightMethod("awq", clip=True),
    "awq + flips, fixed mask": WeightMethod("awq", "mean", FIXED),
    "awq + flips, dynamic mask": WeightMethod("awq", "mean"),
    "awq + hessian flips": WeightMethod("awq", "hessian"),
    "gptq + hessian flips": WeightMethod("gptq", "hessian"),
    "awq+gptq": WeightMethod("awq+gptq"),
    "awq+gptq + hessian flips": WeightMethod("awq+gptq", "hessian"),
}
LAYER_BY_LAYER = {
    f"{label}, layer by layer": replace(METHODS[label], layer_batch_size=1)
    for label in ("gptq + hessian flips", "awq+gptq + hessian flips")
}
GRIDS = {"4 bits, groups of 128": ("w4a16", 128), "3 bits, groups of 32": ("w3a16", 32)}


def quantized(path: str, grid: str, method: WeightMethod, seed: int):
    """(model, seconds that its rounding took)."""
    model, tokenizer = quamba.load(path)
    scheme, group_size = GRIDS[grid]
    text = CalibrationText(TEXT, SLICES, SEQLEN, seed, sampling="slices") if method.calibrated else None
    start = time.perf_counter()
    weights = replace(method, seed=seed)
    quamba.quantize(model, tokenizer, scheme, weights=weights, weight_text=text, group_size=group_size, progress=False)
    return model, time.perf_counter() - start


def measure(key: dict, path: str, method: WeightMethod, windows, base) -> dict:
    """The row of a method at a grid; `key`: what it is a measurement of."""
    ratios, intervals, seconds = [], [], []
    for seed in range(key["seeds"] if method.calibrated else 1):
        model, taken = quantized(path, key["grid"], method, seed)
        result = perplexity(model, windows, progress=False)
        i = paired_bootstrap(base.window_nll, result.window_nll, base.window_tokens, "ratio")
        ratios.append(i.estimate)
        intervals.append([i.low, i.high])
        seconds.append(taken)
    return {
        **key,
        "float": base.ppl,
        "ratio": statistics.mean(ratios),
        "ratios": ratios,
        "intervals": intervals,
        "seconds": statistics.median(seconds),
    }


def main() -> None:
    """Prints Markdown row by row and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of float checkpoints, or mamba-tiny")
    parser.add_argument("--windows", type=int, help="test windows of 256 tokens (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds (default: 3)")
    parser.add_argument("--layer_by_layer", action="store_true", help="more rows, see above")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights.json"), help="the rows, JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows in the output, measure what is missing")
    args = parser.parse_args()
    rows = json.loads(args.output.read_text("utf-8")) if args.resume and args.output.exists() else []
    methods = METHODS | (LAYER_BY_LAYER if args.layer_by_layer else {})
    for path in args.models:
        model, tokenizer = quamba.load(path)
        windows = evaluation_windows(load_text(TEXT, "test"), tokenizer, SEQLEN)[: args.windows]
        base = perplexity(model, windows, progress=False)
        print(f"\n{Path(path).name}: float {base.ppl:.3f} on {base.tokens} tokens\n")
        print("| grid | method | ratio to float, mean | range over seeds | s |\n|---|---|---|---|---|")
        for grid, label in itertools.product(GRIDS, methods):
            key = {"model": Path(path).name, "tokens": base.tokens, "seeds": args.seeds, "grid": grid, "method": label}
            row = next((row for row in rows if key.items() <= row.items()), None)
            if row is None:
                row = measure(key, path, methods[label], windows, base)
                rows.append(row)
                write_output(args.output, json.dumps(rows, indent=1) + "\n")
            span = f"{min(row['ratios']):.4f} to {max(row['ratios']):.4f}" if len(row["ratios"]) > 1 else "-"
            print(f"| {grid} | {label} | {row['ratio']:.4f} | {span} | {row['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
