"""Quantize a Mamba language model and measure it: `python main.py mamba-tiny --quantize --use_outlier_aware`."""

import argparse
import os
import sys
from pathlib import Path

import torch
from rich.console import Console

import quamba
import utils
from quamba.calibration import CalibrationResult, parse_observers
from quamba.checkpoint import Checkpoint, load_checkpoint, recipe_of, resolve_checkpoint
from quamba.data import EMBEDDED_MODELS, asset_hashes
from quamba.evaluate import EvaluationResult, compare, evaluate
from quamba.evaluate.log import environment, write_log
from quamba.evaluate.summary import backend_line, summary_table
from quamba.profile import checkpoint_bytes, memory_bytes, tensor_bytes

console = Console()


def measure(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint, what: str) -> EvaluationResult:
    """Every evaluation that the options ask for."""
    texts, task_runs = utils.evaluation_plan(args, checkpoint)
    max_windows = EMBEDDED_MODELS[checkpoint.name].ppl_windows if checkpoint.embedded else None
    size = utils.batch_size(args, checkpoint)
    console.print(f"Measuring the {what} model")
    result = evaluate(
        model,
        tokenizer,
        texts,
        max_windows=utils.TESTING_PPL_WINDOWS if args.testing else max_windows,
        batch_size=size,
    )
    for tasks, examples in task_runs:
        limit = utils.TESTING_TASK_ITEMS if args.testing else None
        run = evaluate(
            model,
            tokenizer,
            tasks=tasks,
            num_fewshot=examples,
            limit=limit,
            include_path=args.include_path,
            batch_size=size,
        )
        result.add(run, suffix=f"@{examples}" if examples else "")
    return result


def calibration_source(args: argparse.Namespace, checkpoint: Checkpoint):
    """An earlier result where --calibration names an existing file, else the text to calibrate on."""
    if args.calibration and Path(args.calibration).exists():
        return CalibrationResult.load(args.calibration)
    return utils.calibration_text(args, checkpoint)


def quantize(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint) -> dict:
    """Quantizes the model in place and saves what the options ask for; the log's account of it."""
    observer = utils.observer_spec(args)
    source = calibration_source(args, checkpoint)
    console.print(f"Calibrating: {source.describe()}")
    quamba.quantize(
        model,
        tokenizer,
        scheme=utils.scheme_name(args),
        observer=observer,
        calibration=source,
        observer_options=utils.observer_options(args, parse_observers(observer)),
        quantize_embedding=args.quantize_embedding,
        quantize_lm_head=args.quantize_lm_head,
        rotate_residual=args.rotate_residual,
    )
    result = model.quamba_calibration
    if args.calibration and not isinstance(source, CalibrationResult):
        result.save(args.calibration)
    return result.to_dict()


def save(model, tokenizer, args: argparse.Namespace, checkpoint: Checkpoint) -> Path | None:
    """Saves the quantized model where --pretrained_dir says; the folder."""
    if not args.pretrained_dir:
        return None
    return quamba.save(model, tokenizer, Path(args.pretrained_dir) / f"{checkpoint.name}-{utils.scheme_name(args)}")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """One whole run: load, measure, quantize, save, measure again, log, summarize."""
    utils.check_quantization_options(args, parser)
    if args.plugin:
        quamba.load_plugin(args.plugin)
    if args.quantize:
        parse_observers(utils.observer_spec(args))
        utils.scheme_name(args)
    torch.manual_seed(args.seed)
    checkpoint = resolve_checkpoint(args.model, args.pretrained_dir)
    utils.evaluation_plan(args, checkpoint)
    model, tokenizer = load_checkpoint(checkpoint, utils.DTYPES[args.dtype], args.device)
    log = {
        "args": utils.plain_options(args),
        "env": environment(args.seed, model.device.type),
        "model": utils.model_name(checkpoint, recipe_of(model)),
    }
    if checkpoint.embedded:
        log["assets_sha256"] = asset_hashes()
    disk_bytes, float_result = checkpoint_bytes(checkpoint.path), None
    if args.quantize:
        if not args.skip_float:
            float_result = measure(model, tokenizer, args, checkpoint, "float")
            log["float"] = {**float_result, "size": {"disk_bytes": disk_bytes, "memory_bytes": memory_bytes(model)}}
        log["calibration"] = quantize(model, tokenizer, args, checkpoint)
        saved = save(model, tokenizer, args, checkpoint)
        disk_bytes = checkpoint_bytes(saved) if saved else tensor_bytes(model)
        log["saved"] = str(saved) if saved else None
    recipe = recipe_of(model)
    log["scheme"] = recipe.scheme.name if recipe else "fp"
    log["recipe"] = recipe.to_dict() if recipe else None
    result = measure(model, tokenizer, args, checkpoint, log["scheme"] if recipe else "float")
    log |= {**result, "size": {"disk_bytes": disk_bytes, "memory_bytes": memory_bytes(model)}}
    path = write_log(log, args.log_dir, f"{log['model']}_{log['scheme']}")
    report(log, compare(float_result, result) if float_result else None, path)


def report(log: dict, intervals: dict | None, path: Path) -> None:
    """Prints the table and where things are."""
    console.print()
    console.print(summary_table(log, intervals))
    if calibration := log.get("calibration"):
        by_observer = {}
        for tap, name in calibration["observer"].items():
            by_observer.setdefault(name, []).append(tap)
        console.print("observers   " + "; ".join(f"{name}: {', '.join(taps)}" for name, taps in by_observer.items()))
        console.print(f"calibrated  on {calibration['tokens']} tokens in {calibration['seconds']:.1f} s")
    console.print(f"kernels     {backend_line(log['env']['backends'])}")
    if "saved" in log:
        console.print(f"saved to    {log['saved'] or 'nowhere: give --pretrained_dir DIR'}")
    console.print(f"log         {path}")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 2 for a mistake in the options or the files, 130 when interrupted."""
    parser = utils.build_parser()
    args = parser.parse_args(argv)
    utils.set_up_logging(args.verbose)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        run(args, parser)
    except quamba.QuambaError as error:
        if args.verbose:
            raise
        print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("main.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
