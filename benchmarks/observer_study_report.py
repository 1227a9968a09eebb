"""The tables and figures of docs/observer-study.md, from what observer_study.py measured.

python benchmarks/observer_study_report.py [--work runs/observer-study] [--figures docs]
"""

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
from quamba.study.observers.report import Section
from quamba.study.saving import save_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v")


def interval(value: dict) -> str:
    """`1.0018 [1.0012, 1.0024]`."""
    return f"{value['estimate']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def points(value: dict) -> str:
    """`-0.23 [-1.15, +0.46]`."""
    return f"{value['estimate']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def sqnr_section(aggregates: list[dict]) -> Section:
    """SQNR by tap and observer."""
    names = [row["observer"] for row in aggregates[0]["observers"]]
    rows = [
        [tap["tap"] or "all", *(f"{row['sqnr_db']:.2f} ({row['relative_mse']:.2f})" for row in tap["observers"])]
        for tap in aggregates
    ]
    return Section("SQNR in dB, mean over the layers (MSE relative to min-max)", ["tap", *names], rows)


def one_tap_section(part: dict) -> Section:
    """Perplexity ratios with one tap quantized."""
    names = list(next(iter(part.values())))
    rows = [[tap, *(interval(by_name[name]) for name in names)] for tap, by_name in part.items()]
    return Section("perplexity over float's, only this tap quantized", ["tap", *names], rows)


def pairs_section(part: dict) -> Section:
    """Ratios of perplexities of two observers of one tap."""
    names = list(next(iter(part.values())))
    rows = [[tap, *(interval(by_pair[name]) for name in names)] for tap, by_pair in part.items()]
    return Section("ratio of the perplexities of two observers, only this tap quantized", ["tap", *names], rows)


def ratio_section(part: dict) -> Section:
    """Perplexity ratios by normal ratio."""
    rows = [[ratio, interval(row["x"]), interval(row["all"])] for ratio, row in part.items()]
    return Section("perplexity over float's, level 120", ["normal ratio", "on tap x", "on every tap"], rows)


def level_section(part: dict) -> Section:
    """Perplexity ratios by level, on every tap."""
    levels = list(next(iter(part.values())))
    rows = [[ratio, *(interval(row[level]["all"]) for level in levels)] for ratio, row in part.items()]
    columns = ["normal ratio", *(f"level {level}" for level in levels)]
    return Section("perplexity over float's, on every tap", columns, rows)


def int8_section(part: dict) -> Section:
    """The real kernels, a calibration seed after the other."""
    columns = ["observers", "seed", "perplexity / float", "perplexity / mse on every tap", "accuracy, points to float"]
    rows = [
        [name, seed, interval(row["to_float"]), interval(row["to_mse"]), points(row["points"])]
        for name in next(iter(part.values()))
        for seed, row in ((seed, table[name]) for seed, table in part.items())
    ]
    return Section("W8A8 with the int8 kernels, windows that no choice was made on", columns, rows)


def sweep_figure(ratios: dict, levels: dict) -> Figure:
    """Two panels, 1200 pixels wide: perplexity against the normal ratio, and against the level."""
    figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = [1 - float(ratio) for ratio in ratios]
    for index, (where, label) in enumerate((("x", "tap x only"), ("all", "every tap"))):
        _errorbar(left, index, shares, [row[where] for row in ratios.values()], label)
    left.set(xscale="log", yscale="log", xlabel="share of values beyond the normal range (1 - normal ratio)")
    left.set_title("level 120, by normal ratio")
    for index, (ratio, row) in enumerate(levels.items()):
        _errorbar(right, index, [int(level) for level in row], [r["all"] for r in row.values()], f"ratio {ratio}")
    right.set(yscale="log", xlabel="level that the end of the normal range maps to (of 127)")
    right.set_title("every tap, by level")
    for axes in (left, right):
        axes.set_ylabel("perplexity increase over float, %")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


def _errorbar(axes, index: int, x: list, values: list[dict], label: str) -> None:
    y = [100 * (value["estimate"] - 1) for value in values]
    error = [[100 * (v["estimate"] - v["low"]) for v in values], [100 * (v["high"] - v["estimate"]) for v in values]]
    axes.errorbar(x, y, error, color=COLOURS[index], marker=MARKERS[index], capsize=3, label=label)


def main() -> None:
    """Prints every table whose part was measured and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/observer-study"), metavar="DIR")
    parser.add_argument("--figures", type=Path, default=Path("docs"), metavar="DIR")
    args = parser.parse_args()
    parts = {
        path.stem.removeprefix("part_"): json.loads(path.read_text("utf-8")) for path in args.work.glob("part_*.json")
    }
    sections = {
        "sqnr": sqnr_section,
        "one_tap": one_tap_section,
        "pairs": pairs_section,
        "ratios": ratio_section,
        "levels": level_section,
        "int8": int8_section,
    }
    for name, section in sections.items():
        if name in parts:
            print(section(parts[name]).to_markdown())
    if {"ratios", "levels"} <= set(parts):
        save_figure(sweep_figure(parts["ratios"], parts["levels"]), args.figures / "observer-study-sweeps.png")


if __name__ == "__main__":
    main()
