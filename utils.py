"""The command line of main.py; what its options mean is in quamba/commands/quantize/."""

from quamba.commands.failures import set_up_logging
from quamba.commands.quantize.parser import build_parser

__all__ = ["build_parser", "set_up_logging"]
