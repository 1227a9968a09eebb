"""Random options with odd values: every run is refused in one line, or gets as far as loading the model."""

import argparse
import random
import sys
from pathlib import Path

import pytest

import main
from quamba.__main__ import COMMANDS
from quamba.__main__ import main as quamba_main
from quamba.commands.failures import MISTAKE
from quamba.errors import QuambaError
from tests.test_main import place, process_state  # noqa: F401 (fixtures)

SEED, RUNS = 0, 60  # of every command
ODD = ["", " ", "0", "-1", "1e400", "nan", "99999999999999999999", "x" * 300, "a,b", "=", ":", "../..", "/dev/null"]
ODD += [
    "\udcff",
    "\u00e9",
    "bad.json",
    "bad.py",
    "folder",
    "missing/x",
    "[1]",
    "{}",
    "w8a8",
    "mse",
    "x=mse",
    "stdlib",
    "4",
]
MODELS = ["mamba-tiny", "mamba2-tiny", "folder", "", "bad.json", "\udcff", "no/such", "x" * 300]
STOPPED = "the model would be loaded now"


@pytest.fixture
def odd_files(monkeypatch):
    """Files and folders that hold nonsense; and models that are never loaded."""
    Path("bad.json").write_bytes(b"\xff{[")
    Path("bad.py").write_text("raise SystemExit(5)")
    Path("folder").mkdir()
    Path("folder/config.json").write_text('{"model_type": ["mamba"], "quantization_config": 3}')

    def stop(*_, **__):
        raise QuambaError(STOPPED)

    names = (
        "quamba.commands.quantize.run",
        "quamba.commands.profile",
        "quamba.commands.observers",
        "quamba.study.models.sources",
    )
    for name in names:
        monkeypatch.setattr(sys.modules[name], "load_checkpoint", stop)
    monkeypatch.setattr("quamba.commands.generate.load", stop)


def options_of(parser) -> list:
    """The options of a parser that take part in a random command line."""
    return [action for action in parser._actions if action.option_strings and action.dest not in ("help", "verbose")]


def random_options(options, chance: random.Random) -> list[str]:
    words = []
    for action in chance.sample(options, chance.randint(0, 4)):
        words.append(action.option_strings[0])
        if action.nargs != 0:
            values = [str(value) for value in action.choices or ()] + ODD
            words[-1] += f"={chance.choice(values)}"  # a value may begin with a dash
    return words


def run(entry, words: list[str], capsys) -> None:
    try:
        status = entry(words)
    except SystemExit as error:  # argparse
        status = error.code
    said = capsys.readouterr().err
    assert status in (0, MISTAKE), (words, said)
    assert "Traceback" not in said, (words, said)
    assert "internal error" not in said, (words, said)


def test_main(odd_files, capsys):
    chance = random.Random(SEED)
    options = options_of(main.utils.build_parser())
    for _ in range(RUNS):
        quantize = ["--quantize"] if chance.random() < 0.7 else []
        run(main.main, [chance.choice(MODELS), *quantize, *random_options(options, chance)], capsys)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_commands(command, odd_files, capsys):
    chance = random.Random(SEED)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = options_of(parser)
    needed = {"generate": 1, "profile": 1, "compare": 2, "diagnose": 2, "compare-logs": 2}.get(command.NAME, 0)
    prompt = ["--prompt=w1"] if command.NAME == "generate" else []
    for _ in range(RUNS):
        models = [chance.choice(MODELS) for _ in range(needed)]
        source = ["--synthetic"] if command.NAME == "observers" and chance.random() < 0.3 else []
        run(quamba_main, [command.NAME, *models, *prompt, *source, *random_options(options, chance)], capsys)
