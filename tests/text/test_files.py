"""Documents of a user's own files: every form that is read, and what is said of a file that holds none."""

import gzip
import json
import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from quamba.errors import QuambaError
from quamba.text.data import load_text

ROWS = [{"text": "one \u00e9", "id": 1}, {"text": "two", "id": 2}]
TEXTS = ["one \u00e9", "two"]


def json_lines(*rows) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(("packed", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_json_rows_plain_and_packed(tmp_path, name, packed, pack):
    (tmp_path / f"{name}{packed}").write_bytes(pack(json_lines(*ROWS)))
    assert load_text(tmp_path / f"{name}{packed}") == TEXTS


@pytest.mark.parametrize("indent", [None, 2])
def test_one_list_of_rows(tmp_path, indent):
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=indent))
    assert load_text(tmp_path / "a.json") == TEXTS


@pytest.mark.parametrize(("packed", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_plain_text_with_and_without_the_mark_of_its_encoding(tmp_path, packed, pack):
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / f"a.txt{packed}").write_bytes(pack(mark + "gr\u00fcn".encode()))
        assert load_text(tmp_path / f"a.txt{packed}") == ["gr\u00fcn"]


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert load_text(tmp_path / "a.parquet") == TEXTS
    assert load_text("c4", data_dir=tmp_path) == TEXTS


def test_what_save_to_disk_wrote(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    assert load_text(tmp_path / "one") == TEXTS
    splits = {"train": rows, "test": rows.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
    assert load_text(tmp_path / "splits", "calibration") == TEXTS
    assert load_text(tmp_path / "splits", "test") == ["two"]
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "odd")
    with pytest.raises(QuambaError, match=r"odd has no split for calibration: it has 'a', 'b'"):
        load_text(tmp_path / "odd")


def test_a_folder_takes_every_form_in_the_order_of_names(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(*ROWS)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"content": "last"}]), tmp_path / "c.parquet")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    assert load_text(tmp_path) == ["first", *TEXTS, "last"]


TURNS = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"content": "x", "title": "y"}, "x"),
        ({"id": 3, "story": "x"}, "x"),
        ({"messages": TURNS, "id": "a"}, "why?\n\nso"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}, "hi\n\nho"),
    ],
)
def test_the_column_that_holds_the_text_is_found(tmp_path, row, document):
    (tmp_path / "a.jsonl").write_bytes(json_lines(row))
    assert load_text(tmp_path / "a.jsonl") == [document]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json_lines({"title": "x", "body": "y"}), r"a\.jsonl, line 1: .* it has 'title', 'body'"),
        ("a.jsonl", json_lines({"text": None, "id": "x"}), "it has 'text', 'id'"),
        ("a.jsonl", json_lines({}), "it has no fields"),
        ("a.jsonl", json_lines({"messages": ["x"]}), r"line 1, messages, turn 0: expected an object"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}\n', r"line 2: '\\ud800' is half a character"),
        ("a.jsonl", b"[" * 100_000, "line 1: expected a JSON object"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1: expected a JSON object"),
        ("a.json", b"[1]", r"a\.json, entry 0: expected a JSON object"),
        ("a.json", b'[{"text": "x"}', r"a\.json is no list of JSON objects"),
        ("a.jsonl.gz", b"no gzip", r"cannot read .*a\.jsonl\.gz"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], r"cannot read .*a\.txt\.gz"),
        ("a.txt.zst", b"no zst", r"cannot read .*a\.txt\.zst"),
        ("a.parquet", b"PAR1 is not all of it", r"cannot read .*a\.parquet as Parquet: ArrowInvalid"),
        ("a.txt", "x".encode("utf-16"), r"cannot read .*a\.txt as UTF-8 text"),
        ("a.txt", b"\x7fELF\0\0", "it holds NUL bytes"),
        ("a.txt", b"", "nothing but blanks"),
    ],
    ids=str,
)
def test_a_file_without_text_is_named_with_the_row_and_its_columns(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QuambaError, match=message):
        load_text(tmp_path / name)


def test_a_damaged_saved_set_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(QuambaError, match=r"has no \.txt and no \.jsonl file"):
        load_text(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(QuambaError, match=f"cannot read {tmp_path}, which save_to_disk"):
        load_text(tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_what_cannot_be_read_twice_is_refused(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(QuambaError, match="neither a file nor a folder of text"):
        load_text(tmp_path / path)
