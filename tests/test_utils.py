"""The options of main.py: what they mean, and which combinations are mistakes."""

import argparse
from pathlib import Path

import pytest
import torch

import utils
from quamba import CalibrationResult, CalibrationText, QuambaError
from quamba.architectures import BLOCK_TAPS
from quamba.calibration import TapResult
from quamba.checkpoint import Checkpoint
from quamba.data import EMBEDDED_MODELS
from quamba.nn.mamba1 import TAPS
from quamba.scheme import SCHEMES
from quamba.tap_observers import DEFAULT_OBSERVERS

TINY = EMBEDDED_MODELS["mamba-tiny"]
EMBEDDED = Checkpoint("mamba-tiny", Path("assets/mamba-tiny"), {}, "embedded")
SAVED = Checkpoint("mamba-tiny-w8a8", Path("mamba-tiny-w8a8"), {"quantization_config": {"quant_method": "quamba"}}, "")
OTHER = Checkpoint("mamba-130m", Path("mamba-130m"), {}, "hub")
CLOZE = ["stdlib_cloze"]
ZERO_SHOT = utils.ZERO_SHOT_TASKS.split(",")


def parse(*options) -> argparse.Namespace:
    return utils.build_parser().parse_args(["model", *options])


# --- what argparse itself refuses ---


@pytest.mark.parametrize(
    "options",
    [
        ["--best"],
        ["--batch_size", "0"],
        ["--calib_data_num", "-1"],
        ["--calib_seqlen", "many"],
        ["--fewshot", "0"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--dtype", "int8"],
        ["--w_bits", "eight"],
    ],
    ids=" ".join,
)
def test_values_that_are_none_exit_with_status_2(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(*options)
    assert exit_.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_defaults():
    args = parse()
    assert (args.log_dir, args.device, args.seed, args.w_bits, args.a_bits) == ("logs", "cpu", 0, 8, 8)
    assert not any((args.quantize, args.testing, args.verbose))
    assert utils.DTYPES.get(args.dtype) is None  # float32, or as the checkpoint was saved
    assert utils.DTYPES[parse("--dtype", "bfloat16").dtype] is torch.bfloat16


# --- scheme and observers ---


def test_bits_name_the_scheme():
    assert utils.scheme_name(parse()) == utils.scheme_name(parse("--w_bits", "8", "--a_bits", "8")) == "w8a8"
    assert utils.scheme_name(parse("--w_bits", "4", "--a_bits", "16")) == "w4a16"
    choices = "choose " + ", ".join(f"--w_bits {w} --a_bits {a}" for a in (8, 16) for w in (8, 4, 3))
    with pytest.raises(QuambaError, match=f"--w_bits 5 --a_bits 8 is not supported: {choices}"):
        utils.scheme_name(parse("--w_bits", "5"))


def test_options_of_the_recipe_are_arguments_of_quantize():
    nothing = {"group_size": None, "dynamic": False, "embedding_bits": None, "lm_head_bits": None, "untie": False}
    nothing |= dict.fromkeys(("quantize_embedding", "quantize_lm_head", "rotate_residual"), False)
    nothing |= {"state_bits": 32, "layer_schemes": ()}
    assert utils.recipe_arguments(parse()) == {"scheme": "w8a8"} | nothing
    options = ["--w_bits", "4", "--group_size", "64", "--dynamic", "--quantize_embedding", "--embedding_bits", "8"]
    options += ["--quantize_lm_head", "--lm_head_bits", "4", "--untie_embedding", "--rotate_residual"]
    options += ["--state_bits", "8"]
    assert utils.recipe_arguments(parse(*options)) == {
        "scheme": "w4a8",
        "group_size": 64,
        "dynamic": True,
        "quantize_embedding": True,
        "quantize_lm_head": True,
        "embedding_bits": 8,
        "lm_head_bits": 4,
        "untie": True,
        "rotate_residual": True,
        "state_bits": 8,
        "layer_schemes": (),
    }


@pytest.mark.parametrize("option", ["embedding", "lm_head"])
def test_bits_of_a_table_need_the_table(option):
    with pytest.raises(QuambaError, match=f"{option}_bits 4 does nothing without quantize_{option}"):
        utils.recipe_arguments(parse(f"--{option}_bits", "4"))


@pytest.mark.parametrize(
    "option",
    [
        *(["--observer", "mse"], ["--use_outlier_aware"], ["--percentile_alpha", "0.9"]),
        *(["--calibration", "file.json"], ["--save_activations", "acts"]),
        *(["--calib_dataset", "pile"], ["--calib_data_num", "3"], ["--calib_seqlen", "3"]),
    ],
    ids=" ".join,
)
def test_float_activations_refuse_options_of_calibration(option):
    parser = utils.build_parser()
    for bits in ("4", "8"):
        weights = ["--w_bits", bits, "--weight_method", "rtn"]
        args = parser.parse_args(["model", "--quantize", *weights, "--a_bits", "16", *option])
        with pytest.raises(QuambaError, match=f"^{option[0]} does nothing with --a_bits 16: activations stay float"):
            utils.check_quantization_options(args, parser)


def test_float_activations_need_no_calibration():
    args = parse("--a_bits", "16")
    assert utils.calibration_source(args, OTHER) is None
    assert utils.observer_spec(args) is None
    assert utils.observer_options(args) == {}


def test_dynamic_scales_have_no_observer():
    assert not {"in", "out", "head_in"} & set(utils.observers(parse("--dynamic", "--quantize_lm_head")))
    with pytest.raises(QuambaError, match="tap out has no observer where scales are dynamic"):
        utils.observers(parse("--dynamic", "--observer", "out=mse"))


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ([], None),
        (["--observer", "mse"], "mse"),
        (["--use_outlier_aware"], "outlier_aware"),
        (["--use_outlier_aware", "--observer", "outlier_aware"], "outlier_aware"),
        (["--use_outlier_aware", "--observer", "x=outlier_aware"], "outlier_aware"),
    ],
    ids=str,
)
def test_use_outlier_aware_is_an_observer(options, spec):
    assert utils.observer_spec(parse(*options)) == spec


