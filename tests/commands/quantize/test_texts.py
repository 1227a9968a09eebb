"""The texts of a run: what calibration and evaluation read by default, how much of it, and what the options change."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from quamba import CalibrationResult, CalibrationText, QuambaError
from quamba.calibration.run import TapResult
from quamba.checkpoint import Checkpoint
from quamba.commands.quantize import texts as run_texts
from quamba.scheme.formats import SCHEMES
from quamba.text.data import EMBEDDED_MODELS
from tests.commands.quantize.test_recipe_options import EMBEDDED, OTHER, parse

TINY = EMBEDDED_MODELS["mamba-tiny"]
SAVED = Checkpoint("mamba-tiny-w8a8", Path("mamba-tiny-w8a8"), {"quantization_config": {"quant_method": "quamba"}}, "")
CLOZE = ["stdlib_cloze"]
ZERO_SHOT = run_texts.ZERO_SHOT_TASKS.split(",")


# --- calibration ---


def test_embedded_checkpoints_calibrate_on_less():
    small = CalibrationText(TINY.calib_dataset, TINY.calib_data_num, TINY.calib_seqlen, 0, TINY.batch_size)
    assert run_texts.calibration_text(parse(), EMBEDDED) == small
    assert run_texts.calibration_text(parse(), OTHER) == CalibrationText("pile", 512, 512, 0, 8)


def test_default_sequences_are_no_longer_than_the_model_has_positions(tmp_path):
    LlamaConfig(max_position_embeddings=256).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    checkpoint = Checkpoint("small", tmp_path, config, "directory")
    assert run_texts.calibration_text(parse(), checkpoint).seqlen == 256
    assert run_texts.calibration_text(parse("--calib_seqlen", "300"), checkpoint).seqlen == 300  # refused later


def test_calibration_options_go_before_defaults(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("text")
    options = ["--calib_dataset", str(file), "--calib_data_num", "3", "--calib_seqlen", "5", "--seed", "7"]
    expected = CalibrationText(str(file), 3, 5, 7, 2)
    for checkpoint in (EMBEDDED, OTHER):
        assert run_texts.calibration_text(parse(*options, "--batch_size", "2"), checkpoint) == expected


def test_testing_calibrates_on_a_few_sequences():
    assert run_texts.calibration_text(parse("--testing"), OTHER).data_num == run_texts.TESTING_CALIB_DATA_NUM
    assert run_texts.calibration_text(parse("--testing", "--calib_data_num", "2"), OTHER).data_num == 2


def test_an_unknown_text_is_an_error():
    with pytest.raises(QuambaError, match="--calib_dataset 'best' is neither a file or folder here nor one of stdlib"):
        run_texts.calibration_text(parse("--calib_dataset", "best"), EMBEDDED)


@pytest.fixture
def result(tmp_path) -> Path:
    """A saved calibration result on 4 sequences of 8 tokens of the embedded text."""
    text = {"dataset": "stdlib", "data_num": 4, "seqlen": 8, "seed": 0, "batch_size": 16}
    taps = {"layers.0.x": TapResult("mse", 0.5, 1.0, 0.0, None)}
    CalibrationResult("0", {"x": "mse"}, {}, 8, text, 32, "0" * 64, 1.0, taps).save(tmp_path / "result.json")
    return tmp_path / "result.json"


def test_calibration_is_read_from_a_file_that_exists(result, tmp_path):
    source = run_texts.calibration_source(parse("--calibration", str(result)), EMBEDDED)
    assert source == CalibrationResult.load(result)
    source = run_texts.calibration_source(parse("--calibration", str(tmp_path / "new.json")), EMBEDDED)
    assert source == run_texts.calibration_text(parse(), EMBEDDED)


def test_the_command_that_wrote_a_calibration_reads_it_too(result):
    options = ["--calib_dataset", "stdlib", "--calib_data_num", "4", "--calib_seqlen", "8"]
    run_texts.calibration_source(parse("--calibration", str(result), *options), EMBEDDED)


@pytest.mark.parametrize(
    "option", [("--calib_dataset", "pile"), ("--calib_data_num", "5"), ("--calib_seqlen", "9")], ids=" ".join
)
def test_a_calibration_of_other_text_is_an_error(result, option):
    with pytest.raises(QuambaError, match=f"{' '.join(option)} does not fit --calibration"):
        run_texts.calibration_source(parse("--calibration", str(result), *option), EMBEDDED)


def test_activations_are_saved_only_where_calibration_runs(result, tmp_path):
    options = ["--save_activations", str(tmp_path / "acts")]
    with pytest.raises(
        QuambaError, match=r"^--save_activations .*acts needs a calibration run, and --calibration .* is"
    ):
        run_texts.calibration_source(parse("--calibration", str(result), *options), EMBEDDED)
    for calibration in ([], ["--calibration", str(tmp_path / "new.json")]):
        source = run_texts.calibration_source(parse(*calibration, *options), EMBEDDED)
        assert source == run_texts.calibration_text(parse(), EMBEDDED)


def test_a_folder_of_activations_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--save_activations", "~/acts").save_activations == "/home/me/acts"


# --- evaluation ---


@pytest.mark.parametrize(
    ("options", "checkpoint", "texts", "runs"),
    [
        ([], EMBEDDED, ["stdlib"], [(CLOZE, 0)]),
        ([], SAVED, ["stdlib"], [(CLOZE, 0)]),
        ([], OTHER, ["wikitext2"], []),
        (["--eval_ppl"], EMBEDDED, ["stdlib"], []),
        (["--eval_ppl"], OTHER, ["wikitext2"], []),
        (["--ppl_dataset", "c4"], EMBEDDED, ["c4"], []),
        (["--task_list", "arc_easy, piqa"], OTHER, [], [(["arc_easy", "piqa"], 0)]),
        (["--task_list", "arc_easy", "--eval_zero_shot"], OTHER, [], [(["arc_easy"], 0)]),
        (["--task_list", "arc_easy", "--eval_ppl"], OTHER, ["wikitext2"], [(["arc_easy"], 0)]),
        (["--task_list", "arc_easy", "--eval_few_shot"], OTHER, [], [(["arc_easy"], 5)]),
        (["--task_list", "nq_open", "--eval_generation"], OTHER, [], [(["nq_open"], 0)]),
        (["--eval_zero_shot"], EMBEDDED, [], [(CLOZE, 0)]),
        (["--eval_zero_shot"], OTHER, [], [(ZERO_SHOT, 0)]),
        (["--eval_few_shot", "--fewshot", "3"], EMBEDDED, [], [(CLOZE, 3)]),
        (["--eval_zero_shot", "--eval_few_shot"], EMBEDDED, [], [(CLOZE, 0), (CLOZE, 5)]),
        (["--eval_generation"], OTHER, [], [(["nq_open", "squadv2"], 0)]),
    ],
    ids=str,
)
def test_what_is_measured(options, checkpoint, texts, runs):
    assert run_texts.evaluation_plan(parse(*options), checkpoint) == (texts, runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fewshot", "3"], "--fewshot 3 does nothing without --eval_few_shot"),
        (["--task_list", ","], "--task_list ',' names no task"),
        (["--task_list", ""], "--task_list '' names no task"),
        (
            ["--task_list", "a", "--eval_generation", "--eval_few_shot"],
            "--task_list names the tasks of one kind of run",
        ),
        (["--ppl_dataset", "best"], "--ppl_dataset 'best' is neither a file or folder here nor one of stdlib"),
        (["--eval_ppl", "--include_path", "tasks"], "--include_path tasks does nothing without lm-eval tasks"),
    ],
    ids=str,
)
def test_evaluation_options_that_do_nothing_are_errors(options, message):
    with pytest.raises(QuambaError, match=message):
        run_texts.evaluation_plan(parse(*options), EMBEDDED)


def test_perplexity_reads_a_part_of_the_embedded_text_and_all_of_any_other():
    for checkpoint in (EMBEDDED, SAVED):
        assert run_texts.max_windows(parse(), checkpoint, ["stdlib"]) == TINY.ppl_windows
        assert run_texts.max_windows(parse(), checkpoint, ["mine.txt"]) is None
    assert run_texts.max_windows(parse(), OTHER, ["stdlib"]) is None
    assert run_texts.max_windows(parse("--testing"), OTHER, ["mine.txt"]) == run_texts.TESTING_PPL_WINDOWS


def test_sequences_at_a_time():
    assert run_texts.batch_size(parse(), EMBEDDED) == TINY.batch_size
    assert run_texts.batch_size(parse(), OTHER) == 8
    assert run_texts.batch_size(parse("--batch_size", "3"), EMBEDDED) == 3


def test_a_saved_model_is_named_without_its_scheme():
    assert [run_texts.model_name(checkpoint) for checkpoint in (EMBEDDED, SAVED, OTHER)] == [
        "mamba-tiny",
        "mamba-tiny",
        "mamba-130m",
    ]
    names = [f"mine-{scheme}" for scheme in SCHEMES]
    saved = [Checkpoint(name, Path(name), SAVED.config, "") for name in names]
    assert {run_texts.model_name(checkpoint) for checkpoint in saved} == {"mine"}
    odd = Checkpoint("my-w8a8", Path("my-w8a8"), {}, "directory")  # a float model of that name
    assert run_texts.model_name(odd) == "my-w8a8"
