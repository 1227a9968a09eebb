"""The table that ends a run, from its log and the paired intervals."""

import copy
import io

import pytest
from rich.console import Console

from quamba.evaluation.compare import Interval
from quamba.evaluation.summary import backend_line, summary_table

FLOAT = {
    "ppl": {"stdlib": 17.5},
    "lm_eval": {
        "cloze": {
            "alias": "cloze",
            "perplexity,none": 8.0,
            "perplexity_stderr,none": 0.5,
            "acc,none": 0.5,
            "acc_stderr,none": 0.02,
        }
    },
    "size": {"disk_bytes": 9_000_000, "memory_bytes": 18_000_000},
}
LOG = {
    "model": "mamba-tiny",
    "scheme": "w8a8",
    "ppl": {"stdlib": 17.675},
    "lm_eval": {"cloze": FLOAT["lm_eval"]["cloze"] | {"perplexity,none": 8.8, "acc,none": 0.49}},
    "size": {"disk_bytes": 6_000_000, "memory_bytes": 6_120_000},
    "float": FLOAT,
}
INTERVALS = {
    "ppl": {"stdlib": Interval(1.01, 1.005, 1.015)},
    "lm_eval": {
        "cloze": {"acc,none": Interval(-0.01, -0.02, 0.001), "perplexity,none": Interval(-0.0953, -0.1823, 0.0)}
    },
}


def rows(log: dict, intervals: dict | None) -> list[list[str]]:
    """The cells of the table's lines, as they are printed; the title first."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary_table(log, intervals))
    lines = console.export_text().splitlines()
    cells = [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in lines[1:]]
    return [[lines[0].strip()], *(line for line in cells if line)]


def test_float_and_quantized_stand_side_by_side_with_the_change():
    assert rows(LOG, INTERVALS) == [
        ["mamba-tiny  w8a8"],
        ["", "float", "w8a8", "change (95 % interval)"],
        ["perplexity, stdlib", "17.5000", "17.6750", "x1.0100 [1.0050, 1.0150]"],
        ["cloze, acc", "0.5000", "0.4900", "-0.0100 [-0.0200, +0.0010]"],
        ["cloze, perplexity", "8.0000", "8.8000", "x1.1000 [1.0000, 1.2000]"],
        ["size on disk, MB", "9.00", "6.00", "x0.667"],
        ["size in memory, MB", "18.00", "6.12", "x0.340"],
    ]


def test_a_run_without_the_float_model_has_one_column():
    alone = {name: value for name, value in LOG.items() if name != "float"}
    table = rows(alone, None)
    assert table[1] == ["", "w8a8"]
    assert ["perplexity, stdlib", "17.6750"] in table
    assert all(len(row) == 2 for row in table[1:])


def test_what_the_float_model_was_not_measured_on_is_a_dash():
    log = copy.deepcopy(LOG)
    log["float"] = {"ppl": {}, "lm_eval": {}, "size": {"disk_bytes": None, "memory_bytes": 1_000_000}}
    table = rows(log, {"ppl": {}, "lm_eval": {}})
    assert ["perplexity, stdlib", "-", "17.6750", ""] in table
    assert ["cloze, acc", "-", "0.4900", ""] in table
    assert ["size on disk, MB", "-", "6.00", ""] in table


@pytest.mark.parametrize(
    ("metrics", "label"),
    [
        (
            {"exact_match,remove_whitespace": 0.25, "exact_match_stderr,remove_whitespace": 0.01},
            "qa, exact_match (remov",
        ),
        ({"exact,none": 0.25, "best_f1,none": 0.5}, "qa, exact"),
        ({"word_perplexity,none": 0.25, "word_perplexity_stderr,none": "N/A"}, "qa, word_perplexity"),
    ],
    ids=str,
)
def test_tasks_show_their_usual_metric_or_all_that_they_have(metrics, label):
    log = LOG | {"lm_eval": {"qa": {"alias": "qa", **metrics}}}
    shown = [row for row in rows(log, INTERVALS) if row[0].startswith("qa")]
    assert len(shown) == 1
    assert shown[0][0].startswith(label)
    assert shown[0][2] == "0.2500"


def test_names_with_brackets_are_no_markup():
    log = copy.deepcopy(LOG) | {"model": "mamba[red]", "ppl": {"texts[/b]/a.txt": 2.0}}
    table = rows(log, None)
    assert table[0] == ["mamba[red]  w8a8"]
    assert table[2][0] == "perplexity, texts[/b]/a.txt"


def test_ops_are_grouped_by_what_ran_them():
    assert backend_line({"a": "avx2", "b": "reference", "c": "avx2"}) == "avx2: a, c; reference: b"
