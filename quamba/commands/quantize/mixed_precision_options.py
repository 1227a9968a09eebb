"""The options of mixed precision: how main.py takes them, and what they mean for a checkpoint."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...calibration.channel_groups import ChannelGroups
from ...errors import QuambaError
from ...evaluation.log import SCHEMES_STEM
from ...mixed_precision.budget import Budget
from ...mixed_precision.layer_file import read_layer_schemes
from ...mixed_precision.run import MixedPrecisionSearch
from ...scheme.formats import FLOAT, WEIGHTS, get_scheme

MIXED_PRECISION_OPTIONS = "hybrid_blocks hybrid_blocks_config hybrid_search hybrid_schemes"
MIXED_SUFFIX = "-hybrid"  # of a model's name, where layers have schemes of their own
SEARCHED_BITS = (4, 8)  # of the weights, where the user names no schemes


def is_mixed_precision(args: argparse.Namespace) -> bool:
    """Return whether layers have schemes of their own. Raises QuambaError for options that do nothing, or lack
    another."""
    file, search = args.hybrid_blocks_config, args.hybrid_search
    if file is not None and not file.strip():
        raise QuambaError(f"--hybrid_blocks_config {file!r} names no file")
    if args.hybrid_blocks and file is None and search is None:
        raise QuambaError("--hybrid_blocks needs --hybrid_blocks_config FILE, or --hybrid_search BUDGET to make one")
    if file is not None and not args.hybrid_blocks and search is None:
        raise QuambaError(
            f"--hybrid_blocks_config {file} does nothing without --hybrid_blocks, which reads it, or --hybrid_search, "
            "which writes it"
        )
    if args.hybrid_schemes is not None and search is None:
        raise QuambaError(f"--hybrid_schemes {args.hybrid_schemes} does nothing without --hybrid_search: add it")
    return args.hybrid_blocks or search is not None


def _check_bits(args: argparse.Namespace) -> None:
    """Raises QuambaError for a --w_bits that no table has, beside layers with bits of their own."""
    embedding = args.quantize_embedding and args.embedding_bits is None
    head = args.quantize_lm_head and args.lm_head_bits is None
    if args.w_bits != max(WEIGHTS) and not (embedding or head):
        raise QuambaError(
            f"--w_bits {args.w_bits} does nothing where layers have schemes of their own: drop it, or add "
            "--quantize_embedding or --quantize_lm_head, which take it"
        )


def requested_search(args: argparse.Namespace, group_heads: ChannelGroups | None = None) -> MixedPrecisionSearch | None:
    """The search that the options ask for, None for none. Raises QuambaError for a budget or schemes that are none."""
    if not is_mixed_precision(args) or args.hybrid_search is None:
        return None
    schemes = tuple(f"w{bits}a{args.a_bits}" for bits in SEARCHED_BITS)
    if args.hybrid_schemes is not None:
        schemes = tuple(name.strip().lower() for name in args.hybrid_schemes.split(",") if name.strip())
    search = MixedPrecisionSearch(
        Budget.parse(args.hybrid_search),
        schemes,
        group_size=args.group_size,
        dynamic=args.dynamic,
        rotate_residual=args.rotate_residual,
        group_heads=group_heads,
    )
    _check_activations(args, schemes, "--hybrid_schemes")
    return search


def layer_schemes(args: argparse.Namespace, config: Mapping | None) -> tuple[str, ...]:
    """Return the schemes of the file that --hybrid_blocks reads, for a model of that config.json; until a search has
    found better ones, those that it chooses from in turn. None where all layers have one, and as long as there is no
    config.json.

    Raises QuambaError for a file that does not fit.
    """
    if not is_mixed_precision(args):
        return ()
    _check_bits(args)
    if config is None:
        return ()
    layers = config.get("num_hidden_layers") or config.get("n_layer")  # n_layer: of the original format
    if type(layers) is not int or layers < 1:
        raise QuambaError("config.json does not say how many layers the model has: --hybrid_blocks needs that")
    if search := requested_search(args):
        return (search.schemes * layers)[:layers]
    schemes = read_layer_schemes(args.hybrid_blocks_config, layers)
    _check_activations(args, schemes, args.hybrid_blocks_config)
    return schemes


def _check_activations(args: argparse.Namespace, schemes: Sequence[str], source: str) -> None:
    """Raises QuambaError where --a_bits, which decides whether there is a calibration, says other than the layers."""
    float_layers = [get_scheme(name).act.is_float for name in schemes]
    if args.a_bits == FLOAT.bits and not all(float_layers):
        name = schemes[float_layers.index(False)]
        raise QuambaError(
            f"{source} has layers of {name}, whose activations are calibrated: drop --a_bits {args.a_bits}"
        )
    if args.a_bits != FLOAT.bits and all(float_layers):
        raise QuambaError(f"{source} leaves the activations of every layer float: add --a_bits {FLOAT.bits}")


def found(args: argparse.Namespace, schemes: Sequence[str]) -> dict:
    """Return what a search found, as arguments of `quamba.quantize`: no calibration where all activations stay
    float."""
    if args.quantize_lm_head or any(not get_scheme(name).act.is_float for name in schemes):
        return {"layer_schemes": schemes}
    unused = ("observer", "observer_options", "calibration", "save_activations", "group_heads")
    return {"layer_schemes": schemes, **dict.fromkeys(unused)}


def schemes_file(args: argparse.Namespace, name: str) -> Path:
    """Return where a search writes what it found: the file that the user named, else one beside the logs."""
    return Path(args.hybrid_blocks_config or Path(args.log_dir) / f"{name}{SCHEMES_STEM}.json")


def lowest_bits(args: argparse.Namespace, config: Mapping | None) -> int | None:
    """The fewest bits of weights that a layer may have, by which the weight method is chosen; `config`: config.json.

    Those of a search are the fewest that it chooses from; those of a file are unknown, None, without a config.
    """
    if not is_mixed_precision(args):
        return args.w_bits
    if search := requested_search(args):
        return fewest_bits(search.schemes)
    return None if config is None else fewest_bits(layer_schemes(args, config))


def fewest_bits(schemes: Sequence[str]) -> int:
    """Return the fewest bits of the weights of schemes with those names."""
    return min(get_scheme(name).weight.bits for name in schemes)
