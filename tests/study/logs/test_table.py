"""The comparison of logs as a reader and as a program sees it."""

import json
import math

import pytest

from quamba.study.logs.comparison import Cell, Change, Column, LogComparison, Row
from quamba.study.logs.result_log import Calibration
from quamba.study.logs.table import describe_observers, to_dict, to_markdown


def calibration(observer: dict, options: dict | None = None) -> Calibration:
    return Calibration(observer, options or {}, tokens=128, seconds=0.5, sqnr_db={"layers.0.x": 30.0})


COMPARISON = LogComparison(
    columns=(
        Column("a", "logs/a/m.json", "m", "w8a8", calibration({"in": "minmax", "x": "mse", "out": "minmax"})),
        Column("b|c", "logs/b/m.json", "m", "fp", None),
    ),
    rows=(
        Row("perplexity, c4", "perplexity", (Cell(20.0), Cell(21.0, Change(1.05, 1.04, 1.06)))),
        Row("cloze, acc", "accuracy", (Cell(75.0), Cell(50.0, Change(-25.0), "why not"))),
        Row("qa, acc", "accuracy", (Cell(None, note="broken"), Cell(50.0, None, "why not"))),
        Row("size on disk", "size", (Cell(8.0), Cell(2.0, Change(0.25)))),
        Row("calibration", "tokens", (Cell(128), Cell(None))),
    ),
    confidence=0.9,
    resamples=500,
    seed=3,
)


TABLE = r"""
|                     |                    a |    b\|c |                b\|c vs a |
| :------------------ | -------------------: | ------: | -----------------------: |
| model               |                    m |       m |                          |
| scheme              |                 w8a8 |      fp |                          |
| observers           | x=mse, others minmax |       - |                          |
| perplexity, c4      |              20.0000 | 21.0000 | x1.0500 [1.0400, 1.0600] |
| cloze, acc, points  |                75.00 |   50.00 |               -25.00 (1) |
| qa, acc, points     |                - (2) |   50.00 |                      (1) |
| size on disk, MB    |                 8.00 |    2.00 |                   x0.250 |
| calibration, tokens |                  128 |       - |                          |

In square brackets: the 90 % interval of a bootstrap over the pairs of windows or items (500 resamples, seed 3).

1. why not
2. broken
"""


def test_figures_stand_beside_their_change_and_notes_below():
    assert to_markdown(COMPARISON) == TABLE.lstrip()


def test_without_intervals_none_are_explained():
    without = LogComparison(COMPARISON.columns, COMPARISON.rows[3:], 0.9, 500, 3)
    assert "interval" not in to_markdown(without)
    assert to_markdown(without).endswith("|\n")


def test_the_header_row_says_that_models_differ():
    columns = (COMPARISON.columns[0], Column("b", "logs/b/n.json", "n", "w8a8", None))
    text = to_markdown(LogComparison(columns, COMPARISON.rows, 0.9, 500, 3))
    assert text.startswith("| models differ ")
    assert "perplexities compare only where they have one tokenizer" in text


@pytest.mark.parametrize(
    ("observer", "options", "text"),
    [
        ({"in": "minmax", "x": "minmax"}, {}, "minmax"),
        ({"in": "minmax", "out": "minmax", "x": "mse", "z": "mine"}, {}, "x=mse, z=mine, others minmax"),
        (
            {"in": "minmax", "out": "minmax", "x": "percentile"},
            {"percentile": {"percentile_alpha": 0.9}},
            "x=percentile(percentile_alpha=0.9), others minmax",
        ),
    ],
    ids=str,
)
def test_observers_are_described_by_what_is_special(observer, options, text):
    assert describe_observers(calibration(observer, options)) == text


def test_the_dictionary_holds_everything_as_plain_data():
    data = to_dict(COMPARISON)
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))
    assert data["base"] == "a"
    assert (data["confidence"], data["resamples"], data["seed"]) == (0.9, 500, 3)
    assert [column["label"] for column in data["columns"]] == ["a", "b|c"]
    assert data["columns"][0]["calibration"]["observer"] == {"in": "minmax", "x": "mse", "out": "minmax"}
    assert data["rows"][1] == {
        "label": "cloze, acc",
        "kind": "accuracy",
        "unit": "points",
        "statistic": "difference",
        "cells": [
            {"value": 75.0, "change": None, "note": None},
            {"value": 50.0, "change": {"estimate": -25.0, "low": None, "high": None}, "note": "why not"},
        ],
    }


def test_the_dictionary_has_no_number_that_json_lacks():
    rows = (Row("perplexity, c4", "perplexity", (Cell(1.0), Cell(math.inf, Change(math.inf, math.nan, 1.0)))),)
    cell = to_dict(LogComparison(COMPARISON.columns, rows, 0.9, 500, 3))["rows"][0]["cells"][1]
    assert cell == {"value": None, "change": {"estimate": None, "low": None, "high": 1.0}, "note": None}
