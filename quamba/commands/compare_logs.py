"""`python -m quamba compare-logs`: result logs of main.py as one table, with intervals where they are comparable."""

import argparse
import json
from pathlib import Path

from ..evaluation.log import items_path
from ..study.logs.comparison import compare_logs
from ..study.logs.result_log import read_logs
from ..study.logs.table import to_dict, to_markdown
from ..study.saving import save_figure
from .arguments import names, positive_int, seed, share
from .console import Console
from .failures import Failures
from .output import check_command_outputs, write_report

NAME = "compare-logs"
HELP = "compare result logs of main.py: a table of differences, with intervals where the same texts were measured"
EXAMPLES = """examples:
  python main.py mamba-tiny --quantize --log_dir logs/percentile
  python main.py mamba-tiny --quantize --observer mse --log_dir logs/mse
  python -m quamba compare-logs logs/percentile logs/mse --plot logs.png
  python -m quamba compare-logs logs/percentile logs/mse --against_float --format json --output logs.json
  python -m quamba compare-logs logs/percentile/mamba-tiny_w8a8 --against_float
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "logs", nargs="+", metavar="LOG", help="a log, or a folder with one log; the first is what others differ from"
    )
    parser.add_argument("--labels", type=names, metavar="A,B", help="of the logs (default: what tells the paths apart)")
    parser.add_argument(
        "--against_float", action="store_true", help="differ from the float model that the first log measured too"
    )
    parser.add_argument("--confidence", type=share, default=0.95, metavar="P", help="of intervals (default: 0.95)")
    parser.add_argument(
        "--resamples", type=positive_int, default=10_000, metavar="N", help="of the bootstrap (default: 10000)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the bootstrap (default: 0)")
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown", help="(default: markdown)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there, not to the terminal")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the changes as a figure: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> None:
    """The whole command. Raises QuambaError for what the user can mend."""
    logs = read_logs(args.logs)
    read = [path for log in logs for path in (log.path, items_path(log.path))]
    check_command_outputs(args, inputs={f"the log {path}": path for path in read})
    comparison = compare_logs(logs, args.labels, args.against_float, args.confidence, args.resamples, args.seed)
    if args.format == "json":
        text = json.dumps(to_dict(comparison), indent=1, allow_nan=False) + "\n"
    else:
        text = to_markdown(comparison)
    failures = Failures()
    with failures.collected():
        write_report(args, text, "table ")
    if args.plot:
        from ..study.logs.figures import compare_figure  # matplotlib

        with failures.collected():
            save_figure(compare_figure(comparison), args.plot)
            _say(f"figure  {args.plot}")
    failures.raise_any()


def _say(line: str) -> None:
    """Print for a reader, never into what goes to the standard output."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
