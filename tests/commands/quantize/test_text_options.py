"""The texts of a run: --data_dir, --calib_dataset and --n_calib, and what CalibrationText makes of them."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from quamba import CalibrationResult, CalibrationText, QuambaError
from quamba.calibration.run import TapResult
from quamba.checkpoint import Checkpoint
from quamba.commands.quantize import recipe_options, run
from quamba.commands.quantize import texts as run_texts
from quamba.commands.quantize.parser import build_parser
from quamba.commands.quantize.weight_options import weight_method

ARTICLES = ["w1 w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11 w12 w13 w14 w15"]
CHECKPOINT = Checkpoint("mamba-130m", Path("mamba-130m"), {}, "directory")
EMBEDDED = Checkpoint("mamba-tiny", Path("assets/mamba-tiny"), {}, "embedded")


def parse(*options: str) -> argparse.Namespace:
    return build_parser().parse_args(["model", "--quantize", *options])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a small WikiText of three articles, and no cache."""
    monkeypatch.setenv("QUAMBA_CACHE", "off")
    (tmp_path / "train.txt").write_text("".join(f" \n = w49 = \n \n {article} \n" for article in ARTICLES))
    return tmp_path


def test_n_calib_is_another_name_of_calib_data_num():
    assert parse("--n_calib", "7").calib_data_num == 7
    assert run_texts.calibration_text(parse("--n_calib", "7"), CHECKPOINT).data_num == 7


def test_data_dir_reaches_the_text(folder):
    text = run_texts.calibration_text(parse("--calib_dataset", "wikitext2", "--data_dir", str(folder)), CHECKPOINT)
    assert text == CalibrationText("wikitext2", data_dir=str(folder))
    assert text.describe() == f"512 sequences of 512 tokens of wikitext2 in {folder}, seed 0"


def test_the_home_folder_is_understood(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder))
    assert parse("--data_dir", "~/texts").data_dir == f"{folder}/texts"


def test_a_text_that_no_folder_stands_in_for_is_read_as_ever(folder):
    for name in ("stdlib", "lambada", str(folder / "train.txt")):
        text = run_texts.calibration_text(parse("--calib_dataset", name, "--data_dir", str(folder)), CHECKPOINT)
        assert text == CalibrationText(name)


def test_data_dir_needs_no_quantization_and_no_calibration():
    parser = build_parser()
    for options in ([], ["--quantize", "--a_bits", "16"]):
        recipe_options.check_quantization_options(parser.parse_args(["model", *options, "--data_dir", "x"]))


# --- --data_dir and the texts of a run ---


def check(*options: str, checkpoint: Checkpoint = CHECKPOINT) -> None:
    """What main.py asks before it loads a model."""
    args, arguments = build_parser().parse_args(["model", *options]), None
    if args.quantize:
        arguments = {"calibration": run_texts.calibration_source(args, checkpoint)}
        arguments["weight_text"] = run_texts.weight_text(args, checkpoint, weight_method(args))
    run_texts.check_data_dir(args, checkpoint, run.read_texts(args, checkpoint, arguments))


@pytest.fixture
def parts(folder, monkeypatch) -> Path:
    """In the working folder: `train` and `test`, each with that part of WikiText, `both`, and a file `mine.txt`."""
    monkeypatch.chdir(folder)
    for name, files in {"train": ["train"], "test": ["test"], "both": ["train", "test"]}.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / f"{file}.txt").write_text("w1 w2")
    (folder / "mine.txt").write_text("w1")
    return folder


GPTQ = ["--weight_method", "gptq"]
SEARCH = ["--quantize", "--a_bits", "16", "--hybrid_search", "6", "--weight_method", "rtn"]


