import collections
import hashlib
import itertools
import json
import shutil

import datasets
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from quamba.errors import QuambaError
from quamba.text import data


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(data.embedded_model_dir("mamba-tiny"))


class WordTokenizer:
    """One token a word, its number; `<s>` is 0."""

    bos_token_id, eos_token_id = 0, None

    def __call__(self, documents, **_):
        return {"input_ids": [[int(word) for word in document.split()] for document in documents]}


def test_embedded_models_have_a_folder_with_a_model_card():
    for name in data.EMBEDDED_MODELS:
        folder = data.embedded_model_dir(name)
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert data.embedded_model_dir("mamba-130m") is None


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_embedded_text_is_whole_files_of_the_split_that_the_checkpoint_was_trained_by(split):
    rows = data.read_asset_rows(f"text/stdlib-{split}.jsonl")
    for row in rows:
        bucket = int(hashlib.sha256(row["path"].encode()).hexdigest(), 16) % 20
        assert (bucket == 1) if split == "test" else (bucket > 1)
    assert data.load_text("stdlib", split) == [row["text"] for row in rows]
    assert 500_000 < sum(len(row["text"].encode()) for row in rows) < 1_000_000
    assert (data.ASSETS / "text" / "LICENSE-PSF.txt").read_text().count("Python Software Foundation") > 1


def test_a_changed_embedded_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(data.ASSETS / "text", tmp_path / "text")
    shutil.copy(data.ASSETS / "MANIFEST.json", tmp_path)
    file = tmp_path / "text" / "stdlib-test.jsonl"
    file.write_bytes(file.read_bytes().replace(b"import", b"export", 1))
    monkeypatch.setattr(data, "ASSETS", tmp_path)
    with pytest.raises(QuambaError, match=r"stdlib-test\.jsonl was changed"):
        data.load_text("stdlib", "test")


def test_local_files(tmp_path):
    (tmp_path / "a.txt").write_text("first line\n\nsecond\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": " "}\n{"text": "two", "id": 2}\n')
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    assert data.load_text(tmp_path / "a.txt") == ["first line\n\nsecond\n"]
    assert data.load_text(str(tmp_path / "b.jsonl"), "test") == ["one", "two"]
    assert data.load_text(tmp_path) == ["first line\n\nsecond\n", "one", "two"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.jsonl", b'{"text": "fine"}\n{"txt": 1}\n', r"x\.jsonl, line 2: .* \"text\""),
        ("x.jsonl", b"[1]\n", "line 1"),
        ("x.txt", b"\xff\xfe", "as UTF-8"),
        ("x.txt", b" \n\n", "nothing but blanks"),
    ],
)
def test_unreadable_files_are_named(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(QuambaError, match=message):
        data.load_text(tmp_path / file)


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(QuambaError, match=r"'wikitext3'.*stdlib, wikitext2, wikitext2-simple, c4, pile, lambada"):
        data.load_text("wikitext3")
    with pytest.raises(QuambaError, match=r"no \.txt and no \.jsonl"):
        data.load_text(tmp_path)
    with pytest.raises(QuambaError, match="unknown split 'train'"):
        data.load_text("stdlib", "train")


def test_hub_texts_are_read_as_the_table_says(monkeypatch):
    asked = {}

    def load_dataset(path, name, data_files, split):
        asked.update(path=path, name=name, data_files=data_files, split=split)
        return datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(2000)]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = data.load_text("wikitext2", "test")
    assert asked == {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "data_files": None, "split": "test"}
    assert len(documents) == 1 and documents[0].startswith("row 0\n\nrow 1\n\n")
    assert len(data.load_text("c4", "test")) == 1100
    assert "validation" in asked["data_files"]
    assert len(data.load_text("pile", "calibration")) == 2000
    assert asked["path"] == "mit-han-lab/pile-val-backup"


