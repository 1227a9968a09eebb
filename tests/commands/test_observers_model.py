"""The observers command on a model: captured first, or quantized end to end."""

# ruff: noqa: F811 (tests take imported fixtures by their names)

from pathlib import Path

import pytest
import torch

from quamba.calibration.recording import ActivationRecorder
from quamba.calibration.run import CalibrationText
from quamba.commands import observers
from quamba.evaluation.compare import Interval
from quamba.study.observers.end_to_end import Evaluation
from quamba.study.observers.verdict import EndToEnd
from tests.commands.test_observers import MAMBA_TINY, TINY, as_json, fails, output, place, tiny  # noqa: F401 (fixtures)

# --- a model ---


def test_a_model_is_captured_and_compared(capsys):
    data = as_json(capsys, *MAMBA_TINY, "--taps", "x,out", "--layers", "0,3")
    assert (data["source"], data["real"]) == ("mamba-tiny", True)
    assert [(tap["tap"], tap["layer"]) for tap in data["taps"]] == [("x", 0), ("out", 0), ("x", 3), ("out", 3)]
    for tap in data["taps"]:
        results = {result["observer"]: result for result in tap["results"]}
        assert all(result["sqnr_db"] > 3 for result in results.values())
        assert "mse" in tap["winners"]
        # one batch is all that calibration saw
        assert results["mse"]["calibration_sqnr_db"] == pytest.approx(results["mse"]["sqnr_db"], abs=0.05)
    assert list(Path().iterdir()) == []


def test_what_a_model_gave_may_be_kept_and_compared_again(capsys):
    options = ["--taps", "x", "--observer", "mse"]
    captured = as_json(capsys, *MAMBA_TINY, *options, "--save_activations", "kept")
    assert Path("kept/layer_000.safetensors").is_file()
    assert as_json(capsys, "--activations", "kept", *options) == captured
    told = fails(capsys, *MAMBA_TINY, *options, "--save_activations", "kept")
    assert told.startswith("kept holds activations already")


@pytest.fixture
def captured(monkeypatch) -> list[CalibrationText]:
    """Stands for loading and running a model: the texts that it was asked to run are in the list."""
    texts = []

    def capture(_model, _tokenizer, text, directory, *_):
        texts.append(text)
        with ActivationRecorder(directory, "stand-in") as recorder:
            recorder.update("layers.0.x", torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))

    monkeypatch.setattr(observers, "load_checkpoint", lambda checkpoint: (None, None))
    monkeypatch.setattr(observers, "check_transformable", lambda model: None)
    monkeypatch.setattr(observers, "capture", capture)
    return texts


def test_the_calibration_text_is_that_of_main_unless_options_say_otherwise(capsys, captured):
    output(capsys, "--model", "mamba-tiny")
    output(capsys, *MAMBA_TINY, "--calib_dataset", "mine.txt", "--seed", "7", "--batch_size", "3")
    assert captured == [CalibrationText.of(TINY), CalibrationText("mine.txt", 2, 64, 7, 3)]


def test_a_rotated_model_has_other_activations(capsys, tiny):
    plain, rotated = (as_json(capsys, *tiny, "--taps", "in", *o) for o in ([], ["--rotate_residual"]))
    assert plain["taps"][0]["results"][0]["scale"] != rotated["taps"][0]["results"][0]["scale"]


# --- end to end ---


def test_end_to_end_measures_the_models_and_decides(capsys, tiny):
    """The real thing on a tiny model: observers at tap x, two windows of text, no tasks."""
    options = [*tiny, "--taps", "x", "--observer", "mse", "--min_mse_drop", "-9", "--max_ppl_ratio", "9"]
    data = as_json(capsys, *options, "--end_to_end", "--ppl_dataset", "text.txt", "--ppl_windows", "2")
    ratio = data["end_to_end"]["mse"]["ppl_ratio"]
    assert 0.9 < ratio[1] <= ratio[0] <= ratio[2] < 1.1
    assert data["end_to_end"]["mse"]["accuracy_gain"] is None
    (found,) = data["verdicts"]
    assert (found["adopt"], found["default"]) == (True, None)
    assert f"perplexity x{ratio[0]:.4f}" in found["words"]


@pytest.fixture
def measured(monkeypatch) -> list:
    """Stands for the measurements: what they were asked for is in the list."""
    calls = []

    def measure(checkpoint, specs, *arguments):
        calls.append((checkpoint.name, [spec.label for spec in specs], *arguments))
        better = EndToEnd(Interval(0.99, 0.98, 1.0), Interval(2.0, 1.0, 3.0))
        return {spec.label: better for spec in specs[1:]}

    monkeypatch.setattr(observers, "measure_observers", measure)
    monkeypatch.setattr(Evaluation, "check", lambda self: None)
    return calls


def test_end_to_end_runs_what_main_would(capsys, captured, measured):
    options = [*MAMBA_TINY, "--taps", "x", "--observer", "mse", "--end_to_end"]
    output(capsys, *options)
    output(capsys, *options, "--task_list", "a,b", "--ppl_windows", "3", "--batch_size", "2", "--rotate_residual")
    output(capsys, *options, "--ppl_dataset", "mine.txt")
    asked, text = (
        ("mamba-tiny", ["minmax", "mse"], ["x"]),
        CalibrationText(TINY.calib_dataset, 2, 64, 0, TINY.batch_size),
    )
    other_text = CalibrationText(TINY.calib_dataset, 2, 64, 0, 2)
    assert measured == [
        (*asked, text, Evaluation.of(TINY), False),
        (*asked, other_text, Evaluation(TINY.ppl_dataset, 3, ["a", "b"], 2), True),
        (*asked, text, Evaluation("mine.txt", None, TINY.tasks, TINY.batch_size), False),  # all of that text
    ]


def test_the_figures_of_the_rule_are_options(capsys, captured, measured):
    options = [*MAMBA_TINY, "--min_mse_drop", "-9", "--taps", "x", "--observer", "mse", "--end_to_end"]
    assert "- mse: adopt, and make it the default: " in output(capsys, *options)
    assert "- mse: adopt as an option, not as the default: " in output(capsys, *options, "--min_accuracy_gain", "2")
    assert "- mse: do not adopt: " in output(capsys, *options, "--max_ppl_ratio", "0.98")
    data = as_json(capsys, *options, "--min_mse_drop", "0.9")
    assert data["rule"]["min_mse_drop"] == 0.9
    assert data["verdicts"][0]["adopt"] is False
    assert data["end_to_end"]["mse"] == {"ppl_ratio": [0.99, 0.98, 1.0], "accuracy_gain": [2.0, 1.0, 3.0]}
