"""A comparison as tables: well-formed Markdown, and tables that a terminal shows as they are."""

import pytest
from rich.console import Console

from quamba.study.observers.comparison import Comparison, ObserverResult, TapComparison
from quamba.study.observers.report import (
    AGGREGATE_COLUMNS,
    DETAIL_COLUMNS,
    TERMINAL_WIDTH,
    Section,
    aggregate_sections,
    detail_section,
    verdict_lines,
)
from quamba.study.observers.verdict import Rule, judge
from tests.markdown_tables import parse_markdown

ODD = "mine:name='a|b[/red]',other=[1]"  # an observer whose arguments look like Markdown and like rich's markup
LONG = "outlier_aware:normal_ratio=0.9999,normal_level=124,clip_ratio=0.95,mantissa_bits=9"


def result(observer: str, mse: float = 1e-4, calibration: float | None = 32.5) -> ObserverResult:
    return ObserverResult(observer, 0.0353211, mse, 31.314, 0.000123, 57, 8.87e-3, 9.05e-3, mse / 1e-4, calibration)


def comparison(*taps: str, observers=("minmax", "mse"), calibration: float | None = 32.5) -> Comparison:
    """Two layers of each tap, on which every observer after the first has half the MSE of the one before."""
    results = [result(name, 1e-4 * 0.5**i, calibration) for i, name in enumerate(observers)]
    compared = [TapComparison(tap, layer, 1000, 10, results) for layer in (0, 1) for tap in taps]
    return Comparison("tiny", True, 8, list(observers), compared)


def shown(section: Section, width: int = TERMINAL_WIDTH) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(section.to_rich())
    return capture.get()


# --- what is in the tables ---


def test_a_tap_has_a_row_for_every_observer():
    section = detail_section(comparison("x").taps[1])
    assert section.title == "layers.1.x: 1000 values, 10 of them outliers"
    assert len(section.columns) == len(DETAIL_COLUMNS)
    assert section.rows == [
        ["minmax", "0.03532", "1.00e-04", "1.000", "31.31", "0.0123", "57", "8.87e-03", "9.05e-03", "32.50"],
        ["mse", "0.03532", "5.00e-05", "0.500", "31.31", "0.0123", "57", "8.87e-03", "9.05e-03", "32.50"],
    ]


def test_a_tap_without_a_histogram_has_no_column_for_it():
    section = detail_section(comparison("x", calibration=None).taps[0])
    assert list(section.columns) == list(DETAIL_COLUMNS[:-1])
    assert all(len(row) == len(section.columns) for row in section.rows)


def test_where_nothing_was_lost_there_are_no_decibels():
    perfect = ObserverResult("minmax", 1.0, 0.0, None, 0.0, 1, 0.0, 0.0, 1.0, None)
    (row,) = detail_section(TapComparison("x", 0, 10, 0, [perfect])).rows
    assert row[DETAIL_COLUMNS.index("SQNR,\ndB")] == "-"
    (row,) = aggregate_sections(Comparison("tiny", True, 8, ["minmax"], [TapComparison("x", 0, 10, 0, [perfect])]))[
        0
    ].rows
    assert row == ["minmax", "1.000", "-", "1 of 1"]


def test_there_is_an_aggregate_for_every_tap_and_one_for_all():
    sections = aggregate_sections(comparison("x", "out"))
    assert [section.title for section in sections] == [
        "tap x, all layers compared",
        "tap out, all layers compared",
        "all taps and layers",
    ]
    assert sections[0].rows == [["minmax", "1.000", "31.31", "0 of 2"], ["mse", "0.500", "31.31", "2 of 2"]]
    assert sections[2].rows == [["minmax", "1.000", "31.31", "0 of 4"], ["mse", "0.500", "31.31", "4 of 4"]]
    assert [section.title for section in aggregate_sections(comparison("x"))] == ["tap x, all layers compared"]


def test_the_verdict_is_a_line_for_the_rule_and_one_for_every_observer():
    rule, verdicts = Rule(), judge(comparison("x", observers=("minmax", "mse", "mine")), Rule())
    lines = verdict_lines(rule, verdicts)
    assert lines[0] == f"Rule: {rule.describe()}."
    assert lines[1:] == [f"- {found.sentence()}" for found in verdicts]
    assert len(lines) == 3
    assert not any("\n" in line for line in lines)


# --- Markdown ---


@pytest.mark.parametrize("calibration", [32.5, None])
def test_every_section_is_a_well_formed_markdown_table(calibration):
    compared = comparison("x", "out", calibration=calibration)
    for section in (*map(detail_section, compared.taps), *aggregate_sections(compared)):
        title, (header, *rows) = parse_markdown(section.to_markdown())
        assert title == section.title
        assert header == [column.replace("\n", " ") for column in section.columns]
        assert rows == [list(row) for row in section.rows]


def test_bars_in_a_cell_are_escaped_in_markdown():
    section = detail_section(comparison("x", observers=("minmax", ODD)).taps[0])
    _, rows = parse_markdown(section.to_markdown())
    assert rows[2][0] == ODD.replace("|", "\\|")


# --- on a terminal ---


def test_the_terminal_shows_every_cell_of_the_widest_table():
    section = detail_section(comparison("x", observers=("minmax", "outlier_aware_adaptive")).taps[0])
    text = shown(section)
    assert section.title in text
    assert all(cell in text for row in section.rows for cell in row)
    assert all(word in text for column in section.columns for word in column.split("\n"))
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH


def test_a_long_observer_is_folded_and_its_figures_stay_whole():
    section = detail_section(comparison("x", observers=("minmax", LONG)).taps[0])
    text = shown(section)
    assert "…" not in text
    assert all(cell in text for row in section.rows for cell in row[1:])
    assert LONG in "".join(line.split(" ")[1] for line in text.splitlines() if line.startswith(" "))


def test_the_terminal_takes_no_cell_and_no_title_for_markup():
    text = shown(Section(f"tap {ODD}", AGGREGATE_COLUMNS, [[ODD, "1.000", "-", "1 of [2]"]]))
    assert f"tap {ODD}" in text
    assert text.count(ODD) == 2
    assert "1 of [2]" in text
