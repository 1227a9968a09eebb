"""What an observer does to the whole quantized model: perplexity and accuracy against the baseline's model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...architectures.convert import HEAD_TAP
from ...calibration.defaults import parse_observers
from ...calibration.run import CalibrationText
from ...checkpoint import Checkpoint, load_checkpoint
from ...errors import QuambaError
from ...evaluation import EvaluationResult, compare, evaluate
from ...evaluation.compare import Interval
from ...pipeline.quantize import quantize
from ...text.data import EmbeddedDefaults, load_text
from .specs import BASELINE, ObserverSpec
from .verdict import EndToEnd

ACCURACY = "acc,none"


@dataclass(frozen=True)
class Evaluation:
    """Hold what every quantized model is measured on: a perplexity text, and lm-eval tasks with an accuracy."""

    dataset: str = "wikitext2"
    windows: int | None = None  # all
    tasks: Sequence[str] = ()
    batch_size: int = 8

    @classmethod
    def of(cls, defaults: EmbeddedDefaults) -> "Evaluation":
        """Return the evaluation of an embedded checkpoint."""
        return cls(defaults.ppl_dataset, defaults.ppl_windows, defaults.tasks, defaults.batch_size)

    def check(self) -> None:
        """Raises QuambaError for a text or a task that does not exist: now, not when a model has been quantized."""
        load_text(self.dataset, "test")
        if self.tasks:
            from ...evaluation.lm_eval import check_tasks  # seconds to import

            check_tasks(self.tasks)

    def run(self, model, tokenizer, progress: bool = True) -> EvaluationResult:
        """The measurement of one model."""
        return evaluate(
            model,
            tokenizer,
            [self.dataset],
            self.tasks,
            max_windows=self.windows,
            batch_size=self.batch_size,
            progress=progress,
        )


def observers_of(spec: ObserverSpec, taps: Collection[str] | None) -> dict[str, str]:
    """Tap, or "all" for those that are not named -> observer name, as `parse_observers` takes it.

    The named one on the taps, min-max on the others; None: on every tap. Raises QuambaError for unknown taps, and
    where its arguments would reach the other taps too.
    """
    if taps is not None and spec.name == BASELINE and spec.options:
        raise QuambaError(f"observer {spec.label!r} would be every tap's, end to end: name no taps")
    if HEAD_TAP in (taps or ()):
        raise QuambaError(f"tap {HEAD_TAP} is not quantized end to end: name other taps")
    named = {"all": BASELINE if taps else spec.name} | dict.fromkeys(taps or (), spec.name)
    parse_observers(named, head=False)
    return named


def measure_observers(
    checkpoint: Checkpoint,
    specs: Sequence[ObserverSpec],
    taps: Collection[str] | None,
    text: CalibrationText,
    evaluation: Evaluation,
    rotate_residual: bool = False,
    progress: bool = True,
) -> dict[str, EndToEnd]:
    """Quantizes the model with every observer on `taps` (None: all) and measures it; the first is the baseline.

    Gives observer -> comparison with the baseline, without the baseline itself.
    """
    results: dict[str, EvaluationResult] = {}
    observers = [observers_of(spec, taps) for spec in specs]
    for spec, names in zip(specs, observers, strict=True):
        model, tokenizer = load_checkpoint(checkpoint)
        quantize(
            model,
            tokenizer,
            observer=names,
            calibration=text,
            observer_options={spec.name: spec.options} if spec.options else None,
            rotate_residual=rotate_residual,
            progress=progress,
        )
        results[spec.label] = evaluation.run(model, tokenizer, progress)
    base = results.pop(specs[0].label)
    return {label: end_to_end(base, result, evaluation) for label, result in results.items()}


def end_to_end(base: EvaluationResult, other: EvaluationResult, evaluation: Evaluation) -> EndToEnd:
    """Two models' results as the rule takes them; the accuracy is that of the first task that has one."""
    intervals = compare(base, other)
    gains = [metrics[ACCURACY] for metrics in intervals["lm_eval"].values() if ACCURACY in metrics]
    gain = Interval(*(100 * value for value in gains[0])) if gains else None
    return EndToEnd(intervals["ppl"][evaluation.dataset], gain)