@pytest.mark.parametrize("observer", ["mse", "all=outlier_aware", "outlier_aware,out=mse"])
def test_two_meanings_at_once_are_an_error(observer):
    with pytest.raises(QuambaError, match=f"not the --observer {observer} given with it: drop one"):
        utils.observer_spec(parse("--use_outlier_aware", "--observer", observer))


def test_observers_of_the_taps():
    defaults = {tap: DEFAULT_OBSERVERS[tap] for tap in BLOCK_TAPS}
    assert utils.observers(parse()) == defaults
    named = utils.observers(parse("--observer", "minmax,out=percentile"))
    assert named == defaults | {"x": "minmax", "out": "percentile"}
    assert utils.observers(parse("--observer", "head_in=mse", "--quantize_lm_head")) == defaults | {"head_in": "mse"}
    with pytest.raises(QuambaError, match="head_in"):
        utils.observers(parse("--observer", "head_in=mse"))
    assert utils.observers(parse("--observer", "mse"), TAPS) == {
        tap: name for tap, name in (defaults | {"x": "mse"}).items() if tap in TAPS
    }
    with pytest.raises(QuambaError, match="this model has no tap 'B_in'"):
        utils.observers(parse("--observer", "B_in=mse"), TAPS)


def test_percentile_alpha_goes_to_the_percentile_observer():
    options = ["--percentile_alpha", "0.999"]
    assert utils.observer_options(parse()) == {}
    for observer in ([], ["--observer", "out=percentile"]):
        assert utils.observer_options(parse(*options, *observer)) == {"percentile": {"percentile_alpha": 0.999}}
    with pytest.raises(QuambaError, match="an argument of the percentile observer, which no tap uses here"):
        utils.observer_options(parse(*options, "--observer", "all=minmax"))
    with pytest.raises(QuambaError, match="percentile_alpha must be in"):
        utils.observer_options(parse("--percentile_alpha", "99.9"))


# --- calibration ---


def test_embedded_checkpoints_calibrate_on_less():
    small = CalibrationText(TINY.calib_dataset, TINY.calib_data_num, TINY.calib_seqlen, 0, TINY.batch_size)
    assert utils.calibration_text(parse(), EMBEDDED) == small
    assert utils.calibration_text(parse(), OTHER) == CalibrationText("pile", 512, 512, 0, 8)


