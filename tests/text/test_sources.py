"""Texts of the hub read from folders, and how WikiText becomes documents."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
import zstandard

from quamba.errors import QuambaError
from quamba.text import files, sources
from quamba.text.data import load_text

# as the files have it: blank lines are " ", headings stand between such
WIKITEXT = """ 
 = Lobster = 
 
 A lobster is blue . 
 
 = = Life cycle = = 
 
 It moults @-@ often . 
 
 = = = Larvae = = = 
 
 They swim . 
 
 = E = mc2 ( song ) = 
 
 A song , 3 = 3 . 
"""  # noqa: W291, W293
ROWS = [f"{line}\n" if line.strip() else "" for line in WIKITEXT.splitlines()]  # as the hub has it


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that must not be asked."""

    def load_dataset(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture
def wikitext(tmp_path, no_hub) -> Path:
    """A folder with three parts of WikiText, which begin differently."""
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text(WIKITEXT.replace("Lobster", part.title()))
    return tmp_path


def json_rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "url": "x"}, ensure_ascii=False) + "\n" for text in texts).encode()


# --- WikiText ---


def test_an_article_begins_at_its_title_and_not_at_a_section():
    lobster, song = sources.split_articles(ROWS)
    assert lobster.startswith("\n\n = Lobster = \n") and lobster.endswith(" They swim . \n\n\n")
    assert song.startswith(" = E = mc2 ( song ) = \n") and "3 = 3" in song
    assert "\n\n".join([lobster, song]) == sources.running_text(ROWS)


@pytest.mark.parametrize(
    "row", [" = = Section = = \n", "= = x", " = \n", " = = \n", " = x\n", "a = b = ", " = x = = \n"]
)
def test_other_lines_with_equals_signs_are_no_titles(row):
    assert len(sources.split_articles([" = Title = \n", "text\n", "", row, "", "text\n"])) == 1


def test_a_formula_within_a_paragraph_is_no_title():
    """As in the test split's article on constant k filters."""
    rows = ["of image <unk> correspond to\n", " = 1 <unk> / s and a nominal <unk> k = \n", " 1 <unk> . This is\n"]
    assert len(sources.split_articles([" = Constant k filter = \n", "", *rows])) == 1


def test_text_before_the_first_title_is_a_document_and_text_without_titles_is_one():
    assert sources.split_articles(["preface\n", "", " = A = \n"]) == ["preface\n\n\n", " = A = \n"]
    assert sources.split_articles(["a\n", "", "b\n"]) == ["a\n\n\n\n\nb\n"]


def test_plain_wikitext_is_its_lines_that_are_not_blank():
    plain = sources.plain_text(ROWS)
    assert plain.split("\n") == [line for line in WIKITEXT.split("\n") if line.strip()]
    assert plain.startswith(" = Lobster = \n A lobster is blue . \n = = Life")


def test_a_file_gives_exactly_the_text_that_the_hub_gives(tmp_path, monkeypatch):
    (tmp_path / "wiki.train.raw").write_text(WIKITEXT)
    from_file = {name: load_text(name, data_dir=tmp_path) for name in ("wikitext2", "wikitext2-simple")}
    articles = load_text("wikitext2", data_dir=tmp_path, articles=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ROWS}))
    assert {name: load_text(name) for name in from_file} == from_file
    assert load_text("wikitext2", articles=True) == articles
    assert len(articles) == 2 and all(len(documents) == 1 for documents in from_file.values())


@pytest.mark.parametrize("name", ["wikitext2", "wikitext2-simple"])
def test_calibration_reads_train_else_valid_and_the_test_split_is_test(wikitext, name):
    def title(split):
        return load_text(name, split, wikitext)[0].split(" = ")[1]

    assert title("calibration") == "Train"
    assert title("test") == "Test"
    (wikitext / "train.txt").unlink()
    assert title("calibration") == "Valid"
    (wikitext / "valid.txt").unlink()
    with pytest.raises(QuambaError, match=r"no calibration split of wikitext2.*train\.txt, wiki.*holds test\.txt"):
        title("calibration")


