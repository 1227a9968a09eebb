"""Logs that are found by name and read back with their values per item."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.evaluation.log import items_path, write_log
from quamba.study.logs.result_log import distinct_labels, find_log, read_log, read_logs
from tests.study.result_logs import CORRECT, NLL, TOKENS, figures, write_result_log

# --- which file is meant ---


@pytest.mark.parametrize("name", ["mamba-2.8b_w8a8.json", "mamba-2.8b_w8a8", "."])
def test_a_log_is_named_by_its_file_with_or_without_suffix_or_by_its_folder(tmp_path, name):
    log = write_result_log(tmp_path, stem="mamba-2.8b_w8a8")
    assert find_log(tmp_path / name) == log


def test_a_folder_means_its_current_log_not_those_that_were_moved_away(tmp_path):
    for _ in range(3):
        log = write_result_log(tmp_path)
    (tmp_path / ".m_w8a8.abc.json").write_text("")  # what an interrupted run left
    assert find_log(tmp_path) == log
    older = next(path for path in tmp_path.glob("m_w8a8.2*.json") if ".items" not in path.name)
    assert find_log(older) == older


def test_a_folder_with_several_logs_or_none_lists_what_is_there(tmp_path):
    with pytest.raises(QuambaError, match=r"holds no log: give a log that main\.py wrote"):
        find_log(tmp_path)
    for scheme in ("w8a8", "fp"):
        write_result_log(tmp_path, stem=f"m_{scheme}")
    with pytest.raises(QuambaError, match=r"holds several logs \(m_fp.json, m_w8a8.json\): name one"):
        find_log(tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QuambaError, match=r"the log '.*best' does not exist"):
        find_log(tmp_path / "best")


@pytest.mark.parametrize("name", ["m_w8a8.items.json", "m_w8a8.items"])
def test_values_per_item_are_no_log(tmp_path, name):
    write_result_log(tmp_path)
    with pytest.raises(QuambaError, match=r"holds the values per item of a log, not the log: give m_w8a8\.json"):
        find_log(tmp_path / name)


def test_the_same_log_twice_is_refused_however_it_is_spelled(tmp_path):
    log = write_result_log(tmp_path)
    with pytest.raises(QuambaError, match="is given twice"):
        read_logs([tmp_path, log.parent / ".." / tmp_path.name / "m_w8a8"])


# --- what is read ---


def test_a_log_is_read_with_the_values_of_both_models(tmp_path):
    base = figures(nll=[1.0, 2.0, 3.0, 4.0])
    log = read_log(write_result_log(tmp_path, base))
    assert (log.model, log.scheme, log.text_sha256) == ("m", "w8a8", {"stdlib": "1234"})
    assert log.measured.ppl["stdlib"] == pytest.approx(math.exp(np.average(NLL, weights=TOKENS)))
    nll, tokens = log.measured.windows["stdlib"]
    assert (nll.tolist(), tokens.tolist()) == (NLL, TOKENS)
    assert log.measured.task_items["cloze"]["acc,none"].tolist() == CORRECT
    assert log.float_measured.windows["stdlib"][0].tolist() == [1, 2, 3, 4]
    assert log.calibration.sqnr_db == {"layers.0.in": 40, "layers.0.x": 30, "layers.0.out": None}


def test_an_older_log_without_hashes_calibration_and_items_is_read(tmp_path):
    logged, _ = figures()
    log = read_log(write_log({"model": "m", "scheme": "fp", **logged}, tmp_path, "m_fp"))
    assert log.text_sha256 == {} and log.calibration is None and log.float_measured is None
    assert log.measured.windows == {} and log.measured.task_items == {}


@given(st.lists(st.floats(), min_size=1))
def test_values_survive_the_file_but_for_those_that_json_lacks(tmp_path_factory, nll):
    folder = tmp_path_factory.mktemp("logs")
    logged, items = figures()
    items["ppl"]["stdlib"] = {"nll": nll, "tokens": [7] * len(nll)}
    path = write_log({"model": "m", "scheme": "fp", **logged}, folder, "m_fp", items)
    read, _ = read_log(path).measured.windows["stdlib"]
    expected = [value if math.isfinite(value) else math.nan for value in nll]
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\x00", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[]", "it holds no object"),
        (b"{}", "it has no 'model'"),
        (b'{"model": "m", "scheme": "fp", "ppl": {}, "lm_eval": {}, "size": {}}', "it has no 'disk_bytes'"),
        (b'{"model": "m", "scheme": "fp", "ppl": {"a": "1"}, "lm_eval": {}}', "'1' is no number"),
        (b'{"model": "m", "scheme": "fp", "ppl": [], "lm_eval": {}}', "no attribute 'items'"),
    ],
    ids=str,
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(QuambaError, match=message) as raised:
        read_log(path)
    assert "other.json" in str(raised.value) and "give a log that main.py wrote" in str(raised.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"nll": [1.0], "tokens": [1, 2]},
        {"nll": [1.0], "tokens": [0]},
        {"nll": [[1.0]], "tokens": [[1]]},
        {"nll": ["one"], "tokens": [1]},
        {"nll": [1.0]},
        [],
    ],
    ids=str,
)
def test_values_per_item_that_make_no_sense_are_refused(tmp_path, entry):
    log = write_result_log(tmp_path)
    items_path(log).write_text(json.dumps({"ppl": {"stdlib": entry}, "lm_eval": {}}))
    with pytest.raises(QuambaError, match=r"m_w8a8\.items\.json does not hold the values per item"):
        read_log(log)


# --- labels ---


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["logs/baseline/m_w8a8.json", "logs/outlier_aware/m_w8a8.json"], ["baseline", "outlier_aware"]),
        (["logs/m-2.8b_fp.json", "logs/m-2.8b_w8a8.json"], ["m-2.8b_fp", "m-2.8b_w8a8"]),
        (["logs/a/x.json", "logs/a/y.json", "logs/b/x.json"], ["a/x", "a/y", "b/x"]),
        (["runs/a/logs/m.json", "runs/b/logs/m.json"], ["a", "b"]),
        (["/m.json", "/b/m.json"], ["m", "b/m"]),
        (["logs/m.json"], ["m"]),
    ],
    ids=str,
)
def test_a_label_is_the_shortest_part_that_tells_the_paths_apart(paths, labels):
    assert distinct_labels([Path(path) for path in paths]) == labels


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple), min_size=2, max_size=6, unique=True)
)
def test_labels_are_distinct_parts_of_the_paths(parts):
    paths = [Path("/logs", *part[:-1], f"{part[-1]}.json") for part in parts]
    labels = distinct_labels(paths)
    assert len(set(labels)) == len(labels)
    assert all(label and f"/{label}/" in f"{path.with_suffix('')}/" for label, path in zip(labels, paths, strict=True))
