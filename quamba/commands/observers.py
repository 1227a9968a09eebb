"""`python -m quamba observers`: which observer fits the activations of which tap."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from ..architectures.convert import check_transformable
from ..calibration.recording import (
    SYNTHETIC_SPREAD,
    TapActivations,
    check_recordable,
    open_activations,
    synthetic_activations,
)
from ..calibration.run import CalibrationText
from ..checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from ..errors import QuambaError
from ..evaluation.log import finite
from ..nn.taps import tap_name
from ..observers.per_tensor import observer_names
from ..plugins import load_plugin
from ..study.observers.capture import capture
from ..study.observers.comparison import NORMAL_RATIO, Comparison, compare_observers
from ..study.observers.end_to_end import Evaluation, measure_observers, observers_of
from ..study.observers.report import TERMINAL_WIDTH, aggregate_sections, detail_section, verdict_lines
from ..study.observers.specs import BASELINE, ObserverSpec, parse_specs
from ..study.observers.verdict import EndToEnd, Rule, judge, verdict_dict
from ..text.data import EMBEDDED_MODELS, EmbeddedDefaults
from .arguments import names, positive_int, seed, share
from .console import Console
from .failures import Failures
from .output import check_command_outputs, write_report

NAME = "observers"
HELP = "compare observers on activations, offline, and say by a stated rule which to adopt"
EXAMPLES = """examples:
  python -m quamba observers --synthetic                                10,000 normal values and 100 outliers
  python -m quamba observers --model mamba-tiny --taps x,out --layers 0,3
  python main.py mamba-tiny --quantize --save_activations acts          then, as often as you like:
  python -m quamba observers --activations acts --plot observers.png
  python -m quamba observers --activations acts --plugin mine.py --observer mine:sigmas=4 --observer mse
  python -m quamba observers --model mamba-tiny --end_to_end            with perplexity and accuracy in the verdict
