"""main.py on the weight path: a method for the weights, from the options to a saved model and a log."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import main
import quamba
from quamba.pipeline.resume import ResumeFolder
from tests.test_main import ROOT, fails, place, read_log, tiny  # noqa: F401  (two are fixtures)
from tests.tiny_llama import tiny_llama

W4A16 = ["--quantize", "--w_bits", "4", "--a_bits", "16", "--group_size", "32"]
TEXT = ["--calib_dataset", "text.txt", "--calib_data_num", "8", "--calib_seqlen", "16"]
AWQ = ["--weight_method", "awq", "--layer_batch_size", "1"]


@pytest.fixture
def llama(tiny, tiny_tokenizer):  # noqa: F811
    """The command that measures a tiny Llama in the folder `llama`."""
    tiny_llama(dtype=torch.bfloat16).save_pretrained("llama")
    tiny_tokenizer.save_pretrained("llama")
    return ["llama", *tiny[1:]]


@pytest.mark.parametrize("method", [AWQ, [*AWQ, "--apply_gptq", "--use_heuristic"], ["--apply_gptq", "--clip"]])
def test_the_weights_of_any_causal_lm_are_quantized_saved_and_measured_again(llama, capsys, method):
    assert main.main([*llama, *W4A16, *TEXT, *method, "--pretrained_dir", "models"]) == 0
    out = capsys.readouterr().out
    assert "Rounding weights, " in out and "on 8 slices of 16 tokens of text.txt" in out
    assert "\nweights     " in out and "128 tokens in" in out
    before = read_log("llama_w4a16")
    assert before["weights"]["tokens"] == 128
    assert before["ppl"]["text.txt"] == pytest.approx(before["float"]["ppl"]["text.txt"], rel=0.3)
    assert main.main(["models/llama-w4a16", *llama[1:]]) == 0
    assert read_log("llama_w4a16")["ppl"] == before["ppl"]


def test_a_mamba_with_int8_activations_too(tiny, capsys):  # noqa: F811
    options = ["--quantize", "--w_bits", "4", "--group_size", "32", *TEXT, *AWQ, "--pretrained_dir", "models"]
    assert main.main([*tiny, *options]) == 0
    assert "\nweights     alpha " in capsys.readouterr().out
    before = read_log("tiny_w4a8")
    assert before["calibration"]["tokens"] == before["weights"]["tokens"] == 128
    assert main.main(["models/tiny-w4a8", *tiny[1:]]) == 0
    assert read_log("tiny_w4a8")["ppl"] == before["ppl"]


def test_plain_floats_are_written_in_the_models_own_dtype(llama):
    assert main.main([*llama, *W4A16, *TEXT, *AWQ, "--save_dequantized", "plain", "--skip_float"]) == 0
    plain = AutoModelForCausalLM.from_pretrained("plain")
    assert plain.dtype == torch.bfloat16


def test_an_interrupted_run_is_resumed(llama, monkeypatch, capsys):
    keep = ResumeFolder.keep

    def interrupted(self, layers, *args):
        keep(self, layers, *args)
        raise KeyboardInterrupt

    command = [*llama, *W4A16, *TEXT, *AWQ, "--pretrained_dir", "models", "--skip_float"]
    with monkeypatch.context() as patch:
        patch.setattr(ResumeFolder, "keep", interrupted)
        assert main.main(command) == 130
    capsys.readouterr()
    assert main.main([*command, "--n_grid", "7", "--resume"]) == 2
    assert "had another method: give the same options" in capsys.readouterr().err
    assert main.main([*command, "--resume"]) == 0
    assert not list(Path("models").glob("*.partial"))
    resumed, _ = quamba.load("models/llama-w4a16")
    assert main.main(command) == 0
    for (name, a), b in zip(
        resumed.state_dict().items(), quamba.load("models/llama-w4a16")[0].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_second_run_of_the_same_name_is_refused_before_any_work(llama, capsys):
    with ResumeFolder(Path("models/llama-w4a16-awq.partial")):
        told = fails(capsys, [*llama, *W4A16, *TEXT, *AWQ, "--pretrained_dir", "models"])
    assert "another run is at work in models/llama-w4a16-awq.partial" in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*W4A16, *AWQ, "--resume"], "nothing to resume"),
        (["--quantize", "--w_bits", "4"], "the activations of models of type 'llama' cannot be quantized"),
        ([*W4A16, "--use_heuristic", "--outlier_percent", "1.0"], "outlier_percent 1.0 is not a share"),
        ([*W4A16, *AWQ, "--observer", "mse"], "--observer does nothing with --a_bits 16"),
        (["--weight_method", "awq"], "--weight_method does nothing without --quantize"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(llama, capsys, options, message):
    told = fails(capsys, [*llama, *options, *(TEXT if "--resume" in options else [])])
    assert message in told and len(told.splitlines()) == 1


def test_a_plug_in_brings_a_rounding_rule(llama):
    plugin = str(ROOT / "examples" / "my_rounding.py")
    command = [*llama, *W4A16, *TEXT, "--plugin", plugin, "--use_heuristic", "--flip_objective", "one_flip"]
    assert main.main(command) == 0
    flips = read_log("llama_w4a16")["weights"]["reports"]["layers.0.mlp.down_proj"]["flips"]["mlp.down_proj"]
    assert flips["per_row"]["100"] == 1


def test_a_folder_for_plain_floats_that_is_not_empty_is_told_before_any_work(llama, capsys):
    Path("full").mkdir()
    Path("full", "file").write_text("mine")
    told = fails(capsys, [*llama, *W4A16, "--save_dequantized", "full"])
    assert "full exists already" in told
