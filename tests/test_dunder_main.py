"""`python -m quamba`: the list of commands, and how the process ends."""

import logging
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from quamba import __main__ as dispatcher
from quamba.__main__ import COMMANDS, main
from quamba.errors import QuambaError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def process_state(monkeypatch):
    """What a run changes in its process is undone."""
    level = logging.getLogger("quamba").level
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    yield
    logging.getLogger("quamba").setLevel(level)


@pytest.fixture
def toy(monkeypatch):
    """A function that replaces the commands by one, `toy`, which does what it is given."""

    def install(run) -> None:
        command = SimpleNamespace(NAME="toy", HELP="plays", EXAMPLES="examples:\n  toy --fast", run=run)
        command.add_arguments = lambda parser: parser.add_argument("--fast", action="store_true")
        monkeypatch.setattr(dispatcher, "COMMANDS", (command,))

    return install


def exit_status(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(argv))
    return exit_.value.code


def raising(error: BaseException):
    def run(_args) -> None:
        raise error

    return run


# --- help ---


def test_the_commands_have_names_of_their_own():
    assert [command.NAME for command in COMMANDS] == [
        "quantize",
        "generate",
        "profile",
        "observers",
        "compare",
        "diagnose",
        "compare-logs",
    ]


def test_help_lists_every_command(capsys):
    assert exit_status("--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m quamba ")
    for command in COMMANDS:
        assert command.NAME in out
        assert command.HELP in " ".join(out.split())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_every_command_explains_itself(command, capsys):
    assert exit_status(command.NAME, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: python -m quamba {command.NAME} ")
    assert command.EXAMPLES.rstrip() in out  # as it is written, line by line
    assert "--verbose" in out


def test_every_example_is_a_command_that_parses():
    parser = dispatcher.build_parser()
    for command in COMMANDS:
        lines = [line.split("  ")[0] for line in map(str.strip, command.EXAMPLES.splitlines())]
        examples = [shlex.split(line.split(" < ")[0])[3:] for line in lines if line.startswith("python -m quamba ")]
        assert len(examples) > 1
        for example in examples:
            assert parser.parse_args(example).run is command.run


# --- how it ends ---


def test_a_command_gets_its_options_and_ends_with_status_0(toy, capsys):
    seen = []
    toy(seen.append)
    assert main(["toy", "--fast"]) == 0
    assert (seen[0].fast, seen[0].verbose, seen[0].command) == (True, False, "toy")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [[], ["best"], ["toy", "--best"], ["toy", "more"]], ids=" ".join)
def test_what_argparse_refuses_ends_with_status_2(toy, argv, capsys):
    toy(raising(AssertionError("the command ran")))
    assert exit_status(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m quamba")


def test_an_unknown_command_is_told_with_those_that_there_are(capsys):
    assert exit_status("best") == 2
    err = capsys.readouterr().err
    assert "invalid choice: 'best'" in err
    assert all(command.NAME in err for command in COMMANDS)


def test_a_mistake_is_one_line_and_status_2(toy, capsys):
    toy(raising(QuambaError("the folder acts is empty")))
    assert main(["toy"]) == 2
    assert capsys.readouterr() == ("", "quamba toy: error: the folder acts is empty\n")


def test_verbose_shows_where_a_mistake_was_found(toy, capsys):
    toy(raising(QuambaError("the folder acts is empty")))
    assert main(["toy", "--verbose"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Traceback ")
    assert "in run" in err
    assert err.endswith("\nquamba toy: error: the folder acts is empty\n")


def test_an_interruption_is_status_130(toy, capsys):
    toy(raising(KeyboardInterrupt()))
    assert main(["toy"]) == 130
    assert capsys.readouterr() == ("", "quamba toy: interrupted\n")


def test_an_error_of_our_own_is_no_mistake_of_the_user(toy, capsys):
    toy(raising(ZeroDivisionError()))
    assert main(["toy"]) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quamba toy: internal error: ZeroDivisionError")


@pytest.mark.parametrize(("options", "level"), [([], logging.WARNING), (["--verbose"], logging.DEBUG)])
def test_verbose_logs_what_is_going_on(toy, options, level):
    levels = []
    toy(lambda _args: levels.append(logging.getLogger("quamba").level))
    assert main(["toy", *options]) == 0
    assert levels == [level]


def test_the_process_ends_with_that_status():
    command = [sys.executable, "-m", "quamba", "observers", "--synthetic", "--observer", "best"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("quamba observers: error: unknown observer 'best': choose one of minmax, ")
