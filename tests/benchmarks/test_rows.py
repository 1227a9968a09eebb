"""The rows of results.json."""

import pytest

from benchmarks.speed import rows
from benchmarks.speed.shapes import Case

CASE = Case("130m", batch=8, prompt=128)


def sample(prefill: float, decode: float, peak: int = 0) -> dict:
    return {"prefill_s": prefill, "decode_s": decode, "peak_bytes": peak}


def test_a_row_holds_medians_of_tokens_per_second():
    samples = [sample(1.0, 4.0), sample(2.0, 1.0), sample(4.0, 2.0)]
    row = rows.case_row("quamba", "w8a8", CASE, samples, steps=16, base_bytes=0)
    assert row["prefill_tok_s"] == 8 * 128 / 2
    assert row["decode_tok_s"] == 8 * 16 / 2
    assert row["rounds"] == 3


def test_quartiles_enclose_the_median():
    samples = [sample(seconds, 1.0) for seconds in (1, 2, 3, 4, 5)]
    row = rows.case_row("quamba", "w8a8", CASE, samples, steps=1, base_bytes=0)
    first, third = row["prefill_quartiles"]
    assert first == pytest.approx(1024 / 4) and third == pytest.approx(1024 / 2)


def test_one_round_has_quartiles_too():
    assert rows.quartiles([3.0]) == [3.0, 3.0]


def test_memory_is_the_largest_peak_less_what_the_imports_take():
    samples = [sample(1, 1, peak=900), sample(1, 1, peak=700)]
    assert rows.case_row("quamba", "w8a8", CASE, samples, steps=1, base_bytes=200)["memory_bytes"] == 700


def test_a_new_row_replaces_the_one_that_measured_the_same():
    old = [{"system": "quamba", "prompt": 128, "v": 1}, {"system": "quamba", "prompt": 512, "v": 2}]
    merged = rows.merge(old, [{"system": "quamba", "prompt": 128, "v": 3}])
    assert [(row["prompt"], row["v"]) for row in merged] == [(128, 3), (512, 2)]


def test_there_is_one_row_for_the_machine():
    merged = rows.merge([{"system": "machine", "date": "old"}], [{"system": "machine", "date": "new"}])
    assert merged == [{"system": "machine", "date": "new"}]


def test_what_is_saved_is_read_back(tmp_path):
    saved = [{"system": "machine", "cpu": "x"}, {"system": "floor", "scheme": "w8a8"}]
    rows.save(tmp_path / "results.json", saved)
    assert rows.read(tmp_path / "results.json") == saved


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="no list of rows"):
        rows.read(tmp_path / "results.json")
