"""Quantize a Mamba language model and measure it: `python main.py mamba-tiny --quantize --use_outlier_aware`."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from rich.table import Table

import quamba
import utils
from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import check_model_type, check_quantizable
from quamba.calibration.run import CalibrationResult, CalibrationText
from quamba.checkpoint import (
    Checkpoint,
    check_savable,
    load_checkpoint,
    recipe_of,
    resolve_checkpoint,
    save_dequantized,
)
from quamba.commands.console import Console
from quamba.commands.failures import Failures, drop_standard_output, exit_status
from quamba.commands.quantize import mixed_precision_options
from quamba.commands.quantize import outputs as run_outputs
from quamba.commands.quantize import texts as run_texts
from quamba.commands.quantize.report import report_lines
from quamba.commands.quantize.weight_options import given_weight_options, weight_method
from quamba.evaluation import EvaluationResult, compare, evaluate, text_windows
from quamba.evaluation.log import environment, kernels_run, write_log
from quamba.evaluation.summary import summary_table
from quamba.mixed_precision.layer_file import write_layer_schemes
from quamba.mixed_precision.run import search_schemes
from quamba.models.memory import checkpoint_bytes, memory_bytes, tensor_bytes
from quamba.models.text_config import text_config
from quamba.models.tying import is_one_table
from quamba.pipeline.resume import ResumeFolder
from quamba.pipeline.simulate import method_bits, simulate
from quamba.scheme.formats import get_scheme
from quamba.scheme.simulation import Simulation
from quamba.study.mixed_precision_report import frontier_report, to_markdown
from quamba.text.data import asset_hashes
from quamba.text.reading import reading_once
from quamba.text.sources import data_dir_for

console = Console()


def say(text: str | Table = "") -> None:
    """Prints a line as it is: paths may hold brackets, which are no markup, and are copied whole.

    A run goes on where nobody reads it any more, or the disk that it is written to is full.
    """
    try:
        console.print(text, markup=False, highlight=False, soft_wrap=isinstance(text, str))
    except OSError:
        drop_standard_output()


def measure(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint, what: str) -> EvaluationResult:
    """Every evaluation that the options ask for."""
    texts, task_runs = run_texts.evaluation_plan(args, checkpoint)
    size = run_texts.batch_size(args, checkpoint)
    say(f"Measuring the {what} model")
    result = evaluate(
        model,
        tokenizer,
        texts,
        max_windows=run_texts.max_windows(args, checkpoint, texts),
        by_token=args.ppl_by_token,
        data_dir=data_dir_for(args.data_dir, *texts),
        batch_size=size,
    )
    for tasks, examples in task_runs:
        limit = run_texts.TESTING_TASK_ITEMS if args.testing else None
        run = evaluate(
            model,
            tokenizer,
            tasks=tasks,
            num_fewshot=examples,
            limit=limit,
            include_path=args.include_path,
            seed=args.seed,
            batch_size=size,
        )
        result.add(run, suffix=f"@{examples}" if examples else "")
    return result


def quantization_arguments(args: argparse.Namespace, checkpoint: Checkpoint) -> dict:
    """What the options mean for `quamba.quantize`, found before anything slow runs."""
    return {
        **utils.recipe_arguments(args, checkpoint.config),
        "group_heads": utils.channel_groups(args),
        "observer": utils.observer_spec(args),
        "observer_options": utils.observer_options(args),
        "calibration": run_texts.calibration_source(args, checkpoint),
        "save_activations": args.save_activations,
        "resume": args.resume,
        **weight_arguments(args, checkpoint, mixed_precision_options.lowest_bits(args, checkpoint.config)),
    }


def weight_arguments(args: argparse.Namespace, checkpoint: Checkpoint, bits: int) -> dict:
    """What they mean for the weights, the fewest bits of a layer being `bits`."""
    weights = weight_method(args, bits)
    progress_dir = None  # where a run keeps the layers that are done, if it does not round all weights at once
    if weights.calibrated:
        folder = Path(args.pretrained_dir or args.log_dir)
        progress_dir = folder / f"{checkpoint.name}-{utils.run_name(args)}-{weights.method}.partial"
    text = run_texts.weight_text(args, checkpoint, weights)
    return {"weights": weights, "weight_text": text, "progress_dir": progress_dir}


def quantize(model, tokenizer, args: argparse.Namespace, arguments: dict) -> dict:
    """Quantizes the model in place; the log's account of the calibration, if any, which --calibration keeps too."""
    source = arguments["calibration"]
    if text := arguments["weight_text"]:
        say(f"Rounding weights, {arguments['weights'].describe()}: on {text.describe()}")
    say(f"Calibrating: {source.describe()}" if source else "Activations stay float")
    quamba.quantize(model, tokenizer, **arguments)
    result, weights = model.quamba_calibration, {"weights": model.quamba_weights} if model.quamba_weights else {}
    if result is None:
        return weights
    return {"calibration": result.figures(), **weights}


