"""Result logs side by side: what changed from the first to the others, with an interval where they measured the same.

Two logs that measured the same windows or items differ by far less than the windows or items do among themselves, so
intervals come from a bootstrap of the pairs (`evaluate.compare`). A figure gets one only where its values per item are
there for both logs, are of the same texts, are finite, and give the figure that the log states; else a note says why.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import QuambaError
from ...evaluation.compare import paired_bootstrap
from ...evaluation.summary import MEGABYTE, metric_label, shown_metrics
from .result_log import Calibration, Measurements, ResultLog, distinct_labels

# lm-eval's metrics that are shares of the items: shown in points of a hundred
SHARES = ("acc", "acc_norm", "exact_match", "exact", "f1")
STATED = 1e-6  # relative difference up to which values per item give the figure that the log states


@dataclass(frozen=True)
class Kind:
    """Hold what the figures of a row are, and how a column's change from the base is expressed."""

    unit: str | None
    statistic: str | None  # "ratio" or "difference" to the base; None where no change is shown


KINDS = {
    "perplexity": Kind(None, "ratio"),
    "accuracy": Kind("points", "difference"),
    "metric": Kind(None, "difference"),  # in its own unit
    "size": Kind("MB", "ratio"),
    "tokens": Kind("tokens", None),
    "seconds": Kind("s", None),
    "sqnr": Kind("dB", "difference"),
}


@dataclass(frozen=True)
class Column:
    """One model as one log has it."""

    label: str
    path: str
    model: str
    scheme: str
    calibration: Calibration | None


@dataclass(frozen=True)
class Change:
    """From the base to a column, in the row's statistic and unit; without ends where there are no pairs."""

    estimate: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Cell:
    """A figure, None where it was not measured; `note` says what keeps the change, or its interval, from being here."""

    value: float | None
    change: Change | None = None
    note: str | None = None


@dataclass(frozen=True)
class Row:
    """One figure of every column, the base's first."""

    label: str
    kind: str  # of KINDS
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class LogComparison:
    """The columns, of which the first is the base, and the rows; how the intervals were computed."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    confidence: float
    resamples: int
    seed: int

    @property
    def same_model(self) -> bool:
        """Return whether every column is of one model."""
        return len({column.model for column in self.columns}) == 1


@dataclass(frozen=True)
class _Side:
    column: Column
    log: ResultLog
    measured: Measurements


@dataclass(frozen=True)
class _Sample:
    """One side's figure, with the values that it is the weighted mean of (for a perplexity, exp of the mean)."""

    label: str
    figure: float | None
    broken: bool  # measured, but not finite
    values: np.ndarray | None = None  # float64 [n]
    weights: np.ndarray | None = None  # [n]
    source: str | None = None  # hash of what was measured on, None where the log has none


