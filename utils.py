"""The options of main.py: what each means, its default, and which combinations make no sense."""

import argparse
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from quamba import CalibrationResult, CalibrationText, QuambaError, text_sources
from quamba.architectures import BLOCK_TAPS
from quamba.checkpoint import METHOD, Checkpoint
from quamba.commands.arguments import positive_int, seed
from quamba.commands.hybrid_options import HYBRID_OPTIONS, is_hybrid, layer_schemes
from quamba.commands.run_options import add_calibration_options, add_evaluation_options, add_quantization_options
from quamba.commands.weight_options import WEIGHT_OPTIONS, add_weight_options, weight_method
from quamba.data import EMBEDDED_MODELS, TEXT_NAMES, EmbeddedDefaults
from quamba.head_groups import HeadGroups
from quamba.nn.taps import STATE_TAP
from quamba.scheme import FLOAT, FLOAT_STATE_BITS, SCHEMES, QuantizationRecipe, create_recipe
from quamba.tap_observers import check_observer_options, parse_observers
from quamba.text_sources import FOLDER_TEXTS, data_dir_for, find_data_files
from quamba.weight_run import WINDOWS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ZERO_SHOT_TASKS = "lambada_openai,hellaswag,piqa,arc_easy,arc_challenge,winogrande"
GENERATION_TASKS = "nq_open,squadv2"
# --testing: enough of everything to see that a run works from end to end
TESTING_CALIB_DATA_NUM, TESTING_PPL_WINDOWS, TESTING_TASK_ITEMS = 8, 8, 16
# options that need --quantize: those that quamba.quantize takes by their names, others, those of calibration
RECIPE_OPTIONS = (
    "group_size dynamic quantize_embedding quantize_lm_head embedding_bits lm_head_bits rotate_residual state_bits"
)
GROUP_OPTIONS = "head_groups channel_groups"
QUANTIZATION_OPTIONS = (
    f"w_bits a_bits {RECIPE_OPTIONS} untie_embedding skip_float save_dequantized plugin {WEIGHT_OPTIONS} "
    f"{GROUP_OPTIONS} {HYBRID_OPTIONS}"
)
OBSERVER_OPTIONS = "observer use_outlier_aware percentile_alpha calibration save_activations group_heads"
TEXT_OPTIONS = "calib_dataset calib_data_num calib_seqlen"

HYBRID_SUFFIX = "-hybrid"

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
  python main.py mamba-130m --quantize --pretrained_dir models    saves to models/mamba-130m-w8a8
  python main.py models/mamba-130m-w8a8 --task_list lambada_openai,arc_easy
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, compatible with Quamba's where the options are the same."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Quantize a Mamba language model, or the weights of any causal LM, and measure what that costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    run.add_argument("--verbose", action="store_true", help="log what is going on, in detail")
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
    return parser


def scheme_name(args: argparse.Namespace) -> str:
    """The scheme that --w_bits and --a_bits name. Raises QuambaError where this version does not run it."""
    name = f"w{args.w_bits}a{args.a_bits}"
    if name not in SCHEMES:
        known = ", ".join(f"--w_bits {s.weight.bits} --a_bits {s.act.bits}" for s in SCHEMES.values())
        raise QuambaError(f"--w_bits {args.w_bits} --a_bits {args.a_bits} is not supported: choose {known}")
    return name


def run_name(args: argparse.Namespace) -> str:
    """What a quantized model is called behind its name: the scheme, and whether layers have others."""
    return f"{scheme_name(args)}{HYBRID_SUFFIX if is_hybrid(args) else ''}"


def head_groups(args: argparse.Namespace) -> HeadGroups | None:
    """Those of Mamba2's heads and channels. Raises QuambaError for options that do nothing."""
    chosen = {name: getattr(args, name) for name in GROUP_OPTIONS.split() if getattr(args, name) is not None}
    if chosen and not args.group_heads:
        raise QuambaError(f"--{next(iter(chosen))} does nothing without --group_heads: add it, or drop the option")
    return HeadGroups(**chosen) if args.group_heads else None


def recipe_arguments(args: argparse.Namespace, config: Mapping | None = None) -> dict:
    """What decides the modules, as arguments of `quamba.quantize`; `config`: config.json, once there is a checkpoint.

    Raises QuambaError for what `quantize` refuses.
    """
    arguments = {"scheme": scheme_name(args), "untie": args.untie_embedding}
    arguments |= {name: getattr(args, name) for name in RECIPE_OPTIONS.split()}
    arguments["layer_schemes"] = layer_schemes(args, config)
    if arguments["layer_schemes"] or not is_hybrid(args):  # else what layers have is not known yet
        create_recipe(**arguments, tied=True)  # what is wrong with a tied model's is wrong with every model's
    return arguments