def search_layer_schemes(
    args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict, failures: Failures
) -> tuple[str, ...]:
    """The scheme of every layer that a search on a copy of the float model finds; written to a file, and shown."""
    search = mixed_precision_options.requested_search(args, arguments["group_heads"])
    text = run_texts.searched_text(args, checkpoint)
    say(
        f"Searching schemes of the layers, {' or '.join(search.schemes)} within {search.budget.text}: {text.describe()}"
    )
    model, tokenizer = load_checkpoint(checkpoint, utils.DTYPES.get(args.dtype), args.device)
    found = search_schemes(
        model,
        text.windows(tokenizer),
        search,
        utils.observers(args, Anatomy.of(model).architecture.taps) if run_texts.calibrates(args) else {},
        options=arguments["observer_options"],
        batch_size=text.batch_size,
    )
    path = mixed_precision_options.schemes_file(args, checkpoint.name)
    say(to_markdown(frontier_report(found.losses, found.sizes, found.weight_count, [found.assignment])))
    with failures.collected():
        write_layer_schemes(path, found.assignment.schemes, found.figures())
    say(f"schemes     {path}, {found.assignment.mean_bits(found.weight_count):.2f} bits a weight")
    return found.assignment.schemes


def quantize_and_save(
    model,
    tokenizer,
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    arguments: dict,
    target: Path | None,
    failures: Failures,
) -> dict:
    """Quantizes the model in place, after the search that is asked for, and writes it wherever it goes; for the log.

    The model first; what cannot be written is said at the end of the run, and takes nothing else along.
    """
    if args.hybrid_search is not None:
        schemes = search_layer_schemes(args, checkpoint, arguments, failures)
        arguments |= mixed_precision_options.found(args, schemes)
        if not given_weight_options(args):  # the default is that of the bits which layers have now
            folder = arguments["progress_dir"]  # which this run holds
            arguments |= weight_arguments(args, checkpoint, mixed_precision_options.fewest_bits(schemes))
            arguments["progress_dir"] = arguments["progress_dir"] and folder
    found = quantize(model, tokenizer, args, arguments)
    failures.texts += [model.quamba_unwritten] if model.quamba_unwritten else []
    found["saved"] = None
    unsaved = len(failures.texts)
    with failures.collected():
        if target:
            quamba.save(model, tokenizer, target)
            found["saved"] = str(target)
    with failures.collected():
        if args.save_dequantized:
            save_dequantized(model, tokenizer, args.save_dequantized, utils.own_dtype(checkpoint))
    if arguments["progress_dir"] and len(failures.texts) == unsaved:
        with failures.collected():
            arguments["progress_dir"].discard()  # all that it led to is saved
    with failures.collected():
        if args.calibration and "calibration" in found and not isinstance(arguments["calibration"], CalibrationResult):
            model.quamba_calibration.save(args.calibration)
    return found


def simulate_formats(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint, formats: Simulation) -> dict:
    """Makes the model compute in floats what the formats would, in place; the log's account of it."""
    method = weight_method(args, method_bits(formats))
    calibration = run_texts.calibration_text(args, checkpoint)
    text = None if formats.weight.is_float else run_texts.weight_text(args, checkpoint, method)
    say(f"Simulating {formats.name}: {formats.describe()}; on {calibration.describe()}")
    simulate(
        model,
        tokenizer,
        formats,
        utils.observer_spec(args),
        calibration,
        weights=method,
        weight_text=text,
        observer_options=utils.observer_options(args),
    )
    return {"simulation": formats.to_dict()}


def requested_simulation(args: argparse.Namespace) -> Simulation | None:
    """The formats of --simulate, None without it. Raises QuambaError for what is none."""
    if not args.simulate:
        return None
    formats = Simulation.parse(args.simulate, args.group_size, args.dynamic)
    weight_method(args, method_bits(formats))
    return formats


def expected_scheme(args: argparse.Namespace) -> str:
    """What the log of a run is called after, as far as the options tell."""
    if formats := requested_simulation(args):
        return formats.title
    return utils.scheme_name(args) if args.quantize else "fp"


def saved_path(args: argparse.Namespace, checkpoint: Checkpoint) -> Path | None:
    """Where --pretrained_dir says that the quantized model goes, None without it."""
    if not args.pretrained_dir:
        return None
    return Path(args.pretrained_dir) / f"{checkpoint.name}-{utils.run_name(args)}"


