"""What quantizing a Mamba2 costs: schemes, groups of heads, states of 8 bits, observers, and mixed precision.

    python benchmarks/mamba2.py [--model mamba2-tiny] [--part schemes|observers|states|mixed] [--windows 128]

Perplexity of the embedded test text in windows of 512 tokens, accuracy of stdlib_cloze; intervals are paired, 95 %.
The states are read token by token (128 tokens of a window), the rest as whole windows. Prints Markdown; the mixed part
also writes a figure beside this file.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba  # before torch: it sets how OpenMP's threads wait

# isort: split
import torch

from quamba.architectures.convert import install_float_mixers
from quamba.calibration.channel_groups import ChannelGroups
from quamba.calibration.defaults import DEFAULT_OBSERVERS
from quamba.calibration.run import default_text
from quamba.evaluation import compare, perplexity
from quamba.evaluation.compare import perplexity_ratio
from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.run import MixedPrecisionSearch, search_schemes
from quamba.mixed_precision.search import Assignment, choose_schemes, frontier
from quamba.mixed_precision.sensitivity import sum_of_divergences
from quamba.mixed_precision.sizes import layer_sizes
from quamba.models.memory import tensor_bytes
from quamba.observers.per_tensor import observer_names
from quamba.scheme.formats import get_scheme
from quamba.study.mixed_precision_figure import frontier_figure
from quamba.study.mixed_precision_report import frontier_report, to_markdown
from quamba.study.saving import save_figure
from quamba.text.data import EMBEDDED_MODELS, evaluation_windows, load_text

GROUPED = {"group_heads": ChannelGroups()}
TABLES_8 = {"quantize_embedding": True, "quantize_lm_head": True, "embedding_bits": 8, "lm_head_bits": 8}
TABLES_4 = TABLES_8 | {"embedding_bits": 4, "lm_head_bits": 4}
SCHEMES = {
    "w8a8": {"scheme": "w8a8"},
    "w8a8, grouped": {"scheme": "w8a8", **GROUPED},
    "w8a8, dynamic, grouped": {"scheme": "w8a8", "dynamic": True, **GROUPED},
    "w4a8": {"scheme": "w4a8"},
    "w4a8, grouped": {"scheme": "w4a8", **GROUPED},
    "w4a16": {"scheme": "w4a16"},
    "w8a8, embedding and head 8": {"scheme": "w8a8", **TABLES_8},
    "w4a8, grouped, embedding and head 8": {"scheme": "w4a8", **GROUPED, **TABLES_8},
    "w4a8, grouped, embedding and head 4": {"scheme": "w4a8", **GROUPED, **TABLES_4},
    "w4a16, embedding and head 8": {"scheme": "w4a16", **TABLES_8},
}
OBSERVERS = {
    f"{name} on every tap{', grouped' if groups else ''}": {"scheme": "w8a8", "observer": f"all={name}", **groups}
    for name in observer_names()
    for groups in ({}, GROUPED)
}
STATES = {
    "states of 32 bits": {"scheme": "w8a8"},
    "states of 8 bits": {"scheme": "w8a8", "state_bits": 8},
    "states of 8 bits, grouped": {"scheme": "w8a8", "state_bits": 8, **GROUPED},
    "w4a8, states of 8 bits, grouped": {"scheme": "w4a8", "state_bits": 8, **GROUPED},
}
ACCURACY, MEGABYTE, STATE_TOKENS, STATE_WINDOWS = "acc,none", 1e6, 128, 64
MIXED, FINER = ("w4a8", "w8a8"), 32


def quantized(model_name: str, arguments: dict):
    """(model, tokenizer), quantized as the arguments say; None: float."""
    model, tokenizer = quamba.load(model_name)
    if arguments:
        quamba.quantize(model, tokenizer, progress=False, **arguments)
    return model, tokenizer


def accuracy_table(model_name: str, rows: dict, windows: int) -> None:
    """Perplexity and accuracy of every row beside float."""
    defaults, base = EMBEDDED_MODELS[model_name], None
    task = defaults.tasks[0]
    print(f"\n| | perplexity | ratio to float (95 %) | {task} accuracy | change in points (95 %) | MB |")
    print("|---|---|---|---|---|---|")
    for label, arguments in {"float32": {}, **rows}.items():
        model, tokenizer = quantized(model_name, arguments)
        options = {"max_windows": windows, "batch_size": defaults.batch_size, "progress": False}
        result = quamba.evaluate(model, tokenizer, [defaults.ppl_dataset], defaults.tasks, **options)
        base, ratio, change = base or result, "-", "-"
        if arguments:
            intervals = compare(base, result)
            i = intervals["ppl"][defaults.ppl_dataset]
            ratio = f"{i.estimate:.4f} [{i.low:.4f}, {i.high:.4f}]"
            i = intervals["lm_eval"][task][ACCURACY]
            change = f"{100 * i.estimate:+.2f} [{100 * i.low:+.2f}, {100 * i.high:+.2f}]"
        ppl, accuracy = result["ppl"][defaults.ppl_dataset], 100 * result["lm_eval"][task][ACCURACY]
        size = f"{tensor_bytes(model) / MEGABYTE:.2f}"
        print(f"| {label} | {ppl:.3f} | {ratio} | {accuracy:.2f} % | {change} | {size} |", flush=True)


def states_table(model_name: str) -> None:
    """Perplexity, decoded token by token, by the bits of the cached states."""
    defaults, base = EMBEDDED_MODELS[model_name], None
    print(f"\n| | perplexity, {STATE_TOKENS} tokens by token | ratio to float (95 %) |\n|---|---|---|")
    for label, arguments in {"float32": {}, **STATES}.items():
        model, tokenizer = quantized(model_name, arguments)
        options = {"ppl_seqlen": STATE_TOKENS, "max_windows": STATE_WINDOWS, "batch_size": defaults.batch_size}
        result = quamba.evaluate(model, tokenizer, [defaults.ppl_dataset], by_token=True, progress=False, **options)
        base, ratio = base or result, "-"
        if arguments:
            i = compare(base, result)["ppl"][defaults.ppl_dataset]
            ratio = f"{i.estimate:.4f} [{i.low:.4f}, {i.high:.4f}]"
        print(f"| {label} | {result['ppl'][defaults.ppl_dataset]:.3f} | {ratio} |", flush=True)


def mixed_table(model_name: str, windows: int) -> None:
    """Mean bits and held-out perplexity of the assignments that a search finds, and of uniform ones."""
    defaults = EMBEDDED_MODELS[model_name]
    model, tokenizer = quamba.load(model_name)
    text = default_text(model)
    found = search_schemes(
        model,
        text.windows(tokenizer),
        MixedPrecisionSearch(Budget.parse("6"), MIXED),
        DEFAULT_OBSERVERS,
        progress=False,
    )
    chosen = [_least_above(found, fraction) for fraction in (0.25, 0.5, 0.75)]
    held_out = evaluation_windows(load_text(defaults.ppl_dataset, "test"), tokenizer, 512)[:windows]
    perplexities = {}
    for assignment in {a.schemes: a for a in [*frontier(found.losses, found.sizes), *chosen]}.values():
        mixed, _ = quantized(model_name, {"scheme": "w4a8", "layer_schemes": assignment.schemes})
        perplexities[assignment.schemes] = perplexity(mixed, held_out, defaults.batch_size, progress=False).ppl
    base = perplexity(quamba.load(model_name)[0], held_out, defaults.batch_size, progress=False).ppl
    report = frontier_report(found.losses, found.sizes, found.weight_count, chosen, perplexities, base)
    print("\n" + to_markdown(report))
    save_figure(frontier_figure(report), Path(__file__).parents[1] / "docs" / f"{model_name}-mixed.png")
    against_uniform(model_name, found, held_out)


def against_uniform(model_name: str, found, held_out: list) -> None:
    """The best assignment within the size of uniform W4A8 in groups of 32, and that: perplexity, and KL from float."""
    reference = quamba.load(model_name)[0]
    sizes, weight_count = layer_sizes(reference.backbone.layers, {"w4a8": get_scheme("w4a8", FINER)})
    bits = 8 * sum(sizes["w4a8"]) / weight_count
    chosen = choose_schemes(found.losses, found.sizes, Budget.parse(f"{bits}bits"), weight_count)
    install_float_mixers(reference)
    kinds = {
        f"uniform w4a8 in groups of {FINER}, {bits:.3f} bits": {"scheme": "w4a8", "group_size": FINER},
        f"the search within that, {chosen.mean_bits(weight_count):.3f} bits": {"layer_schemes": chosen.schemes},
    }
    results = {}
    for label, arguments in kinds.items():
        model, _ = quantized(model_name, {"scheme": "w4a8"} | arguments)
        results[label] = perplexity(model, held_out, EMBEDDED_MODELS[model_name].batch_size, progress=False)
        with torch.inference_mode():
            pairs = ((reference(ids[None]).logits, model(ids[None]).logits) for ids in held_out)
            divergence = sum(sum_of_divergences(*pair) for pair in pairs) / sum(len(ids) for ids in held_out)
        print(f"{label}: perplexity {results[label].ppl:.4f}, KL from float {divergence:.5f} nats", flush=True)
    i = perplexity_ratio(*results.values())
    print(f"the search / uniform: x{i.estimate:.4f} [{i.low:.4f}, {i.high:.4f}]")


def _least_above(found, fraction: float) -> Assignment:
    """The best assignment within that fraction of the way from the smallest uniform size to the largest."""
    low, high = (sum(found.sizes[scheme]) for scheme in MIXED)
    bits = 8 * (low + fraction * (high - low)) / found.weight_count
    return choose_schemes(found.losses, found.sizes, Budget.parse(f"{bits:.4f}"), found.weight_count)


def main() -> None:
    """Prints the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[n for n in EMBEDDED_MODELS if "mamba2" in n], default="mamba2-tiny")
    parser.add_argument("--part", choices=("schemes", "observers", "states", "mixed"), help="(default: all)")
    parser.add_argument("--windows", type=int, help="perplexity windows (default: all that the demo uses)")
    args = parser.parse_args()
    windows = args.windows or EMBEDDED_MODELS[args.model].ppl_windows
    parts = {
        "schemes": lambda: accuracy_table(args.model, SCHEMES, windows),
        "observers": lambda: accuracy_table(args.model, OBSERVERS, windows),
        "states": lambda: states_table(args.model),
        "mixed": lambda: mixed_table(args.model, windows),
    }
    for name, run in parts.items():
        if args.part in (None, name):
            run()


if __name__ == "__main__":
    main()