def recipe(args: argparse.Namespace, tied: bool, config: Mapping | None = None) -> QuantizationRecipe:
    """The recipe of a model whose embedding and head are `tied`. Raises QuambaError for an option that does nothing."""
    found = create_recipe(**recipe_arguments(args, config), tied=tied)
    if args.lmhead_chunks is not None and found.tied_head:
        raise QuambaError("--lmhead_chunks does nothing for a head that shares the embedding's table: drop it")
    return found


def weight_text(args: argparse.Namespace, checkpoint: Checkpoint) -> CalibrationText | None:
    """What a method that looks at activations reads; None of one that looks at none."""
    if not weight_method(args).calibrated:
        return None
    text = calibration_text(args, checkpoint)
    data_num = text.data_num if args.calib_data_num else min(text.data_num, WINDOWS)
    return dataclasses.replace(text, data_num=data_num, sampling="slices")


def calibrates(args: argparse.Namespace) -> bool:
    """Whether activations are quantized, with scales from a calibration."""
    return args.a_bits != FLOAT.bits


def observer_spec(args: argparse.Namespace) -> str | None:
    """What --observer and --use_outlier_aware ask for, None for nothing. Raises QuambaError where the two disagree."""
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


def embedded_defaults(checkpoint: Checkpoint) -> EmbeddedDefaults | None:
    """What a run on an embedded checkpoint uses by default, also once it was quantized and saved; else None."""
    known = checkpoint.embedded or checkpoint.quantization_method == METHOD
    return EMBEDDED_MODELS.get(model_name(checkpoint)) if known else None


def check_text(option: str, name: str) -> None:
    """Raises QuambaError where a text is neither a name nor a file: better now than after minutes of work."""
    if name not in TEXT_NAMES and not Path(name).exists():
        raise QuambaError(f"{option} {name!r} is neither a file or folder here nor one of {', '.join(TEXT_NAMES)}")


def calibration_text(args: argparse.Namespace, checkpoint: Checkpoint) -> CalibrationText:
    """Text, amount and seed of the calibration; embedded checkpoints have smaller defaults."""
    defaults, common = embedded_defaults(checkpoint), CalibrationText()
    data_num = args.calib_data_num or (defaults.calib_data_num if defaults else common.data_num)
    dataset = args.calib_dataset or (defaults.calib_dataset if defaults else common.dataset)
    check_text("--calib_dataset", dataset)
    return CalibrationText(
        dataset=dataset,
        data_num=min(data_num, TESTING_CALIB_DATA_NUM) if args.testing else data_num,
        seqlen=args.calib_seqlen or (defaults.calib_seqlen if defaults else common.seqlen),
        seed=args.seed,
        batch_size=batch_size(args, checkpoint),
        data_dir=data_dir_for(args.data_dir, dataset),
    )


def calibration_source(args: argparse.Namespace, checkpoint: Checkpoint) -> CalibrationResult | CalibrationText | None:
    """An earlier result where --calibration names an existing file, else the text to calibrate on, None where none is.

    Raises QuambaError where the earlier result is of another text than the options ask for.
    """
    if not calibrates(args):
        return None
    text = calibration_text(args, checkpoint)
    if not args.calibration or not Path(args.calibration).exists():
        return text
    if args.save_activations:
        raise QuambaError(
            f"--save_activations {args.save_activations} needs a calibration run, and --calibration "
            f"{args.calibration} is reused: drop one of them"
        )
    result = CalibrationResult.load(args.calibration)
    used = result.text or {}
    asked = {option: getattr(text, option.removeprefix("calib_")) for option in TEXT_OPTIONS.split()}
    asked["data_dir"] = data_dir_for(args.data_dir, used.get("dataset"))
    for option, value in asked.items():
        made_with = used.get(option.removeprefix("calib_"))
        if getattr(args, option) is not None and made_with != value:
            raise QuambaError(
                f"--{option} {getattr(args, option)} does not fit --calibration {args.calibration}, which was made "
                f"{'without it' if made_with is None else f'with {made_with}'}: drop one of them, or name a new file"
            )
    return result


def own_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the checkpoint's weights as its config names it, float32 where it names none."""
    name = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    return DTYPES.get(name, torch.float32)


def batch_size(args: argparse.Namespace, checkpoint: Checkpoint) -> int:
    """Sequences at a time, in calibration and evaluation."""
    return args.batch_size or (embedded_defaults(checkpoint) or CalibrationText()).batch_size


