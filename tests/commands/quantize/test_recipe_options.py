"""The options of main.py: what they mean, and which combinations are mistakes."""

import argparse
from pathlib import Path

import pytest
import torch

from quamba import QuambaError
from quamba.architectures.table import BLOCK_TAPS
from quamba.calibration.defaults import DEFAULT_OBSERVERS
from quamba.checkpoint import Checkpoint
from quamba.checkpoint.load import DTYPES
from quamba.commands.quantize import recipe_options
from quamba.commands.quantize import texts as run_texts
from quamba.commands.quantize.parser import build_parser
from quamba.nn.mamba1 import TAPS

EMBEDDED = Checkpoint("mamba-tiny", Path("assets/mamba-tiny"), {}, "embedded")
OTHER = Checkpoint("mamba-130m", Path("mamba-130m"), {}, "hub")


def parse(*options) -> argparse.Namespace:
    return build_parser().parse_args(["model", *options])


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
    assert DTYPES.get(args.dtype) is None  # float32, or as the checkpoint was saved
    assert DTYPES[parse("--dtype", "bfloat16").dtype] is torch.bfloat16


# --- scheme and observers ---


def test_bits_name_the_scheme():
    assert (
        recipe_options.scheme_name(parse())
        == recipe_options.scheme_name(parse("--w_bits", "8", "--a_bits", "8"))
        == "w8a8"
    )
    assert recipe_options.scheme_name(parse("--w_bits", "4", "--a_bits", "16")) == "w4a16"
    choices = "choose " + ", ".join(f"--w_bits {w} --a_bits {a}" for a in (8, 16) for w in (8, 4, 3))
    with pytest.raises(QuambaError, match=f"--w_bits 5 --a_bits 8 is not supported: {choices}"):
        recipe_options.scheme_name(parse("--w_bits", "5"))


def test_options_of_the_recipe_are_arguments_of_quantize():
    nothing = {"group_size": None, "dynamic": False, "embedding_bits": None, "lm_head_bits": None, "untie": False}
    nothing |= dict.fromkeys(("quantize_embedding", "quantize_lm_head", "rotate_residual"), False)
    nothing |= {"state_bits": 32, "layer_schemes": ()}
    assert recipe_options.recipe_arguments(parse()) == {"scheme": "w8a8"} | nothing
    options = ["--w_bits", "4", "--group_size", "64", "--dynamic", "--quantize_embedding", "--embedding_bits", "8"]
    options += ["--quantize_lm_head", "--lm_head_bits", "4", "--untie_embedding", "--rotate_residual"]
    options += ["--state_bits", "8"]
    assert recipe_options.recipe_arguments(parse(*options)) == {
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
        recipe_options.recipe_arguments(parse(f"--{option}_bits", "4"))


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
    parser = build_parser()
    for bits in ("4", "8"):
        weights = ["--w_bits", bits, "--weight_method", "rtn"]
        args = parser.parse_args(["model", "--quantize", *weights, "--a_bits", "16", *option])
        with pytest.raises(QuambaError, match=f"^{option[0]} does nothing with --a_bits 16: activations stay float"):
            recipe_options.check_quantization_options(args)


def test_float_activations_need_no_calibration():
    args = parse("--a_bits", "16")
    assert run_texts.calibration_source(args, OTHER) is None
    assert recipe_options.observer_spec(args) is None
    assert recipe_options.observer_options(args) == {}


def test_dynamic_scales_have_no_observer():
    assert not {"in", "out", "head_in"} & set(recipe_options.observers(parse("--dynamic", "--quantize_lm_head")))
    with pytest.raises(QuambaError, match="tap out has no observer where scales are dynamic"):
        recipe_options.observers(parse("--dynamic", "--observer", "out=mse"))


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
    assert recipe_options.observer_spec(parse(*options)) == spec


@pytest.mark.parametrize("observer", ["mse", "all=outlier_aware", "outlier_aware,out=mse"])
def test_two_meanings_at_once_are_an_error(observer):
    with pytest.raises(QuambaError, match=f"not the --observer {observer} given with it: drop one"):
        recipe_options.observer_spec(parse("--use_outlier_aware", "--observer", observer))


def test_observers_of_the_taps():
    defaults = {tap: DEFAULT_OBSERVERS[tap] for tap in BLOCK_TAPS}
    assert recipe_options.observers(parse()) == defaults
    named = recipe_options.observers(parse("--observer", "minmax,out=percentile"))
    assert named == defaults | {"x": "minmax", "out": "percentile"}
    assert recipe_options.observers(parse("--observer", "head_in=mse", "--quantize_lm_head")) == defaults | {
        "head_in": "mse"
    }
    with pytest.raises(QuambaError, match="head_in"):
        recipe_options.observers(parse("--observer", "head_in=mse"))
    assert recipe_options.observers(parse("--observer", "mse"), TAPS) == {
        tap: name for tap, name in (defaults | {"x": "mse"}).items() if tap in TAPS
    }
    with pytest.raises(QuambaError, match="this model has no tap 'B_in'"):
        recipe_options.observers(parse("--observer", "B_in=mse"), TAPS)


def test_percentile_alpha_goes_to_the_percentile_observer():
    options = ["--percentile_alpha", "0.999"]
    assert recipe_options.observer_options(parse()) == {}
    for observer in ([], ["--observer", "out=percentile"]):
        assert recipe_options.observer_options(parse(*options, *observer)) == {
            "percentile": {"percentile_alpha": 0.999}
        }
    with pytest.raises(QuambaError, match="an argument of the percentile observer, which no tap uses here"):
        recipe_options.observer_options(parse(*options, "--observer", "all=minmax"))
    with pytest.raises(QuambaError, match="percentile_alpha must be in"):
        recipe_options.observer_options(parse("--percentile_alpha", "99.9"))


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
    parser = build_parser()
    with pytest.raises(QuambaError, match=f"^{option[0]} does nothing without --quantize"):
        recipe_options.check_quantization_options(parser.parse_args(["model", *option]))
    recipe_options.check_quantization_options(parser.parse_args(["model", "--quantize", *option]))
    recipe_options.check_quantization_options(parser.parse_args(["model"]))
