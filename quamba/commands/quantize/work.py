"""What a run does to a model: quantize and save it, or make it simulate formats."""

import argparse
from pathlib import Path

from ...architectures.anatomy import Anatomy
from ...calibration.run import CalibrationResult
from ...checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_dequantized,
    save_quantized,
    saved_dtype,
)
from ...mixed_precision.layer_file import write_layer_schemes
from ...mixed_precision.run import search_schemes
from ...pipeline.quantize import quantize as quantize_model
from ...pipeline.simulate import method_bits, reads_text, simulate
from ...scheme.simulation import Simulation
from ...study.mixed_precision_report import frontier_report, to_markdown
from ..failures import Failures
from . import mixed_precision_options, recipe_options
from . import texts as run_texts
from .measuring import say
from .parser import DTYPES
from .weight_options import given_weight_options, weight_method


def quantization_arguments(args: argparse.Namespace, checkpoint: Checkpoint) -> dict:
    """Return what the options mean for `quamba.quantize`, found before anything slow runs."""
    return {
        **recipe_options.recipe_arguments(args, checkpoint.config),
        "group_heads": recipe_options.channel_groups(args),
        "observer": recipe_options.observer_spec(args),
        "observer_options": recipe_options.observer_options(args),
        "calibration": run_texts.calibration_source(args, checkpoint),
        "save_activations": args.save_activations,
        "resume": args.resume,
        **weight_arguments(args, checkpoint, mixed_precision_options.lowest_bits(args, checkpoint.config)),
    }


def weight_arguments(args: argparse.Namespace, checkpoint: Checkpoint, bits: int) -> dict:
    """Return what they mean for the weights, the fewest bits of a layer being `bits`."""
    weights = weight_method(args, bits)
    progress_dir = None  # where a run keeps the layers that are done, if it does not round all weights at once
    if weights.calibrated:
        folder = Path(args.pretrained_dir or args.log_dir)
        progress_dir = folder / f"{checkpoint.name}-{recipe_options.run_name(args)}-{weights.method}.partial"
    text = run_texts.weight_text(args, checkpoint, weights)
    return {"weights": weights, "weight_text": text, "progress_dir": progress_dir}


def quantize(model, tokenizer, args: argparse.Namespace, arguments: dict) -> dict:
    """Quantizes the model in place; the log's account of the calibration, if any, which --calibration keeps too."""
    source = arguments["calibration"]
    if text := arguments["weight_text"]:
        say(f"Rounding weights, {arguments['weights'].describe()}: on {text.describe()}")
    say(f"Calibrating: {source.describe()}" if source else "Activations stay float")
    quantize_model(model, tokenizer, **arguments)
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
    model, tokenizer = load_checkpoint(checkpoint, DTYPES.get(args.dtype), args.device)
    found = search_schemes(
        model,
        text.windows(tokenizer),
        search,
        recipe_options.observers(args, Anatomy.of(model).architecture.taps) if run_texts.calibrates(args) else {},
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
            save_quantized(model, tokenizer, target)
            found["saved"] = str(target)
    with failures.collected():
        if args.save_dequantized:
            save_dequantized(model, tokenizer, args.save_dequantized, saved_dtype(checkpoint))
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
    read = f"; on {calibration.describe()}" if reads_text(formats, method) else ""
    say(f"Simulating {formats.name}: {formats.describe()}{read}")
    simulate(
        model,
        tokenizer,
        formats,
        recipe_options.observer_spec(args),
        calibration,
        weights=method,
        weight_text=text,
        observer_options=recipe_options.observer_options(args),
    )
    return {"simulation": formats.to_dict()}