def max_windows(args: argparse.Namespace, checkpoint: Checkpoint, texts: list[str]) -> int | None:
    """How many windows perplexity is measured on, None for all: a part of the embedded text, all of any other."""
    if args.testing:
        return TESTING_PPL_WINDOWS
    defaults = embedded_defaults(checkpoint)
    return defaults.ppl_windows if defaults and texts == [defaults.ppl_dataset] else None


def evaluation_plan(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[list[str], list[tuple[list[str], int]]]:
    """(perplexity texts, [(tasks, examples), ...]) of a run. Raises QuambaError for options that contradict."""
    defaults = embedded_defaults(checkpoint)
    if args.fewshot and not args.eval_few_shot:
        raise QuambaError(f"--fewshot {args.fewshot} does nothing without --eval_few_shot")
    if args.task_list and args.eval_generation and (args.eval_zero_shot or args.eval_few_shot):
        raise QuambaError("--task_list names the tasks of one kind of run: give --eval_generation a run of its own")
    with_tasks = args.eval_zero_shot or args.eval_few_shot or args.eval_generation
    with_ppl = args.eval_ppl or args.ppl_dataset is not None
    zero_shot = args.eval_zero_shot or (args.task_list is not None and not with_tasks)
    if not (with_tasks or with_ppl or zero_shot):
        with_ppl, zero_shot = True, defaults is not None
    texts = [args.ppl_dataset or (defaults.ppl_dataset if defaults else "wikitext2")] if with_ppl else []
    for text in texts:
        check_text("--ppl_dataset", text)

    def tasks(default: str) -> list[str]:
        names = default if args.task_list is None else args.task_list
        return [name.strip() for name in names.split(",") if name.strip()]

    if args.task_list is not None and not tasks(""):
        raise QuambaError(f"--task_list {args.task_list!r} names no task")

    default_tasks = ",".join(defaults.tasks) if defaults else ZERO_SHOT_TASKS
    runs = [(tasks(default_tasks), 0)] if zero_shot else []
    runs += [(tasks(default_tasks), args.fewshot or 5)] if args.eval_few_shot else []
    runs += [(tasks(GENERATION_TASKS), 0)] if args.eval_generation else []
    if args.include_path is not None and not runs:
        raise QuambaError(f"--include_path {args.include_path} does nothing without lm-eval tasks: add --task_list")
    return texts, runs


def check_data_dir(args: argparse.Namespace, checkpoint: Checkpoint, arguments: Mapping) -> None:
    """Raises QuambaError where --data_dir lacks a text that it stands in for, or stands in for none of the run's.

    `arguments`: those of `quamba.quantize`, empty where nothing is quantized.
    """
    if args.data_dir is None:
        return
    texts = [(text, "test") for text in evaluation_plan(args, checkpoint)[0]]
    sources = [arguments.get("calibration"), arguments.get("weight_text")]
    texts += [(source.dataset, "calibration") for source in sources if isinstance(source, CalibrationText)]
    for text, split in texts:
        if data_dir_for(args.data_dir, text):
            find_data_files(text, split, args.data_dir)
    # the text of an earlier result is not read again, but the option says where it was
    earlier = [source.text["dataset"] for source in sources if isinstance(source, CalibrationResult) and source.text]
    text_sources.check_data_dir(args.data_dir, *(text for text, _ in texts), *earlier)


def model_name(checkpoint: Checkpoint) -> str:
    """The model's name in logs: that of a checkpoint, without the scheme that saving has put behind it."""
    name = checkpoint.name
    if checkpoint.quantization_method == METHOD:
        name = name.removesuffix(HYBRID_SUFFIX)
        for scheme in SCHEMES:
            name = name.removesuffix(f"-{scheme}")
    return name


def check_quantization_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises QuambaError where an option was given that would do nothing.

    One of quantization without --quantize, or one of calibration where activations stay float.
    """

    def given(names: str) -> list[str]:
        return [name for name in names.split() if getattr(args, name) != parser.get_default(name)]

    if not args.quantize and (names := given(f"{QUANTIZATION_OPTIONS} {OBSERVER_OPTIONS} {TEXT_OPTIONS}")):
        raise QuambaError(f"--{names[0]} does nothing without --quantize: add it, or drop the option")
    if not args.quantize or calibrates(args):
        return
    read = weight_method(args).calibrated or args.hybrid_search is not None
    if names := given(OBSERVER_OPTIONS if read else f"{OBSERVER_OPTIONS} {TEXT_OPTIONS}"):
        raise QuambaError(f"--{names[0]} does nothing with --a_bits {args.a_bits}: activations stay float")


def set_up_logging(verbose: bool) -> None:
    """Warnings to the terminal, everything of this package with --verbose."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("quamba").setLevel(logging.DEBUG if verbose else logging.WARNING)
