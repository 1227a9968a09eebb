"""Where a command writes its report: the standard output, or a file that the user named."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import QuambaError
from ..storage.files import write_output
from ..storage.outputs import FILE, SHARED, Output, check_outputs
from ..text.data import TEXT_NAMES
from .console import Console

KINDS = {"output": FILE, "plot": FILE, "json": FILE, "save_activations": SHARED}  # options of commands that are outputs
STANDARD_OUTPUT = "-"


def add_output_arguments(group) -> None:
    """--format and --output."""
    group.add_argument("--format", choices=("markdown", "json"), default="markdown", help="(default: markdown)")
    group.add_argument("--output", type=Path, metavar="FILE", help="write the report there, not to the terminal")


def check_command_outputs(
    args: argparse.Namespace, texts: Iterable[str] = (), inputs: dict[str, Path] | None = None
) -> None:
    """Raises QuambaError where an output of a command could not be written, or would replace what it reads.

    `texts`: names or files; `inputs`: what else is read -> its path.
    """
    given = {option: getattr(args, option, None) for option in KINDS}
    outputs = [
        Output(f"--{option}", Path(path), KINDS[option])
        for option, path in given.items()
        if path and str(path) != STANDARD_OUTPUT
    ]
    read = {f"the text {name}": Path(name) for name in texts if name not in TEXT_NAMES}
    check_outputs(outputs, read | (inputs or {}))
    if given["plot"]:
        from ..study.saving import check_figure_path  # matplotlib's formats

        check_figure_path(given["plot"])


def write_report(args: argparse.Namespace, text: str, what: str = "report") -> None:
    """Writes the report to --output, or to the standard output: there too where the file cannot be written.

    Raises QuambaError where it cannot, once the report is out.
    """
    if args.output is None:
        sys.stdout.write(text)
        return
    try:
        write_output(args.output, text.encode("utf-8", "backslashreplace").decode())  # file names may be no text
    except QuambaError:
        sys.stdout.write(text)
        raise
    Console(stderr=True).print(f"{what}  {args.output}", markup=False, highlight=False, soft_wrap=True)