def compare_logs(
    logs: Sequence[ResultLog],
    labels: Sequence[str] | None = None,
    against_float: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> LogComparison:
    """Everything that the logs measured, and how it changes from the base: the first log.

    `labels`: of the logs in their order, by default what tells their paths apart; `against_float`: the base is the
    float model that the first log's run measured, a column of its own; the other options as in `paired_bootstrap`.
    Raises QuambaError for fewer than two columns, labels that do not fit, and a first log without float figures.
    """
    if not logs or (len(logs) == 1 and not against_float):
        raise QuambaError("a comparison takes two logs or more, or one with --against_float")
    labels = _checked_labels(labels, len(logs)) if labels else distinct_labels([log.path for log in logs])
    sides = [
        _Side(Column(label, str(log.path), log.model, log.scheme, log.calibration), log, log.measured)
        for label, log in zip(labels, logs, strict=True)
    ]
    if against_float:
        sides.insert(0, _float_side(sides[0]))
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    rows = [*_perplexity_rows(sides, options), *_metric_rows(sides, options), *_size_rows(sides)]
    rows += _calibration_rows(sides)
    return LogComparison(tuple(side.column for side in sides), tuple(rows), **options)


def _checked_labels(labels: Sequence[str], count: int) -> list[str]:
    if len(labels) != count:
        raise QuambaError(f"--labels names {len(labels)} ({', '.join(labels)}) for {count} logs: one label for each")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise QuambaError(f"--labels names {twice[0]!r} twice: labels tell the logs apart")
    return list(labels)


def _float_side(first: _Side) -> _Side:
    if first.log.float_measured is None:
        raise QuambaError(
            f"the log {first.log.path} has no figures of the float model, which --against_float compares with: run "
            "main.py with --quantize and without --skip_float"
        )
    column = replace(first.column, label=f"{first.column.label} (float)", scheme="fp", calibration=None)
    return _Side(column, first.log, first.log.float_measured)


def _union(lists: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(entry for entries in lists for entry in entries))


def _perplexity_rows(sides: list[_Side], options: dict) -> list[Row]:
    rows = []
    for dataset in _union([list(side.measured.ppl) for side in sides]):
        samples = []
        for side in sides:
            figure = side.measured.ppl.get(dataset)
            broken = figure is None and dataset in side.measured.ppl
            nll, tokens = side.measured.windows.get(dataset, (None, None))
            source = side.log.text_sha256.get(dataset)
            samples.append(_Sample(side.column.label, figure, broken, nll, tokens, source))
        rows.append(_row(f"perplexity, {dataset}", "perplexity", samples, _window_obstacle, options))
    return rows


def _metric_rows(sides: list[_Side], options: dict) -> list[Row]:
    rows = []
    for task in _union([list(side.measured.lm_eval) for side in sides]):
        for metric in _union([shown_metrics(side.measured.lm_eval.get(task, {})) for side in sides]):
            samples = [_metric_sample(side, task, metric) for side in sides]
            name, label = metric.partition(",")[0], metric_label(task, metric)
            if name == "perplexity":  # its items are log-likelihoods
                flipped = [s if s.values is None else replace(s, values=-s.values) for s in samples]
                rows.append(_row(label, "perplexity", flipped, _item_obstacle, options))
            elif name in SHARES:
                # some tasks state these in points already (SQuAD)
                scale = 1 if any(s.figure is not None and s.figure > 1 for s in samples) else 100
                rows.append(_row(label, "accuracy", samples, _item_obstacle, options, scale))
            else:
                rows.append(_row(label, "metric", samples, _item_obstacle, options))
    return rows


def _metric_sample(side: _Side, task: str, metric: str) -> _Sample:
    metrics = side.measured.lm_eval.get(task, {})
    figure = metrics.get(metric)
    values = side.measured.task_items.get(task, {}).get(metric)
    folder = f"tasks/{task.partition('@')[0]}/"  # "@" and the number of examples may stand behind a task's name
    hashes = [digest for name, digest in sorted(side.log.assets_sha256.items()) if name.startswith(folder)]
    return _Sample(
        side.column.label,
        figure if isinstance(figure, int | float) and math.isfinite(figure) else None,
        broken=figure is None and metric in metrics,
        values=values,
        weights=None if values is None else np.ones(len(values)),
        source=" ".join(hashes) or None,
    )


def _row(
    label: str,
    kind: str,
    samples: list[_Sample],
    obstacle: Callable[[_Sample, _Sample], str | None],
    options: dict,
    scale: float = 1,
) -> Row:
    """A row of figures in units of 1 / `scale`; `obstacle` says what keeps two samples from being compared in pairs."""
    base, ratio = samples[0], KINDS[kind].statistic == "ratio"

    def cell(sample: _Sample) -> Cell:
        value = None if sample.figure is None else scale * sample.figure
        broken = f"the figure of {sample.label} is not a finite number" if sample.broken else None
        if sample is base or sample.figure is None:
            return Cell(value, note=broken)
        if base.figure is None or (ratio and base.figure == 0):
            return Cell(value)
        if note := obstacle(base, sample) or _value_obstacle(base, sample, ratio):
            return Cell(value, Change(sample.figure / base.figure if ratio else value - scale * base.figure), note)
        statistic = "ratio" if ratio else "difference"
        ends = paired_bootstrap(base.values, sample.values, base.weights, statistic, **options)
        return Cell(value, Change(*(end if ratio else scale * end for end in ends)))

    return Row(label, kind, tuple(cell(sample) for sample in samples))


def _window_obstacle(base: _Sample, other: _Sample) -> str | None:
    for sample in (base, other):
        if sample.source is None:
            return f"the log of {sample.label} has no hash of this text"
    if base.source != other.source:
        return f"{base.label} and {other.label} were measured on different texts"
    return None


def _item_obstacle(base: _Sample, other: _Sample) -> str | None:
    if base.source and other.source and base.source != other.source:
        return f"the task's items of {base.label} and {other.label} differ"
    return None


def _value_obstacle(base: _Sample, other: _Sample, ratio: bool) -> str | None:
    for sample in (base, other):
        if sample.values is None:
            return f"no values per item lie beside the log of {sample.label}"
    if len(base.values) != len(other.values):
        return f"{base.label} has {len(base.values)} items or windows, {other.label} has {len(other.values)}"
    if not np.array_equal(base.weights, other.weights):
        return f"the windows of {base.label} and {other.label} differ"
    if len(base.values) < 2:
        return "one item or window gives no interval"
    for sample in (base, other):
        if not np.isfinite(sample.values).all():
            return f"a value per item of {sample.label} is not a finite number"
        mean = np.average(sample.values, weights=sample.weights)
        with np.errstate(over="ignore"):
            given = np.exp(mean) if ratio else mean
        # values of another run beside this log, or a metric that is no mean of its items
        if not math.isclose(given, sample.figure, rel_tol=STATED, abs_tol=STATED):
            return f"the values per item of {sample.label} do not give the figure in its log"
    return None


def _size_rows(sides: list[_Side]) -> list[Row]:
    rows = []
    for key, label in (("disk_bytes", "size on disk"), ("memory_bytes", "size in memory")):
        sizes = [side.measured.size[key] for side in sides]
        cells = [Cell(None if size is None else size / MEGABYTE) for size in sizes]
        cells[1:] = [
            replace(cell, change=Change(size / sizes[0])) if size and sizes[0] else cell
            for cell, size in zip(cells[1:], sizes[1:], strict=True)
        ]
        rows.append(Row(label, "size", tuple(cells)))
    return rows


def _calibration_rows(sides: list[_Side]) -> list[Row]:
    calibrations = [side.column.calibration for side in sides]
    if not any(calibrations):
        return []
    tokens = tuple(Cell(calibration and calibration.tokens) for calibration in calibrations)
    seconds = tuple(Cell(calibration and calibration.seconds) for calibration in calibrations)
    return [
        Row("calibration", "tokens", tokens),
        Row("calibration", "seconds", seconds),
        Row("mean SQNR of the taps", "sqnr", _sqnr_cells(calibrations)),
    ]


def _sqnr_cells(calibrations: list[Calibration | None]) -> tuple[Cell, ...]:
    # a tap where nothing is lost has no ratio
    known = [{tap: db for tap, db in c.sqnr_db.items() if db is not None} if c else {} for c in calibrations]
    means = [sum(taps.values()) / len(taps) if taps else None for taps in known]
    cells = [Cell(means[0])]
    for taps, mean in zip(known[1:], means[1:], strict=True):
        if mean is None or means[0] is None:
            cells.append(Cell(mean))
        elif taps.keys() != known[0].keys():
            cells.append(Cell(mean, note="the means are over different taps"))
        else:
            cells.append(Cell(mean, Change(mean - means[0])))
    return tuple(cells)
