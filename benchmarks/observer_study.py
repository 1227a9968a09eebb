"""The measurements of docs/observer-study.md: `python benchmarks/observer_study.py [--part NAME ...]`.

Everything that was measured is kept in --work DIR, a file per run, so that an interrupted study goes on where it was.
Taps are quantized in a float model (weights float) unless a part is called `int8`, where the real kernels run.
"""

import argparse
import dataclasses
import json
import sys
import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba
from benchmarks.made_by import LIBRARIES, PACKAGE, sources_sha256
from quamba.architectures.convert import install_float_mixers
from quamba.calibration.defaults import parse_observers
from quamba.calibration.recording import open_activations
from quamba.calibration.run import calibrate, default_text, model_fingerprint
from quamba.evaluation import EvaluationResult, compare
from quamba.evaluation.compare import perplexity_ratio
from quamba.evaluation.perplexity import PerplexityResult, perplexity
from quamba.nn.mamba1 import TAPS
from quamba.pipeline.fake_quantize import fake_quantized
from quamba.pipeline.quantize import transform
from quamba.storage.files import write_text_atomically
from quamba.study.observers.capture import capture
from quamba.study.observers.comparison import compare_observers
from quamba.study.observers.specs import parse_spec, parse_specs
from quamba.text.data import EMBEDDED_MODELS, evaluation_windows, load_text

MODEL = "mamba-tiny"
RATIOS = (0.95, 0.97, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999)
LEVELS = (112, 116, 120, 124, 127)
LEVEL_RATIOS = (0.99, 0.999, 0.9999)
BASIC = ("minmax", "percentile", "mse", "outlier_aware", "outlier_aware_adaptive", "outlier_aware:normal_ratio=0.9999")
SEEDS = (0, 1, 2)  # of the calibration text
TEXT, ACCURACY = EMBEDDED_MODELS[MODEL].ppl_dataset, "acc,none"
# label -> (observer of each tap, constructor arguments by observer)
INT8 = {
    "minmax on every tap": ("all=minmax", {}),
    "percentile on x, minmax elsewhere": ("all=minmax,x=percentile", {}),
    "percentile on every tap": ("all=percentile", {}),
    "mse on every tap": ("all=mse", {}),
    "the best of each tap": ("all=minmax,in=percentile,conv_in=percentile,z=percentile,x=mse,out=mse", {}),
    "outlier_aware 0.99 -> 120 on x": ("all=minmax,x=outlier_aware", {}),
    "outlier_aware 0.9999 -> 120 on every tap": ("all=outlier_aware", {"outlier_aware": {"normal_ratio": 0.9999}}),
}


def outlier_aware(ratio: float, level: int | None = None) -> str:
    """The observer's name on the command line."""
    return f"outlier_aware:normal_ratio={ratio}" + (f",normal_level={level}" if level else "")


class Study:
    """One float model, transformed, and what was measured of it so far."""

    def __init__(self, work: Path, windows: int):
        made_by = sources_sha256("benchmarks/observer_study.py", *PACKAGE, *LIBRARIES, "quamba/assets/*/*.safetensors")
        self.work, self.window_count = work / made_by[:16], windows  # other code measures other results
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def loaded(self):
        """The transformed float model with its tokenizer, calibration text and evaluation windows."""
        model, tokenizer = quamba.load(MODEL)
        install_float_mixers(model)
        text, self.fingerprint = default_text(model), model_fingerprint(model)
        transform(model, rotate_residual=False)
        defaults = EMBEDDED_MODELS[MODEL]
        windows = evaluation_windows(load_text(defaults.ppl_dataset, "test"), tokenizer, defaults.ppl_seqlen)
        return model, tokenizer, text, windows[: self.window_count]

    def cached(self, name: str, measure) -> dict:
        """The result of `measure()`, from the disk where it was measured before."""
        path = self.work / (name.replace("/", "_").replace(":", "_").replace("=", "") + ".json")
        if not path.exists():
            start = time.perf_counter()
            result = measure()
            write_text_atomically(path, json.dumps(result))
            sys.stderr.write(f"{time.perf_counter() - start:6.1f} s  {name}\n")
        return json.loads(path.read_text("utf-8"))

    def scales(self, observer: str) -> dict[str, float | list[float]]:
        """Tap name -> scale, or one for each group, of an observer on every tap, over the calibration text."""

        def measure() -> dict:
            model, tokenizer, text, _ = self.loaded
            parsed = parse_spec(observer)
            result = calibrate(
                model,
                text.windows(tokenizer),
                parse_observers({"all": parsed.observer}, head=False),
                fingerprint=self.fingerprint,
                options={parsed.observer: dict(parsed.options)},
                batch_size=text.batch_size,
                progress=False,
            )
            return {name: tap.scales().tolist() for name, tap in result.taps.items()}

        return self.cached(f"scales {observer}", measure)

    def ppl(self, assignment: dict[str, str]) -> PerplexityResult:
        """Perplexity with the observer of each named tap; the other taps are float. {}: the float model."""
        import torch

        def measure() -> dict:
            model, _, _, windows = self.loaded
            scales = {
                name: torch.tensor(scale)
                for tap, observer in assignment.items()
                for name, scale in self.scales(observer).items()
                if name.endswith(f".{tap}")
            }
            with fake_quantized(model, scales) if scales else nullcontext():
                result = perplexity(model, windows, batch_size=16, progress=False)
            return _plain(result)

        named = set(assignment.values())
        what = "all" if len(assignment) == len(TAPS) else "+".join(assignment)
        label = f"{what}={named.pop()}" if len(named) == 1 else ",".join(f"{t}={s}" for t, s in assignment.items())
        return _result(self.cached(f"ppl {self.window_count} {label or 'float'}", measure))

    def ratio(self, assignment: dict[str, str], base: dict[str, str] | None = None) -> dict:
        """Perplexity over that of `base` (default: float), with its paired 95 % interval."""
        interval = perplexity_ratio(self.ppl(base or {}), self.ppl(assignment))
        return interval._asdict()


