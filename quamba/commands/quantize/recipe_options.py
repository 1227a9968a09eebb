"""What the options of main.py that decide a recipe, its observers and its calibration mean, and which make no sense."""

import argparse
from collections.abc import Mapping, Sequence

from ...architectures.table import BLOCK_TAPS
from ...calibration.channel_groups import ChannelGroups
from ...calibration.defaults import check_observer_options, parse_observers
from ...errors import QuambaError
from ...nn.taps import STATE_TAP
from ...scheme.formats import FLOAT_STATE_BITS, SCHEMES
from ...scheme.recipe import QuantizationRecipe, create_recipe
from .mixed_precision_options import (
    MIXED_PRECISION_OPTIONS,
    MIXED_SUFFIX,
    is_mixed_precision,
    layer_schemes,
    lowest_bits,
)
from .parser import option_defaults
from .texts import TEXT_OPTIONS, calibrates
from .weight_options import WEIGHT_OPTIONS, weight_method

# options that need --quantize: those that quamba.quantize takes by their names, others, those of calibration
RECIPE_OPTIONS = (
    "group_size dynamic quantize_embedding quantize_lm_head embedding_bits lm_head_bits rotate_residual state_bits"
)
GROUP_OPTIONS = "head_groups channel_groups"
QUANTIZATION_OPTIONS = (
    f"w_bits a_bits {RECIPE_OPTIONS} untie_embedding skip_float save_dequantized plugin {WEIGHT_OPTIONS} "
    f"{GROUP_OPTIONS} {MIXED_PRECISION_OPTIONS}"
)
OBSERVER_OPTIONS = "observer use_outlier_aware percentile_alpha calibration save_activations group_heads"

# those that a simulation of formats has a use for
SIMULATION_OPTIONS = (
    f"group_size dynamic skip_float plugin observer use_outlier_aware percentile_alpha {TEXT_OPTIONS} "
    f"{WEIGHT_OPTIONS.replace(' resume', '').replace(' lmhead_chunks', '')}"
)


def scheme_name(args: argparse.Namespace) -> str:
    """The scheme that --w_bits and --a_bits name. Raises QuambaError where this version does not run it."""
    name = f"w{args.w_bits}a{args.a_bits}"
    if name not in SCHEMES:
        known = ", ".join(f"--w_bits {s.weight.bits} --a_bits {s.act.bits}" for s in SCHEMES.values())
        raise QuambaError(f"--w_bits {args.w_bits} --a_bits {args.a_bits} is not supported: choose {known}")
    return name


def run_name(args: argparse.Namespace) -> str:
    """Return what a quantized model is called behind its name: the scheme, and whether layers have others."""
    return f"{scheme_name(args)}{MIXED_SUFFIX if is_mixed_precision(args) else ''}"


def channel_groups(args: argparse.Namespace) -> ChannelGroups | None:
    """Return the groups of Mamba2's heads and channels. Raises QuambaError for options that do nothing."""
    chosen = {name: getattr(args, name) for name in GROUP_OPTIONS.split() if getattr(args, name) is not None}
    if chosen and not args.group_heads:
        raise QuambaError(f"--{next(iter(chosen))} does nothing without --group_heads: add it, or drop the option")
    return ChannelGroups(**chosen) if args.group_heads else None


def recipe_arguments(args: argparse.Namespace, config: Mapping | None = None) -> dict:
    """Return what decides the modules, as arguments of `quamba.quantize`; `config`: config.json, once there is a
    checkpoint.

    Raises QuambaError for what `quantize` refuses.
    """
    arguments = {"scheme": scheme_name(args), "untie": args.untie_embedding}
    arguments |= {name: getattr(args, name) for name in RECIPE_OPTIONS.split()}
    arguments["layer_schemes"] = layer_schemes(args, config)
    if arguments["layer_schemes"] or not is_mixed_precision(args):  # else what layers have is not known yet
        create_recipe(**arguments, tied=True)  # what is wrong with a tied model's is wrong with every model's
    return arguments


def recipe(args: argparse.Namespace, tied: bool, config: Mapping | None = None) -> QuantizationRecipe:
    """The recipe of a model whose embedding and head are `tied`. Raises QuambaError for an option that does nothing."""
    found = create_recipe(**recipe_arguments(args, config), tied=tied)
    if args.lmhead_chunks is not None and found.tied_head:
        raise QuambaError("--lmhead_chunks does nothing for a head that shares the embedding's table: drop it")
    return found


def observer_spec(args: argparse.Namespace) -> str | None:
    """Return what --observer and --use_outlier_aware ask for, None for nothing. Raises QuambaError where the two
    disagree."""
    if not args.use_outlier_aware:
        return args.observer
    if args.observer not in (None, "outlier_aware", "x=outlier_aware"):
        raise QuambaError(
            f"--use_outlier_aware means --observer outlier_aware, not the --observer {args.observer} given with it: "
            "drop one"
        )
    return "outlier_aware"


def observers(args: argparse.Namespace, taps: Sequence[str] = BLOCK_TAPS) -> dict[str, str]:
    """Tap -> observer name; `taps`: of the model's blocks, once that is known. Raises QuambaError for unknown ones."""
    if args.state_bits != FLOAT_STATE_BITS:
        taps = (*taps, STATE_TAP)
    return parse_observers(observer_spec(args), head=args.quantize_lm_head, dynamic=args.dynamic, taps=taps)


def observer_options(args: argparse.Namespace, taps: Sequence[str] = BLOCK_TAPS) -> dict[str, dict]:
    """Constructor arguments by observer; `taps`: as in `observers`. Raises QuambaError for options that none takes."""
    if not calibrates(args):
        return {}
    options = {}
    if args.percentile_alpha is not None:
        if "percentile" not in observers(args, taps).values():
            raise QuambaError("--percentile_alpha is an argument of the percentile observer, which no tap uses here")
        options["percentile"] = {"percentile_alpha": args.percentile_alpha}
    check_observer_options(observers(args, taps), options, args.a_bits)
    return options


def check_quantization_options(args: argparse.Namespace, config: Mapping | None = None) -> None:
    """Raises QuambaError where an option was given that would do nothing.

    One of quantization without --quantize, or one of calibration where activations stay float. `config`: as in
    `recipe_arguments`.
    """

    defaults = option_defaults()

    def given(names: str, without: str = "") -> list[str]:
        chosen = [name for name in names.split() if name not in without.split()]
        return [name for name in chosen if getattr(args, name) != defaults[name]]

    if args.simulate:
        if args.quantize:
            raise QuambaError("--simulate computes in floats what --quantize runs in kernels: drop one of them")
        if names := given(f"{QUANTIZATION_OPTIONS} {OBSERVER_OPTIONS} {TEXT_OPTIONS}", without=SIMULATION_OPTIONS):
            raise QuambaError(f"--{names[0]} does nothing with --simulate: drop it")
        return
    if not args.quantize and (names := given(f"{QUANTIZATION_OPTIONS} {OBSERVER_OPTIONS} {TEXT_OPTIONS}")):
        raise QuambaError(f"--{names[0]} does nothing without --quantize: add it, or drop the option")
    if not args.quantize or calibrates(args):
        return
    bits = lowest_bits(args, config)
    read = args.hybrid_search is not None or bits is None or weight_method(args, bits).calibrated
    if names := given(OBSERVER_OPTIONS if read else f"{OBSERVER_OPTIONS} {TEXT_OPTIONS}"):
        raise QuambaError(f"--{names[0]} does nothing with --a_bits {args.a_bits}: activations stay float")
