"""The reference of commands holds every option of every parser."""

import argparse

import pytest

from tools import command_reference

PARSERS = {parser.prog: parser for parser in command_reference.parsers()}


def test_main_and_every_command_are_there():
    commands = ("generate", "profile", "observers", "compare", "diagnose", "compare-logs")
    assert {"main.py", *(f"python -m quamba {command}" for command in commands)} <= set(PARSERS)


@pytest.mark.parametrize("prog", PARSERS)
def test_every_option_has_a_row_in_the_section_of_its_command(prog):
    _, found, rest = command_reference.reference().partition(f"\n## {prog}\n")
    assert found
    section = rest.split("\n## ")[0]
    spelled = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    for action in PARSERS[prog]._actions:
        if action.help == argparse.SUPPRESS:
            continue
        for name in action.option_strings or [action.metavar or action.dest]:
            assert any(name in spelling for spelling in spelled), name


def test_a_cell_neither_ends_early_nor_breaks_the_line():
    assert command_reference.cell("a | b\n  c") == r"a \| b c"


def test_a_page_that_stays_the_same_is_left_alone(tmp_path):
    page = tmp_path / "commands.md"
    command_reference.write(page)
    before = page.stat().st_mtime_ns
    command_reference.write(page)
    assert page.stat().st_mtime_ns == before
    page.write_text("stale")
    command_reference.write(page)
    assert page.read_text("utf-8") == command_reference.reference()
