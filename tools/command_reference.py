"""Writes the reference of all commands and options as Markdown, from their parsers: docs/commands.md.

    python -m tools.command_reference FILE

mkdocs calls `on_pre_build` before it reads docs/ (mkdocs.yml names this file as a hook), so the page is never stale.
"""

import argparse
import html
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "commands.md"
INTRODUCTION = """# Commands

Every command and option, written by `tools/command_reference.py` from the parsers that read them.
"""


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of main.py and that of each command of `python -m quamba`."""
    sys.path.insert(0, str(ROOT))  # mkdocs runs as a script of its own
    import utils
    from quamba.__main__ import build_parser

    yield utils.build_parser()
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def reference() -> str:
    """Return the Markdown of all commands, a section each."""
    return "\n".join([INTRODUCTION, *(section(parser) for parser in parsers())])


def section(parser: argparse.ArgumentParser) -> str:
    """Return the section of one command: what it does, its examples, and a table for each group of options."""
    parts = [f"## {parser.prog}\n", f"{html.escape(parser.description or '', quote=False)}\n"]
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog.strip()}\n```\n")
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if shown:
            parts.append(f"### {parser.prog}: {group.title}\n")
            if group.description:
                parts.append(f"{html.escape(group.description, quote=False)}\n")
            parts += ["| option | what it does |", "|---|---|", *(row(parser, action) for action in shown), ""]
    return "\n".join(parts)


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the row of one option: its spellings with what it takes, and its help."""
    # the formatter alone knows how a usage shows values
    formatter = parser._get_formatter()
    spelling = formatter._format_action_invocation(action)
    text = formatter._expand_help(action) if action.help else ""
    return f"| `{cell(spelling)}` | {cell(html.escape(text, quote=False)).replace('*', chr(92) + '*')} |"


def cell(text: str) -> str:
    """Return text that stays within one cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def write(path: Path) -> None:
    """Write the reference to a file, unless it holds it already: a page that stays the same is not built again."""
    text = reference()
    if not path.exists() or path.read_text("utf-8") != text:
        from quamba.storage.files import write_text_atomically  # `reference` has made it findable

        write_text_atomically(path, text)


def on_pre_build(**_config) -> None:
    """Write docs/commands.md before mkdocs reads the pages."""
    write(PAGE)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE)
