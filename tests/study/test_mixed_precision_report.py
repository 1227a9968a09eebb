"""The frontier of mixed precision as a table, as data and as a figure."""

import json
import math

import pytest

from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.search import choose_schemes, frontier
from quamba.study.mixed_precision_report import FrontierReport, frontier_report, to_dict, to_markdown
from tests.study.mixed_precision_tables import LOSSES, SIZES, WEIGHTS

UNIFORM_W8, UNIFORM_W4 = ("w8a8",) * 3, ("w4a8",) * 3


def rows(report: FrontierReport) -> list[list[str]]:
    lines = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]


def test_every_assignment_of_the_frontier_and_every_uniform_one_has_a_row_the_largest_first():
    assert rows(frontier_report(LOSSES, SIZES, WEIGHTS)) == [
        ["layers", "mean bits", "MB", "predicted loss", ""],
        ["w8a8", "8.000", "0.003", "3.000e-02", "frontier, uniform"],
        ["w8a8 x 2, w4a8 x 1", "6.667", "0.003", "1.200e-01", "frontier"],
        ["w4a8 x 2, w8a8 x 1", "5.333", "0.002", "3.100e-01", "frontier"],
        ["w4a8", "4.000", "0.002", "8.000e-01", "frontier, uniform"],
    ]


def test_perplexities_stand_beside_those_that_were_measured():
    report = frontier_report(LOSSES, SIZES, WEIGHTS, perplexities={UNIFORM_W8: 12.5, UNIFORM_W4: 20.125})
    table = rows(report)
    assert table[0][4] == "perplexity"
    assert [row[4] for row in table[1:]] == ["12.5000", "-", "-", "20.1250"]
    assert "float model" not in to_markdown(report)
    report = frontier_report(LOSSES, SIZES, WEIGHTS, perplexities={UNIFORM_W8: 12.5}, float_perplexity=12.25)
    assert "Perplexity of the float model: 12.2500." in to_markdown(report)


def test_a_chosen_assignment_off_the_frontier_has_a_row_of_its_own():
    losses = {"w8a8": [0.0] * 3, "w4a8": [3.0, 1.0, 1.0]}
    sizes = {"w8a8": [1000, 200, 200], "w4a8": [500, 50, 60]}
    chosen = choose_schemes(losses, sizes, Budget.parse("0.00111MB"), 1400)
    assert chosen not in frontier(losses, sizes)
    report = frontier_report(losses, sizes, 1400, [chosen, chosen])
    (point,) = [point for point in report.points if "chosen" in point.kinds]
    assert (point.schemes, point.kinds, point.size, point.loss) == (chosen.schemes, ("chosen",), 1110, 2.0)
    assert [point.size for point in report.points] == sorted((p.size for p in report.points), reverse=True)


def test_an_assignment_is_shown_once_with_all_that_it_is():
    chosen = choose_schemes(LOSSES, SIZES, Budget.parse("8"), WEIGHTS)
    report = frontier_report(LOSSES, SIZES, WEIGHTS, [chosen])
    assert report.points[0].kinds == ("frontier", "uniform", "chosen")
    assert len(report.points) == 4


def test_a_perplexity_of_nothing_that_is_shown_is_an_error():
    with pytest.raises(ValueError, match="not shown"):
        frontier_report(LOSSES, SIZES, WEIGHTS, perplexities={("w4a8", "w8a8", "w4a8"): 1.0})


def test_the_data_is_json_without_infinities():
    report = frontier_report(LOSSES, SIZES, WEIGHTS, perplexities={UNIFORM_W8: math.inf}, float_perplexity=12.0)
    data = json.loads(json.dumps(to_dict(report), allow_nan=False))
    first = data["points"][0]
    assert (first["schemes"], first["mean_bits"], first["perplexity"]) == (list(UNIFORM_W8), 8.0, None)
    assert data["float_perplexity"] == 12.0