@pytest.mark.parametrize(
    "file",
    ["wiki.train.raw", "wiki.train.tokens", "wikitext-2/train.txt", "wikitext-2-raw/wiki.valid.raw", "validation.txt"],
)
def test_other_usual_names_of_the_files_are_known(tmp_path, no_hub, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(WIKITEXT)
    (tmp_path / "README.txt").write_text("about")
    assert load_text("wikitext2", data_dir=str(tmp_path)) == [sources.running_text(ROWS)]


def test_several_forms_of_one_part_are_read_once(tmp_path, no_hub):
    for name in ("train.txt", "wiki.train.raw", "wiki.train.tokens"):
        (tmp_path / name).write_text(name)
    assert sources.find_data_files("wikitext2", "calibration", tmp_path) == [tmp_path / "train.txt"]
    assert load_text("wikitext2", data_dir=tmp_path) == ["train.txt\n"]


def test_the_data_may_be_a_single_file(wikitext):
    assert "Train" in load_text("wikitext2", data_dir=wikitext / "train.txt")[0]
    (wikitext / "mine.txt").write_text("words")
    assert load_text("wikitext2-simple", data_dir=wikitext / "mine.txt") == ["words"]
    assert load_text("wikitext2-simple", "test", data_dir=wikitext / "mine.txt") == ["words"]
    with pytest.raises(QuambaError, match=r"test\.txt is named as the test part .*calibration.*train or v"):
        load_text("wikitext2", data_dir=wikitext / "test.txt")
    with pytest.raises(QuambaError, match=r"train\.txt is named as the train part of wikitext2.*test split"):
        load_text("wikitext2", "test", data_dir=wikitext / "train.txt")


# --- JSON rows ---


@pytest.mark.parametrize("name", ["c4", "pile"])
@pytest.mark.parametrize("suffix", files.JSON_SUFFIXES)
def test_json_rows_are_read_packed_and_unpacked(tmp_path, no_hub, name, suffix):
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(suffix).suffix, bytes)
    (tmp_path / f"a{suffix}").write_bytes(pack(json_rows("one\u2028", " ")) + pack(json_rows("two")))  # two frames
    (tmp_path / f"b{suffix}").write_bytes(pack(json_rows("three")))
    assert load_text(name, data_dir=tmp_path) == ["one\u2028", "two", "three"]
    assert load_text(name, data_dir=tmp_path / f"b{suffix}") == ["three"]


def test_no_more_rows_are_read_than_the_hub_would_give(tmp_path, no_hub):
    limit = sources.HUB_TEXTS["c4"]["calibration"].rows
    (tmp_path / "train-0.jsonl").write_bytes(json_rows(*["x"] * (limit - 1)))
    (tmp_path / "train-1.jsonl").write_bytes(json_rows("last") + b"this line is not looked at\n")
    documents = load_text("c4", data_dir=tmp_path)
    assert len(documents) == limit and documents[-1] == "last"


@pytest.mark.parametrize(
    ("name", "split", "read"),
    [
        ("c4", "calibration", ["c4-train.00000-of-01024.json"]),
        ("c4", "test", ["c4-validation.00000-of-00008.json"]),
        ("pile", "calibration", ["val.jsonl"]),
        ("pile", "test", ["test.jsonl"]),
    ],
)
def test_names_of_files_tell_the_text_and_the_split(tmp_path, no_hub, name, split, read):
    for file in ("c4-train.00000-of-01024.json", "c4-validation.00000-of-00008.json", "val.jsonl", "test.jsonl"):
        folder = tmp_path / ("c4" if file.startswith("c4") else "pile")
        folder.mkdir(exist_ok=True)
        (folder / file).write_bytes(json_rows(file))
    assert load_text(name, split, tmp_path) == read


