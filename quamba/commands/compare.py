"""`python -m quamba compare`: the perplexities of several models on the same sliding windows, in pairs."""

import argparse
import json
import os
import sys

from ..study.models.comparison import compare_models, read_texts, to_dict, to_markdown, window_sizes
from ..study.models.sources import DTYPES, ModelSource, find_models
from ..text.data import EMBEDDED_TEXT, TEXT_NAMES
from ..text.sources import FOLDER_TEXTS
from .arguments import names, positive_int, seed, share
from .output import add_output_arguments, check_command_outputs, write_report

NAME = "compare"
HELP = "compare the perplexities of models on the same sliding windows, with an interval for each difference"
HUB_TEXT = "wikitext2"  # of models that are not embedded
BATCH_SIZE = 8
EXAMPLES = f"""examples:
  python -m quamba compare mamba-tiny models/mamba-tiny-w8a8 --n_samples 100
  python -m quamba compare mamba-130m models/mamba-130m-w4a16 models/mamba-130m-w8a8 --datasets wikitext2,c4
  python -m quamba compare models/llama models/llama-awq --datasets notes.txt --stride 256 --max_length 1024
  python -m quamba compare mamba-tiny models/mamba-tiny-w8a8 --dtype float32 --format json --output compare.json

A text is read as one running text behind a single begin-of-text token. Windows of --max_length tokens begin every
--stride tokens, and a window predicts only what the one before it did not reach: every token is predicted once,
and behind the first window from at least max_length - stride tokens of context. A smaller stride gives more context and
takes more time; --stride equal to --max_length is windows that do not overlap.

The models are loaded one after another. They must share a tokenizer, since a perplexity is one per token. The first
is what the others differ from: x1.01 [1.00, 1.02] is 1 % more perplexity, and the interval is from a bootstrap over the
pairs of windows, so it tells a difference from the variation among texts. Texts: {", ".join(TEXT_NAMES)}, or files.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="as for main.py: a folder, mamba-tiny, a short name or a hub id; any causal language model",
    )
    parser.add_argument("--pretrained_dir", type=os.path.expanduser, metavar="DIR", help="where models are looked up")
    parser.add_argument("--labels", type=names, metavar="A,B", help="of the models (default: their names)")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="of what is float in every model (default: as each was saved, which config.json tells)",
    )
    windows = parser.add_argument_group("what is measured")
    windows.add_argument(
        "--datasets",
        type=names,
        metavar="A,B",
        help=f"names or files (default: {EMBEDDED_TEXT} where an embedded model takes part, else {HUB_TEXT})",
    )
    windows.add_argument(
        "--data_dir",
        type=os.path.expanduser,
        metavar="DIR",
        help=f"a folder or file that holds those of the texts that are {', '.join(FOLDER_TEXTS)}, instead of the hub",
    )
    windows.add_argument(
        "--max_length",
        type=positive_int,
        metavar="N",
        help="tokens of a window (default: 2048, or the positions that a model has if those are fewer)",
    )
    windows.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="tokens from a window's begin to the next one's (default: a quarter of max_length, 512 of 2048)",
    )
    windows.add_argument("--n_samples", type=positive_int, metavar="N", help="only the first windows (default: all)")
    windows.add_argument(
        "--batch_size", type=positive_int, default=BATCH_SIZE, metavar="N", help=f"windows (default: {BATCH_SIZE})"
    )
    bootstrap = parser.add_argument_group("intervals")
    bootstrap.add_argument("--confidence", type=share, default=0.95, metavar="P", help="of intervals (default: 0.95)")
    bootstrap.add_argument(
        "--resamples", type=positive_int, default=10_000, metavar="N", help="of the bootstrap (default: 10000)"
    )
    bootstrap.add_argument("--seed", type=seed, default=0, metavar="N", help="of the bootstrap (default: 0)")
    add_output_arguments(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> None:
    """The whole command. Raises QuambaError for what the user can mend."""
    check_command_outputs(args, args.datasets or ())
    sources = find_models(args.models, args.pretrained_dir, args.labels, DTYPES.get(args.dtype))
    max_length, stride = window_sizes(sources, args.max_length, args.stride)
    datasets = args.datasets or [_default_text(sources)]
    texts = read_texts(sources, datasets, max_length, stride, args.n_samples, args.data_dir)
    comparison = compare_models(
        sources,
        texts,
        max_length,
        stride,
        batch_size=args.batch_size,
        confidence=args.confidence,
        resamples=args.resamples,
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    if args.format == "json":
        write_report(args, json.dumps(to_dict(comparison), indent=1, allow_nan=False) + "\n")
    else:
        write_report(args, to_markdown(comparison))


def _default_text(sources: list[ModelSource]) -> str:
    """The text that an embedded model was made for, which a copy of it beside it shares."""
    return EMBEDDED_TEXT if any(source.checkpoint.embedded for source in sources) else HUB_TEXT
