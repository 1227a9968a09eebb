"""Speed and memory of quamba, transformers and llama.cpp in one interleaved run, beside the floors of the machine.

    python -m benchmarks.speed                                  # all of it, an hour and more on two cores
    python -m benchmarks.speed --quick                          # 130m, two prompts, 3 rounds: a few minutes
    python -m benchmarks.speed --shapes 370m --systems w4a8,Q4_0 --resume
    python -m benchmarks.speed --table [--page docs/speed.md]    # only the table of what was measured
    python -m benchmarks.speed --check [--shapes 130m]          # do all of them compute the same logits?

Every round of a case asks every system once; the figures are medians over the rounds, with quartiles. A case of more
tokens (batch x prompt) than its shape's bound, 2048 at 130m to 512 at 1.4b, is left out without --full. transformers,
whose CPU path loops over time in Python, is asked for at most 1024 tokens at 130m and 128 elsewhere. Making the models
takes ten minutes more the first time, and 30 GB on the disk.
"""

import argparse
import os
import sys
from pathlib import Path

from .growth import PROMPTS as GROWTH_PROMPTS
from .run import Options, check, measure, show
from .shapes import CHECKED, MEASURED, SHAPES
from .systems import SYSTEMS, System
from .worker import ROOT, WorkerError


def names(choices) -> "callable":
    """An argparse type: names from `choices`, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in chosen if name not in choices]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}: choose from {', '.join(choices)}")
        if not chosen:
            raise argparse.ArgumentTypeError(f"it names nothing: choose from {', '.join(choices)}")
        return chosen

    return parse


def counts(text: str) -> list[int]:
    """An argparse type: whole numbers above zero, separated by commas."""
    try:
        values = sorted({int(value) for value in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 128,512") from error
    if values[0] < 1:
        raise argparse.ArgumentTypeError(f"{values[0]} is not above zero")
    return values


def count(text: str) -> int:
    """An argparse type: one whole number above zero."""
    values = counts(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than one number")
    return values[0]


def chosen_systems(chosen: list[str] | None) -> list[System]:
    """The systems that a system (`llama.cpp`), a scheme (`Q4_0`) or both (`quamba:float`) name; None: all."""
    return [s for s in SYSTEMS if chosen is None or {s.system, s.scheme, s.name} & set(chosen)]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted({name for system in SYSTEMS for name in (system.system, system.scheme, system.name)})
    parser.add_argument("--shapes", type=names(SHAPES), help=f"of {', '.join(SHAPES)} (all but the tiny ones)")
    parser.add_argument("--systems", type=names(known), help="systems, schemes or SYSTEM:SCHEME (all)")
    parser.add_argument("--batches", type=counts, help="sequences at once (1,8)")
    parser.add_argument("--prompts", type=counts, help="tokens of a prompt (128,512,2048)")
    parser.add_argument("--rounds", type=count, help="measurements of each system at each case (5)")
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="of every system (one a core)")
    parser.add_argument("--full", action="store_true", help="the cases beyond a shape's bound too: takes hours")
    parser.add_argument("--quick", action="store_true", help="defaults become 130m, prompts 128 and 512, 3 rounds")
    parser.add_argument("--no-growth", action="store_true", help="without the longer prompts that show growth")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results.json", help="the rows, JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows in the output, measure what is missing")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "build" / "bench" / "models", help="where models are kept"
    )
    parser.add_argument("--rebuild", action="store_true", help="make the models anew; changed code does so by itself")
    parser.add_argument("--table", action="store_true", help="print the table of the output, measure nothing")
    parser.add_argument("--page", type=Path, help="also put the table between the marker comments of this file")
    parser.add_argument("--check", action="store_true", help="compare logits, of the tiny shapes by default")
    return parser.parse_args(arguments)


def options_of(args: argparse.Namespace) -> Options:
    """What was asked for, with the defaults of a quick or a usual run in place of what was not."""
    shapes, prompts, rounds = (["130m"], [128, 512], 3) if args.quick else (list(MEASURED), [128, 512, 2048], 5)
    shapes = list(CHECKED) if args.check else shapes
    return Options(
        shapes=[SHAPES[name] for name in args.shapes or shapes],
        systems=chosen_systems(args.systems),
        batches=args.batches or [1, 8],
        prompts=args.prompts or prompts,
        rounds=args.rounds or rounds,
        threads=args.threads,
        full=args.full,
        growth_prompts=[] if args.no_growth or args.quick else GROWTH_PROMPTS,
        output=args.output,
        resume=args.resume,
        models=args.models,
        rebuild=args.rebuild,
    )


def main() -> int:
    """Does what the options say; 1 where a system or a check failed, its reason printed."""
    args = parse(sys.argv[1:])
    try:
        if args.check:
            return check(options_of(args))
        complete = True if args.table else measure(options_of(args))
        show(args.output, args.page)
    except (WorkerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: --resume goes on where the output ends", file=sys.stderr)
        return 130
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
