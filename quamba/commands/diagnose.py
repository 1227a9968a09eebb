"""`python -m quamba diagnose`: where two models part, in their tensors, their blocks and what they predict."""

import argparse
import json
import os
import sys
from functools import partial

from ..errors import QuambaError
from ..study.models.diagnose import sample_windows
from ..study.models.diagnosis import diagnose
from ..study.models.diagnosis_report import to_dict, to_markdown
from ..study.models.sources import DTYPES, common_tokens, find_models
from ..text.data import EMBEDDED_TEXT, TEXT_NAMES, load_text, token_stream
from .arguments import names, positive_int
from .output import add_output_arguments, check_command_outputs, write_report

NAME = "diagnose"
HELP = "find where two models part: tensor by tensor, block by block, and in the logits on sample text"
EXAMPLES = f"""examples:
  python -m quamba diagnose mamba-tiny models/mamba-tiny-w8a8
  python -m quamba diagnose models/mamba-130m-w4a16 models/mamba-130m-w4a16-again --tolerance 0 --top 5
  python -m quamba diagnose models/llama models/llama-dequantized --dataset notes.txt --n_samples 32 --seqlen 512
  python -m quamba diagnose mamba-130m models/mamba-130m-w8a8 --format json --output diagnosis.json

MODEL_A is the reference: relative is the norm of the difference over the norm of A's values, and the divergence of the
logits is KL(A || B). Read it from the top: a divergence of 0 is the same model; then the first block behind which the
hidden states differ; then the tensors of that block. Quantized weights are compared by the values that they stand for,
and by their integers where both models have them. A float Mamba is rewritten first as quantization rewrites it (norms
folded into the layers behind them, out_proj rotated), so that its weights correspond; tensors without a counterpart are
listed by name. Both models are in memory at once. Texts: {", ".join(TEXT_NAMES)}, or a file.
"""
SAMPLES, SEQLEN, TOP, TOLERANCE, DTYPE = 8, 256, 20, 1e-3, "float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    for name in ("model_a", "model_b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="as for main.py: a folder, mamba-tiny, a short name or a hub id; any causal language model",
        )
    parser.add_argument("--pretrained_dir", type=os.path.expanduser, metavar="DIR", help="where models are looked up")
    parser.add_argument("--labels", type=names, metavar="A,B", help="of the models (default: their names)")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default=DTYPE,
        help=f"of what is float in both, so that rounding on the way is no difference (default: {DTYPE})",
    )
    sample = parser.add_argument_group("the sample text")
    sample.add_argument("--dataset", default=EMBEDDED_TEXT, metavar="NAME|FILE", help=f"(default: {EMBEDDED_TEXT})")
    sample.add_argument("--data_dir", type=os.path.expanduser, metavar="DIR", help="holds the text, instead of the hub")
    sample.add_argument(
        "--n_samples", type=positive_int, default=SAMPLES, metavar="N", help=f"windows, spread out (default: {SAMPLES})"
    )
    sample.add_argument(
        "--seqlen", type=positive_int, default=SEQLEN, metavar="N", help=f"tokens of each (default: {SEQLEN})"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        metavar="T",
        help=f"hidden states part where they differ by more than this share of their norm (default: {TOLERANCE})",
    )
    out.add_argument(
        "--top", type=positive_int, default=TOP, metavar="N", help=f"list the tensors that differ most (default: {TOP})"
    )
    add_output_arguments(out)


def run(args: argparse.Namespace) -> None:
    """The whole command. Raises QuambaError for what the user can mend."""
    check_command_outputs(args, [args.dataset])
    dtype = DTYPES[args.dtype]
    sources = find_models([args.model_a, args.model_b], args.pretrained_dir, args.labels, dtype)
    for source in sources:
        if source.max_positions is not None and args.seqlen > source.max_positions:
            raise QuambaError(
                f"--seqlen is {args.seqlen}, and {source.label} has {source.max_positions} positions: give at most that"
            )
    documents = load_text(args.dataset, "test", args.data_dir)
    tokenizers = [source.tokenizer() for source in sources]
    stream = common_tokens(sources, tokenizers, partial(token_stream, documents), args.dataset)
    windows = sample_windows(stream, args.seqlen, args.n_samples)  # [count, seqlen]
    diagnosis = diagnose(*(source.load() for source in sources), windows, args.tolerance, progress=sys.stderr.isatty())
    labels = [source.label for source in sources]
    if args.format == "json":
        settings = {"dataset": args.dataset, "windows": len(windows), "seqlen": args.seqlen, "dtype": args.dtype}
        report = {"models": labels, "settings": settings, **to_dict(diagnosis, args.top)}
        write_report(args, json.dumps(report, indent=1, allow_nan=False) + "\n")
    else:
        text = f"{len(windows)} windows of {args.seqlen} tokens of {args.dataset}, in {args.dtype}"
        write_report(args, to_markdown(diagnosis, labels, text, args.top))


def _tolerance(text: str) -> float:
    """A number that is not negative."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value
