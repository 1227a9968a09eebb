"""What `python -m quamba observers` refuses: one line each, before any work."""

import json
from pathlib import Path

import pytest

from quamba.__main__ import main
from quamba.commands import observers

from .test_observers import MAMBA_TINY, fails, place, write_activations, write_tiny  # noqa: F401 (fixtures)


@pytest.fixture
def acts(tmp_path) -> str:
    """See `write_activations`."""
    return write_activations(tmp_path)


@pytest.fixture
def tiny(tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tiny_mamba(vocab_size=50), tiny_tokenizer)


@pytest.fixture
def no_work(monkeypatch):
    """A run that gets as far as loading a model or comparing values fails."""

    def refuse(*_, **__):
        raise AssertionError("the work began")

    for name in ("load_checkpoint", "compare_observers", "measure_observers"):
        monkeypatch.setattr(observers, name, refuse)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--synthetic", "--observer", "best"], "unknown observer 'best': choose one of minmax, "),
        (["--synthetic", "--observer", "mse:0.9"], "observer 'mse:0.9': write NAME or NAME:ARGUMENT=VALUE"),
        (["--synthetic", "--observer", "minmax"], "nothing to compare: 'minmax' is the baseline"),
        (["--synthetic", "--baseline", "best"], "unknown observer 'best'"),
        (["--synthetic", "--bits", "1"], "n_bits must be an integer from 2 to 16, got 1"),
        (["--synthetic", "--bits", "12"], "taps are quantized to 2 to 8 bits, not 12"),
        (["--synthetic", "--plugin", "best.py"], "best.py' is not a Python file"),
        (["--synthetic", "--taps", "x"], "--taps does nothing with --synthetic"),
        (["--synthetic", "--layers", "0"], "--layers does nothing with --synthetic"),
        (["--synthetic", "--normal_ratio", "0.9"], "--normal_ratio does nothing with --synthetic"),
        (["--synthetic", "--spread", "0"], "--spread 0.0: a positive number, and only with --synthetic"),
        (["--synthetic", "--spread", "nan"], "--spread nan: a positive number"),
        *((["--activations", "acts", "--seed", seed], "--seed does nothing with --activations") for seed in ("3", "0")),
        (["--activations", "acts", "--spread", "1"], "--spread 1.0: a positive number, and only with --synthetic"),
        *(
            (["--activations", "acts", *option], f"{option[0]} does nothing without --model")
            for option in (
                ["--pretrained_dir", "models"],
                ["--calib_dataset", "stdlib"],
                ["--calib_data_num", "2"],
                ["--calib_seqlen", "64"],
                ["--batch_size", "2"],
                ["--rotate_residual"],
                ["--save_activations", "more"],
                ["--end_to_end"],
            )
        ),
        *(
            (["--model", "mamba-tiny", *option], f"{option[0]} does nothing without --end_to_end")
            for option in (["--ppl_dataset", "stdlib"], ["--ppl_windows", "2"], ["--task_list", "stdlib_cloze"])
        ),
        ([*MAMBA_TINY, "--end_to_end", "--layers", "0"], "--end_to_end quantizes whole models: drop --layers"),
        ([*MAMBA_TINY, "--end_to_end", "--bits", "4"], "--end_to_end runs 8-bit activations, not --bits 4"),
        ([*MAMBA_TINY, "--end_to_end", "--taps", "y"], "unknown tap 'y'"),
        ([*MAMBA_TINY, "--end_to_end", "--taps", "head_in"], "tap head_in is not quantized end to end"),
        ([*MAMBA_TINY, "--end_to_end", "--ppl_dataset", "best"], "unknown text 'best'"),
        (
            [*MAMBA_TINY, "--end_to_end", "--taps", "x", "--observer", "minmax:clip_ratio=0.9"],
            "observer 'minmax:clip_ratio=0.9' would be every tap's",
        ),
        (["--synthetic", "--plot_tap", "synthetic"], "--plot_tap does nothing without --plot"),
        (["--synthetic", "--plot", "figure.gif"], "a figure cannot be saved as figure.gif"),
        (["--synthetic", "--plot", "file/figure.png"], "cannot write to --plot file"),
        (["--synthetic", "--output", "result.md"], "--output result.md takes Markdown or JSON: add --format markdown"),
        (["--synthetic", "--format", "json", "--output", "file/result.json"], "cannot write to --output file"),
        (["--synthetic", "--format", "json", "--output", "acts"], "--output acts is a folder: name a file"),
        ([*MAMBA_TINY, "--save_activations", "file"], "--save_activations file is a file: give the name of a folder"),
        ([*MAMBA_TINY, "--save_activations", "acts"], "acts holds activations already"),
        (["--activations", "nowhere"], "nowhere holds no activations: write them with main.py --save_activations"),
        (["--activations", "acts", "--taps", "y"], "acts has no tap y: it has x, out"),
        (["--activations", "acts", "--layers", "4"], "acts has no layer 4: it has 0, 1, 2, 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_any_work(capsys, acts, no_work, options, message):
    Path("file").write_text("")
    assert message in fails(capsys, *options)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--synthetic", "--activations", "acts"],
        ["--synthetic", "--model", "mamba-tiny"],
        ["--synthetic", "--format", "html"],
        ["--synthetic", "--seed", "-1"],
        ["--synthetic", "--bits", "eight"],
        ["--activations", "acts", "--normal_ratio", "1"],
        ["--activations", "acts", "--layers", "first"],
        ["--activations", "acts", "--taps", ","],
        ["--model", "mamba-tiny", "--calib_data_num", "0"],
        ["--synthetic", "--min_mse_drop", "much"],
    ],
    ids=" ".join,
)
def test_values_and_sources_that_are_none_are_refused(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["observers", *options])
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_name_of_no_model_lists_what_was_tried(capsys, no_work):
    assert main(["observers", "--model", "best"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("quamba observers: error: model 'best' was not found. Tried:\n  no folder best\n")


def test_a_quantized_model_has_no_float_activations(capsys, tiny, no_work):
    config = json.loads(Path("tiny/config.json").read_text())
    config["quantization_config"] = {"quant_method": "quamba"}
    Path("tiny/config.json").write_text(json.dumps(config))
    assert fails(capsys, "--model", "tiny") == "tiny is quantized already: give the float model it was made from"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--taps", "y"], "unknown tap 'y': choose of in, conv_in, "),
        (["--layers", "2"], "there is no layer 2: the model has layers 0 to 1"),
        (["--taps", "head_in", "--layers", "0"], "tap head_in belongs to no layer"),
        (["--calib_dataset", "best"], "unknown text 'best'"),
        (["--calib_seqlen", "9999"], "fewer than one sequence of 9999"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_only_the_model_can_tell_is_told_before_it_runs(capsys, tiny, monkeypatch, options, message):
    def refuse(*_, **__):
        raise AssertionError("the model ran")

    monkeypatch.setattr("quamba.study.observers.capture.calibrate", refuse)
    assert main(["observers", *tiny, *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