def test_an_unreachable_hub_says_what_was_tried_and_what_to_do(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(QuambaError, match=r"'wikitext2'.*Salesforce/wikitext.*no route.*local file"):
        data.load_text("wikitext2", "test")


def test_token_stream_puts_a_mark_before_each_document(tokenizer):
    stream = data.token_stream(["import os\n", "x = 1\n"], tokenizer)
    first, second = (tokenizer(text)["input_ids"] for text in ("import os\n", "x = 1\n"))
    assert stream.dtype == torch.int64
    assert stream.tolist() == [0, *first, 0, *second]


def test_calibration_windows_are_distinct_slices_chosen_by_the_seed():
    documents = [" ".join(str(i) for i in range(1, 1000))]
    windows = data.token_windows(documents, WordTokenizer(), seqlen=7, count=20, seed=3)
    assert windows.shape == (20, 7) and windows.dtype == torch.int64
    assert (windows[:, 1:] - windows[:, :-1] == 1).all()
    assert windows.unique().numel() == windows.numel()  # no token twice: no overlap
    assert torch.equal(windows, data.token_windows(documents, WordTokenizer(), 7, 20, seed=3))
    assert not torch.equal(windows, data.token_windows(documents, WordTokenizer(), 7, 20, seed=4))


def test_too_little_calibration_text_is_said(caplog):
    documents = ["1 2 3 4 5 6 7 8 9"]  # 10 tokens with the mark
    assert data.token_windows(documents, WordTokenizer(), seqlen=4, count=8).shape == (2, 4)
    assert "2 distinct sequences of 4 tokens, not 8" in caplog.text
    with pytest.raises(QuambaError, match="10 tokens, fewer than one sequence of 11"):
        data.token_windows(documents, WordTokenizer(), seqlen=11, count=1)
    with pytest.raises(QuambaError, match="number of calibration sequences is 0"):
        data.token_windows(documents, WordTokenizer(), seqlen=4, count=0)


def test_first_windows_are_the_text_from_its_start_without_chance(caplog):
    documents = ["1 2 3 4", "5 6 7 8 9"]  # 11 tokens with the marks
    assert data.first_windows(documents, WordTokenizer(), seqlen=3, count=2).tolist() == [[0, 1, 2], [3, 4, 0]]
    assert not caplog.records
    assert data.first_windows(documents, WordTokenizer(), seqlen=4, count=5).tolist() == [[0, 1, 2, 3], [4, 0, 5, 6]]
    assert "2 distinct sequences of 4 tokens, not 5" in caplog.text
    with pytest.raises(QuambaError, match="11 tokens, fewer than one sequence of 12"):
        data.first_windows(documents, WordTokenizer(), seqlen=12, count=1)
    with pytest.raises(QuambaError, match="length of a calibration sequence is 0"):
        data.first_windows(documents, WordTokenizer(), seqlen=0, count=1)


def numbered(lengths: list[int]) -> list[str]:
    """Documents of so many words, which are the numbers from 1 on: no two words are the same."""
    ends = list(itertools.accumulate(lengths, initial=1))
    return [" ".join(map(str, range(start, end))) for start, end in itertools.pairwise(ends)]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), seqlen=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_slice_is_a_piece_of_a_long_document_or_of_all_where_those_hold_too_little(lengths, seqlen, seed):
    documents, long = numbered(lengths), sum(length for length in lengths if length >= seqlen)
    joined = "0 " + " 0 ".join(documents)  # 0 is the mark
    if 2 * long < sum(lengths) and sum(lengths) + len(lengths) < seqlen:
        with pytest.raises(QuambaError, match=f"fewer than one sequence of {seqlen}"):
            data.token_slices(documents, WordTokenizer(), seqlen, 1, seed)
        return
    slices = data.token_slices(documents, WordTokenizer(), seqlen, 5, seed)
    assert slices.shape == (5, seqlen) and slices.dtype == torch.int64
    for piece in slices.tolist():
        text = f" {' '.join(map(str, piece))} "
        sources = documents if 2 * long >= sum(lengths) else [joined]
        assert any(text in f" {source} " for source in sources)


def test_long_documents_that_are_the_smaller_part_of_a_text_do_not_stand_for_it(caplog):
    """3 documents of 60 tokens among 503, the others of 20: they hold 2 % of the text."""
    documents = numbered([20] * 250 + [60] * 3 + [20] * 250)
    slices = data.token_slices(documents, WordTokenizer(), seqlen=50, count=200)
    parts = (slices.amax(dim=1) - 1) // 1000  # where in the text a slice is
    assert parts.unique().tolist() == list(range(11))
    assert "only 3 of 503 documents are so long, with 2 % of the text: all are joined" in caplog.text