def check_evaluation(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Raises QuambaError where an evaluation would fail for a name that does not exist: now, not after hours."""
    _, task_runs = run_texts.evaluation_plan(args, checkpoint)
    if task_runs:
        from quamba.evaluation.lm_eval import check_tasks  # seconds to import, and only tasks need it

        for tasks, _ in task_runs:
            check_tasks(tasks, args.include_path)


def read_evaluation(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Reads all that the evaluation will read. Raises QuambaError for a text or a task that cannot be measured on."""
    texts, task_runs = run_texts.evaluation_plan(args, checkpoint)
    text_windows(model, tokenizer, texts, data_dir=data_dir_for(args.data_dir, *texts))
    for tasks, examples in task_runs:
        from quamba.evaluation.lm_eval import load_tasks

        limit = run_texts.TESTING_TASK_ITEMS if args.testing else None
        load_tasks(tasks, examples, limit, args.include_path, tokenizer, text_config(model).vocab_size, args.seed)


def check_checkpoint(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Raises QuambaError where config.json says already that the model cannot be quantized."""
    if checkpoint.quantization_method is not None:
        raise quamba.QuambaError(f"{checkpoint.path} is quantized already: give the float model it was made from")
    if "model_type" in checkpoint.config:  # the original format has none
        if not isinstance(checkpoint.config["model_type"], str):
            raise quamba.QuambaError(f"{checkpoint.path / 'config.json'}: model_type is no name")
        check_model_type(checkpoint.config["model_type"], get_scheme(utils.scheme_name(args)))


def check_options_of_blocks(model, args: argparse.Namespace, arguments: dict) -> None:
    """Raises QuambaError for options that the blocks of the loaded model have no use for."""
    if run_texts.calibrates(args):
        utils.observer_options(args, Anatomy.of(model).architecture.taps)
    if arguments["group_heads"]:
        asked = [name for name in utils.GROUP_OPTIONS.split() if getattr(args, name) is not None]
        arguments["group_heads"].check(model, asked)
    if search := mixed_precision_options.requested_search(args, arguments["group_heads"]):
        search.check(model)


def read_texts(args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict | None) -> list:
    """What a quantization reads, or an earlier result of it, None among them; none where nothing is quantized."""
    if arguments is None:
        return []
    return [arguments["calibration"], arguments["weight_text"], run_texts.searched_text(args, checkpoint)]


def run(args: argparse.Namespace, parser: argparse.ArgumentParser, held: contextlib.ExitStack) -> None:
    """One whole run: load, measure, quantize, save, measure again, log, summarize; `held`: to its end."""
    if args.plugin and (args.quantize or args.simulate):  # its names may be among the options
        quamba.load_plugin(args.plugin)
    utils.check_quantization_options(args, parser)
    if args.quantize:  # what is wrong with these is said before anything is downloaded
        utils.recipe_arguments(args)
        mixed_precision_options.requested_search(args, utils.channel_groups(args))
        if (bits := mixed_precision_options.lowest_bits(args, None)) is not None:
            weight_method(args, bits)
    if args.quantize or args.simulate:
        utils.observer_options(args)
    requested_simulation(args)
    checkpoint = resolve_checkpoint(args.model, args.pretrained_dir)
    check_evaluation(args, checkpoint)
    arguments, target = None, None
    if args.quantize:
        check_checkpoint(checkpoint, args)
        utils.check_quantization_options(args, parser, checkpoint.config)  # of the layers' own schemes too
        arguments, target = quantization_arguments(args, checkpoint), saved_path(args, checkpoint)
    run_texts.check_data_dir(args, checkpoint, read_texts(args, checkpoint, arguments))
    outputs = run_outputs.outputs_of(args, checkpoint, arguments, target, expected_scheme(args))
    inputs = run_outputs.inputs_of(args, checkpoint, arguments, run_texts.evaluation_plan(args, checkpoint)[0])
    run_outputs.check_run_outputs(args, outputs, inputs, target)
    if arguments and arguments["progress_dir"]:
        arguments["progress_dir"] = held.enter_context(ResumeFolder(arguments["progress_dir"], args.resume))
    model, tokenizer = load_checkpoint(checkpoint, utils.DTYPES.get(args.dtype), args.device)
    if args.quantize:
        recipe = utils.recipe(args, is_one_table(model), checkpoint.config)
        check_quantizable(model, recipe)
        run_outputs.check_run_space(outputs, model, recipe, utils.own_dtype(checkpoint))
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


def main(argv: list[str] | None = None) -> int:
    """The exit status: see `quamba.commands.failures.exit_status`."""
    parser = utils.build_parser()
    args = parser.parse_args(argv)
    utils.set_up_logging(args.verbose)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.ExitStack() as held, reading_once():
        return exit_status(parser.prog, lambda: run(args, parser, held), args.verbose)


if __name__ == "__main__":
    sys.exit(main())
