"""The command line's mistakes: one message that names what is wrong, status 2, and nothing that was done."""

import subprocess
import sys
from pathlib import Path

import pytest

import main
from quamba.commands.quantize import run
from tests.test_main import (  # noqa: F401 (fixtures)
    QUANTIZE,
    ROOT,
    VOCABULARY,
    fails,
    place,
    process_state,
    read_log,
    write_tiny,
)


@pytest.fixture
def tiny(tmp_path, tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tmp_path, tiny_mamba(vocab_size=VOCABULARY), tiny_tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "--observer", "best"], "unknown observer 'best': choose one of minmax, percentile, "),
        (["--quantize", "--observer", "y=mse"], "unknown tap 'y'"),
        (["--quantize", "--observer", "B_in=mse"], "this model has no tap 'B_in': choose of in, conv_in, "),
        (["--quantize", "--observer", "mse", "--use_outlier_aware"], "--use_outlier_aware means --observer outlier_"),
        (["--quantize", "--w_bits", "5"], "--w_bits 5 --a_bits 8 is not supported"),
        (["--quantize", "--a_bits", "32"], "--w_bits 8 --a_bits 32 is not supported"),
        (["--quantize", "--group_size", "64"], "group_size 64 needs 4 or 3-bit weights"),
        (["--quantize", "--w_bits", "4", "--group_size", "7"], "group_size 7 has no kernels: choose of 32, 64, 128"),
        (["--quantize", "--a_bits", "16", "--dynamic"], "scheme w8a16 leaves activations float"),
        (["--quantize", "--a_bits", "16", "--observer", "mse"], "--observer does nothing with --a_bits 16"),
        (["--quantize", "--dynamic", "--observer", "out=mse"], "tap out has no observer where scales are dynamic"),
        (["--quantize", "--embedding_bits", "4"], "embedding_bits 4 does nothing without quantize_embedding"),
        (["--quantize", "--quantize_lm_head", "--lm_head_bits", "2"], "lm_head_bits are 3, 4 or 8, not 2"),
        (["--quantize", "--untie_embedding"], "does nothing unless both are quantized"),
        (["--group_size", "64"], "--group_size does nothing without --quantize"),
        (["--quantize", "--calib_dataset", "best"], "--calib_dataset 'best' is neither a file or folder here nor"),
        (["--quantize", "--plugin", "best.py"], "best.py' is not a Python file"),
        (["--quantize", "--percentile_alpha", "2"], "percentile_alpha must be in (0, 1]"),
        (["--quantize", "--calibration", "text.txt"], "text.txt is not a calibration result"),
        ([*QUANTIZE, "--calib_seqlen", "9999", "--skip_float"], "fewer than one sequence of 9999"),
        (["--quantize", "--pretrained_dir", "text.txt"], "text.txt"),
        (
            ["--quantize", "--save_activations", "text.txt"],
            "--save_activations text.txt is a file: give the name of a folder",
        ),
        (["--save_activations", "acts"], "--save_activations does nothing without --quantize"),
        (["--observer", "mse"], "--observer does nothing without --quantize"),
        (["--ppl_dataset", "best"], "--ppl_dataset 'best' is neither a file or folder here nor"),
        (["--device", "cuda"], "cuda"),
        (["--device", "best"], "device 'best' cannot be used here"),
        (["--device", "meta"], "device 'meta' holds no values"),
        (["--fewshot", "3"], "--fewshot 3 does nothing without --eval_few_shot"),
        (["--task_list", "best"], "unknown lm-eval task 'best'"),
        (["--task_list", "stdlib_cloze", "--include_path", "best"], "folder of lm-eval tasks 'best' does not exist"),
        (["--log_dir", "text.txt"], "--log_dir text.txt is a file: give the name of a folder"),
        (
            ["--data_dir", "logs"],
            "--data_dir logs can stand in for wikitext2, wikitext2-simple, c4, pile only, not for",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(tiny, capsys, options, message):
    told = fails(capsys, ["tiny", *options] if "--task_list" in options else [*tiny, *options])
    assert message in told
    assert len(told.splitlines()) == 1


def test_an_unknown_model_lists_what_was_tried(capsys):
    told = fails(capsys, ["best"])
    assert told.startswith("model 'best' was not found. Tried:\n  no folder best\n")
    assert "Embedded in this package, no download needed: mamba-tiny, mamba2-tiny." in told


def test_a_quantized_model_is_not_quantized_again(tiny, capsys):
    assert main.main([*tiny, *QUANTIZE, "--pretrained_dir", "models"]) == 0
    capsys.readouterr()
    assert main.main(["models/tiny-w8a8", *tiny[1:], *QUANTIZE]) == 2
    out, err = capsys.readouterr()
    assert err == "main.py: error: models/tiny-w8a8 is quantized already: give the float model it was made from\n"
    assert out == ""  # before anything was measured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--observer", "minmax"], "observer 'mse' at tap x, not 'minmax'"),
        (["--percentile_alpha", "0.9"], "observer options"),
        (["--calib_seqlen", "8"], "--calib_seqlen 8 does not fit --calibration tiny.json, which was made with 16"),
        (["--rotate_residual"], "belongs to another model, or to other transforms of it"),
        (["--quantize_lm_head"], "no scale for head_in"),
    ],
    ids=str,
)
def test_an_earlier_calibration_is_not_taken_for_what_it_is_not(tiny, capsys, options, message):
    assert main.main([*tiny, *QUANTIZE, "--calibration", "tiny.json", "--skip_float"]) == 0
    capsys.readouterr()
    assert main.main([*tiny, *QUANTIZE, "--calibration", "tiny.json", "--skip_float", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mistake", ["reused", "there"])
def test_activations_that_could_not_be_saved_are_told_before_any_work(tiny, capsys, monkeypatch, mistake):
    options = {"reused": ["--calibration", "tiny.json"], "there": ["--save_activations", "acts"]}[mistake]
    assert main.main([*tiny, *QUANTIZE, "--skip_float", *options]) == 0
    capsys.readouterr()

    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run, "load_checkpoint", load)
    assert main.main([*tiny, "--quantize", "--save_activations", "acts", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    reused = "--save_activations acts needs a calibration run, and --calibration tiny.json is reused: drop one of them"
    there = "acts holds activations already (layer_000.safetensors): name another folder, or empty it"
    assert err == f"main.py: error: {reused if mistake == 'reused' else there}\n"


def test_a_folder_of_something_else_is_kept(tiny, capsys):
    notes = Path("models") / "tiny-w8a8" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    assert "holds something else than a quantized model" in fails(
        capsys, [*tiny, *QUANTIZE, "--pretrained_dir", "models"]
    )
    assert notes.read_text() == "mine"


def test_verbose_shows_where_a_mistake_was_found(capsys):
    assert main.main(["best", "--verbose"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.rstrip().endswith("Embedded in this package, no download needed: mamba-tiny, mamba2-tiny.")


def test_an_interrupted_run_ends_with_status_130_and_leaves_nothing(tiny, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("quamba.storage.folders.fsync_tree", interrupt)  # while it saves
    assert main.main([*tiny, *QUANTIZE, "--pretrained_dir", "models"]) == 130
    assert capsys.readouterr().err.endswith("main.py: interrupted\n")
    assert list(Path("models").iterdir()) == list(Path("logs").iterdir()) == []


def test_the_process_ends_with_that_status():
    command = [sys.executable, str(ROOT / "main.py"), "mamba-tiny", "--quantize", "--observer", "best"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("main.py: error: unknown observer 'best'")
