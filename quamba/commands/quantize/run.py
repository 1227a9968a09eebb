"""One whole run of main.py: everything is checked, then the work is done."""

import argparse
import contextlib
from pathlib import Path

from ...architectures.anatomy import Anatomy
from ...architectures.convert import check_model_type, check_quantizable
from ...calibration.run import CalibrationText
from ...checkpoint import (
    Checkpoint,
    check_savable,
    load_checkpoint,
    recipe_of,
    resolve_checkpoint,
    saved_dtype,
)
from ...errors import QuambaError
from ...evaluation import compare
from ...evaluation.log import environment, kernels_run, write_log
from ...evaluation.summary import summary_table
from ...models.memory import checkpoint_bytes, memory_bytes, tensor_bytes
from ...models.tying import is_one_table
from ...pipeline.resume import ResumeFolder
from ...pipeline.simulate import method_bits, reads_text
from ...plugins import load_plugin
from ...scheme.formats import get_scheme
from ...scheme.simulation import Simulation
from ...text.data import asset_hashes
from ...text.reading import reading_once
from ..failures import Failures
from . import mixed_precision_options, recipe_options
from . import outputs as run_outputs
from . import texts as run_texts
from .measuring import check_evaluation, measure, read_evaluation, say
from .parser import DTYPES
from .report import report_lines
from .weight_options import given_weight_options, weight_method
from .work import quantization_arguments, quantize_and_save, simulate_formats


def requested_simulation(args: argparse.Namespace) -> Simulation | None:
    """The formats of --simulate, None without it. Raises QuambaError for what is none."""
    if not args.simulate:
        return None
    formats = Simulation.parse(args.simulate, args.group_size, args.dynamic)
    method = weight_method(args, method_bits(formats))
    if formats.weight.is_float and (given := sorted(given_weight_options(args))):
        raise QuambaError(f"--{given[0]} does nothing with {formats.name}, whose weights stay float: drop it")
    texts = [name for name in run_texts.TEXT_OPTIONS.split() if getattr(args, name) is not None]
    if texts and not reads_text(formats, method):
        raise QuambaError(f"--{texts[0]} does nothing with {formats.name} and {method.describe()}: no text is read")
    return formats


def expected_scheme(args: argparse.Namespace) -> str:
    """Return what the log of a run is called after, as far as the options tell."""
    if formats := requested_simulation(args):
        return formats.title
    return recipe_options.scheme_name(args) if args.quantize else "fp"


def saved_path(args: argparse.Namespace, checkpoint: Checkpoint) -> Path | None:
    """Return where --pretrained_dir says that the quantized model goes, None without it."""
    if not args.pretrained_dir:
        return None
    return Path(args.pretrained_dir) / f"{checkpoint.name}-{recipe_options.run_name(args)}"


