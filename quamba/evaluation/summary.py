"""The short table that ends a run, built from its log and the paired intervals of float and quantized model."""

import math

from rich.markup import escape
from rich.table import Table

from .compare import Interval

# lm-eval's metrics that a summary shows, in this order and with any filter; all those of a task that has none of them
SHOWN_METRICS = ("acc", "acc_norm", "exact_match", "exact", "f1", "perplexity")
MEGABYTE = 1e6


def summary_table(log: dict, intervals: dict | None) -> Table:
    """Rows of float and quantized figures side by side, with the change and its 95 % interval where both are known.

    `log`: as written by `write_log`; `intervals`: as `evaluate.compare` gives them, or None without a float run.
    """
    title = escape(f"{log['model']}  {log['scheme']}")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    float_log = log.get("float")
    columns = ([("float", float_log)] if float_log else []) + [(log["scheme"], log)]
    for name, _ in columns:
        table.add_column(name, justify="right")
    if float_log:
        table.add_column("change (95 % interval)", justify="right")

    def add(label: str, values: list, form: str, change: str) -> None:
        cells = ["-" if value is None else form.format(value) for value in values]
        table.add_row(escape(label), *cells, *([change] if float_log else []))

    for dataset in log["ppl"]:
        ratio = intervals["ppl"].get(dataset) if intervals else None
        values = [side["ppl"].get(dataset) for _, side in columns]
        add(f"perplexity, {dataset}", values, "{:.4f}", _interval(ratio, "x{:.4f}", "{:.4f}"))
    for task, metrics in log["lm_eval"].items():
        for metric in shown_metrics(metrics):
            name, label = metric.partition(",")[0], metric_label(task, metric)
            values = [side["lm_eval"].get(task, {}).get(metric) for _, side in columns]
            difference = (intervals["lm_eval"].get(task, {}) if intervals else {}).get(metric)
            if name == "perplexity":  # its items are log-likelihoods
                change = _interval(_perplexity_ratio(difference), "x{:.4f}", "{:.4f}")
            else:
                change = _interval(difference, "{:+.4f}", "{:+.4f}")
            add(label, values, "{:.4f}", change)
    for key, label in (("disk_bytes", "size on disk, MB"), ("memory_bytes", "size in memory, MB")):
        sizes = [side["size"][key] for _, side in columns]
        values = [None if size is None else size / MEGABYTE for size in sizes]
        known = float_log and all(sizes)
        add(label, values, "{:.2f}", f"x{sizes[1] / sizes[0]:.3f}" if known else "")
    return table


def shown_metrics(metrics: dict) -> list[str]:
    """The keys ("acc,none") of a task's metrics that a reader looks at first, in the order of SHOWN_METRICS."""
    numbers = [key for key, value in metrics.items() if "," in key and isinstance(value, int | float)]
    numbers = [key for key in numbers if not key.partition(",")[0].endswith("_stderr")]
    return [key for name in SHOWN_METRICS for key in numbers if key.partition(",")[0] == name] or numbers


def metric_label(task: str, metric: str) -> str:
    """`task, acc` of the key "acc,none"; a filter that chose among answers is named too."""
    name, _, filter_name = metric.partition(",")
    return f"{task}, {name}" + (f" ({filter_name})" if filter_name != "none" else "")


def _perplexity_ratio(difference: Interval | None) -> Interval | None:
    """From the difference of mean log-likelihoods to the ratio of perplexities: a higher likelihood is a lower one."""
    if difference is None:
        return None
    return Interval(math.exp(-difference.estimate), math.exp(-difference.high), math.exp(-difference.low))


def _interval(interval: Interval | None, estimate_form: str, bound_form: str) -> str:
    if interval is None:
        return ""
    bounds = f"{bound_form.format(interval.low)}, {bound_form.format(interval.high)}"
    return f"{estimate_form.format(interval.estimate)} [{bounds}]"


def backend_line(backends: dict[str, str]) -> str:
    """`avx512_vnni: quantize, ...`: which kernels ran which ops."""
    by_backend: dict[str, list[str]] = {}
    for op, backend in backends.items():
        by_backend.setdefault(backend, []).append(op)
    return "; ".join(f"{backend}: {', '.join(names)}" for backend, names in by_backend.items())
