"""What a strategy does to the whole quantized model: perplexity and accuracy against the baseline strategy's model."""

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
from .strategies import BASELINE, Strategy
from .verdict import EndToEnd

ACCURACY = "acc,none"


@dataclass(frozen=True)
class Evaluation:
    """What every quantized model is measured on: a perplexity text, and lm-eval tasks with an accuracy."""

    dataset: str = "wikitext2"
    windows: int | None = None  # all
    tasks: Sequence[str] = ()
    batch_size: int = 8

    @classmethod
    def of(cls, defaults: EmbeddedDefaults) -> "Evaluation":
        """That of an embedded checkpoint."""
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


def observers_of(strategy: Strategy, taps: Collection[str] | None) -> dict[str, str]:
    """Tap, or "all" for those that are not named -> observer name, as `parse_observers` takes it.

    The strategy's on the taps, min-max on the others; None: on every tap. Raises QuambaError for unknown taps, and
    where the strategy's arguments would reach the other taps too.
    """
    if taps is not None and strategy.observer == BASELINE and strategy.options:
        raise QuambaError(f"strategy {strategy.label!r} would be every tap's, end to end: name no taps")
    if HEAD_TAP in (taps or ()):
        raise QuambaError(f"tap {HEAD_TAP} is not quantized end to end: name other taps")
    named = {"all": BASELINE if taps else strategy.observer} | dict.fromkeys(taps or (), strategy.observer)
    parse_observers(named, head=False)
    return named


def measure_strategies(
    checkpoint: Checkpoint,
    strategies: Sequence[Strategy],
    taps: Collection[str] | None,
    text: CalibrationText,
    evaluation: Evaluation,
    rotate_residual: bool = False,
    progress: bool = True,
) -> dict[str, EndToEnd]:
    """Quantizes the model with every strategy on `taps` (None: all) and measures it; the first is the baseline.

    Gives strategy -> comparison with the baseline, without the baseline itself.
    """
    results: dict[str, EvaluationResult] = {}
    observers = [observers_of(strategy, taps) for strategy in strategies]
    for strategy, names in zip(strategies, observers, strict=True):
        model, tokenizer = load_checkpoint(checkpoint)
        quantize(
            model,
            tokenizer,
            observer=names,
            calibration=text,
            observer_options={strategy.observer: strategy.options} if strategy.options else None,
            rotate_residual=rotate_residual,
            progress=progress,
        )
        results[strategy.label] = evaluation.run(model, tokenizer, progress)
    base = results.pop(strategies[0].label)
    return {label: end_to_end(base, result, evaluation) for label, result in results.items()}


def end_to_end(base: EvaluationResult, other: EvaluationResult, evaluation: Evaluation) -> EndToEnd:
    """Two models' results as the rule takes them; the accuracy is that of the first task that has one."""
    intervals = compare(base, other)
    gains = [metrics[ACCURACY] for metrics in intervals["lm_eval"].values() if ACCURACY in metrics]
    gain = Interval(*(100 * value for value in gains[0])) if gains else None
    return EndToEnd(intervals["ppl"][evaluation.dataset], gain)
