"""`quamba COMMAND`, or `python -m quamba COMMAND`: a module of `commands` each."""

import argparse
import os
import sys

from .commands import compare, compare_logs, diagnose, generate, observers, profile
from .commands.failures import exit_status, set_up_logging
from .commands.quantize import command as quantize

COMMANDS = (quantize, generate, profile, observers, compare, diagnose, compare_logs)


def build_parser() -> argparse.ArgumentParser:
    """The command line; every command adds its own options."""
    parser = argparse.ArgumentParser(
        prog="python -m quamba",
        description="Quantize language models, measure them, and look at what became of them.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP[0].upper() + command.HELP[1:] + ".",
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--verbose", action="store_true", help="log what is going on, in detail")
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The exit status: see `failures.exit_status`."""
    args = build_parser().parse_args(argv)
    set_up_logging(args.verbose)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return exit_status(f"quamba {args.command}", lambda: args.run(args), args.verbose)


if __name__ == "__main__":
    sys.exit(main())