"""
FEW = 6  # comparisons whose details are printed without --details
WITH_MODEL = (
    "pretrained_dir",
    "calib_dataset",
    "calib_data_num",
    "calib_seqlen",
    "batch_size",
    "rotate_residual",
    "save_activations",
)
END_TO_END = ("ppl_dataset", "ppl_windows", "task_list")
RULE_UNITS = {"min_mse_drop": "SHARE", "max_ppl_ratio": "RATIO", "min_accuracy_gain": "POINTS"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    source = parser.add_argument_group("activations, one of").add_mutually_exclusive_group(required=True)
    source.add_argument("--synthetic", action="store_true", help="10,000 normal values and 100 outliers of 5 to 10")
    source.add_argument("--activations", metavar="DIR", type=Path, help="what --save_activations DIR wrote")
    source.add_argument("--model", metavar="NAME", help="captured first from a float model, as for main.py")
    which = parser.add_argument_group("what is compared")
    which.add_argument("--taps", type=names, metavar="A,B", help="only these taps (default: all)")
    which.add_argument("--layers", type=layer_list, metavar="0,3", help="only these layers (default: all)")
    which.add_argument(
        "--observer",
        action="append",
        metavar="NAME[:ARG=VALUE,...]",
        help=f"an observer with its arguments, may be repeated (default: all of {', '.join(observer_names())})",
    )
    which.add_argument("--baseline", default=BASELINE, metavar="NAME", help=f"(default: {BASELINE}, which is max/127)")
    which.add_argument("--plugin", action="append", metavar="FILE", help="registers observers of your own; repeatable")
    which.add_argument("--bits", type=int, default=8, metavar="N", help="of the integers (default: 8)")
    which.add_argument(
        "--normal_ratio",
        type=share,
        metavar="P",
        help=f"values beyond this quantile of |x| are outliers (default: {NORMAL_RATIO})",
    )
    which.add_argument(
        "--seed", type=seed, metavar="N", help="of synthetic values, of the calibration text (default: 0)"
    )
    which.add_argument("--spread", type=float, metavar="S", help=f"of --synthetic (default: {SYNTHETIC_SPREAD})")
    _add_model_arguments(parser.add_argument_group("with --model"))
    rule = parser.add_argument_group("the verdict's rule")
    for figure in fields(Rule):
        rule.add_argument(
            f"--{figure.name}",
            type=float,
            default=figure.default,
            metavar=RULE_UNITS[figure.name],
            help=f"(default: {figure.default})",
        )
    out = parser.add_argument_group("output")
    out.add_argument("--details", action="store_true", help="print every tap of every layer, however many")
    out.add_argument("--format", choices=("table", "markdown", "json"), default="table", help="(default: table)")
    out.add_argument("--output", type=Path, metavar="FILE", help="write Markdown or JSON there, not to the terminal")
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="histogram, reconstruction and heat map as a figure")
    out.add_argument(
        "--plot_tap", metavar="NAME", help="the tap that the figure shows: layers.3.x (default: the first)"
    )


def _add_model_arguments(group) -> None:
    group.add_argument("--pretrained_dir", type=os.path.expanduser, metavar="DIR", help="where models are looked up")
    group.add_argument("--calib_dataset", metavar="NAME|FILE", help="as for main.py, and with the same defaults")
    group.add_argument("--calib_data_num", type=positive_int, metavar="N", help="sequences")
    group.add_argument("--calib_seqlen", type=positive_int, metavar="N", help="tokens of each")
    group.add_argument(
        "--batch_size", type=positive_int, metavar="N", help="sequences at a time, those of the first batch"
    )
    group.add_argument("--rotate_residual", action="store_true", help="Hadamard rotation of the residual stream")
    group.add_argument("--save_activations", type=Path, metavar="DIR", help="keep what was captured")
    group.add_argument("--end_to_end", action="store_true", help="quantize with every observer and measure the models")
    group.add_argument("--ppl_dataset", metavar="NAME|FILE", help="text of --end_to_end (default: as for main.py)")
    group.add_argument("--ppl_windows", type=positive_int, metavar="N", help="only the first windows of that text")
    group.add_argument(
        "--task_list", type=names, metavar="A,B", help="lm-eval tasks of --end_to_end; the first decides"
    )


def layer_list(text: str) -> list[int]:
    """argparse type: `0,3,7`."""
    return [int(layer) for layer in names(text)]


@dataclass
class _Source:
    """Hold where the activations are from."""

    activations: Iterable[TapActivations]
    name: str
    names: Sequence[str]
    real: bool

    @property
    def count(self) -> int:
        """Return how many taps."""
        return len(self.names)


def run(args: argparse.Namespace) -> None:
    """The whole command. Raises QuambaError for what the user can mend."""
    for plugin in args.plugin or ():
        load_plugin(plugin)
    specs = parse_specs(args.observer or observer_names(), args.baseline, args.bits)
    _check(args)
    with ExitStack() as stack:
        checkpoint = _resolve(args) if args.model else None
        evaluation = _evaluation(args, checkpoint, specs) if args.end_to_end else None
        source = _open(args, checkpoint, stack)
        if args.plot_tap and args.plot_tap not in source.names:
            raise QuambaError(f"--plot_tap {args.plot_tap!r} is not compared: {', '.join(source.names)} are")
        comparison = compare_observers(
            source.activations,
            specs,
            source=source.name,
            real=source.real,
            n_bits=args.bits,
            normal_ratio=args.normal_ratio or NORMAL_RATIO,
            total=source.count,
        )
        figure = _figure(args, comparison, source) if args.plot else None
    measured = None
    if evaluation:
        text = _text(args, checkpoint)
        measured = measure_observers(checkpoint, specs, args.taps, text, evaluation, args.rotate_residual)
    rule = Rule(**{figure.name: getattr(args, figure.name) for figure in fields(Rule)})
    failures = Failures()
    with failures.collected():
        _report(args, comparison, rule, measured)
    if figure:
        from ..study.saving import save_figure

        with failures.collected():
            save_figure(figure, args.plot)
            _say(args, f"figure  {args.plot}")
    failures.raise_any()


def _check(args: argparse.Namespace) -> None:
    """Raises QuambaError for options that do nothing here, and for outputs that could not be written."""
    for option in (*WITH_MODEL, "end_to_end"):
        if not args.model and getattr(args, option):
            raise QuambaError(f"--{option} does nothing without --model")
    for option in END_TO_END:
        if not args.end_to_end and getattr(args, option):
            raise QuambaError(f"--{option} does nothing without --end_to_end")
    for option in ("taps", "layers", "normal_ratio"):
        if args.synthetic and getattr(args, option):
            raise QuambaError(f"--{option} does nothing with --synthetic")
    if args.activations and args.seed is not None:
        raise QuambaError("--seed does nothing with --activations, which are recorded already")
    if args.spread is not None and not (args.synthetic and args.spread > 0):
        raise QuambaError(f"--spread {args.spread}: a positive number, and only with --synthetic")
    if args.end_to_end and args.layers:
        raise QuambaError("--end_to_end quantizes whole models: drop --layers")
    if args.end_to_end and args.bits != 8:
        raise QuambaError(f"--end_to_end runs 8-bit activations, not --bits {args.bits}")
    if args.plot_tap and not args.plot:
        raise QuambaError("--plot_tap does nothing without --plot")
    if args.output and args.format == "table":
        raise QuambaError(f"--output {args.output} takes Markdown or JSON: add --format markdown or --format json")
    texts = [text for text in (args.calib_dataset, args.ppl_dataset) if text]
    check_command_outputs(args, texts, {"the activations": args.activations / "x"} if args.activations else None)
    if args.save_activations:
        check_recordable(args.save_activations)


def _resolve(args: argparse.Namespace) -> Checkpoint:
    checkpoint = resolve_checkpoint(args.model, args.pretrained_dir)
    if checkpoint.quantization_method is not None:
        raise QuambaError(f"{checkpoint.path} is quantized already: give the float model it was made from")
    return checkpoint


def _embedded_defaults(checkpoint: Checkpoint) -> EmbeddedDefaults | None:
    return EMBEDDED_MODELS[checkpoint.name] if checkpoint.embedded else None


def _text(args: argparse.Namespace, checkpoint: Checkpoint) -> CalibrationText:
    embedded = _embedded_defaults(checkpoint)
    default = CalibrationText.of(embedded) if embedded else CalibrationText()
    return CalibrationText(
        dataset=args.calib_dataset or default.dataset,
        data_num=args.calib_data_num or default.data_num,
        seqlen=args.calib_seqlen or default.seqlen,
        seed=default.seed if args.seed is None else args.seed,
        batch_size=args.batch_size or default.batch_size,
    )


def _open(args: argparse.Namespace, checkpoint: Checkpoint | None, stack: ExitStack) -> _Source:
    if args.synthetic:
        chosen_seed = args.seed or 0
        values = synthetic_activations(chosen_seed, args.spread or SYNTHETIC_SPREAD)
        return _Source([values], f"synthetic values, seed {chosen_seed}", [values.name], real=False)
    directory = args.activations or args.save_activations
    if args.model:
        directory = directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="quamba-activations-"))
        model, tokenizer = load_checkpoint(checkpoint)
        check_transformable(model)
        text = _text(args, checkpoint)
        capture(model, tokenizer, text, directory, args.taps, args.layers, args.rotate_residual)
    saved = open_activations(directory, args.taps, args.layers)
    return _Source(saved, saved.model, [tap_name(layer, tap) for _, layer, tap, _ in saved.index], real=True)


def _figure(args: argparse.Namespace, comparison: Comparison, source: _Source):
    from ..study.observers.figures import observer_figure

    wanted = args.plot_tap or comparison.taps[0].name
    (activations,) = (each for each in source.activations if each.name == wanted)
    return observer_figure(comparison, activations)


def _evaluation(args: argparse.Namespace, checkpoint: Checkpoint, specs: list[ObserverSpec]) -> Evaluation:
    """Return the evaluation of --end_to_end. Raises QuambaError for what could not be measured, before anything slow
    runs."""
    for spec in specs:
        observers_of(spec, args.taps)
    defaults = _embedded_defaults(checkpoint)
    base = Evaluation.of(defaults) if defaults else Evaluation()
    evaluation = Evaluation(
        dataset=args.ppl_dataset or base.dataset,
        windows=args.ppl_windows or (None if args.ppl_dataset else base.windows),
        tasks=args.task_list or base.tasks,
        batch_size=args.batch_size or base.batch_size,
    )
    evaluation.check()
    return evaluation


def _report(args: argparse.Namespace, comparison: Comparison, rule: Rule, measured: dict[str, EndToEnd] | None) -> None:
    verdicts = judge(comparison, rule, measured)
    if args.format == "json":
        data = {**comparison.to_dict(), **verdict_dict(rule, verdicts, measured)}
        write_report(args, json.dumps(finite(data), indent=1, allow_nan=False) + "\n")
        return
    details = comparison.taps if args.details or len(comparison.taps) <= FEW else []
    sections = [*map(detail_section, details)]
    if len(comparison.taps) > 1:
        sections += aggregate_sections(comparison)
    lines = verdict_lines(rule, verdicts)
    if args.format == "markdown":
        write_report(args, "\n".join([*(section.to_markdown() for section in sections), *lines]) + "\n")
        return
    console = Console()
    console.width = max(console.width, TERMINAL_WIDTH)
    for section in sections:
        console.print(section.to_rich())
    if not details:
        lines.append(
            f"({len(comparison.taps)} taps and layers were compared: --details prints each, --format json too)"
        )
    for line in lines:
        _say(args, line)


def _say(args: argparse.Namespace, line: str) -> None:
    """Print for a reader, never into Markdown or JSON on the standard output."""
    Console(stderr=args.format != "table").print(line, markup=False, highlight=False, soft_wrap=True)