def check_checkpoint(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Raises QuambaError where config.json says already that the model cannot be quantized."""
    if checkpoint.quantization_method is not None:
        raise QuambaError(f"{checkpoint.path} is quantized already: give the float model it was made from")
    if "model_type" in checkpoint.config:  # the original format has none
        if not isinstance(checkpoint.config["model_type"], str):
            raise QuambaError(f"{checkpoint.path / 'config.json'}: model_type is no name")
        check_model_type(checkpoint.config["model_type"], get_scheme(recipe_options.scheme_name(args)))


def check_options_of_blocks(model, args: argparse.Namespace, arguments: dict) -> None:
    """Raises QuambaError for options that the blocks of the loaded model have no use for."""
    if run_texts.calibrates(args):
        recipe_options.observer_options(args, Anatomy.of(model).architecture.taps)
    if arguments["group_heads"]:
        asked = [name for name in recipe_options.GROUP_OPTIONS.split() if getattr(args, name) is not None]
        arguments["group_heads"].check(model, asked)
    if search := mixed_precision_options.requested_search(args, arguments["group_heads"]):
        search.check(model)


def read_texts(args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict | None) -> list:
    """Return what a quantization reads, or an earlier result of it, None among them; none where nothing is
    quantized."""
    if arguments is None:
        return []
    return [arguments["calibration"], arguments["weight_text"], run_texts.searched_text(args, checkpoint)]


def run(args: argparse.Namespace) -> None:
    """One whole run: load, measure, quantize, save, measure again, log, summarize."""
    with contextlib.ExitStack() as held, reading_once():
        _run(args, held)


def _run(args: argparse.Namespace, held: contextlib.ExitStack) -> None:
    """The run; `held`: what is held to its end."""
    if args.plugin and (args.quantize or args.simulate):  # its names may be among the options
        load_plugin(args.plugin)
    recipe_options.check_quantization_options(args)
    if args.quantize:  # what is wrong with these is said before anything is downloaded
        recipe_options.recipe_arguments(args)
        mixed_precision_options.requested_search(args, recipe_options.channel_groups(args))
        if (bits := mixed_precision_options.lowest_bits(args, None)) is not None:
            weight_method(args, bits)
    if args.quantize or args.simulate:
        recipe_options.observer_options(args)
    requested_simulation(args)
    checkpoint = resolve_checkpoint(args.model, args.pretrained_dir)
    check_evaluation(args, checkpoint)
    arguments, target = None, None
    if args.quantize:
        check_checkpoint(checkpoint, args)
        recipe_options.check_quantization_options(args, checkpoint.config)  # of the layers' own schemes too
        arguments, target = quantization_arguments(args, checkpoint), saved_path(args, checkpoint)
    run_texts.check_data_dir(args, checkpoint, read_texts(args, checkpoint, arguments))
    outputs = run_outputs.outputs_of(args, checkpoint, arguments, target, expected_scheme(args))
    inputs = run_outputs.inputs_of(args, checkpoint, arguments, run_texts.evaluation_plan(args, checkpoint)[0])
    run_outputs.check_run_outputs(args, outputs, inputs, target)
    if arguments and arguments["progress_dir"]:
        arguments["progress_dir"] = held.enter_context(ResumeFolder(arguments["progress_dir"], args.resume))
    model, tokenizer = load_checkpoint(checkpoint, DTYPES.get(args.dtype), args.device)
    if args.quantize:
        recipe = recipe_options.recipe(args, is_one_table(model), checkpoint.config)
        check_quantizable(model, recipe)
        run_outputs.check_run_space(outputs, model, recipe, saved_dtype(checkpoint))
        if target or args.save_dequantized:
            check_savable(model, tokenizer)
        check_options_of_blocks(model, args, arguments)
        for text in read_texts(args, checkpoint, arguments):
            if isinstance(text, CalibrationText):
                text.windows(tokenizer)  # a text that cannot be read is said now
    read_evaluation(model, tokenizer, args, checkpoint)
    measure_run(model, tokenizer, args, checkpoint, arguments, target)


def measure_run(
    model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict | None, target: Path | None
) -> None:
    """The work of a run, everything checked; `arguments`: of the quantization, if any."""
    failures = Failures()
    log = {
        "args": vars(args),
        "env": environment(args.seed, model.device.type),
        "model": run_texts.model_name(checkpoint),
    }
    if run_texts.embedded_defaults(checkpoint):
        log["assets_sha256"] = asset_hashes()
    disk_bytes, float_result = checkpoint_bytes(checkpoint.path), None
    formats = requested_simulation(args)
    if (args.quantize or formats) and not args.skip_float:
        float_result = measure(model, tokenizer, args, checkpoint, "float")
        log["float"] = {**float_result, "size": {"disk_bytes": disk_bytes, "memory_bytes": memory_bytes(model)}}
    if formats:
        log |= simulate_formats(model, tokenizer, args, checkpoint, formats)
    elif args.quantize:
        log |= quantize_and_save(model, tokenizer, args, checkpoint, arguments, target, failures)
        disk_bytes = checkpoint_bytes(target) if log["saved"] else tensor_bytes(model)
    recipe = recipe_of(model)
    log["scheme"] = formats.title if formats else recipe.name if recipe else "fp"
    log["kernels"] = kernels_run(model)
    log["recipe"] = recipe.to_dict() if recipe else None
    result = measure(model, tokenizer, args, checkpoint, log["scheme"] if recipe or formats else "float")
    log["ppl_text_sha256"] = result.text_sha256
    log["ppl_tokens"] = {dataset: windows.tokens for dataset, windows in result.windows.items()}
    log |= {**result, "size": {"disk_bytes": disk_bytes, "memory_bytes": memory_bytes(model)}}
    items = result.item_values() | ({"float": float_result.item_values()} if float_result else {})
    blocks = Anatomy.of(model).has_blocks if recipe else []
    say()
    say(summary_table(log, compare(float_result, result) if float_result else None))
    for line in report_lines(log, blocks):
        say(line)
    with failures.collected():
        path = write_log(log, args.log_dir, f"{log['model']}_{log['scheme']}", items)
        say(f"log         {path}")
    failures.raise_any()
