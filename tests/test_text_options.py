"""--calib_dataset with --data_dir and --n_calib, and what CalibrationText makes of them."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import utils
from quamba import CalibrationResult, CalibrationText, QuambaError
from quamba.calibration import TapResult
from quamba.checkpoint import Checkpoint

ARTICLES = ["w1 w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11 w12 w13 w14 w15"]
CHECKPOINT = Checkpoint("mamba-130m", Path("mamba-130m"), {}, "directory")


def parse(*options: str) -> argparse.Namespace:
    return utils.build_parser().parse_args(["model", "--quantize", *options])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a small WikiText of three articles, and no cache."""
    monkeypatch.setenv("QUAMBA_CACHE", "off")
    (tmp_path / "train.txt").write_text("".join(f" \n = w49 = \n \n {article} \n" for article in ARTICLES))
    return tmp_path


def test_n_calib_is_another_name_of_calib_data_num():
    assert parse("--n_calib", "7").calib_data_num == 7
    assert utils.calibration_text(parse("--n_calib", "7"), CHECKPOINT).data_num == 7


def test_data_dir_reaches_the_text(folder):
    text = utils.calibration_text(parse("--calib_dataset", "wikitext2", "--data_dir", str(folder)), CHECKPOINT)
    assert text == CalibrationText("wikitext2", data_dir=str(folder))
    assert text.describe() == f"512 sequences of 512 tokens of wikitext2 in {folder}, seed 0"


def test_the_home_folder_is_understood(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder))
    assert parse("--data_dir", "~/texts").data_dir == f"{folder}/texts"


@pytest.mark.parametrize("name", ["stdlib", "train.txt"])
def test_a_data_dir_that_would_not_be_read_is_an_error_before_anything_is_loaded(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(QuambaError, match=f"^--data_dir . can stand in for .* only, not for the text '{name}'"):
        utils.calibration_text(parse("--calib_dataset", name, "--data_dir", "."), CHECKPOINT)
    with pytest.raises(QuambaError, match="has no calibration split of pile"):  # the default text of this model
        utils.calibration_text(parse("--data_dir", "."), CHECKPOINT)


def test_data_dir_without_calibration_is_an_error():
    parser = utils.build_parser()
    with pytest.raises(QuambaError, match=r"^--data_dir does nothing without --quantize"):
        utils.check_quantization_options(parser.parse_args(["model", "--data_dir", "x"]), parser)


def test_a_calibration_of_text_from_elsewhere_is_not_reused(folder):
    file, text = folder / "result.json", asdict(CalibrationText("wikitext2", data_dir=str(folder)))
    taps = {"layers.0.x": TapResult("mse", 0.5, 1.0, 0.0, None)}
    CalibrationResult("0", {"x": "mse"}, {}, 8, text, 32, "0" * 64, 1.0, taps).save(file)
    options = ["--calibration", str(file), "--calib_dataset", "wikitext2", "--data_dir"]
    assert utils.calibration_source(parse(*options, str(folder)), CHECKPOINT) == CalibrationResult.load(file)
    (folder / "other").mkdir()
    (folder / "other" / "train.txt").write_text("w1")
    with pytest.raises(QuambaError, match=r"--data_dir .*other does not fit --calibration .*made with"):
        utils.calibration_source(parse(*options, str(folder / "other")), CHECKPOINT)


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