def test_calibration_options_go_before_defaults(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("text")
    options = ["--calib_dataset", str(file), "--calib_data_num", "3", "--calib_seqlen", "5", "--seed", "7"]
    expected = CalibrationText(str(file), 3, 5, 7, 2)
    for checkpoint in (EMBEDDED, OTHER):
        assert utils.calibration_text(parse(*options, "--batch_size", "2"), checkpoint) == expected


def test_testing_calibrates_on_a_few_sequences():
    assert utils.calibration_text(parse("--testing"), OTHER).data_num == utils.TESTING_CALIB_DATA_NUM
    assert utils.calibration_text(parse("--testing", "--calib_data_num", "2"), OTHER).data_num == 2


def test_an_unknown_text_is_an_error():
    with pytest.raises(QuambaError, match="--calib_dataset 'best' is neither a file or folder here nor one of stdlib"):
        utils.calibration_text(parse("--calib_dataset", "best"), EMBEDDED)


@pytest.fixture
def result(tmp_path) -> Path:
    """A saved calibration result on 4 sequences of 8 tokens of the embedded text."""
    text = {"dataset": "stdlib", "data_num": 4, "seqlen": 8, "seed": 0, "batch_size": 16}
    taps = {"layers.0.x": TapResult("mse", 0.5, 1.0, 0.0, None)}
    CalibrationResult("0", {"x": "mse"}, {}, 8, text, 32, "0" * 64, 1.0, taps).save(tmp_path / "result.json")
    return tmp_path / "result.json"


def test_calibration_is_read_from_a_file_that_exists(result, tmp_path):
    source = utils.calibration_source(parse("--calibration", str(result)), EMBEDDED)
    assert source == CalibrationResult.load(result)
    source = utils.calibration_source(parse("--calibration", str(tmp_path / "new.json")), EMBEDDED)
    assert source == utils.calibration_text(parse(), EMBEDDED)


def test_the_command_that_wrote_a_calibration_reads_it_too(result):
    options = ["--calib_dataset", "stdlib", "--calib_data_num", "4", "--calib_seqlen", "8"]
    utils.calibration_source(parse("--calibration", str(result), *options), EMBEDDED)


@pytest.mark.parametrize(
    "option", [("--calib_dataset", "pile"), ("--calib_data_num", "5"), ("--calib_seqlen", "9")], ids=" ".join
)
def test_a_calibration_of_other_text_is_an_error(result, option):
    with pytest.raises(QuambaError, match=f"{' '.join(option)} does not fit --calibration"):
        utils.calibration_source(parse("--calibration", str(result), *option), EMBEDDED)


def test_activations_are_saved_only_where_calibration_runs(result, tmp_path):
    options = ["--save_activations", str(tmp_path / "acts")]
    with pytest.raises(
        QuambaError, match=r"^--save_activations .*acts needs a calibration run, and --calibration .* is"
    ):
        utils.calibration_source(parse("--calibration", str(result), *options), EMBEDDED)
    for calibration in ([], ["--calibration", str(tmp_path / "new.json")]):
        source = utils.calibration_source(parse(*calibration, *options), EMBEDDED)
        assert source == utils.calibration_text(parse(), EMBEDDED)


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
    assert utils.evaluation_plan(parse(*options), checkpoint) == (texts, runs)


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
        utils.evaluation_plan(parse(*options), EMBEDDED)


def test_perplexity_reads_a_part_of_the_embedded_text_and_all_of_any_other():
    for checkpoint in (EMBEDDED, SAVED):
        assert utils.max_windows(parse(), checkpoint, ["stdlib"]) == TINY.ppl_windows
        assert utils.max_windows(parse(), checkpoint, ["mine.txt"]) is None
    assert utils.max_windows(parse(), OTHER, ["stdlib"]) is None
    assert utils.max_windows(parse("--testing"), OTHER, ["mine.txt"]) == utils.TESTING_PPL_WINDOWS


def test_sequences_at_a_time():
    assert utils.batch_size(parse(), EMBEDDED) == TINY.batch_size
    assert utils.batch_size(parse(), OTHER) == 8
    assert utils.batch_size(parse("--batch_size", "3"), EMBEDDED) == 3


# --- the rest ---


@pytest.mark.parametrize(
    "option",
    [
        ["--w_bits", "4"],
        ["--a_bits", "16"],
        ["--group_size", "64"],
        ["--dynamic"],
        ["--quantize_embedding"],
        ["--quantize_lm_head"],
        ["--embedding_bits", "8"],
        ["--lm_head_bits", "8"],
        ["--untie_embedding"],
        ["--rotate_residual"],
        ["--skip_float"],
        ["--observer", "mse"],
        ["--use_outlier_aware"],
        ["--percentile_alpha", "0.9"],
        ["--calib_dataset", "pile"],
        ["--calib_data_num", "3"],
        ["--calib_seqlen", "3"],
        ["--calibration", "file.json"],
        ["--plugin", "mine.py"],
        ["--save_activations", "acts"],
    ],
    ids=" ".join,
)
def test_options_of_quantization_need_quantize(option):
    parser = utils.build_parser()
    with pytest.raises(QuambaError, match=f"^{option[0]} does nothing without --quantize"):
        utils.check_quantization_options(parser.parse_args(["model", *option]), parser)
    utils.check_quantization_options(parser.parse_args(["model", "--quantize", *option]), parser)
    utils.check_quantization_options(parser.parse_args(["model"]), parser)


def test_a_saved_model_is_named_without_its_scheme():
    assert [utils.model_name(checkpoint) for checkpoint in (EMBEDDED, SAVED, OTHER)] == [
        "mamba-tiny",
        "mamba-tiny",
        "mamba-130m",
    ]
    names = [f"mine-{scheme}" for scheme in SCHEMES]
    saved = [Checkpoint(name, Path(name), SAVED.config, "") for name in names]
    assert {utils.model_name(checkpoint) for checkpoint in saved} == {"mine"}
    odd = Checkpoint("my-w8a8", Path("my-w8a8"), {}, "directory")  # a float model of that name
    assert utils.model_name(odd) == "my-w8a8"