def test_short_documents_alone_are_joined(caplog):
    slices = data.token_slices(numbered([5] * 40), WordTokenizer(), seqlen=32, count=60)
    assert slices.unique().numel() > 190  # of 200 tokens and the mark
    assert "only 0 of 40 documents are so long, with 0 % of the text" in caplog.text


def test_what_slices_are_taken_from_is_said(caplog):
    caplog.set_level("INFO", logger="quamba")
    data.token_slices(numbered([40, 30]), WordTokenizer(), seqlen=30, count=1)
    data.token_slices(numbered([40, 10, 10]), WordTokenizer(), seqlen=30, count=1)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "slices of 30 tokens: from 2 of 2 documents, with 100 % of the text"),
        ("WARNING", "slices of 30 tokens: from 1 of 3 documents, with 67 % of the text"),
    ]


def test_slices_depend_on_the_seed_alone_and_fewer_are_the_first_ones():
    slices = data.token_slices(numbered([400, 3, 500]), WordTokenizer(), seqlen=7, count=12, seed=3)
    again = data.token_slices(numbered([400, 3, 500]), WordTokenizer(), seqlen=7, count=5, seed=3)
    assert torch.equal(slices[:5], again)
    assert not torch.equal(slices, data.token_slices(numbered([400, 3, 500]), WordTokenizer(), 7, 12, seed=4))


def test_slices_come_from_every_place_of_every_long_document():
    """One of 4 tokens has 2 places for a slice of 3, one of 6 has 4: documents are drawn first, then places."""
    slices = data.token_slices(numbered([4, 2, 6]), WordTokenizer(), seqlen=3, count=4000).tolist()
    counts = collections.Counter(piece[0] for piece in slices)
    assert counts.keys() == {1, 2, 7, 8, 9, 10}
    assert all(0.9 < counts[start] / 1000 < 1.1 for start in (1, 2))
    assert all(0.85 < counts[start] / 500 < 1.15 for start in (7, 8, 9, 10))


def test_a_short_text_gives_slices_that_overlap_where_windows_would_be_too_few():
    assert data.token_slices(["5 6 7"], WordTokenizer(), seqlen=3, count=4).tolist() == [[5, 6, 7]] * 4


@pytest.mark.parametrize(("seqlen", "count", "message"), [(0, 1, "sequence is 0"), (1, 0, "sequences is 0")])
def test_slices_of_nothing_are_an_error(seqlen, count, message):
    with pytest.raises(QuambaError, match=message):
        data.token_slices(["1 2"], WordTokenizer(), seqlen, count)


def test_evaluation_windows_cover_the_text_in_order():
    windows = data.evaluation_windows(["1 2 3 4", "5 6"], WordTokenizer(), seqlen=3)
    assert [window.tolist() for window in windows] == [[0, 1, 2], [3, 4, 0], [5, 6]]
    windows = data.evaluation_windows(["1 2 3"], WordTokenizer(), seqlen=3)
    assert [window.tolist() for window in windows] == [[0, 1, 2]]  # the last token alone predicts nothing
    with pytest.raises(QuambaError, match="window is 1"):
        data.evaluation_windows(["1 2 3"], WordTokenizer(), seqlen=1)


def test_text_hash_tells_documents_apart():
    assert data.text_sha256(["ab", "c"]) != data.text_sha256(["a", "bc"])
    assert data.text_sha256(["a"]) == data.text_sha256(("a",))


def test_manifest_lists_every_text_and_task_file():
    names = set(data.asset_hashes())
    files = {path.relative_to(data.ASSETS).as_posix() for path in data.ASSETS.rglob("*.jsonl")}
    assert names == files
    assert all(json.dumps(row) for name in names for row in data.read_asset_rows(name))


def test_zstandard_files_as_the_pile_has_them_can_be_read(tmp_path):
    """`datasets` needs the zstandard package for them, and imports it only then."""
    path = tmp_path / "val.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(rows["text"]) == ["one", "two"]
