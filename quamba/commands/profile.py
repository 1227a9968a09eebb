"""`python -m quamba profile`: how large a model is and how fast it answers, alone or beside its float model."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from ..checkpoint import METHOD, Checkpoint, load_checkpoint, recipe_of, resolve_checkpoint
from ..errors import QuambaError
from ..evaluation.latency import Spread, paired_ratios, random_prompt, time_run, time_runs
from ..evaluation.log import environment
from ..generation.decoder import Decoder
from ..models.memory import checkpoint_bytes, memory_bytes, peak_memory_bytes, reset_peak_memory
from ..models.positions import check_positions
from ..models.text_config import text_config
from ..storage.files import write_output
from .arguments import positive_int, seed
from .console import Console
from .failures import Failures
from .output import STANDARD_OUTPUT, check_command_outputs

NAME = "profile"
HELP = "measure the size of a model and how fast it answers: to the first token, for each, to the last"
EXAMPLES = """examples:
  python -m quamba profile mamba-tiny
  python -m quamba profile models/mamba-130m-w8a8 --float mamba-130m --json profile.json
  python -m quamba profile models/mamba-130m-w8a8 --tpot --gen_len 256 --repeats 9 --threads 1
  python -m quamba profile mamba-tiny --ttft --prompt_len 2048 --batch_size 4
  python -m quamba profile mamba-tiny --size --json -

