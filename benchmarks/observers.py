"""Perplexity and task accuracy by observer on an embedded checkpoint, with paired 95 % intervals against float.

`python benchmarks/observers.py` makes the table of docs/results.md; benchmarks/observer_study.py asks why.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba
from quamba.evaluation import compare
from quamba.text.data import EMBEDDED_MODELS

INT8_TABLES = {"quantize_embedding": True, "quantize_lm_head": True}
# label -> (observer of each tap, constructor arguments by observer, further arguments of quamba.quantize)
OBSERVERS = {
    "the defaults": (None, {}, {}),
    "minmax on every tap": ("all=minmax", {}, {}),
    "percentile on every tap": ("all=percentile", {}, {}),
    "mse on every tap": ("all=mse", {}, {}),
    "outlier_aware on x": ("outlier_aware", {}, {}),
    "outlier_aware_adaptive on x": ("outlier_aware_adaptive", {}, {}),
    "outlier_aware, ratio 0.9999, on every tap": ("all=outlier_aware", {"outlier_aware": {"normal_ratio": 0.9999}}, {}),
    "the defaults, int8 embedding and head": (None, {}, INT8_TABLES),
    "the defaults, rotated residual": (None, {}, {"rotate_residual": True}),
    "mse on every tap, rotated residual": ("all=mse", {}, {"rotate_residual": True}),
}
ACCURACY = "acc,none"


def measure(model, tokenizer, defaults, windows: int) -> "quamba.evaluation.EvaluationResult":
    """Perplexity on the embedded test text and accuracy on the embedded task."""
    return quamba.evaluate(
        model, tokenizer, [defaults.ppl_dataset], defaults.tasks, max_windows=windows, batch_size=defaults.batch_size
    )


def main() -> None:
    """Measures float, then each observer on a fresh copy of the model, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=EMBEDDED_MODELS, default="mamba-tiny")
    parser.add_argument("--windows", type=int, help="perplexity windows (default: all that the demo uses)")
    args = parser.parse_args()
    defaults = EMBEDDED_MODELS[args.model]
    windows = args.windows or defaults.ppl_windows
    base = measure(*quamba.load(args.model), defaults, windows)
    rows = [("float", base, None)]
    for label, (observer, options, arguments) in OBSERVERS.items():
        model, tokenizer = quamba.load(args.model)
        quamba.quantize(model, tokenizer, observer=observer, observer_options=options, **arguments)
        result = measure(model, tokenizer, defaults, windows)
        rows.append((label, result, compare(base, result)))
    task = defaults.tasks[0]
    print(f"| observer | perplexity | ratio to float (95 %) | {task} accuracy | change in points (95 %) |")
    print("|---|---|---|---|---|")
    for label, result, intervals in rows:
        ratio = change = "-"
        if intervals:
            i = intervals["ppl"][defaults.ppl_dataset]
            ratio = f"{i.estimate:.4f} [{i.low:.4f}, {i.high:.4f}]"
            i = intervals["lm_eval"][task][ACCURACY]
            change = f"{100 * i.estimate:+.2f} [{100 * i.low:+.2f}, {100 * i.high:+.2f}]"
        accuracy = result["lm_eval"][task][ACCURACY]
        print(f"| {label} | {result['ppl'][defaults.ppl_dataset]:.3f} | {ratio} | {100 * accuracy:.2f} % | {change} |")


if __name__ == "__main__":
    main()
