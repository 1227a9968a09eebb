"""`python -m quamba profile`: what is measured by which options, the report, and what is refused."""

import json
import re

import pytest
import torch

import quamba
from quamba.__main__ import build_parser, main
from quamba.commands import profile
from quamba.models.memory import checkpoint_bytes

SHORT = ["--prompt_len", "6", "--gen_len", "2", "--repeats", "3"]
TIMES = {"ttft", "tpot", "ttlt"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A float model and the quantized one that was made from it: folders `float` and `w8a8`."""
    root = tmp_path_factory.mktemp("models")
    model, tokenizer = quamba.load("mamba-tiny")
    model.config.num_hidden_layers = 1
    del model.backbone.layers[1:]
    model.save_pretrained(root / "float")
    tokenizer.save_pretrained(root / "float")
    windows = torch.randint(0, 60, (2, 16), generator=torch.Generator().manual_seed(5))
    quamba.quantize(model, tokenizer, calibration=windows, progress=False)
    quamba.save(model, tokenizer, root / "w8a8")
    return root


@pytest.fixture(autouse=True)
def process_state(monkeypatch):
    """What a run changes in its process is undone."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*options) -> int:
    return main(["profile", *map(str, options)])


def report(capsys, *options) -> dict:
    assert run(*options, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)


def test_without_a_choice_all_is_measured(folders, capsys):
    data = report(capsys, folders / "w8a8", *SHORT, "--threads", 1, "--seed", 3, "--batch_size", 2)
    (model,) = data["models"]
    assert data["settings"] == {"prompt_len": 6, "gen_len": 2, "batch_size": 2, "repeats": 3, "seed": 3}
    assert data["env"]["threads"] == 1
    assert set(model) == {"name", "path", "label", "size"} | TIMES
    assert model["label"] == "w8a8"
    assert model["size"]["disk_bytes"] == (folders / "w8a8" / "model.safetensors").stat().st_size
    assert model["size"]["memory_bytes"] < model["size"]["disk_bytes"] * 1.1
    assert model["size"]["peak_bytes"] > model["size"]["memory_bytes"]
    for figure in TIMES:
        times = model[figure]
        assert len(times["seconds"]) == 3
        assert 0 < times["min"] <= times["q1"] <= times["median"] <= times["q3"] <= times["max"]
    assert model["ttft"]["median"] < model["ttlt"]["median"]
    assert "ratio" not in data


def test_a_mamba2_is_measured_like_any_other(tmp_path, tiny_mamba2, tiny_tokenizer, tokens, capsys):
    model = tiny_mamba2()
    quamba.save(quamba.quantize(model, None, calibration=tokens, progress=False), tiny_tokenizer, tmp_path / "w8a8")
    (measured,) = report(capsys, tmp_path / "w8a8", *SHORT)["models"]
    assert set(measured) == {"name", "path", "label", "size"} | TIMES
    assert measured["label"] == "w8a8"


@pytest.mark.parametrize("chosen", [["size"], ["ttft"], ["tpot", "size"], ["ttlt", "ttft"]], ids=" ".join)
def test_only_what_was_chosen_is_measured(folders, capsys, chosen):
    short = [] if chosen == ["size"] else ["--repeats", 2]
    data = report(capsys, folders / "float", *[f"--{figure}" for figure in chosen], "--prompt_len", 4, *short)
    assert set(data["models"][0]) - {"name", "path", "label"} == set(chosen)
    assert data["settings"]["gen_len"] == (0 if chosen == ["ttft"] else 64)
    assert data["models"][0]["label"] == "float"


def test_a_float_model_beside_it_adds_a_column_and_ratios(folders, capsys, monkeypatch):
    monkeypatch.setattr(profile, "_peak_in_own_process", lambda args, name: {"peak_bytes": 9, "peak_since": "a test"})
    data = report(capsys, folders / "w8a8", "--float", folders / "float", *SHORT)
    assert [model["label"] for model in data["models"]] == ["w8a8", "float"]
    sizes = [model["size"]["memory_bytes"] for model in data["models"]]
    assert data["ratio"]["size"]["memory_bytes"] == sizes[0] / sizes[1] < 1
    pairs = zip(*(model["ttft"]["seconds"] for model in data["models"]), strict=True)
    assert data["ratio"]["ttft"]["max"] == max(first / second for first, second in pairs)


def test_the_peak_of_one_of_two_models_is_measured_in_a_process_of_its_own(folders, tmp_path, monkeypatch):
    """From any working directory, and with the options of this run."""
    monkeypatch.chdir(tmp_path)
    options = ["w8a8", "--pretrained_dir", str(folders), "--prompt_len", "4", "--gen_len", "1", "--threads", "1"]
    args = build_parser().parse_args(["profile", *options])
    peak = profile._peak_in_own_process(args, "w8a8")
    assert set(peak) == {"peak_bytes", "peak_since"}
    assert peak["peak_bytes"] > checkpoint_bytes(folders / "w8a8")


def test_what_goes_wrong_in_that_process_is_told(folders, capsys, monkeypatch):
    monkeypatch.setattr(profile.sys, "executable", "/bin/false")
    assert run(folders / "w8a8", "--float", folders / "float", "--size") == 2
    assert "its process ended with status 1" in capsys.readouterr().err


def test_the_table_goes_to_the_terminal_and_json_to_its_file(folders, capsys, tmp_path):
    path = tmp_path / "new" / "p.json"
    assert run(folders / "float", *SHORT, "--json", path) == 0
    out, _ = capsys.readouterr()
    for label in profile.LABELS.values():
        assert label in out
    assert "prompt of 6 tokens, 2 after the first; batch of 1; threads: " in out
    assert "interquartile range of 3 runs" in out
    assert "resident memory since the " in out
    assert json.loads(path.read_text())["models"][0]["path"] == str(folders / "float")
    assert [entry.name for entry in path.parent.iterdir()] == ["p.json"]


def test_the_table_goes_aside_where_json_takes_the_standard_output(folders, capsys):
    assert run(folders / "float", "--ttft", "--prompt_len", 3, "--json", "-") == 0
    assert "first token, ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["float", "--size", "--repeats", "3"], "--repeats does nothing with --size alone"),
        (["float", "--ttft", "--gen_len", "3"], "--gen_len does nothing with --ttft alone"),
        (["float", "--float", "float"], "is not quantized by us"),
        (["w8a8", "--float", "w8a8"], "--float .*w8a8 is quantized"),
        (["float", "--json", "."], "--json . is a folder"),
        (["float", "--json", "float/config.json/p.json"], "cannot write to"),
        (["none"], "was not found"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_before_anything_is_loaded(folders, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folders)
    monkeypatch.setattr(profile, "load_checkpoint", lambda *_: pytest.fail("a model was loaded"))
    assert run(*options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err)


@pytest.mark.parametrize("option", ["prompt_len", "gen_len", "batch_size", "repeats", "threads"])
def test_numbers_below_1_are_refused(folders, capsys, option):
    with pytest.raises(SystemExit):
        run(folders / "float", f"--{option}", "0")
    assert "must be at least 1, not 0" in capsys.readouterr().err
