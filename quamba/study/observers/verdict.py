"""The rule that says which observer to adopt, and which to make the default, from what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ...evaluation.compare import Interval
from .comparison import Comparison


@dataclass(frozen=True)
class Rule:
    """When an observer replaces the baseline. The figures are the study's defaults; each is an option."""

    min_mse_drop: float = 0.10  # share of the baseline's MSE
    max_ppl_ratio: float = 1.0  # perplexity over the baseline's, end to end
    min_accuracy_gain: float = 0.5  # points of a hundred

    def describe(self) -> str:
        """The rule in words."""
        return (
            f"adopt where the MSE on real activations (geometric mean over taps and layers) is more than "
            f"{100 * self.min_mse_drop:g} % below the baseline's and the perplexity, end to end, is at most "
            f"{self.max_ppl_ratio:g} times the baseline's; make it the default only if the accuracy also rises by more "
            f"than {self.min_accuracy_gain:g} points beyond noise (the paired interval of the gain lies above zero)"
        )


@dataclass(frozen=True)
class EndToEnd:
    """A quantized model against the baseline's, in pairs: ratio of perplexities, accuracy gain in points."""

    ppl_ratio: Interval
    accuracy_gain: Interval | None  # None where no task was run


@dataclass(frozen=True)
class Verdict:
    """`adopt` and `default` are None where what the rule asks for was not measured."""

    observer: str
    adopt: bool | None
    default: bool | None
    reasons: list[str]

    def sentence(self) -> str:
        """The verdict in words."""
        decided = {
            (True, True): "adopt, and make it the default",
            (True, False): "adopt as an option, not as the default",
            (True, None): "adopt as an option; as the default undecided",
        }
        words = {False: "do not adopt", None: "undecided"}
        head = decided[self.adopt, self.default] if self.adopt else words[self.adopt]
        return f"{self.observer}: {head}: {'; '.join(self.reasons)}"


def judge(comparison: Comparison, rule: Rule, end_to_end: Mapping[str, EndToEnd] | None = None) -> list[Verdict]:
    """A verdict for every observer but the baseline. `end_to_end`: observer -> what was measured of it."""
    measured = end_to_end or {}
    return [
        _judge(aggregate.observer, 1 - aggregate.relative_mse, comparison.real, rule, measured.get(aggregate.observer))
        for aggregate in comparison.aggregate()[1:]
    ]


def _judge(observer: str, mse_drop: float, real: bool, rule: Rule, run: EndToEnd | None) -> Verdict:
    change = f"lowers MSE by {100 * mse_drop:.1f} %" if mse_drop >= 0 else f"multiplies MSE by {1 - mse_drop:.3g}"
    if not real:
        return Verdict(observer, None, None, [f"{change} on synthetic values, and only real activations count"])
    if not mse_drop > rule.min_mse_drop:
        return Verdict(observer, False, False, [f"{change}, more than {100 * rule.min_mse_drop:g} % less is asked for"])
    if run is None:
        return Verdict(observer, None, None, [change, "perplexity was not measured end to end (--end_to_end)"])
    ratio = run.ppl_ratio
    reasons = [change, f"perplexity x{ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] of the baseline's"]
    if not ratio.estimate <= rule.max_ppl_ratio:
        return Verdict(observer, False, False, [*reasons, f"which is above x{rule.max_ppl_ratio:g}"])
    gain = run.accuracy_gain
    if gain is None:
        return Verdict(observer, True, None, [*reasons, "accuracy was not measured"])
    reasons.append(f"accuracy {gain.estimate:+.2f} points [{gain.low:+.2f}, {gain.high:+.2f}]")
    return Verdict(observer, True, gain.estimate > rule.min_accuracy_gain and gain.low > 0, reasons)


def verdict_dict(rule: Rule, verdicts: list[Verdict], end_to_end: Mapping[str, EndToEnd] | None) -> dict:
    """Plain data: the rule's figures and words, what was measured end to end, and every verdict."""
    return {
        "rule": {**asdict(rule), "words": rule.describe()},
        "end_to_end": {name: asdict(run) for name, run in (end_to_end or {}).items()},
        "verdicts": [{**asdict(verdict), "words": verdict.sentence()} for verdict in verdicts],
    }