@pytest.mark.parametrize(
    ("options", "checkpoint"),
    [
        (["--data_dir", "test"], CHECKPOINT),  # wikitext2 is the default of this model
        (["--ppl_dataset", "wikitext2", "--data_dir", "test"], EMBEDDED),
        (["--ppl_dataset", "wikitext2-simple", "--data_dir", "test/test.txt"], EMBEDDED),
        (["--quantize", "--ppl_dataset", "wikitext2", "--data_dir", "test"], EMBEDDED),  # calibration reads stdlib
        (["--quantize", "--a_bits", "16", "--data_dir", "test"], CHECKPOINT),  # and none here
        (["--quantize", "--calib_dataset", "mine.txt", "--data_dir", "test"], CHECKPOINT),
        (["--quantize", "--calib_dataset", "lambada", "--data_dir", "test"], CHECKPOINT),
        (["--quantize", "--calib_dataset", "wikitext2", "--data_dir", "train"], EMBEDDED),  # perplexity is of stdlib
        (["--quantize", "--calib_dataset", "wikitext2", "--data_dir", "train", "--task_list", "piqa"], CHECKPOINT),
        (["--quantize", "--calib_dataset", "wikitext2", "--data_dir", "both"], CHECKPOINT),
        (["--quantize", "--a_bits", "16", *GPTQ, "--calib_dataset", "wikitext2", "--data_dir", "train"], EMBEDDED),
        ([*SEARCH, "--calib_dataset", "wikitext2", "--data_dir", "train"], EMBEDDED),  # which the search alone reads
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.name,
)
def test_a_folder_stands_in_for_every_text_that_it_can(parts, options, checkpoint):
    check(*options, checkpoint=checkpoint)


ONLY = "can stand in for wikitext2, wikitext2-simple, c4, pile only, not for the"


@pytest.mark.parametrize(
    ("options", "checkpoint", "message"),
    [
        (["--data_dir", "train"], CHECKPOINT, "train has no test split of wikitext2"),
        (["--data_dir", "none"], CHECKPOINT, "none does not exist: name a folder or a file that holds wikitext2"),
        (["--ppl_dataset", "c4", "--data_dir", "both"], EMBEDDED, "both has no test split of c4"),
        (["--quantize", "--data_dir", "both"], CHECKPOINT, "both has no calibration split of pile"),  # its default
        (
            ["--quantize", "--calib_dataset", "wikitext2", "--data_dir", "train"],
            CHECKPOINT,
            "train has no test split of wikitext2",
        ),
        (
            ["--quantize", "--calib_dataset", "wikitext2", "--data_dir", "test"],
            EMBEDDED,
            "test has no calibration split of wikitext2",
        ),
        (
            [*SEARCH, "--calib_dataset", "wikitext2", "--data_dir", "test"],
            EMBEDDED,
            "test has no calibration split of wikitext2",
        ),
        ([*SEARCH, "--task_list", "piqa", "--data_dir", "both"], EMBEDDED, f"both {ONLY} text 'stdlib': drop"),
        (["--data_dir", "both"], EMBEDDED, f"both {ONLY} text 'stdlib': drop it, or name one of those"),
        (["--quantize", "--data_dir", "both"], EMBEDDED, f"both {ONLY} text 'stdlib': drop"),
        (["--quantize", "--a_bits", "16", "--data_dir", "both"], EMBEDDED, f"both {ONLY} text 'stdlib': drop"),
        (["--ppl_dataset", "mine.txt", "--data_dir", "both"], CHECKPOINT, f"both {ONLY} text 'mine.txt': drop"),
        (
            ["--quantize", "--ppl_dataset", "mine.txt", "--data_dir", "both"],
            EMBEDDED,
            f"both {ONLY} texts 'mine.txt', 'stdlib': drop",
        ),
        (["--task_list", "piqa", "--data_dir", "both"], CHECKPOINT, "both does nothing in a run that reads no text"),
        (
            ["--quantize", "--a_bits", "16", "--task_list", "piqa", "--data_dir", "both"],
            CHECKPOINT,
            "both does nothing in a run that reads no text: drop it",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else getattr(value, "name", ""),
)
def test_a_folder_that_lacks_a_text_or_stands_in_for_none_is_an_error(parts, options, checkpoint, message):
    with pytest.raises(QuambaError, match=f"^--data_dir {message}"):
        check(*options, checkpoint=checkpoint)


# --- --data_dir and an earlier calibration ---


@pytest.fixture
def earlier(parts):
    """A function that saves a calibration on a text as `NAME.json`, and gives the options that reuse it."""

    def save(name: str, text: CalibrationText | None) -> list[str]:
        taps = {"layers.0.x": TapResult("mse", 0.5, 1.0, 0.0, None)}
        fields = asdict(text) if text else None
        CalibrationResult("0", {"x": "mse"}, {}, 8, fields, 32, "0" * 64, 1.0, taps).save(parts / f"{name}.json")
        return ["--quantize", "--calibration", f"{name}.json"]

    return save


def test_a_calibration_on_text_from_elsewhere_is_not_reused(earlier):
    options = earlier("both", CalibrationText("wikitext2", data_dir="both"))
    for named in ([], ["--calib_dataset", "wikitext2"]):  # the earlier text counts, not this model's default
        source = run_texts.calibration_source(parse(*options, *named, "--data_dir", "both"), CHECKPOINT)
        assert source == CalibrationResult.load("both.json")
        with pytest.raises(
            QuambaError,
            match=r"^--data_dir train does not fit --calibration both\.json, which was made with both: drop",
        ):
            run_texts.calibration_source(parse(*options, *named, "--data_dir", "train"), CHECKPOINT)


def test_a_calibration_on_text_of_the_hub_is_not_one_on_a_folder(earlier):
    options = earlier("hub", CalibrationText("wikitext2"))
    with pytest.raises(
        QuambaError, match=r"^--data_dir both does not fit --calibration hub\.json, which was made without it: drop"
    ):
        run_texts.calibration_source(parse(*options, "--data_dir", "both"), CHECKPOINT)


@pytest.mark.parametrize("text", [CalibrationText("stdlib"), CalibrationText("mine.txt"), None], ids=str)
def test_a_calibration_on_text_that_no_folder_stands_in_for_fits_any(earlier, text):
    options = [*earlier("own", text), "--data_dir", "test"]
    for checkpoint in (CHECKPOINT, EMBEDDED):
        assert run_texts.calibration_source(parse(*options), checkpoint) == CalibrationResult.load("own.json")
    check(*options)  # perplexity reads wikitext2; pile, the default of calibration, is not read
    with pytest.raises(QuambaError, match=r"^--data_dir test can stand in for"):
        check(*options, checkpoint=EMBEDDED)


def test_the_folder_of_an_earlier_calibration_may_be_named_again(earlier, parts):
    options = [*earlier("train", CalibrationText("wikitext2", data_dir="train")), "--data_dir", "train"]
    (parts / "train" / "train.txt").unlink()  # which nothing reads
    check(*options, checkpoint=EMBEDDED)
    with pytest.raises(QuambaError, match=r"^--data_dir train has no calibration split of wikitext2"):
        check(*options, *GPTQ, "--calib_dataset", "wikitext2", checkpoint=EMBEDDED)  # but for weights it is read
    with pytest.raises(QuambaError, match=r"^--data_dir train has no calibration split of wikitext2"):
        search = ["--hybrid_search", "6", "--weight_method", "rtn"]  # and for the schemes of layers
        check(*options, *search, "--calib_dataset", "wikitext2", checkpoint=EMBEDDED)


# --- the samplings of CalibrationText ---


def test_windows_are_those_of_the_running_text(folder, tiny_tokenizer):
    windows = CalibrationText("wikitext2", 3, 7, data_dir=str(folder)).windows(tiny_tokenizer)
    words = [f" = w49 =  {article}" for article in ARTICLES]
    stream = [0, *tiny_tokenizer(" ".join(words))["input_ids"]]  # one document: one mark, in front
    starts = {tuple(stream[start : start + 7]) for start in range(len(stream) - 6)}
    assert {tuple(window) for window in windows.tolist()} <= starts


def test_slices_lie_in_articles_and_depend_on_the_seed(folder, tiny_tokenizer):
    text = CalibrationText("wikitext2", 60, 8, data_dir=str(folder), sampling="slices")
    slices = text.windows(tiny_tokenizer)
    articles = [tiny_tokenizer(f" = w49 =  {article}")["input_ids"] for article in ARTICLES]
    allowed = {tuple(ids[start : start + 8]) for ids in articles for start in range(len(ids) - 7)}
    assert slices.shape == (60, 8)
    assert {tuple(piece) for piece in slices.tolist()} == allowed  # none across articles, none of the short one
    assert not torch.equal(slices, replace(text, seed=1).windows(tiny_tokenizer))
    assert text.describe() == f"60 slices of 8 tokens of wikitext2 in {folder}, seed 0"


@pytest.mark.parametrize("sampling", ["windows", "slices"])
@pytest.mark.parametrize("seed", [0, 1])
def test_wikitext2_simple_is_taken_from_its_start_whatever_the_seed(folder, tiny_tokenizer, sampling, seed):
    text = CalibrationText("wikitext2-simple", 2, 5, seed, data_dir=str(folder), sampling=sampling)
    # the mark, and the title "= w49 =", whose signs are unknown words
    assert text.windows(tiny_tokenizer).tolist() == [[0, 0, 49, 0, 1], [2, 3, 4, 5, 6]]
    assert text.describe() == f"the first 2 sequences of 5 tokens of wikitext2-simple in {folder}"


def test_an_unknown_sampling_is_an_error():
    with pytest.raises(QuambaError, match="unknown sampling 'first' of a text: choose one of windows, slices"):
        CalibrationText(sampling="first")


def test_the_usual_sampling_has_not_changed(tiny_tokenizer, folder):
    """Windows of a file as every result so far was measured on them."""
    (folder / "text.txt").write_text(" ".join(f"w{1 + number * number % 49}" for number in range(60)))
    windows = CalibrationText(str(folder / "text.txt"), data_num=3, seqlen=4, seed=3).windows(tiny_tokenizer)
    assert windows.tolist() == [[31, 45, 12, 30], [30, 12, 45, 31], [19, 9, 1, 44]]
