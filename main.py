"""Quantize a Mamba language model and measure it: `python main.py mamba-tiny --quantize --use_outlier_aware`."""

import os
import sys

import quamba  # noqa: F401  (before torch: it sets how OpenMP's threads wait)
import utils
from quamba.commands.failures import exit_status
from quamba.commands.quantize.run import run


def main(argv: list[str] | None = None) -> int:
    """The exit status: see `quamba.commands.failures.exit_status`."""
    parser = utils.build_parser()
    args = parser.parse_args(argv)
    utils.set_up_logging(args.verbose)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return exit_status(parser.prog, lambda: run(args), args.verbose)


if __name__ == "__main__":
    sys.exit(main())
