"""Quantize a Mamba language model and measure it: `python main.py mamba-tiny --quantize --use_outlier_aware`."""

import os

# before torch is imported: a thread that waits spins for some ten microseconds, then gives up its core. To sleep at
# once costs short ops a third of their speed, to spin on takes the core from a busy machine's other processes.
if "OMP_WAIT_POLICY" not in os.environ:  # a policy that the user chose stays in force
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import quamba
import utils
from quamba.activations import check_recordable
from quamba.architectures import architecture_of
from quamba.calibration import CalibrationResult, CalibrationText
from quamba.checkpoint import (
    Checkpoint,
    check_new_folder,
    check_replaceable,
    load_checkpoint,
    recipe_of,
    resolve_checkpoint,
    save_dequantized,
)
from quamba.commands import hybrid_options, run_texts
from quamba.commands.failures import exit_status
from quamba.commands.weight_options import given_weight_options, weight_method
from quamba.convert import check_model_type, check_quantizable
from quamba.data import asset_hashes
from quamba.evaluate import EvaluationResult, compare, evaluate
from quamba.evaluate.log import environment, kernels_run, write_log
from quamba.evaluate.summary import backend_line, summary_table
from quamba.files import require_writable, require_writable_file
from quamba.hybrid_blocks import check_searchable, write_layer_schemes
from quamba.hybrid_run import search_schemes
from quamba.mamba_slots import mamba_layers
from quamba.profile import checkpoint_bytes, memory_bytes, tensor_bytes
from quamba.scheme import QuantizationRecipe, get_scheme
from quamba.study.hybrid_report import hybrid_report, to_markdown
from quamba.text_sources import data_dir_for
from quamba.tying import is_one_table
from quamba.weight_resume import ResumeFolder

console = Console()


def say(text: str = "") -> None:
    """Prints a line as it is: paths may hold brackets, which are no markup, and are copied whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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
        "group_heads": utils.head_groups(args),
        "observer": utils.observer_spec(args),
        "observer_options": utils.observer_options(args),
        "calibration": run_texts.calibration_source(args, checkpoint),
        "save_activations": args.save_activations,
        "resume": args.resume,
        **weight_arguments(args, checkpoint, hybrid_options.lowest_bits(args, checkpoint.config)),
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
    if args.calibration and not isinstance(source, CalibrationResult):
        result.save(args.calibration)
    return {"calibration": result.figures(), **weights}


def search_layer_schemes(args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict) -> tuple[str, ...]:
    """The scheme of every layer that a search on a copy of the float model finds; written to a file, and shown."""
    search = hybrid_options.hybrid_search(args, arguments["group_heads"])
    text = run_texts.searched_text(args, checkpoint)
    say(
        f"Searching schemes of the layers, {' or '.join(search.schemes)} within {search.budget.text}: {text.describe()}"
    )
    model, tokenizer = load_checkpoint(checkpoint, utils.DTYPES.get(args.dtype), args.device)
    found = search_schemes(
        model,
        text.windows(tokenizer),
        search,
        utils.observers(args, architecture_of(model).taps) if run_texts.calibrates(args) else {},
        options=arguments["observer_options"],
        batch_size=text.batch_size,
    )
    path = hybrid_options.schemes_file(args, checkpoint.name)
    write_layer_schemes(path, found.assignment.schemes, found.figures())
    say(to_markdown(hybrid_report(found.losses, found.sizes, found.weight_count, [found.assignment])))
    say(f"schemes     {path}, {found.assignment.mean_bits(found.weight_count):.2f} bits a weight")
    return found.assignment.schemes


def quantize_and_save(
    model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict, target: Path | None
) -> dict:
    """Quantizes the model in place, after the search that is asked for, and writes it wherever it goes; for the log."""
    if args.hybrid_search is not None:
        schemes = search_layer_schemes(args, checkpoint, arguments)
        arguments |= hybrid_options.found(args, schemes)
        if not given_weight_options(args):  # the default is that of the bits which layers have now
            folder = arguments["progress_dir"]  # which this run holds
            arguments |= weight_arguments(args, checkpoint, hybrid_options.fewest_bits(schemes))
            arguments["progress_dir"] = arguments["progress_dir"] and folder
    found = quantize(model, tokenizer, args, arguments)
    if target:
        quamba.save(model, tokenizer, target)
    if args.save_dequantized:
        save_dequantized(model, tokenizer, args.save_dequantized, utils.own_dtype(checkpoint))
    if arguments["progress_dir"]:
        arguments["progress_dir"].discard()  # all that it led to is saved
    return found


def saved_path(args: argparse.Namespace, checkpoint: Checkpoint) -> Path | None:
    """Where --pretrained_dir says that the quantized model goes, None without it."""
    if not args.pretrained_dir:
        return None
    return Path(args.pretrained_dir) / f"{checkpoint.name}-{utils.run_name(args)}"


def check_evaluation(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Raises QuambaError where an evaluation would fail for a name that does not exist: now, not after hours."""
    _, task_runs = run_texts.evaluation_plan(args, checkpoint)
    if task_runs:
        from quamba.evaluate.lm_eval import check_tasks  # seconds to import, and only tasks need it

        for tasks, _ in task_runs:
            check_tasks(tasks, args.include_path)


