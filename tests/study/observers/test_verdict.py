"""The rule as a truth table, in words and as data."""

import json
import math
from dataclasses import asdict

import pytest

from quamba.evaluation.compare import Interval
from quamba.study.observers.comparison import Comparison, ObserverResult, TapComparison
from quamba.study.observers.verdict import EndToEnd, Rule, judge, verdict_dict

RULE = Rule()


def comparison(*relative_mse: float, real: bool = True) -> Comparison:
    """The baseline and one observer on several taps, where the observer has these MSEs relative to the baseline's."""
    taps = []
    for layer, relative in enumerate(relative_mse):
        results = [
            ObserverResult(name, 1.0, mse, None, 0.0, 1, 0.0, 0.0, mse, None)
            for name, mse in (("minmax", 1.0), ("mine", relative))
        ]
        taps.append(TapComparison("x", layer, 10, 1, results))
    return Comparison("tiny", real, 8, ["minmax", "mine"], taps)


def run(ppl: float, gain: tuple[float, float, float] | None = None) -> dict[str, EndToEnd]:
    """What was measured end to end: a ratio of perplexities and, where given, an accuracy gain with its interval."""
    return {"mine": EndToEnd(Interval(ppl, ppl - 0.01, ppl + 0.01), Interval(*gain) if gain else None)}


def verdict(compared: Comparison, measured=None, rule: Rule = RULE):
    (found,) = judge(compared, rule, measured)
    assert found.observer == "mine"
    return found


CLEAR, SMALL, IN_NOISE, NONE = (1.0, 0.6, 1.4), (0.5, 0.4, 0.6), (1.0, 0.0, 2.0), (-2.0, -3.0, -1.0)


@pytest.mark.parametrize(
    ("relative_mse", "measured", "adopt", "default", "words"),
    [
        # the MSE falls by more than a tenth, or the observer is out
        (0.95, None, False, False, "do not adopt"),
        (0.91, run(0.9, CLEAR), False, False, "do not adopt"),
        (0.90, run(0.9, CLEAR), False, False, "do not adopt"),
        (1.00, run(0.9, CLEAR), False, False, "do not adopt"),
        (1.50, run(0.9, CLEAR), False, False, "do not adopt"),
        (math.inf, run(0.9, CLEAR), False, False, "do not adopt"),
        # the perplexity is at most the baseline's, and was measured
        (0.89, None, None, None, "undecided"),
        (0.89, run(1.0001, CLEAR), False, False, "do not adopt"),
        (0.89, run(math.inf, CLEAR), False, False, "do not adopt"),
        (0.89, run(math.nan, CLEAR), False, False, "do not adopt"),
        (0.89, run(1.0), True, None, "adopt as an option; as the default undecided"),
        (0.89, run(0.99), True, None, "adopt as an option; as the default undecided"),
        # the accuracy rises by more than half a point, and beyond noise
        (0.89, run(1.0, CLEAR), True, True, "adopt, and make it the default"),
        (0.89, run(0.9, CLEAR), True, True, "adopt, and make it the default"),
        (0.89, run(1.0, SMALL), True, False, "adopt as an option, not as the default"),
        (0.89, run(1.0, IN_NOISE), True, False, "adopt as an option, not as the default"),
        (0.89, run(1.0, NONE), True, False, "adopt as an option, not as the default"),
        (0.89, run(1.0, (0.0, 0.0, 0.0)), True, False, "adopt as an option, not as the default"),
        (0.00, run(1.0, CLEAR), True, True, "adopt, and make it the default"),
    ],
)
def test_the_rule_on_real_activations(relative_mse, measured, adopt, default, words):
    found = verdict(comparison(relative_mse), measured)
    assert (found.adopt, found.default) == (adopt, default)
    assert found.sentence().startswith(f"mine: {words}: ")
    assert asdict(found)["adopt"] is adopt and asdict(found)["default"] is default


@pytest.mark.parametrize("relative_mse", [0.5, 0.9, 2.0])
@pytest.mark.parametrize("measured", [None, run(0.9, CLEAR), run(1.1)])
def test_synthetic_values_decide_nothing(relative_mse, measured):
    found = verdict(comparison(relative_mse, real=False), measured)
    assert (found.adopt, found.default) == (None, None)
    assert found.sentence().startswith("mine: undecided: ")
    assert found.sentence().endswith("on synthetic values, and only real activations count")