def test_files_of_another_text_and_of_the_test_split_are_left_alone(tmp_path, no_hub):
    (tmp_path / "pile-train.jsonl").write_bytes(json_rows("pile"))
    (tmp_path / "c4_test.jsonl").write_bytes(json_rows("test"))
    (tmp_path / "c4-validation.jsonl").write_bytes(json_rows("validation"))
    assert load_text("pile", data_dir=tmp_path) == ["pile"]
    with pytest.raises(QuambaError, match=r"no calibration split of c4: .*\.jsonl\.zst.*holds c4-valid.*pile-train"):
        load_text("c4", data_dir=tmp_path)
    (tmp_path / "c4.jsonl").write_bytes(json_rows("unnamed part"))
    assert load_text("c4", data_dir=tmp_path) == ["unnamed part"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *[("train.txt", "train"), ("c4-train.00000-of-01024.json.gz", "train"), ("latest.jsonl", ""), ("x.json", "")],
        *[("val.jsonl.zst", "valid"), ("wiki.valid.raw", "valid"), ("c4-validation.1.json", "valid")],
        *[("test.txt", "test"), ("testset1.jsonl", "test"), ("train-test.jsonl", "test")],
    ],
)
def test_the_part_is_told_by_words_of_the_name(name, part):
    assert sources.file_part(Path(name)) == part


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.jsonl", json_rows("fine") + b"\n[1]\n", r"x\.jsonl, line 3: expected a JSON object"),
        ("x.jsonl", b'{"text": "\xff"}\n', r"cannot read .*x\.jsonl as UTF-8"),
        ("x.json.gz", b"no gzip", r"cannot read .*x\.json\.gz"),
        ("x.json.gz", gzip.compress(json_rows("one"), mtime=0)[:-9], r"cannot read .*x\.json\.gz"),
        ("x.jsonl.zst", b"no zstd", r"cannot read .*x\.jsonl\.zst"),
        ("x.jsonl", b"", "nothing but blanks"),
    ],
    ids=str,  # the same in every process: a gzip file usually holds the time
)
def test_damaged_files_are_named(tmp_path, no_hub, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(QuambaError, match=message):
        load_text("c4", data_dir=tmp_path)


# --- what makes no sense ---


@pytest.mark.parametrize("name", ["stdlib", "lambada", "mine.txt", Path("mine.txt")], ids=str)
def test_a_folder_stands_in_for_texts_of_the_hub_only(wikitext, monkeypatch, name):
    monkeypatch.chdir(wikitext)
    Path("mine.txt").write_text("words")
    with pytest.raises(QuambaError, match=rf"stand in for wikitext2, wikitext2-simple, c4, pile only.*'{name}': drop"):
        load_text(name, data_dir=wikitext)


def test_a_folder_applies_to_the_texts_that_it_can_stand_in_for():
    for name in sources.FOLDER_TEXTS:
        assert sources.data_dir_for("texts", name) == "texts"
        assert sources.data_dir_for(None, name) is None
    others = ("stdlib", "lambada", "mine.txt", Path("mine.txt"), Path("c4"))
    assert [sources.data_dir_for("texts", name) for name in others] == [None] * len(others)
    assert sources.data_dir_for("texts", *others) is sources.data_dir_for("texts") is None
    assert sources.data_dir_for("texts", *others, "c4") == "texts"


def test_a_folder_that_applies_to_no_text_of_a_run_is_an_error_that_names_them():
    sources.check_data_dir(None, "stdlib")
    sources.check_data_dir("texts", "stdlib", "wikitext2", "mine.txt")
    with pytest.raises(QuambaError, match=r"not for the texts 'stdlib', 'mine\.txt': drop it, or name one of those$"):
        sources.check_data_dir("texts", "stdlib", Path("mine.txt"), "stdlib")
    with pytest.raises(QuambaError, match=r"^--data_dir texts does nothing in a run that reads no text: drop it$"):
        sources.check_data_dir("texts")


def test_a_folder_that_does_not_exist_or_holds_nothing_is_named(tmp_path):
    with pytest.raises(QuambaError, match="--data_dir no/where does not exist: name a folder or a file that holds c4"):
        load_text("c4", data_dir="no/where")
    with pytest.raises(QuambaError, match="it holds nothing"):
        load_text("c4", data_dir=tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02}.csv").touch()
    with pytest.raises(QuambaError, match=r"it holds 00\.csv, .*, 09\.csv and 2 more"):
        load_text("c4", data_dir=tmp_path)


def test_a_single_file_of_another_form_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(QuambaError, match=r"x\.txt is no file of rows .* in which pile is kept"):
        load_text("pile", data_dir=tmp_path / "x.txt")


def test_an_unreachable_hub_points_to_the_folder(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(QuambaError, match=r"a folder that holds it \(--data_dir\)"):
        load_text("c4")
    with pytest.raises(QuambaError, match=r"Without the hub give a local file"):  # no folder stands in for this one
        load_text("lambada")
