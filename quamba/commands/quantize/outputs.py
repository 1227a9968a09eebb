"""The outputs of a run of main.py: which there are, and what is looked at before the work."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ...architectures.convert import quantized_bytes
from ...calibration.recording import check_recordable
from ...calibration.run import CalibrationResult, CalibrationText
from ...checkpoint import Checkpoint, check_new_folder, check_replaceable
from ...evaluation.log import items_path
from ...mixed_precision.layer_file import check_searchable
from ...models.memory import float_bytes
from ...scheme.recipe import QuantizationRecipe
from ...storage.outputs import FOLDER, SHARED, Output, check_outputs, check_space
from ...text.data import TEXT_NAMES
from . import mixed_precision_options
from . import texts as run_texts

DEQUANTIZED, MODEL = "--save_dequantized", "--pretrained_dir"


def outputs_of(
    args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict | None, target: Path | None, scheme: str
) -> list[Output]:
    """All that a run writes; `arguments`: of the quantization, if any; `target`: where the model goes."""
    log = Path(args.log_dir) / f"{run_texts.model_name(checkpoint)}_{scheme}.json"
    outputs = [Output("--log_dir", Path(args.log_dir), SHARED)]
    outputs += [Output("the log in --log_dir", log), Output("the log's items in --log_dir", items_path(log))]
    if arguments is None:
        return outputs
    if args.calibration and not isinstance(arguments["calibration"], CalibrationResult):
        outputs.append(Output("--calibration", Path(args.calibration)))
    if args.save_activations:
        outputs.append(Output("--save_activations", Path(args.save_activations), SHARED))
    if args.hybrid_search is not None:
        option = "--hybrid_blocks_config" if args.hybrid_blocks_config else "the schemes found, in --log_dir"
        outputs.append(Output(option, mixed_precision_options.schemes_file(args, checkpoint.name)))
    if arguments["progress_dir"]:
        outputs.append(Output("the progress of the run,", Path(arguments["progress_dir"]), FOLDER))
    if args.save_dequantized:
        outputs.append(Output(DEQUANTIZED, Path(args.save_dequantized), FOLDER))
    if target:
        outputs.append(Output(MODEL, target, FOLDER))
    return outputs


def inputs_of(
    args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict | None, texts: Sequence[str]
) -> dict[str, Path]:
    """Return what a run reads from the user's own places: what it is -> its path; `texts`: of perplexity."""
    inputs = {"the model": checkpoint.path}
    sources = [] if arguments is None else [arguments["calibration"], arguments["weight_text"]]
    named = [source.dataset for source in sources if isinstance(source, CalibrationText)] + list(texts)
    inputs |= {f"the text {name}": Path(name) for name in named if name not in TEXT_NAMES}
    given = {"the plug-in": args.plugin, "--data_dir": args.data_dir, "--include_path": args.include_path}
    if args.hybrid_search is None:
        given["--hybrid_blocks_config"] = args.hybrid_blocks_config
    if any(isinstance(source, CalibrationResult) for source in sources):
        given["--calibration"] = args.calibration
    return inputs | {what: Path(path) for what, path in given.items() if path}


def check_run_outputs(
    args: argparse.Namespace, outputs: Sequence[Output], inputs: dict[str, Path], target: Path | None
) -> None:
    """Raises QuambaError where what the run makes could not be written: now, not after the work."""
    check_outputs(outputs, inputs)
    for output in outputs:
        if output.path == target:
            check_replaceable(target)
    if args.save_activations:
        check_recordable(args.save_activations)
    if args.save_dequantized:
        check_new_folder(Path(args.save_dequantized))
    if args.hybrid_search is not None:
        check_searchable(next(o.path for o in outputs if "hybrid" in o.option or "schemes" in o.option))


def check_run_space(
    outputs: Sequence[Output], model: PreTrainedModel, recipe: QuantizationRecipe, own_dtype: torch.dtype
) -> None:
    """Raises QuambaError where the disks have too little room for the models that are saved, once they are known."""
    sizes = {}
    for output in outputs:
        if output.option == MODEL:
            sizes[output] = quantized_bytes(model, recipe)
        if output.option == DEQUANTIZED:
            sizes[output] = float_bytes(model, own_dtype)
    check_space(sizes)