Every model runs once to warm up, then --repeats times; two models take turns. All is greedy, on random token ids.
"""
SIZE, TTFT, TPOT, TTLT = FIGURES = ("size", "ttft", "tpot", "ttlt")
PROMPT_LEN, GEN_LEN, BATCH_SIZE, REPEATS = 512, 64, 1, 5
LABELS = {
    "disk_bytes": "on disk, MB",
    "memory_bytes": "in memory, MB",
    "peak_bytes": "peak of process, MB",
    TTFT: "first token, ms",
    TPOT: "each further, ms",
    TTLT: "last token, ms",
}
MEGABYTE, MILLISECONDS = 1e6, 1e3
TABLE_WIDTH = 118
REPOSITORY = Path(__file__).parents[2]  # where the package is imported from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", help="as for main.py: a folder, mamba-tiny, a short name or a hub id")
    parser.add_argument("--pretrained_dir", type=os.path.expanduser, metavar="DIR", help="where models are looked up")
    parser.add_argument(
        "--float", metavar="MODEL2", help="of a quantized MODEL: a float model to put beside it, the two taking turns"
    )
    what = parser.add_argument_group("what is measured (default: all four)")
    what.add_argument("--size", action="store_true", help="on disk, of the tensors in memory, peak of the process")
    what.add_argument("--ttft", action="store_true", help="time to first token: prefill and argmax")
    what.add_argument("--tpot", action="store_true", help="time per output token: median of --gen_len single steps")
    what.add_argument("--ttlt", action="store_true", help="time to last token: prefill and --gen_len steps")
    how = parser.add_argument_group("how")
    how.add_argument("--prompt_len", type=positive_int, metavar="N", help=f"tokens (default: {PROMPT_LEN})")
    how.add_argument("--gen_len", type=positive_int, metavar="N", help=f"tokens after the first (default: {GEN_LEN})")
    how.add_argument("--batch_size", type=positive_int, metavar="N", help=f"sequences (default: {BATCH_SIZE})")
    how.add_argument("--repeats", type=positive_int, metavar="N", help=f"timed runs (default: {REPEATS})")
    how.add_argument("--threads", type=positive_int, metavar="N", help="of the processor (default: as torch chooses)")
    how.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random prompt (default: 0)")
    how.add_argument(
        "--json", metavar="FILE", help="write every measurement there; - for the standard output, the table goes aside"
    )


@dataclass
class _Subject:
    """A model that is measured."""

    name: str  # as the user gave it
    checkpoint: Checkpoint
    peak: dict | None = None  # measured before it was loaded, in a process of its own
    label: str = ""
    decoder: Decoder | None = None


def run(args: argparse.Namespace) -> None:
    """The whole command. Raises QuambaError for what the user can mend."""
    figures = [figure for figure in FIGURES if getattr(args, figure)] or list(FIGURES)
    _check(args, figures)
    for name, default in (("prompt_len", PROMPT_LEN), ("gen_len", GEN_LEN), ("batch_size", BATCH_SIZE)):
        setattr(args, name, getattr(args, name) or default)
    args.repeats = args.repeats or REPEATS
    subjects = _resolve(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    if SIZE in figures and len(subjects) > 1:
        for subject in subjects:
            subject.peak = _peak_in_own_process(args, subject.name)
    for subject in subjects:
        model, _ = load_checkpoint(subject.checkpoint)
        check_positions(model.config, args.prompt_len + args.gen_len, "--prompt_len plus --gen_len")
        recipe = recipe_of(model)
        subject.label, subject.decoder = recipe.name if recipe else "float", Decoder(model)
    report = _measure(args, figures, subjects)
    failures = Failures()
    with failures.collected():
        _print(report, Console(stderr=args.json == STANDARD_OUTPUT))
    with failures.collected():
        _write_json(args, report)
    failures.raise_any()


def _write_json(args: argparse.Namespace, report: dict) -> None:
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if args.json == STANDARD_OUTPUT:
        sys.stdout.write(text)
    elif args.json:
        write_output(Path(args.json), text)


def _check(args: argparse.Namespace, figures: list[str]) -> None:
    """Raises QuambaError for options that do nothing here, and for a file that could not be written."""
    if args.repeats and figures == [SIZE]:
        raise QuambaError("--repeats does nothing with --size alone: add --ttft, --tpot or --ttlt")
    if args.gen_len and figures == [TTFT]:
        raise QuambaError("--gen_len does nothing with --ttft alone: add --tpot, --ttlt or --size")
    check_command_outputs(args)


def _resolve(args: argparse.Namespace) -> list[_Subject]:
    """The models, found and of the right kind."""
    subjects = [_Subject(args.model, resolve_checkpoint(args.model, args.pretrained_dir))]
    if args.float is None:
        return subjects
    if subjects[0].checkpoint.quantization_method != METHOD:
        raise QuambaError(f"--float puts a float model beside a quantized one, and {args.model} is not quantized by us")
    subjects.append(_Subject(args.float, resolve_checkpoint(args.float, args.pretrained_dir)))
    if subjects[1].checkpoint.quantization_method is not None:
        raise QuambaError(f"--float {args.float} is quantized: give the float model that {args.model} was made from")
    return subjects


def _peak_in_own_process(args: argparse.Namespace, name: str) -> dict:
    """peak_bytes and peak_since of one model: two in one process would each count the other's memory."""
    command = [sys.executable, "-m", "quamba", "profile", name, "--size", "--json", "-"]
    for option in ("pretrained_dir", "prompt_len", "gen_len", "batch_size", "seed", "threads"):
        if (value := getattr(args, option)) is not None:
            command += [f"--{option}", str(value)]
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"its process ended with status {ended.returncode}"]
        raise QuambaError(f"the peak memory of {name} could not be measured: {last[0]}")
    (size,) = (model["size"] for model in json.loads(ended.stdout)["models"])
    return {key: size[key] for key in ("peak_bytes", "peak_since")}


