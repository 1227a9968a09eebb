"""A comparison and its verdict as tables, for a terminal or as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from .comparison import Aggregate, Comparison, ObserverResult, TapComparison
from .verdict import Rule, Verdict

# A line break is one on a terminal, a space in Markdown.
DETAIL_COLUMNS = (
    "observer",
    "scale",
    "MSE",
    "MSE /\nbaseline",
    "SQNR,\ndB",
    "saturated,\n%",
    "outlier\nlevels",
    "normal\nerror",
    "outlier\nerror",
    "calibration\nSQNR, dB",  # the last: dropped where nothing but the first batch was seen
)
AGGREGATE_COLUMNS = ("observer", "MSE /\nbaseline", "SQNR,\ndB", "wins")
TERMINAL_WIDTH = 118  # what the widest table takes


@dataclass(frozen=True)
class Section:
    """A titled table of text cells; the first column is left-aligned, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_rich(self) -> Table:
        """Draw the section for a terminal of TERMINAL_WIDTH columns or more."""
        table = Table(title=escape(self.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def to_markdown(self) -> str:
        """A heading-less Markdown table below its title in bold."""
        lines = [
            [column.replace("\n", " ") for column in self.columns],
            ["---"] + ["---:"] * (len(self.columns) - 1),
            *self.rows,
        ]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _detail_row(result: ObserverResult) -> list[str]:
    return [
        result.observer,
        f"{result.scale:.4g}",
        f"{result.mse:.2e}",
        f"{result.relative_mse:.3f}",
        _decibels(result.sqnr_db),
        f"{100 * result.saturated_share:.4f}",
        str(result.outlier_levels),
        f"{result.normal_error:.2e}",
        f"{result.outlier_error:.2e}",
        _decibels(result.calibration_sqnr_db),
    ]


def _aggregate_row(aggregate: Aggregate) -> list[str]:
    return [
        aggregate.observer,
        f"{aggregate.relative_mse:.3f}",
        _decibels(aggregate.sqnr_db),
        f"{aggregate.wins} of {aggregate.of}",
    ]


def detail_section(comparison: TapComparison) -> Section:
    """Every observer on one tap of one layer."""
    title = f"{comparison.name}: {comparison.values} values, {comparison.outliers} of them outliers"
    recorded = any(result.calibration_sqnr_db is not None for result in comparison.results)
    end = len(DETAIL_COLUMNS) if recorded else -1
    return Section(title, DETAIL_COLUMNS[:end], [_detail_row(result)[:end] for result in comparison.results])


def aggregate_sections(comparison: Comparison) -> list[Section]:
    """Every observer over the layers of each tap, then over everything where there are several taps."""
    taps = comparison.tap_names()
    sections = [
        Section(f"tap {tap}, all layers compared", AGGREGATE_COLUMNS, _aggregate_rows(comparison, tap)) for tap in taps
    ]
    if len(taps) > 1:
        sections.append(Section("all taps and layers", AGGREGATE_COLUMNS, _aggregate_rows(comparison, None)))
    return sections


def _aggregate_rows(comparison: Comparison, tap: str | None) -> list[list[str]]:
    return [_aggregate_row(aggregate) for aggregate in comparison.aggregate(tap)]


def verdict_lines(rule: Rule, verdicts: Sequence[Verdict]) -> list[str]:
    """The rule, then a line for every observer."""
    return [f"Rule: {rule.describe()}.", *(f"- {verdict.sentence()}" for verdict in verdicts)]
