"""`quamba quantize`: what `python main.py MODEL --quantize` does."""

import argparse

from . import run as whole_run
from .parser import add_arguments, option_defaults  # noqa: F401 (add_arguments: what a command has)

NAME = "quantize"
HELP = "quantize a model, save it, and measure what that costs (main.py MODEL --quantize)"
EXAMPLES = """examples:
  python -m quamba quantize mamba-tiny --use_outlier_aware         offline, the embedded checkpoint
  python -m quamba quantize mamba-130m --w_bits 4 --pretrained_dir models
  python -m quamba quantize mamba-tiny --simulate w4a4             what formats without kernels would cost

main.py takes the same options, and only measures the model without --quantize; its --help has more examples.
"""


def run(args: argparse.Namespace) -> None:
    """The command; with --simulate in place of a quantization."""
    options = {name: vars(args)[name] for name in option_defaults()}  # of main.py, which the log holds
    whole_run.run(argparse.Namespace(**options | {"quantize": not args.simulate}))