def test_the_mse_is_the_geometric_mean_over_taps_and_layers():
    assert verdict(comparison(0.5, 1.6), run(1.0)).adopt is True  # 0.894, where the arithmetic mean is 1.05
    assert verdict(comparison(0.5, 1.6), run(1.0)).reasons[0] == "lowers MSE by 10.6 %"
    assert verdict(comparison(0.5, 1.7), run(1.0)).adopt is False  # 0.922


@pytest.mark.parametrize(
    ("rule", "adopt", "default"),
    [
        (Rule(), True, False),
        (Rule(min_mse_drop=0.31), False, False),
        (Rule(min_mse_drop=0.29), True, False),
        (Rule(max_ppl_ratio=0.98), False, False),
        (Rule(max_ppl_ratio=0.99), True, False),
        (Rule(min_accuracy_gain=0.3), True, True),
        (Rule(min_accuracy_gain=0.4), True, False),
    ],
    ids=str,
)
def test_the_figures_of_the_rule_are_honoured(rule, adopt, default):
    found = verdict(comparison(0.7), run(0.99, (0.4, 0.1, 0.7)), rule)
    assert (found.adopt, found.default) == (adopt, default)


def test_a_drop_of_just_what_is_asked_for_is_not_more_than_that():
    rule = Rule(min_mse_drop=0.5)
    assert verdict(comparison(0.5), run(0.9), rule).adopt is False
    assert verdict(comparison(0.499), run(0.9), rule).adopt is True


def test_a_worse_perplexity_may_be_allowed():
    assert verdict(comparison(0.7), run(1.01), Rule(max_ppl_ratio=1.02)).adopt is True
    assert verdict(comparison(0.7), run(1.03), Rule(max_ppl_ratio=1.02)).adopt is False


# --- words ---


def test_the_rule_is_told_with_its_figures():
    words = Rule(0.25, 1.5, 0.75).describe()
    for part in ("more than 25 % below", "at most 1.5 times", "more than 0.75 points"):
        assert part in words


@pytest.mark.parametrize(
    ("relative_mse", "measured", "sentence"),
    [
        (1.5, None, "mine: do not adopt: multiplies MSE by 1.5, more than 10 % less is asked for"),
        (0.95, None, "mine: do not adopt: lowers MSE by 5.0 %, more than 10 % less is asked for"),
        (0.8, None, "mine: undecided: lowers MSE by 20.0 %; perplexity was not measured end to end (--end_to_end)"),
        (
            0.8,
            run(1.02),
            "mine: do not adopt: lowers MSE by 20.0 %; perplexity x1.0200 [1.0100, 1.0300] of the baseline's; "
            "which is above x1",
        ),
        (
            0.8,
            run(0.98),
            "mine: adopt as an option; as the default undecided: lowers MSE by 20.0 %; "
            "perplexity x0.9800 [0.9700, 0.9900] of the baseline's; accuracy was not measured",
        ),
        (
            0.8,
            run(0.98, NONE),
            "mine: adopt as an option, not as the default: lowers MSE by 20.0 %; "
            "perplexity x0.9800 [0.9700, 0.9900] of the baseline's; accuracy -2.00 points [-3.00, -1.00]",
        ),
    ],
)
def test_a_verdict_gives_its_reasons(relative_mse, measured, sentence):
    assert verdict(comparison(relative_mse), measured).sentence() == sentence


def test_the_data_say_what_the_words_say():
    rule, measured = Rule(0.2, 1.1, 0.3), run(0.98, CLEAR)
    verdicts = judge(comparison(0.7), rule, measured)
    data = json.loads(json.dumps(verdict_dict(rule, verdicts, measured), allow_nan=False))
    assert data["rule"] == {
        "min_mse_drop": 0.2,
        "max_ppl_ratio": 1.1,
        "min_accuracy_gain": 0.3,
        "words": rule.describe(),
    }
    assert data["end_to_end"] == {"mine": {"ppl_ratio": [0.98, 0.97, 0.99], "accuracy_gain": list(CLEAR)}}
    (found,) = data["verdicts"]
    assert (found["observer"], found["adopt"], found["default"]) == ("mine", True, True)
    assert (
        found["words"]
        == verdicts[0].sentence()
        == f"mine: adopt, and make it the default: {'; '.join(found['reasons'])}"
    )


def test_the_data_of_a_rule_without_measurements():
    data = verdict_dict(RULE, judge(comparison(0.7), RULE), None)
    assert data["end_to_end"] == {}
    assert data["verdicts"][0]["adopt"] is None


def test_every_observer_but_the_baseline_is_judged():
    compared = comparison(0.7)
    assert [found.observer for found in judge(compared, RULE)] == compared.observers[1:]
