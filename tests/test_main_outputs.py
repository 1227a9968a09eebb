"""Outputs of main.py: refused before the work where they cannot be, and none takes another along when it fails."""

import errno
import shutil
import sys
from pathlib import Path

import pytest

import main
import quamba
from quamba.architectures.convert import quantized_bytes
from quamba.calibration.recording import ActivationRecorder
from quamba.commands.quantize import measuring, run
from quamba.models import memory
from tests.storage.test_outputs import USAGE
from tests.test_main import (  # noqa: F401 (fixtures)
    QUANTIZE,
    VOCABULARY,
    fails,
    place,
    process_state,
    read_log,
    write_tiny,
)

SAVE = [*QUANTIZE, "--skip_float", "--pretrained_dir", "models"]


@pytest.fixture
def tiny(tmp_path, tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tmp_path, tiny_mamba(vocab_size=VOCABULARY), tiny_tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibration", "x.json", "--hybrid_search", "6", "--hybrid_blocks_config", "x.json"], "both name x.json"),
        (["--log_dir", "models/tiny-w8a8"], "--log_dir and --pretrained_dir both name models/tiny-w8a8"),
        (["--save_activations", "models/tiny-w8a8/acts"], "lies in models/tiny-w8a8, which is written as a whole"),
        (["--save_dequantized", "models/tiny-w8a8"], "--save_dequantized and --pretrained_dir both name"),
        (["--calibration", "logs/tiny_w8a8.json"], "both name logs/tiny_w8a8.json"),
        (["--calibration", "x" * 256], "File name too long"),
        (["--calibration", "text.txt/x"], "cannot write to --calibration text.txt/x: "),
        (["--calibration", "/dev/null"], "is not a calibration result"),
        (["--log_dir", "text.txt"], "--log_dir text.txt is a file"),
    ],
    ids=str,
)
def test_outputs_that_cannot_be_are_refused_before_the_model_is_loaded(tiny, capsys, monkeypatch, options, message):
    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run, "load_checkpoint", load)
    assert message in fails(capsys, [*tiny, *SAVE, *options])
    assert Path("text.txt").is_file()


def test_too_little_room_is_told_before_the_work(tiny, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 0, 1000))
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured"))
    assert "0.0 MB are free on that disk" in fails(capsys, [*tiny, *SAVE])


def test_what_is_to_be_written_is_known_beforehand(tiny):
    for options in ({}, {"scheme": "w4a8", "quantize_embedding": True, "quantize_lm_head": True}):
        model, tokenizer = quamba.load(tiny[0])
        recipe = quamba.scheme.recipe.create_recipe(
            **{"scheme": "w8a8"} | options, tied=model.config.tie_word_embeddings
        )
        estimate = quantized_bytes(model, recipe)
        text = quamba.CalibrationText("text.txt", 4, 16)
        quamba.quantize(model, tokenizer, calibration=text, weights=quamba.WeightMethod(), **options)
        assert estimate == memory.tensor_bytes(model)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "full")


@pytest.mark.parametrize("what", ["calibration", "dequantized", "log", "model", "activations"])
def test_one_output_that_fails_takes_no_other_along(tiny, capsys, monkeypatch, what):
    failing = {
        "calibration": ("quamba.calibration.run.write_text_atomically", full),
        "dequantized": ("quamba.checkpoint.dequantized.replace_folder", full),
        "log": (sys.modules["quamba.evaluation.log"], "write_text_atomically", full),
        "model": ("quamba.checkpoint.quantized.replace_folder", full),
        "activations": ("quamba.calibration.recording.save_file", full),
    }
    monkeypatch.setattr(*failing[what])
    options = ["--calibration", "c.json", "--save_dequantized", "plain", "--save_activations", "acts"]
    assert main.main([*tiny, *SAVE, *options]) == 2
    out, err = capsys.readouterr()
    assert "perplexity, text.txt" in out  # the table
    assert "No space left on device" in err.splitlines()[-1]
    there = {
        "model": Path("models/tiny-w8a8/config.json"),
        "calibration": Path("c.json"),
        "dequantized": Path("plain/config.json"),
        "log": Path("logs/tiny_w8a8.json"),
        "activations": Path("acts/layer_000.safetensors"),
    }
    assert {name for name, path in there.items() if path.exists()} == set(there) - {what}
    if what != "log":
        assert read_log("tiny_w8a8")["saved"] == (None if what == "model" else "models/tiny-w8a8")


def test_progress_that_cannot_be_kept_does_not_end_the_run(tiny, capsys, monkeypatch, caplog):
    monkeypatch.setattr("quamba.pipeline.resume.save_file", full)
    assert main.main([*tiny, *SAVE, "--w_bits", "4", "--a_bits", "16", "--weight_method", "gptq"]) == 0
    assert "cannot keep the run's progress" in caplog.text
    assert Path("models/tiny-w4a16/config.json").exists()


def test_progress_is_kept_until_the_model_is_saved(tiny, capsys, monkeypatch):
    options = [*tiny, *SAVE, "--w_bits", "4", "--a_bits", "16", "--weight_method", "gptq"]
    with monkeypatch.context() as patch:
        patch.setattr("quamba.checkpoint.quantized.replace_folder", full)
        assert main.main(options) == 2
    (folder,) = Path("models").glob("*.partial")
    assert list(folder.glob("layers-*"))
    assert main.main([*options, "--resume"]) == 0
    assert not folder.exists()


def test_a_terminal_that_is_gone_does_not_end_the_run(tiny, monkeypatch, capsys):
    monkeypatch.setattr(measuring.console, "print", full)
    assert main.main([*tiny, *SAVE]) == 0
    assert Path("models/tiny-w8a8/config.json").exists()
    assert Path("logs/tiny_w8a8.json").exists()


def test_a_recorder_that_is_to_be_whole_still_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("quamba.calibration.recording.save_file", full)
    with pytest.raises(quamba.QuambaError, match="No space left"), ActivationRecorder(tmp_path / "a", "m") as recorder:
        recorder.update("layers.0.x", quamba.calibration.recording.synthetic_activations(0, 1.0).values)
