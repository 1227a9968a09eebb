"""What each scheme costs on an embedded checkpoint, in perplexity, accuracy and size: a table of docs/results.md.

    python benchmarks/schemes.py [--windows 128]

Weights are rounded to nearest, observers are the defaults; every scheme is measured on the same windows and items.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba
from quamba.checkpoint import recipe_of
from quamba.evaluation import compare
from quamba.models.memory import tensor_bytes
from quamba.text.data import EMBEDDED_MODELS
from quamba.weights.method import WeightMethod

BOTH = {"quantize_embedding": True, "quantize_lm_head": True}
TABLES_8 = BOTH | {"embedding_bits": 8, "lm_head_bits": 8}
# label -> arguments of quamba.quantize
SCHEMES = {
    "w8a8": {"scheme": "w8a8"},
    "w8a8, dynamic": {"scheme": "w8a8", "dynamic": True},
    "w8a16": {"scheme": "w8a16"},
    "w4a8": {"scheme": "w4a8"},
    "w4a8, dynamic": {"scheme": "w4a8", "dynamic": True},
    "w4a16": {"scheme": "w4a16"},
    "w4a8, groups of 64": {"scheme": "w4a8", "group_size": 64},
    "w4a8, groups of 32": {"scheme": "w4a8", "group_size": 32},
    "w4a16, groups of 64": {"scheme": "w4a16", "group_size": 64},
    "w4a16, groups of 32": {"scheme": "w4a16", "group_size": 32},
    "w8a8, embedding and head 8": {"scheme": "w8a8", **TABLES_8},
    "w4a8, embedding and head 8": {"scheme": "w4a8", **TABLES_8},
    "w4a8, embedding and head 4": {"scheme": "w4a8", **BOTH},
    "w4a8, dynamic, groups of 32, embedding and head 8": {
        **{"scheme": "w4a8", "dynamic": True, "group_size": 32},
        **TABLES_8,
    },
    "w4a16, embedding and head 8": {"scheme": "w4a16", **TABLES_8},
    "w4a16, embedding and head 4": {"scheme": "w4a16", **BOTH},
}
ACCURACY, MEGABYTE = "acc,none", 1e6


def main() -> None:
    """Measures float, then each scheme on a fresh copy of the model, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=EMBEDDED_MODELS, default="mamba-tiny")
    parser.add_argument("--windows", type=int, help="perplexity windows (default: all that the demo uses)")
    args = parser.parse_args()
    defaults = EMBEDDED_MODELS[args.model]
    task, windows = defaults.tasks[0], args.windows or defaults.ppl_windows
    base = None
    print(f"| scheme | perplexity | ratio to float (95 %) | {task} accuracy | change in points (95 %) | MB |")
    print("|---|---|---|---|---|---|")
    for label, arguments in {"float32": None, **SCHEMES}.items():
        model, tokenizer = quamba.load(args.model)
        if arguments:
            quamba.quantize(model, tokenizer, weights=WeightMethod("rtn"), **arguments)
            assert recipe_of(model).scheme.name == arguments["scheme"]
        result = quamba.evaluate(
            model,
            tokenizer,
            [defaults.ppl_dataset],
            defaults.tasks,
            max_windows=windows,
            batch_size=defaults.batch_size,
        )
        base = base or result
        ratio = change = "-"
        if arguments:
            intervals = compare(base, result)
            i = intervals["ppl"][defaults.ppl_dataset]
            ratio = f"{i.estimate:.4f} [{i.low:.4f}, {i.high:.4f}]"
            i = intervals["lm_eval"][task][ACCURACY]
            change = f"{100 * i.estimate:+.2f} [{100 * i.low:+.2f}, {100 * i.high:+.2f}]"
        figures = (
            f"{result['ppl'][defaults.ppl_dataset]:.3f} | {ratio} | {100 * result['lm_eval'][task][ACCURACY]:.2f} %"
        )
        print(f"| {label} | {figures} | {change} | {tensor_bytes(model) / MEGABYTE:.2f} |", flush=True)


if __name__ == "__main__":
    main()
