"""`quamba quantize` is main.py with --quantize: the same options, the same log."""

import json
from pathlib import Path

import pytest

import main
from quamba.__main__ import main as quamba_main
from tests.test_main import VOCABULARY, place, process_state, write_tiny  # noqa: F401 (fixtures)

TEXT = ["--calib_dataset", "text.txt", "--calib_data_num", "4", "--calib_seqlen", "16", "--ppl_dataset", "text.txt"]


@pytest.fixture
def tiny(tmp_path, tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tmp_path, tiny_mamba(vocab_size=VOCABULARY), tiny_tokenizer)


def log_of(name: str) -> dict:
    return json.loads(Path("logs", name).read_text())


def test_the_command_does_what_main_does(tiny, capsys):
    assert main.main([*tiny, *TEXT, "--quantize", "--skip_float"]) == 0
    expected = log_of("tiny_w8a8.json")
    Path("logs/tiny_w8a8.json").unlink()
    assert quamba_main(["quantize", *tiny, *TEXT, "--skip_float"]) == 0
    found = log_of("tiny_w8a8.json")
    assert (found["ppl"], found["recipe"], found["args"]) == (expected["ppl"], expected["recipe"], expected["args"])


def test_the_command_simulates(tiny, capsys):
    assert quamba_main(["quantize", *tiny, *TEXT, "--skip_float", "--simulate", "w4a4"]) == 0
    assert log_of("tiny_simulated-w4a4.json")["scheme"] == "simulated-w4a4"


def test_a_mistake_is_told_in_one_line(tiny, capsys):
    assert quamba_main(["quantize", *tiny, "--observer", "best"]) == 2
    assert capsys.readouterr().err.startswith("quamba quantize: error: unknown observer 'best'")
