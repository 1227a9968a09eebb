"""The options of the weight path: how main.py takes them, and the method that they make."""

import argparse

from ...errors import QuambaError
from ...scheme.formats import FLOAT
from ...weights.gptq import GptqOptions
from ...weights.method import DEFAULT_METHODS, MEAN, METHODS, NEAREST, WeightMethod
from ...weights.rounding import FlipOptions, rounding_names, try_rounding
from ..arguments import positive_int
from .mixed_precision_options import lowest_bits

AWQ, GPTQ = "awq", "gptq"
FLIP_OPTIONS = "flip_objective outlier_percent knee_tolerance max_flip_percent"
METHOD_OPTIONS = "n_grid clip gptq_damping layer_batch_size lmhead_chunks no_sequential resume"
WEIGHT_OPTIONS = f"weight_method apply_gptq use_heuristic {FLIP_OPTIONS} {METHOD_OPTIONS}"


def add_weight_options(group) -> None:
    """The options, for a group of a parser; all are None or False where they are not given."""
    group.add_argument("--weight_method", choices=METHODS, help=f"(default: {_defaults()})")
    group.add_argument("--apply_gptq", action="store_true", help="--weight_method gptq, or awq+gptq beside awq")
    group.add_argument("--use_heuristic", action="store_true", help="then flip single integers where it helps")
    group.add_argument(
        "--flip_objective",
        metavar="NAME",
        help=f"what flips reduce: the error of the mean output (mean, the default), its square (hessian); "
        f"registered: {', '.join(name for name in rounding_names() if name != NEAREST)}",
    )
    group.add_argument(
        "--outlier_percent",
        type=float,
        nargs="?",
        const=0.05,
        metavar="P",
        help="no flips in this share of the channels with the largest means (bare: 0.05; without it: before the knee)",
    )
    group.add_argument("--knee_tolerance", type=float, metavar="P", help="shifts that knee by a share (default: 0)")
    group.add_argument("--max_flip_percent", type=float, metavar="P", help="flips of a row at most (default: 0.01)")
    group.add_argument("--n_grid", type=positive_int, metavar="N", help="steps of the search for alpha (default: 20)")
    group.add_argument("--clip", action="store_true", help="search for clipped ranges before rounding, as AWQ does")
    group.add_argument("--gptq_damping", type=float, metavar="P", help="of GPTQ's Hessian (default: 0.01)")
    group.add_argument(
        "--layer_batch_size", type=positive_int, metavar="N", help="layers that are rounded at a time (default: 16)"
    )
    group.add_argument(
        "--lmhead_chunks", type=positive_int, metavar="N", help="parts of the head, each with an alpha (default: 4)"
    )
    group.add_argument(
        "--no_sequential", action="store_true", help="look at the float model's activations in every layer"
    )
    group.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")


def _defaults() -> str:
    """Describe the defaults for the help: `rtn with 8 bits, gptq with 4 bits, ...`."""
    rules = "; ".join(f"{default.describe()} with {bits} bits" for bits, default in DEFAULT_METHODS.items())
    return f"{rules}; of layers that differ, by the fewest"


def given_weight_options(args: argparse.Namespace) -> set[str]:
    """The names of those that the user gave."""
    values = {name: getattr(args, name) for name in WEIGHT_OPTIONS.split()}
    return {name for name, value in values.items() if value is not None and value is not False}  # 0 is given


def weight_method(args: argparse.Namespace, bits: int | None = None) -> WeightMethod:
    """Return how weights are rounded; `bits`: the fewest that a layer has (None: as the options alone tell).

    Raises QuambaError for options that contradict, or that do nothing.
    """
    given = given_weight_options(args)
    bits = lowest_bits(args, None) if bits is None else bits
    default = DEFAULT_METHODS.get(bits, WeightMethod())  # other bits are refused with the scheme
    method = args.weight_method or (GPTQ if args.apply_gptq else default.method)
    if args.apply_gptq and GPTQ not in method:
        if method != AWQ:
            raise QuambaError(f"--apply_gptq means --weight_method gptq, not the {method} given with it: drop one")
        method = f"{AWQ}+{GPTQ}"
    if not args.use_heuristic and (names := sorted(given & set(FLIP_OPTIONS.split()))):
        raise QuambaError(f"--{names[0]} does nothing without --use_heuristic: add it, or drop the option")
    if {"knee_tolerance", "outlier_percent"} <= given:
        raise QuambaError("--knee_tolerance shifts the knee that --outlier_percent does without: drop one")
    if args.flip_objective == NEAREST:
        raise QuambaError(f"--flip_objective {NEAREST} flips nothing: drop --use_heuristic")
    for name, needed in (("n_grid", AWQ), ("gptq_damping", GPTQ)):
        if name in given and needed not in method:
            raise QuambaError(f"--{name} does nothing with --weight_method {method}: drop it")
    flips = {name: getattr(args, name) for name in FLIP_OPTIONS.split()[1:] if getattr(args, name) is not None}
    chosen = {name: getattr(args, name) for name in ("n_grid", "layer_batch_size") if getattr(args, name) is not None}
    if args.lmhead_chunks is not None:
        if AWQ not in method or not args.quantize_lm_head or args.a_bits != FLOAT.bits:
            raise QuambaError(
                "--lmhead_chunks does nothing without --quantize_lm_head, AWQ and --a_bits 16: add them, or drop it"
            )
        chosen["lm_head_chunks"] = args.lmhead_chunks
    if args.gptq_damping is not None:
        chosen["gptq"] = GptqOptions(damping=args.gptq_damping)
    rounding = default.rounding if args.weight_method is None and not args.apply_gptq else NEAREST
    if args.use_heuristic:
        rounding = args.flip_objective or MEAN
    found = WeightMethod(
        method,
        rounding,
        FlipOptions(**flips),
        clip=args.clip,
        sequential=not args.no_sequential,
        seed=args.seed,
        **chosen,
    )
    try_rounding(found.rounding, found.flips)
    if not found.calibrated and (names := sorted(given & {"layer_batch_size", "no_sequential", "resume"})):
        raise QuambaError(f"--{names[0]} does nothing with weights rounded to nearest: name a --weight_method")
    return found