def _plain(result: PerplexityResult) -> dict:
    return {"ppl": result.ppl, "nll": result.window_nll.tolist(), "tokens": result.window_tokens.tolist()}


def _result(data: dict) -> PerplexityResult:
    tokens = np.array(data["tokens"])
    return PerplexityResult(data["ppl"], int(tokens.sum()), np.array(data["nll"]), tokens)


def everywhere(observer: str) -> dict[str, str]:
    """The observer on every tap."""
    return dict.fromkeys(TAPS, observer)


def sqnr(study: Study) -> dict:
    """SQNR and relative MSE of every tap and observer, on the first batch."""
    directory = study.work / "activations"

    def measure() -> dict:
        if not any(directory.glob("*.safetensors")):
            model, tokenizer = quamba.load(MODEL)
            capture(model, tokenizer, default_text(model), directory)
        saved = open_activations(directory)
        specs = parse_specs(BASIC, "minmax", 8)
        return compare_observers(saved, specs, source=saved.model, real=True, total=len(saved)).to_dict()

    return study.cached("sqnr", measure)["aggregates"]


def one_tap(study: Study) -> dict:
    """One tap quantized, all others float; then every tap."""
    by_tap = {tap: {name: study.ratio({tap: name}) for name in BASIC} for tap in TAPS}
    return {**by_tap, "all": {name: study.ratio(everywhere(name)) for name in BASIC}}


def pairs(study: Study) -> dict:
    """Two observers of the same tap, all others float, on the same windows."""
    compared = (("mse", "percentile"), ("mse", "minmax"), ("percentile", "minmax"))
    return {tap: {f"{a} / {b}": study.ratio({tap: a}, {tap: b}) for a, b in compared} for tap in TAPS}


def ratios(study: Study) -> dict:
    """Outlier-aware scales at the usual level by normal ratio."""
    return {
        str(ratio): {
            "x": study.ratio({"x": outlier_aware(ratio)}),
            "all": study.ratio(everywhere(outlier_aware(ratio))),
        }
        for ratio in RATIOS
    }


def levels(study: Study) -> dict:
    """Outlier-aware scales by level, at several normal ratios."""
    return {
        str(ratio): {
            str(level): {
                "x": study.ratio({"x": outlier_aware(ratio, level)}),
                "all": study.ratio(everywhere(outlier_aware(ratio, level))),
            }
            for level in LEVELS
        }
        for ratio in LEVEL_RATIOS
    }


class Int8:
    """Models with the real kernels on windows that the other parts never read, and on the cloze task."""

    def __init__(self, study: Study):
        self.study = study

    def run(self, candidate: str | None, seed: int) -> EvaluationResult:
        """The measurements of one candidate of INT8 (None: float), calibrated on the text that `seed` draws."""

        def measure() -> dict:
            model, tokenizer = quamba.load(MODEL)
            if candidate:
                observer, options = INT8[candidate]
                text = dataclasses.replace(default_text(model), seed=seed)
                quamba.quantize(model, tokenizer, "w8a8", observer, text, observer_options=options, progress=False)
            defaults = EMBEDDED_MODELS[MODEL]
            windows = evaluation_windows(load_text(defaults.ppl_dataset, "test"), tokenizer, defaults.ppl_seqlen)
            held_out = windows[self.study.window_count :]
            result = perplexity(model, held_out, defaults.batch_size, progress=False)
            tasks = quamba.evaluate(model, tokenizer, tasks=defaults.tasks, batch_size=defaults.batch_size)
            items = {task: {ACCURACY: metrics[ACCURACY]} for task, metrics in tasks.task_items.items()}
            return {**_plain(result), "items": items}

        data = self.study.cached(f"int8 {candidate or 'float'} seed {seed}", measure)
        result = EvaluationResult()
        result.windows[TEXT], result.task_items = _result(data), data["items"]
        return result

    def table(self, seed: int) -> dict:
        """Candidate -> perplexity ratio to float and to MSE on every tap, accuracy change in points, with intervals."""
        base, mse = self.run(None, 0), self.run("mse on every tap", seed)
        rows = {}
        for candidate in INT8:
            result = self.run(candidate, seed)
            (gains,) = compare(base, result)["lm_eval"].values()
            rows[candidate] = {
                "to_float": compare(base, result)["ppl"][TEXT]._asdict(),
                "to_mse": compare(mse, result)["ppl"][TEXT]._asdict(),
                "points": {end: 100 * value for end, value in gains[ACCURACY]._asdict().items()},
            }
        return rows


def int8(study: Study) -> dict:
    """The candidates by calibration seed."""
    return {str(seed): Int8(study).table(seed) for seed in SEEDS}


PARTS = {"sqnr": sqnr, "one_tap": one_tap, "pairs": pairs, "ratios": ratios, "levels": levels, "int8": int8}


def main() -> None:
    """Runs the parts asked for and writes them into one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; repeatable")
    parser.add_argument("--work", type=Path, default=Path("runs/observer-study"), metavar="DIR")
    parser.add_argument("--windows", type=int, default=128, metavar="N", help="perplexity windows of 512 tokens")
    args = parser.parse_args()
    study = Study(args.work, args.windows)
    for name in args.part or PARTS:
        write_text_atomically(args.work / f"part_{name}.json", json.dumps(PARTS[name](study), indent=1) + "\n")


if __name__ == "__main__":
    main()
