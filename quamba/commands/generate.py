"""`python -m quamba generate`: text from a model, on the standard output while it is made."""

import argparse
import os
import sys

from ..checkpoint import load
from ..errors import QuambaError
from ..generation.generate import Completion, generate_text
from ..generation.sampling import SamplingOptions
from ..generation.text_stream import StopStrings
from .arguments import positive_int, seed
from .console import Console

NAME = "generate"
HELP = "continue a prompt with a model, float or quantized, and stream the text"
EXAMPLES = """examples:
  python -m quamba generate mamba-tiny --prompt "def main():" --max_new_tokens 64
  python -m quamba generate models/mamba-130m-w8a8 --prompt "Paris is" --temperature 0.8 --top_p 0.95 --seed 7
  python -m quamba generate mamba-tiny --prompt "import os" --repetition_penalty 1.2 --stop "class " --stop "def "
  python -m quamba generate mamba-tiny --prompt - < prompt.txt > completion.txt

The standard output gets the new text alone, and a line break at its end; the standard error one line of figures.
"""
REASONS = {"eos": "end of text", "stop": "stop string", "length": "--max_new_tokens"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", help="as for main.py: a folder, mamba-tiny, a short name or a hub id")
    parser.add_argument("--pretrained_dir", type=os.path.expanduser, metavar="DIR", help="where models are looked up")
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="TEXT",
        help="what to continue; - reads the standard input, with every line break in it. An empty prompt begins with "
        "the tokenizer's begin- or end-of-text token, and is refused where it has neither",
    )
    parser.add_argument("--max_new_tokens", type=positive_int, default=128, metavar="N", help="at most (default: 128)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="STRING", help="end before this text; may be repeated"
    )
    sampling = parser.add_argument_group("how tokens are chosen")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest (default); 1: as modelled"
    )
    sampling.add_argument("--top_p", type=float, metavar="P", help="only the likeliest, up to this probability in all")
    sampling.add_argument("--top_k", type=positive_int, metavar="K", help="only the K likeliest")
    sampling.add_argument("--seed", type=seed, metavar="S", help="of the random choices (default: 0)")
    sampling.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1: tokens of the prompt and of the text so far become less likely (default: 1, none)",
    )


def run(args: argparse.Namespace) -> None:
    """The whole command. Raises QuambaError for what the user can mend."""
    sampling = SamplingOptions(args.temperature, args.top_k, args.top_p, args.repetition_penalty, args.seed)
    StopStrings(args.stop)  # refuses an empty one, before anything is loaded
    prompt = _read_standard_input() if args.prompt == "-" else args.prompt
    model, tokenizer = load(args.model, args.pretrained_dir)
    pieces = generate_text(
        model, tokenizer, prompt, max_new_tokens=args.max_new_tokens, sampling=sampling, stop=args.stop
    )
    try:
        completion = _write(pieces)
    except BrokenPipeError:  # whoever read the text has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return
    Console(stderr=True).print(_figures(completion), markup=False, highlight=False, soft_wrap=True)


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise QuambaError(f"--prompt -: the standard input is not UTF-8 text: {error}") from error


def _write(pieces) -> Completion:
    """Writes the pieces as they come, then a line break; one also when interrupted half-way through a line."""
    encoding, started = sys.stdout.encoding or "utf-8", False
    try:
        while True:
            piece = next(pieces)
            sys.stdout.write(piece.encode(encoding, "replace").decode(encoding))  # a terminal may not know all of it
            sys.stdout.flush()
            started = True
    except StopIteration as end:
        sys.stdout.write("\n")
        sys.stdout.flush()
        return end.value
    except KeyboardInterrupt:
        if started:
            sys.stdout.write("\n")
            sys.stdout.flush()
        raise


def _figures(completion: Completion) -> str:
    rate = completion.decode_rate
    decode = f"{completion.tokens} new ones" + (f" at {rate:.1f} tokens/s" if rate else "")
    return (
        f"prompt: {completion.prompt_tokens} tokens at {completion.prefill_rate:.1f} tokens/s; {decode}; "
        f"ended by {REASONS[completion.reason]}"
    )
