"""What changes from one log to another, and when the change has an interval."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from quamba.errors import QuambaError
from quamba.evaluation.compare import paired_bootstrap
from quamba.evaluation.log import items_path
from quamba.study.logs.comparison import Cell, Change, LogComparison, compare_logs
from quamba.study.logs.result_log import read_logs
from tests.study.result_logs import CALIBRATION, CORRECT, NLL, TOKENS, figures, write_result_log

WORSE = [value + shift for value, shift in zip(NLL, [0.1, 0.2, 0.0, 0.1], strict=True)]


def compared(tmp_path, first: dict, second: dict, **options) -> LogComparison:
    """Two logs with some entries changed, `a` and `b`."""
    paths = [write_result_log(tmp_path / name, **changes) for name, changes in (("a", first), ("b", second))]
    return compare_logs(read_logs(paths), resamples=200, **options)


def cells(comparison: LogComparison, label: str) -> tuple[Cell, ...]:
    return next(row.cells for row in comparison.rows if row.label == label)


# --- intervals ---


def test_perplexities_on_the_same_windows_have_the_interval_of_the_paired_bootstrap(tmp_path):
    base, other = cells(compared(tmp_path, {}, {"nll": WORSE}), "perplexity, stdlib")
    assert base == Cell(pytest.approx(math.exp(np.average(NLL, weights=TOKENS))))
    assert other.value == pytest.approx(math.exp(np.average(WORSE, weights=TOKENS)))
    assert other.change == Change(*paired_bootstrap(NLL, WORSE, TOKENS, "ratio", resamples=200))
    assert other.change.low < other.change.estimate < other.change.high
    assert other.note is None


def test_accuracies_are_in_points_of_a_hundred(tmp_path):
    base, other = cells(compared(tmp_path, {}, {"correct": [1.0, 0.0, 0.0, 1.0]}), "cloze, acc")
    low, high = (100 * end for end in paired_bootstrap(CORRECT, [1, 0, 0, 1], resamples=200)[1:])
    assert (base.value, other.value) == (75, 50)
    assert other.change == Change(-25, pytest.approx(low), pytest.approx(high))


def test_a_share_that_is_in_points_already_stays_so(tmp_path):
    tasks = [{"squad": {"exact,none": exact, "f1,none": 80.0}} for exact in (60.0, 62.5)]
    comparison = compared(tmp_path, {"lm_eval": tasks[0]}, {"lm_eval": tasks[1]})
    assert cells(comparison, "squad, exact")[1].value == 62.5
    assert cells(comparison, "squad, exact")[1].change == Change(2.5)


def test_the_perplexity_of_a_task_is_compared_as_a_ratio(tmp_path):
    likelihoods = np.array([[-1.0, -2.0, -4.0], [-1.5, -2.0, -4.2]])
    paths = []
    for name, values in zip("ab", likelihoods, strict=True):
        tasks = {"cloze": {"perplexity,none": math.exp(-values.mean())}}
        paths.append(write_result_log(tmp_path / name, lm_eval=tasks))
        items = {"ppl": {}, "lm_eval": {"cloze": {"perplexity,none": values.tolist()}}}
        items_path(paths[-1]).write_text(json.dumps(items))
    row = next(row for row in compare_logs(read_logs(paths), resamples=200).rows if row.label == "cloze, perplexity")
    assert row.kind == "perplexity"
    difference = paired_bootstrap(*likelihoods, resamples=200)
    ends = [math.exp(-value) for value in (difference.estimate, difference.high, difference.low)]
    assert row.cells[1].change == Change(*map(pytest.approx, ends))


def test_other_metrics_keep_their_own_unit(tmp_path):
    tasks = [{"summaries": {"rouge1,none": value}} for value in (20.0, 21.5)]
    comparison = compared(tmp_path, {"lm_eval": tasks[0]}, {"lm_eval": tasks[1]})
    row = next(row for row in comparison.rows if row.label == "summaries, rouge1")
    assert (row.kind, row.cells[1].value, row.cells[1].change) == ("metric", 21.5, Change(1.5))


def test_confidence_resamples_and_seed_are_those_of_the_bootstrap(tmp_path):
    comparison = compared(tmp_path, {}, {"nll": WORSE}, confidence=0.5, seed=3)
    expected = paired_bootstrap(NLL, WORSE, TOKENS, "ratio", resamples=200, confidence=0.5, seed=3)
    assert cells(comparison, "perplexity, stdlib")[1].change == Change(*expected)
    assert (comparison.confidence, comparison.resamples, comparison.seed) == (0.5, 200, 3)


# --- no pairs: a change without an interval, and why ---


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"items": False}, "no values per item lie beside the log of b"),
        ({"ppl_text_sha256": {"stdlib": "5678"}}, "a and b were measured on different texts"),
        ({"ppl_text_sha256": {}}, "the log of b has no hash of this text"),
        ({"nll": NLL[:3], "tokens": TOKENS[:3]}, "a has 4 items or windows, b has 3"),
        ({"tokens": [10, 10, 5, 10]}, "the windows of a and b differ"),
        ({"nll": [2.0, math.nan, 2.5, 2.0], "ppl": {"stdlib": 12.0}}, "a value per item of b is not a finite number"),
        ({"ppl": {"stdlib": 12.0}}, "the values per item of b do not give the figure in its log"),
    ],
    ids=str,
)
def test_perplexities_that_are_not_paired_have_a_ratio_and_a_note(tmp_path, changes, note):
    base, other = cells(compared(tmp_path, {}, changes), "perplexity, stdlib")
    assert other == Cell(other.value, Change(other.value / base.value), note)


def test_one_window_has_no_interval(tmp_path):
    one = {"nll": [2.0], "tokens": [9]}
    _, other = cells(compared(tmp_path, one, one), "perplexity, stdlib")
    assert other == Cell(other.value, Change(1.0), "one item or window gives no interval")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"items": False}, "no values per item lie beside the log of b"),
        ({"correct": [0.0, 1.0, 1.0]}, "a has 4 items or windows, b has 3"),
        ({"assets_sha256": {"tasks/cloze/test.jsonl": "5678"}}, "the task's items of a and b differ"),
    ],
    ids=str,
)
def test_accuracies_that_are_not_paired_have_a_difference_and_a_note(tmp_path, changes, note):
    first = {"assets_sha256": {"tasks/cloze/test.jsonl": "1234", "tasks/cloze_b/test.jsonl": "any"}}
    base, other = cells(compared(tmp_path, first, changes), "cloze, acc")
    assert other == Cell(other.value, Change(other.value - base.value), note)


def test_a_figure_that_was_not_finite_has_no_change(tmp_path):
    infinite = {"nll": [math.inf, *NLL[1:]], "ppl": {"stdlib": math.inf}}
    assert cells(compared(tmp_path / "1", {}, infinite), "perplexity, stdlib")[1] == Cell(
        None, note="the figure of b is not a finite number"
    )
    base, other = cells(compared(tmp_path / "2", infinite, {}), "perplexity, stdlib")
    assert base.note == "the figure of a is not a finite number"
    assert other.value is not None and other.change is None


def test_what_one_log_lacks_is_left_empty_there(tmp_path):
    comparison = compared(tmp_path, {"ppl": {"c4": 20.0}}, {"lm_eval": {}})
    assert cells(comparison, "perplexity, c4") == (Cell(20.0), Cell(None))
    assert cells(comparison, "perplexity, stdlib")[0] == Cell(None)
    assert cells(comparison, "perplexity, stdlib")[1].change is None
    assert cells(comparison, "cloze, acc") == (Cell(75.0), Cell(None))


# --- sizes and calibration ---


def test_sizes_are_megabytes_with_their_ratio(tmp_path):
    comparison = compared(tmp_path, {}, {"memory_bytes": 2_000_000})
    assert cells(comparison, "size in memory") == (Cell(8), Cell(2, Change(0.25)))


def test_a_size_that_is_not_known_is_left_empty(tmp_path):
    comparison = compared(tmp_path, {"size": {"disk_bytes": None, "memory_bytes": 1_000_000}}, {})
    assert cells(comparison, "size on disk") == (Cell(None), Cell(9))


def test_the_calibrations_stand_side_by_side(tmp_path):
    taps = {"layers.0.in": {"sqnr_db": 44.0}, "layers.0.x": {"sqnr_db": 32.0}, "layers.0.out": {"sqnr_db": None}}
    comparison = compared(tmp_path, {}, {"calibration": CALIBRATION | {"tokens": 256, "taps": taps}})
    assert [[cell.value for cell in row.cells] for row in comparison.rows[-3:]] == [[128, 256], [0.25, 0.25], [35, 38]]
    assert cells(comparison, "mean SQNR of the taps")[1].change == Change(3)


def test_means_over_different_taps_are_not_subtracted(tmp_path):
    fewer = CALIBRATION | {"taps": {"layers.0.in": {"sqnr_db": 40.0}}}
    _, other = cells(compared(tmp_path, {}, {"calibration": fewer}), "mean SQNR of the taps")
    assert other == Cell(40, None, "the means are over different taps")


def test_logs_without_a_calibration_have_no_rows_of_it(tmp_path):
    logs = [replace(log, calibration=None) for log in read_logs([write_result_log(tmp_path / name) for name in "ab"])]
    assert [row.kind for row in compare_logs(logs, resamples=9).rows] == ["perplexity", "accuracy", "size", "size"]


# --- columns ---


def test_the_first_of_many_logs_is_the_base(tmp_path):
    logs = read_logs([write_result_log(tmp_path / name, nll=[n, 3.0, 2.5, 2.0]) for n, name in enumerate("abc")])
    comparison = compare_logs(logs, resamples=9)
    assert [column.label for column in comparison.columns] == ["a", "b", "c"]
    base, *others = cells(comparison, "perplexity, stdlib")
    assert [cell.change.estimate for cell in others] == pytest.approx([cell.value / base.value for cell in others])


def test_against_float_the_base_is_the_float_model_of_the_first_log(tmp_path):
    logs = read_logs([write_result_log(tmp_path, figures(nll=WORSE, memory_bytes=32_000_000))])
    comparison = compare_logs(logs, against_float=True, resamples=200)
    columns = [(column.label, column.scheme) for column in comparison.columns]
    assert columns == [("m_w8a8 (float)", "fp"), ("m_w8a8", "w8a8")]
    expected = paired_bootstrap(WORSE, NLL, TOKENS, "ratio", resamples=200)
    assert cells(comparison, "perplexity, stdlib")[1].change == Change(*expected)
    assert cells(comparison, "size in memory")[1].change == Change(0.25)
    assert cells(comparison, "calibration")[0] == Cell(None)


def test_against_float_needs_float_figures(tmp_path):
    logs = read_logs([write_result_log(tmp_path)])
    with pytest.raises(QuambaError, match=r"m_w8a8.json has no figures of the float model.* without --skip_float"):
        compare_logs(logs, against_float=True)


def test_one_log_is_no_comparison(tmp_path):
    with pytest.raises(QuambaError, match="two logs or more, or one with --against_float"):
        compare_logs(read_logs([write_result_log(tmp_path)]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["only"], r"--labels names 1 \(only\) for 2 logs"), (["x", "x"], "--labels names 'x' twice")],
)
def test_labels_must_fit_the_logs(tmp_path, labels, message):
    with pytest.raises(QuambaError, match=message):
        compared(tmp_path, {}, {}, labels=labels)


def test_labels_replace_those_of_the_paths(tmp_path):
    comparison = compared(tmp_path, {}, {"items": False}, labels=["old", "new"])
    assert [column.label for column in comparison.columns] == ["old", "new"]
    assert cells(comparison, "perplexity, stdlib")[1].note == "no values per item lie beside the log of new"


def test_other_models_are_compared_and_said(tmp_path):
    assert compared(tmp_path / "1", {}, {}).same_model
    assert not compared(tmp_path / "2", {}, {"model": "n"}).same_model
