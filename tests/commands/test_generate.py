"""`python -m quamba generate`: what goes to which stream, and what is refused before a model is loaded."""

import io
import os
import sys

import pytest
import torch

from quamba.__main__ import main
from quamba.commands import generate


@pytest.fixture
def loaded(monkeypatch, tiny_mamba, tiny_tokenizer):
    """The names that were loaded; each is a tiny random model."""
    names = []
    model = tiny_mamba(vocab_size=50, eos_token_id=49, tie_word_embeddings=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(generate, "load", lambda *args: (names.append(args), (model, tiny_tokenizer))[1])
    return names


def run(*options: str) -> int:
    return main(["generate", "MODEL", *options])


def test_the_text_goes_to_the_standard_output_and_one_line_of_figures_aside(loaded, capsys):
    assert run("--prompt", "w3 w1 w4", "--max_new_tokens", "5", "--pretrained_dir", "models") == 0
    out, err = capsys.readouterr()
    assert loaded == [("MODEL", "models")]
    assert out.startswith(" w")
    assert out.endswith("\n")
    assert len(err.splitlines()) == 1
    assert err.startswith("prompt: 3 tokens at ")
    assert "; 5 new ones at " in err
    assert err.endswith("; ended by --max_new_tokens\n")


def test_a_single_new_token_has_no_rate_of_decoding(loaded, capsys):
    assert run("--prompt", "w3", "--max_new_tokens", "1") == 0
    assert "; 1 new ones; ended by" in capsys.readouterr().err


def test_the_options_reach_the_choice_of_tokens(loaded, capsys):
    def text(*options: str) -> str:
        assert run("--prompt", "w3 w1 w4", "--max_new_tokens", "12", *options) == 0
        return capsys.readouterr().out

    greedy, sampled = text(), text("--temperature", "1.5", "--seed", "1")
    assert sampled != greedy
    assert sampled == text("--temperature", "1.5", "--seed", "1")
    assert greedy == text("--temperature", "1.5", "--top_k", "1", "--seed", "1")
    assert greedy == text("--temperature", "1.5", "--top_p", "1e-6")
    assert greedy != text("--repetition_penalty", "3")
    stop = greedy.split()[3]
    assert text("--stop", "no such", "--stop", stop) == greedy[: greedy.index(stop)] + "\n"


def test_the_prompt_may_come_from_the_standard_input(loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w3\nw1 w4\n")))
    assert run("--prompt", "-", "--max_new_tokens", "3") == 0
    from_input = capsys.readouterr()
    assert run("--prompt", "w3 w1 w4", "--max_new_tokens", "3") == 0
    assert capsys.readouterr().out == from_input.out
    assert from_input.err.startswith("prompt: 3 tokens")


def test_a_standard_input_that_is_no_text_is_a_mistake(loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w3 \xff")))
    assert run("--prompt", "-") == 2
    assert "--prompt -: the standard input is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top_p", "0.9"], "top_p 0.9 does nothing at temperature 0"),
        (["--top_k", "9"], "top_k 9 does nothing at temperature 0"),
        (["--seed", "9"], "seed 9 does nothing at temperature 0"),
        (["--temperature", "-1"], "temperature -1.0"),
        (["--temperature", "1", "--top_p", "2"], "top_p 2.0"),
        (["--repetition_penalty", "0"], "repetition_penalty 0.0"),
        (["--stop", ""], "a stop string is empty"),
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_told_before_a_model_is_loaded(loaded, capsys, options, message):
    assert run("--prompt", "w3", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert not loaded


@pytest.mark.parametrize("option", ["--max_new_tokens=0", "--top_k=0", "--seed=-1", "--temperature=warm"])
def test_numbers_out_of_range_are_refused(loaded, capsys, option):
    with pytest.raises(SystemExit):
        run("--prompt", "w3", option)
    assert option.partition("=")[0] in capsys.readouterr().err


class Interrupted:
    """A model's decoder that the user stops at the third token."""

    def __init__(self, _model):
        self.count = 0

    def prefill(self, _ids):
        return torch.eye(50)[[7]]

    def step(self, _ids):
        self.count += 1
        if self.count == 2:
            raise KeyboardInterrupt
        return torch.eye(50)[[8]]


def test_an_interruption_keeps_the_text_so_far_and_ends_with_status_130(loaded, monkeypatch, capsys):
    monkeypatch.setattr("quamba.generation.generate.Decoder", Interrupted)
    assert run("--prompt", "w3") == 130
    assert capsys.readouterr() == (" w7 w8\n", "quamba generate: interrupted\n")


def test_a_reader_that_has_seen_enough_ends_it_quietly(loaded, monkeypatch, capsys, tmp_path):
    """As `| head` does."""

    class Closed(io.StringIO):
        encoding = "ascii"

        def flush(self) -> None:
            raise BrokenPipeError

        def fileno(self) -> int:
            return descriptor

    descriptor = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert run("--prompt", "w3", "--max_new_tokens", "3") == 0
    os.close(descriptor)
    assert capsys.readouterr().err == ""


def test_what_a_terminal_cannot_show_does_not_end_it(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))

    def pieces():
        yield "caf\u00e9"
        return "done"

    assert generate._write(pieces()) == "done"
    assert buffer.getvalue() == b"caf?\n"


def test_a_name_that_is_no_model_is_a_mistake(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    assert main(["generate", str(tmp_path / "empty"), "--prompt", "a"]) == 2
    assert "has no config.json" in capsys.readouterr().err
