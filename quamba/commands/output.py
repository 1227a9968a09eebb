"""Where a command writes its report: the standard output, or a file that the user named."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ..files import require_writable_file, write_output


def add_output_arguments(group) -> None:
    """--format and --output."""
    group.add_argument("--format", choices=("markdown", "json"), default="markdown", help="(default: markdown)")
    group.add_argument("--output", type=Path, metavar="FILE", help="write the report there, not to the terminal")


def check_output(args: argparse.Namespace) -> None:
    """Raises QuambaError where --output could not be written."""
    if args.output is None:
        return
    require_writable_file(args.output, "--output")


def write_report(args: argparse.Namespace, text: str) -> None:
    """Writes the report. Raises QuambaError where the file cannot be written."""
    if args.output is None:
        sys.stdout.write(text)
        return
    write_output(args.output, text)
    Console(stderr=True).print(f"report  {args.output}", markup=False, highlight=False, soft_wrap=True)