def check_checkpoint(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Raises QuambaError where config.json says already that the model cannot be quantized."""
    if checkpoint.quantization_method is not None:
        raise quamba.QuambaError(f"{checkpoint.path} is quantized already: give the float model it was made from")
    if "model_type" in checkpoint.config:  # the original format has none
        check_model_type(checkpoint.config["model_type"], get_scheme(utils.scheme_name(args)))


def check_options_of_blocks(model, args: argparse.Namespace, arguments: dict) -> None:
    """Raises QuambaError for options that the blocks of the loaded model have no use for."""
    if run_texts.calibrates(args):
        utils.observer_options(args, architecture_of(model).taps)
    if arguments["group_heads"]:
        asked = [name for name in utils.GROUP_OPTIONS.split() if getattr(args, name) is not None]
        arguments["group_heads"].check(model, asked)
    if search := hybrid_options.hybrid_search(args, arguments["group_heads"]):
        search.check(model)


def read_texts(args: argparse.Namespace, checkpoint: Checkpoint, arguments: dict | None) -> list:
    """What a quantization reads, or an earlier result of it, None among them; none where nothing is quantized."""
    if arguments is None:
        return []
    return [arguments["calibration"], arguments["weight_text"], run_texts.searched_text(args, checkpoint)]


def check_outputs(args: argparse.Namespace, checkpoint: Checkpoint, target: Path | None) -> None:
    """Raises QuambaError where what the run makes could not be written: now, not after the work."""
    require_writable(Path(args.log_dir))
    if args.calibration:
        require_writable_file(Path(args.calibration), "--calibration")
    if args.save_activations:
        check_recordable(args.save_activations)
    if args.hybrid_search is not None:
        file = hybrid_options.schemes_file(args, checkpoint.name)
        check_searchable(file)
        require_writable_file(file)
    if args.save_dequantized:
        check_new_folder(Path(args.save_dequantized))
        require_writable(Path(args.save_dequantized).resolve().parent)
    if target:
        require_writable(target.parent)
        check_replaceable(target)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser, held: contextlib.ExitStack) -> None:
    """One whole run: load, measure, quantize, save, measure again, log, summarize; `held`: to its end."""
    if args.plugin and args.quantize:  # its names may be among the options
        quamba.load_plugin(args.plugin)
    utils.check_quantization_options(args, parser)
    if args.quantize:  # what is wrong with these is said before anything is downloaded
        utils.recipe_arguments(args)
        hybrid_options.hybrid_search(args, utils.head_groups(args))
        if (bits := hybrid_options.lowest_bits(args, None)) is not None:
            weight_method(args, bits)
        utils.observer_options(args)
    checkpoint = resolve_checkpoint(args.model, args.pretrained_dir)
    check_evaluation(args, checkpoint)
    arguments, target = None, None
    if args.quantize:
        check_checkpoint(checkpoint, args)
        utils.check_quantization_options(args, parser, checkpoint.config)  # of the layers' own schemes too
        arguments, target = quantization_arguments(args, checkpoint), saved_path(args, checkpoint)
    run_texts.check_data_dir(args, checkpoint, read_texts(args, checkpoint, arguments))
    check_outputs(args, checkpoint, target)
    if arguments and arguments["progress_dir"]:
        arguments["progress_dir"] = held.enter_context(ResumeFolder(arguments["progress_dir"], args.resume))
    model, tokenizer = load_checkpoint(checkpoint, utils.DTYPES.get(args.dtype), args.device)
    if args.quantize:
        check_quantizable(model, utils.recipe(args, is_one_table(model), checkpoint.config))
        check_options_of_blocks(model, args, arguments)
        for text in read_texts(args, checkpoint, arguments):
            if isinstance(text, CalibrationText):
                text.windows(tokenizer)  # a text that cannot be read is said now
    log = {
        "args": vars(args),
        "env": environment(args.seed, model.device.type),
        "model": run_texts.model_name(checkpoint),
    }
    if run_texts.embedded_defaults(checkpoint):
        log["assets_sha256"] = asset_hashes()
    disk_bytes, float_result = checkpoint_bytes(checkpoint.path), None
    if args.quantize:
        if not args.skip_float:
            float_result = measure(model, tokenizer, args, checkpoint, "float")
            log["float"] = {**float_result, "size": {"disk_bytes": disk_bytes, "memory_bytes": memory_bytes(model)}}
        log |= quantize_and_save(model, tokenizer, args, checkpoint, arguments, target)
        disk_bytes = checkpoint_bytes(target) if target else tensor_bytes(model)
        log["saved"] = str(target) if target else None
    recipe = recipe_of(model)
    log["scheme"] = recipe.name if recipe else "fp"
    log["kernels"] = kernels_run(model)
    log["recipe"] = recipe.to_dict() if recipe else None
    result = measure(model, tokenizer, args, checkpoint, log["scheme"] if recipe else "float")
    log["ppl_text_sha256"] = result.text_sha256
    log["ppl_tokens"] = {dataset: windows.tokens for dataset, windows in result.windows.items()}
    log |= {**result, "size": {"disk_bytes": disk_bytes, "memory_bytes": memory_bytes(model)}}
    items = result.item_values() | ({"float": float_result.item_values()} if float_result else {})
    path = write_log(log, args.log_dir, f"{log['model']}_{log['scheme']}", items)
    blocks = mamba_layers(model) if recipe else []
    report(log, blocks, compare(float_result, result) if float_result else None, path)


def report(log: dict, blocks: Sequence[bool], intervals: dict | None, path: Path) -> None:
    """Prints the table and where things are; `blocks`: which decoder layers have a Mamba block."""
    say()
    console.print(summary_table(log, intervals))
    if log["recipe"]:
        say(f"recipe      {QuantizationRecipe.from_dict(log['recipe']).describe(blocks)}")
    if weights := log.get("weights"):
        say(f"weights     {weights_line(weights)}")
    if calibration := log.get("calibration"):
        by_observer = {}
        for tap, name in calibration["observer"].items():
            by_observer.setdefault(name, []).append(tap)
        say("observers   " + "; ".join(f"{name}: {', '.join(taps)}" for name, taps in by_observer.items()))
        say(f"calibrated  on {calibration['tokens']} tokens in {calibration['seconds']:.1f} s")
        if activations := log["args"]["save_activations"]:
            say(f"activations {activations} (compare scales on them: python -m quamba observers --activations DIR)")
    say(f"kernels     {backend_line(log['kernels'])}")
    if "saved" in log:
        say(f"saved to    {log['saved'] or 'nowhere: give --pretrained_dir DIR'}")
    say(f"log         {path}")


def weights_line(weights: dict) -> str:
    """What became of the weights: `alpha 0.05 to 0.60, output errors 0.81 of rounding to nearest; ...`."""
    reports = list(weights["reports"].values())
    alphas = [report["alpha"] for report in reports if report["alpha"] is not None]
    ratios = [report["error"] / report["nearest_error"] for report in reports if report["nearest_error"] > 0]
    flips = [sum(found["flips"] for found in report["flips"].values()) for report in reports if report["flips"]]
    parts = [f"alpha {min(alphas):.2f} to {max(alphas):.2f}"] if alphas else []
    parts += [f"output errors {sum(ratios) / len(ratios):.2f} of rounding to nearest"] if ratios else []
    parts += [f"{sum(flips)} flips"] if flips else []
    peak = f"peak {weights['peak_bytes'] / 1e9:.1f} GB"
    return f"{', '.join(parts)}; {weights['tokens']} tokens in {weights['seconds']:.1f} s, {peak}"


def main(argv: list[str] | None = None) -> int:
    """The exit status: see `quamba.commands.failures.exit_status`."""
    parser = utils.build_parser()
    args = parser.parse_args(argv)
    utils.set_up_logging(args.verbose)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.ExitStack() as held:
        return exit_status(parser.prog, lambda: run(args, parser, held), args.verbose)


if __name__ == "__main__":
    sys.exit(main())
