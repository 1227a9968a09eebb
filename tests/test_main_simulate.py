"""main.py --simulate: formats without kernels are measured, and table, log and file say that it is a simulation."""

import json
from pathlib import Path

import pytest

import main
from tests.test_main import (  # noqa: F401 (fixtures)
    VOCABULARY,
    fails,
    place,
    process_state,
    write_tiny,
)

TEXT = ["--calib_dataset", "text.txt", "--calib_data_num", "4", "--calib_seqlen", "16", "--ppl_dataset", "text.txt"]


@pytest.fixture
def tiny(tmp_path, tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tmp_path, tiny_mamba(vocab_size=VOCABULARY), tiny_tokenizer)


def test_a_run_says_that_it_is_a_simulation(tiny, capsys):
    assert main.main([*tiny, *TEXT, "--simulate", "w4a4"]) == 0
    out = capsys.readouterr().out
    assert "Simulating w4a4: weights uint4 per group of 128, activations int4 per tensor" in out
    assert "computed in floats: sizes and speed are the float model's" in out
    (path,) = [path for path in Path("logs").glob("*.json") if "items" not in path.name]
    log = json.loads(path.read_text())
    assert path.name == "tiny_simulated-w4a4.json" and log["scheme"] == "simulated-w4a4" and log["recipe"] is None
    assert log["simulation"]["weight"]["bits"] == log["simulation"]["act"]["bits"] == 4
    assert log["ppl"] != log["float"]["ppl"]


def test_a_file_of_formats(tiny, capsys):
    Path("mine.json").write_text('{"weights": {"bits": 16}, "activations": {"bits": 16}, "taps": {"x": {"bits": 2}}}')
    assert main.main([*tiny, *TEXT, "--simulate", "mine.json", "--skip_float"]) == 0
    assert "weights float, activations float, x int2 per tensor" in capsys.readouterr().out
    assert Path("logs/tiny_simulated-mine.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize"], "--simulate computes in floats what --quantize runs in kernels: drop one of them"),
        (["--state_bits", "8"], "--state_bits does nothing with --simulate"),
        (["--save_dequantized", "x"], "--save_dequantized does nothing with --simulate"),
        (["--resume"], "--resume does nothing with --simulate"),
        (["--observer", "best"], "unknown observer 'best'"),
        (["--n_grid", "3"], "--n_grid does nothing with --weight_method gptq"),
    ],
    ids=str,
)
def test_options_that_do_nothing_are_refused(tiny, capsys, options, message):
    assert message in fails(capsys, [*tiny, *TEXT, "--simulate", "w4a4", *options])


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        ("w16a4", ["--weight_method", "gptq"], "--weight_method does nothing with w16a4, whose weights stay float"),
        ("w8a16", ["--calib_seqlen", "16"], "--calib_seqlen does nothing with w8a16 and rtn: no text is read"),
    ],
)
def test_options_that_these_formats_have_no_use_for_are_refused(tiny, capsys, formats, options, message):
    assert message in fails(capsys, [*tiny, "--simulate", formats, *options])


def test_a_text_that_is_not_read_is_not_named(tiny, capsys):
    assert main.main([*tiny, "--ppl_dataset", "text.txt", "--simulate", "w8a16", "--skip_float"]) == 0
    assert "Simulating w8a16: weights int8 per channel, activations float\n" in capsys.readouterr().out
