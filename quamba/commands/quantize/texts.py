"""The texts of a run of main.py: what calibration and evaluation read, how much of it, and where from."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...architectures.table import ARCHITECTURES
from ...calibration.run import CalibrationResult, CalibrationText
from ...checkpoint import METHOD, Checkpoint
from ...checkpoint.load_float import read_model_config
from ...errors import QuambaError
from ...models.positions import max_positions
from ...pipeline.weights import WINDOWS
from ...scheme.formats import FLOAT, SCHEMES
from ...text import sources as text_sources
from ...text.data import EMBEDDED_MODELS, TEXT_NAMES, EmbeddedDefaults
from ...text.sources import data_dir_for, find_data_files
from ...weights.method import WeightMethod
from .mixed_precision_options import MIXED_SUFFIX

ZERO_SHOT_TASKS = "lambada_openai,hellaswag,piqa,arc_easy,arc_challenge,winogrande"
GENERATION_TASKS = "nq_open,squadv2"
# --testing: enough of everything to see that a run works from end to end
TESTING_CALIB_DATA_NUM, TESTING_PPL_WINDOWS, TESTING_TASK_ITEMS = 8, 8, 16
TEXT_OPTIONS = "calib_dataset calib_data_num calib_seqlen"


def calibrates(args: argparse.Namespace) -> bool:
    """Return whether activations are quantized, with scales from a calibration."""
    return args.a_bits != FLOAT.bits


def model_name(checkpoint: Checkpoint) -> str:
    """The model's name in logs: that of a checkpoint, without the scheme that saving has put behind it."""
    name = checkpoint.name
    if checkpoint.quantization_method == METHOD:
        name = name.removesuffix(MIXED_SUFFIX)
        for scheme in SCHEMES:
            name = name.removesuffix(f"-{scheme}")
    return name


def embedded_defaults(checkpoint: Checkpoint) -> EmbeddedDefaults | None:
    """Return what a run on an embedded checkpoint uses by default, also once it was quantized and saved; else None."""
    known = checkpoint.embedded or checkpoint.quantization_method == METHOD
    return EMBEDDED_MODELS.get(model_name(checkpoint)) if known else None


def check_text(option: str, name: str) -> None:
    """Raises QuambaError where a text is neither a name nor a file: better now than after minutes of work."""
    if name not in TEXT_NAMES and not Path(name).exists():
        raise QuambaError(f"{option} {name!r} is neither a file or folder here nor one of {', '.join(TEXT_NAMES)}")


def batch_size(args: argparse.Namespace, checkpoint: Checkpoint) -> int:
    """Sequences at a time, in calibration and evaluation."""
    return args.batch_size or (embedded_defaults(checkpoint) or CalibrationText()).batch_size


def calibration_text(args: argparse.Namespace, checkpoint: Checkpoint) -> CalibrationText:
    """Text, amount and seed of the calibration; embedded checkpoints have smaller defaults."""
    defaults, common = embedded_defaults(checkpoint), CalibrationText()
    data_num = args.calib_data_num or (defaults.calib_data_num if defaults else common.data_num)
    dataset = args.calib_dataset or (defaults.calib_dataset if defaults else common.dataset)
    check_text("--calib_dataset", dataset)
    return CalibrationText(
        dataset=dataset,
        data_num=min(data_num, TESTING_CALIB_DATA_NUM) if args.testing else data_num,
        seqlen=args.calib_seqlen or (defaults.calib_seqlen if defaults else _fitting_seqlen(checkpoint)),
        seed=args.seed,
        batch_size=batch_size(args, checkpoint),
        data_dir=data_dir_for(args.data_dir, dataset),
    )


def _fitting_seqlen(checkpoint: Checkpoint) -> int:
    """Tokens of a calibration sequence where the user gives no number: no more than the model has positions."""
    seqlen, model_type = CalibrationText().seqlen, checkpoint.config.get("model_type")
    if model_type is None or model_type in ARCHITECTURES:  # Mamba, which has none; the original format names no type
        return seqlen
    return min(seqlen, max_positions(read_model_config(checkpoint)) or seqlen)


def weight_text(args: argparse.Namespace, checkpoint: Checkpoint, method: WeightMethod) -> CalibrationText | None:
    """Return what a method that looks at activations reads; None of one that looks at none."""
    if not method.calibrated:
        return None
    text = calibration_text(args, checkpoint)
    data_num = text.data_num if args.calib_data_num else min(text.data_num, WINDOWS)
    return dataclasses.replace(text, data_num=data_num, sampling="slices")


def searched_text(args: argparse.Namespace, checkpoint: Checkpoint) -> CalibrationText | None:
    """Return what a search for the schemes of layers reads; None without one."""
    return None if args.hybrid_search is None else calibration_text(args, checkpoint)


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


def max_windows(args: argparse.Namespace, checkpoint: Checkpoint, texts: list[str]) -> int | None:
    """Return how many windows perplexity is measured on, None for all: a part of the embedded text, all of any
    other."""
    if args.testing:
        return TESTING_PPL_WINDOWS
    defaults = embedded_defaults(checkpoint)
    return defaults.ppl_windows if defaults and texts == [defaults.ppl_dataset] else None


def check_data_dir(
    args: argparse.Namespace, checkpoint: Checkpoint, sources: Sequence[CalibrationText | CalibrationResult | None]
) -> None:
    """Raises QuambaError where --data_dir lacks a text that it stands in for, or stands in for none of the run's.

    `sources`: what a quantization reads, none where nothing is quantized.
    """
    if args.data_dir is None:
        return
    texts = [(text, "test") for text in evaluation_plan(args, checkpoint)[0]]
    texts += [(source.dataset, "calibration") for source in sources if isinstance(source, CalibrationText)]
    for text, split in texts:
        if data_dir_for(args.data_dir, text):
            find_data_files(text, split, args.data_dir)
    # the text of an earlier result is not read again, but the option says where it was
    earlier = [source.text["dataset"] for source in sources if isinstance(source, CalibrationResult) and source.text]
    text_sources.check_data_dir(args.data_dir, *(text for text, _ in texts), *earlier)