def _measure(args: argparse.Namespace, figures: list[str], subjects: list[_Subject]) -> dict:
    """All measurements as plain data: times in seconds, sizes in bytes, ratios of the first model to the second."""
    vocab_size = min(text_config(subject.decoder.model).vocab_size for subject in subjects)
    prompt = random_prompt(vocab_size, args.batch_size, args.prompt_len, args.seed)  # [B, L]
    gen_len = 0 if figures == [TTFT] else args.gen_len
    models = []
    for subject in subjects:
        entry = {"name": subject.name, "path": str(subject.checkpoint.path), "label": subject.label}
        since = "the model was loaded" if reset_peak_memory() else "the process started"
        time_run(subject.decoder, prompt, gen_len)  # the warm-up, whose peak of memory is that of every run
        if SIZE in figures:
            peak = subject.peak or {"peak_bytes": peak_memory_bytes(), "peak_since": since}
            model, folder = subject.decoder.model, subject.checkpoint.path
            entry[SIZE] = {"disk_bytes": checkpoint_bytes(folder), "memory_bytes": memory_bytes(model), **peak}
        models.append(entry)
    timed = [figure for figure in figures if figure != SIZE]
    if timed:
        decoders = {str(index): subject.decoder for index, subject in enumerate(subjects)}
        seconds = time_runs(decoders, prompt, gen_len, args.repeats, progress=sys.stderr.isatty())
        for index, entry in enumerate(models):
            for figure in timed:
                values = seconds[str(index)][figure]
                entry[figure] = {**Spread.of(values).to_dict(), "seconds": values}
    settings = {name: getattr(args, name) for name in ("prompt_len", "batch_size", "seed")}
    settings |= {"gen_len": gen_len} | ({"repeats": args.repeats} if timed else {})
    report = {"settings": settings, "env": environment(args.seed, "cpu"), "models": models}
    return report | ({"ratio": _ratios(*models)} if len(models) > 1 else {})


def _ratios(first: dict, second: dict) -> dict:
    """Return the ratio of every figure that both have; of times the spread of the ratios of runs that were made in
    turn."""
    ratios = {}
    for figure in FIGURES:
        if figure == SIZE and SIZE in first:
            sizes = {key: value / second[SIZE][key] for key, value in first[SIZE].items() if key.endswith("_bytes")}
            ratios[SIZE] = sizes
        elif figure in first:
            ratios[figure] = paired_ratios(first[figure]["seconds"], second[figure]["seconds"]).to_dict()
    return ratios


def _print(report: dict, console: Console) -> None:
    """The table, and under it what its figures are."""
    models, ratio, settings, env = report["models"], report.get("ratio"), report["settings"], report["env"]
    table = Table(title=escape(" and ".join(model["name"] for model in models)), title_justify="left")
    for title in ("", *(model["label"] for model in models)):
        table.add_column(escape(title), justify="right" if title else "left")
    if ratio:
        table.add_column(escape(f"{models[0]['label']} / {models[1]['label']}"), justify="right")
    for key, label in LABELS.items():
        figure, unit = (SIZE, 1 / MEGABYTE) if key.endswith("_bytes") else (key, MILLISECONDS)
        if figure in models[0]:
            cells = [_cell(model[figure], key, "", "{:.2f}", unit) for model in models]
            table.add_row(label, *cells, *([_cell(ratio[figure], key, "x", "{:.3f}", 1)] if ratio else []))
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)
    further = f", {settings['gen_len']} after the first" if settings["gen_len"] else ""
    lines = [
        f"prompt of {settings['prompt_len']} tokens{further}; batch of {settings['batch_size']}; "
        f"threads: {env['threads']}; {env['instruction_set']}"
    ]
    if "repeats" in settings:
        lines.append(f"times: median [min, max] and interquartile range of {settings['repeats']} runs")
    if SIZE in models[0]:
        alone = ", each model in a process of its own" if ratio else ""
        lines.append(f"peak of process: resident memory since {models[0][SIZE]['peak_since']}{alone}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(figure: dict, key: str, prefix: str, form: str, unit: float) -> str:
    """A size or a ratio of sizes as one number; of a time median, extremes and interquartile range, of ratios too."""
    if key in figure:
        return prefix + form.format(figure[key] * unit)
    median, low, high, iqr = (form.format(figure[name] * unit) for name in ("median", "min", "max", "iqr"))
    return f"{prefix}{median} [{low}, {high}] {iqr}"
