"""The command line of main.py, and of `quamba quantize`."""

import argparse
import os
from functools import cache

from ...checkpoint.load import DTYPES
from ...text.sources import FOLDER_TEXTS
from ..arguments import positive_int, seed
from .options import add_calibration_options, add_evaluation_options, add_quantization_options
from .weight_options import add_weight_options

DESCRIPTION = "Quantize a Mamba language model, or the weights of any causal LM, and measure what that costs."
EXAMPLES = """examples:
  python main.py mamba-tiny --quantize --use_outlier_aware        offline, the embedded checkpoint
  python main.py mamba-tiny --quantize --observer mse             another observer for tap x
  python main.py mamba-tiny --quantize --observer x=mse,out=mse   one per tap (in, conv_in, z, x, dt_rank, B, C, out;
                                                                  of Mamba2 B_in and C_in too, and no dt_rank)
  python main.py mamba2-tiny --quantize --group_heads --state_bits 8
                                                                  a scale per group of heads and channels, int8 states
  python main.py mamba2-tiny --quantize --hybrid_search 5.5       a scheme for each layer, 5.5 bits a weight on average
  python main.py mamba-tiny --quantize --w_bits 4 --dynamic       4-bit weights, activation scales per token
  python main.py llama-1b --quantize --w_bits 4 --a_bits 16 --weight_method awq --use_heuristic
                                                                  the weights of any causal LM, in groups of 128
  python main.py mamba-tiny --simulate w4a4                       what formats without kernels would cost
  python main.py mamba-130m --quantize --pretrained_dir models    saves to models/mamba-130m-w8a8
  python main.py models/mamba-130m-w8a8 --task_list lambada_openai,arc_easy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, compatible with Quamba's where they are the same."""
    parser.add_argument(
        "model", help="a folder, an embedded checkpoint (mamba-tiny), a short name (mamba-130m) or a hub id"
    )
    run = parser.add_argument_group("running")
    run.add_argument(
        "--pretrained_dir",
        type=os.path.expanduser,
        metavar="DIR",
        help="where models are looked up, and saved when quantized",
    )
    run.add_argument(
        "--log_dir",
        type=os.path.expanduser,
        metavar="DIR",
        default="logs",
        help="where the JSON log goes (default: logs)",
    )
    run.add_argument(
        "--data_dir",
        type=os.path.expanduser,
        metavar="DIR",
        help=f"a folder or file that is read instead of the hub, in calibration and for perplexity; stands in for "
        f"{', '.join(FOLDER_TEXTS)}",
    )
    run.add_argument("--batch_size", type=positive_int, metavar="N", help="sequences at a time (default: 8, tiny: 16)")
    run.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of calibration and lm-eval (default: 0)")
    run.add_argument("--device", default="cpu", help="device to run on (default: cpu)")
    run.add_argument("--dtype", choices=DTYPES, help="of what stays float (default: float32, or as it was saved)")
    run.add_argument("--testing", action="store_true", help="a quick pass over little data, to see that a run works")
    add_quantization_options(parser.add_argument_group("quantization"))
    add_weight_options(
        parser.add_argument_group("weights", "how their integers are chosen; all but rtn read calibration text")
    )
    add_calibration_options(parser.add_argument_group("calibration"))
    add_evaluation_options(
        parser.add_argument_group(
            "evaluation", "without any of these: perplexity, and stdlib_cloze on embedded checkpoints"
        )
    )


def build_parser(prog: str = "main.py") -> argparse.ArgumentParser:
    """A parser of these options alone."""
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="log what is going on, in detail")
    return parser


@cache
def option_defaults() -> dict[str, object]:
    """Return what every option is where it is not given."""
    return vars(build_parser().parse_args(["MODEL"]))
