"""The options of main.py that say what is quantized, how it is calibrated and what is measured."""

import os

from ...calibration.defaults import DEFAULT_OBSERVERS
from ...observers.per_tensor import observer_names
from ...scheme.formats import DEFAULT_GROUP_SIZE, GROUP_SIZES, STATE_BITS
from ...text.data import TEXT_NAMES
from ..arguments import positive_int


def add_quantization_options(group) -> None:
    """Declare what is quantized to what."""
    group.add_argument("--quantize", action="store_true", help="quantize the model; without it it is only measured")
    group.add_argument(
        "--simulate",
        type=os.path.expanduser,
        metavar="FORMATS",
        help="measure formats that may have no kernels, in float arithmetic: w4a4, w6a8, w2a16, or a JSON file "
        '{"weights": {"bits": 4, "group_size": 64}, "activations": {"bits": 4}, "taps": {"x": {"bits": 8}}}',
    )
    group.add_argument("--w_bits", type=int, default=8, help="bits of the weights: 8 (default), 4 or 3")
    group.add_argument(
        "--a_bits", type=int, default=8, help="bits of the activations of Mamba blocks: 8 (default), or 16 (float)"
    )
    group.add_argument(
        "--group_size",
        type=int,
        metavar="N",
        help=f"weights below 8 bits that share a scale: {', '.join(map(str, GROUP_SIZES))} ({DEFAULT_GROUP_SIZE})",
    )
    group.add_argument(
        "--dynamic", action="store_true", help="per-token activation scales for in_proj, out_proj and lm_head"
    )
    group.add_argument("--quantize_embedding", action="store_true", help="the embedding too, in the weights' format")
    group.add_argument("--quantize_lm_head", action="store_true", help="the head too, in the weights' format")
    group.add_argument("--embedding_bits", type=int, metavar="N", help="of the embedding: 8, 4 or 3 (--w_bits)")
    group.add_argument("--lm_head_bits", type=int, metavar="N", help="of the head: 8, 4 or 3 (--w_bits)")
    group.add_argument("--untie_embedding", action="store_true", help="a table each for quantized embedding and head")
    group.add_argument(
        "--save_dequantized",
        type=os.path.expanduser,
        metavar="DIR",
        help="also write the rounded weights as plain floats in the model's own dtype, for tools that know no quamba",
    )
    group.add_argument("--rotate_residual", action="store_true", help="Hadamard rotation of the residual stream")
    group.add_argument("--skip_float", action="store_true", help="do not measure the float model for comparison")
    add_block_options(group)


def add_block_options(group) -> None:
    """Declare what holds for blocks of a kind, or for some of the layers."""
    group.add_argument(
        "--state_bits", type=int, choices=STATE_BITS, default=32, help="of Mamba2's cached SSM states (default: 32)"
    )
    group.add_argument(
        "--group_heads",
        action="store_true",
        help="sort and cluster Mamba2's heads and channels: each group has a scale of x of its own",
    )
    group.add_argument(
        "--head_groups", type=positive_int, metavar="N", help="of the heads of an SSD group (default: 4)"
    )
    group.add_argument("--channel_groups", type=positive_int, metavar="N", help="of those heads' channels (default: 4)")
    group.add_argument(
        "--hybrid_blocks", action="store_true", help="a scheme for every layer, from --hybrid_blocks_config"
    )
    group.add_argument(
        "--hybrid_blocks_config",
        type=os.path.expanduser,
        metavar="FILE",
        help='JSON: a scheme name for each layer, or {"0-3": "w8a8", "default": "w4a8"}; a search writes it',
    )
    group.add_argument(
        "--hybrid_search",
        metavar="BUDGET",
        help="measure the layers, and choose their schemes within a budget: mean bits a weight (5.5) or size (40MB)",
    )
    group.add_argument(
        "--hybrid_schemes", metavar="A,B", help="that the search chooses from (default: w4 and w8 with --a_bits)"
    )


def add_calibration_options(group) -> None:
    """On which text, and by which observers, scales are found."""
    group.add_argument(
        "--observer",
        metavar="NAME",
        help=f"of tap x ({', '.join(observer_names())}), or TAP=NAME,... or all=NAME; the defaults of the others: "
        + ", ".join(f"{tap}={name}" for tap, name in DEFAULT_OBSERVERS.items()),
    )
    group.add_argument("--use_outlier_aware", action="store_true", help="the same as --observer outlier_aware")
    group.add_argument("--percentile_alpha", type=float, metavar="P", help="percentile of the percentile observer")
    group.add_argument(
        "--plugin",
        type=os.path.expanduser,
        metavar="FILE",
        help="a Python file with observers or rounding rules",
    )
    group.add_argument(
        "--calib_dataset",
        type=os.path.expanduser,
        metavar="NAME|FILE",
        help=f"one of {', '.join(TEXT_NAMES)}, or a file",
    )
    group.add_argument(
        "--calib_data_num",
        "--n_calib",
        type=positive_int,
        metavar="N",
        help="sequences (default: 512, tiny: fewer)",
    )
    group.add_argument(
        "--calib_seqlen", type=positive_int, metavar="N", help="tokens of each (default: 512, tiny: 256)"
    )
    group.add_argument(
        "--calibration",
        type=os.path.expanduser,
        metavar="FILE",
        help="reuse the calibration result in FILE; written there if it does not exist",
    )
    group.add_argument(
        "--save_activations",
        type=os.path.expanduser,
        metavar="DIR",
        help="write the first batch and a histogram of every observed tap, a safetensors file per layer",
    )


def add_evaluation_options(group) -> None:
    """Declare what is measured."""
    group.add_argument("--eval_ppl", action="store_true", help="perplexity on --ppl_dataset")
    group.add_argument(
        "--ppl_dataset",
        type=os.path.expanduser,
        metavar="NAME|FILE",
        help="text of the perplexity, implies --eval_ppl (default: wikitext2)",
    )
    group.add_argument(
        "--ppl_by_token",
        action="store_true",
        help="read the text by decoding steps, which shows what cached states cost (always so with --state_bits 8)",
    )
    group.add_argument("--eval_zero_shot", action="store_true", help="lm-eval tasks without examples")
    group.add_argument("--eval_few_shot", action="store_true", help="lm-eval tasks with --fewshot examples")
    group.add_argument("--eval_generation", action="store_true", help="lm-eval tasks whose answers are generated")
    group.add_argument("--task_list", metavar="A,B", help="lm-eval tasks by name; alone it implies --eval_zero_shot")
    group.add_argument("--fewshot", type=positive_int, metavar="N", help="examples of --eval_few_shot (default: 5)")
    group.add_argument(
        "--include_path", type=os.path.expanduser, metavar="DIR", help="a folder with lm-eval tasks of your own"
    )
