import numpy as np
import pytest

from quamba.errors import QuambaError
from quamba.evaluation import EvaluationResult, PerplexityResult, compare, paired_bootstrap, perplexity_ratio


def result_of(nll, tokens):
    nll, tokens = np.array(nll), np.array(tokens)
    return PerplexityResult(float(np.exp((nll * tokens).sum() / tokens.sum())), int(tokens.sum()), nll, tokens)


def test_identical_measurements_differ_by_exactly_nothing():
    values = np.random.default_rng(0).normal(size=30)
    assert paired_bootstrap(values, values) == (0, 0, 0)
    assert paired_bootstrap(values, values, statistic="ratio") == (1, 1, 1)


def test_a_constant_shift_is_certain_however_much_the_windows_vary():
    values = np.random.default_rng(0).normal(scale=5, size=30)
    assert paired_bootstrap(values, values + 0.25) == pytest.approx((0.25, 0.25, 0.25))
    assert paired_bootstrap(values, values + np.log(1.01), statistic="ratio") == pytest.approx((1.01, 1.01, 1.01))


def test_the_estimate_is_the_weighted_mean_difference():
    interval = paired_bootstrap([0, 0, 0], [1, 2, 6], weights=[2, 1, 1])
    assert interval.estimate == pytest.approx((2 * 1 + 2 + 6) / 4)
    assert 1 <= interval.low < interval.estimate < interval.high <= 6


def test_an_accuracy_difference_with_few_changed_items():
    base = [1, 0] * 50
    other = list(base)
    other[:4] = [0, 0, 0, 0]  # two items lost of a hundred
    interval = paired_bootstrap(base, other)
    assert interval.estimate == pytest.approx(-0.02)
    assert interval.low <= -0.04 and interval.high == pytest.approx(0, abs=0.001)


def test_the_seed_fixes_the_interval():
    a, b = np.random.default_rng(0).normal(size=(2, 20))
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)


def test_more_confidence_makes_a_wider_interval():
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    narrow, wide = (paired_bootstrap(a, b, confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth, trials, covered = 0.1, 200, 0
    for trial in range(trials):
        shared = rng.normal(scale=3, size=60)
        other = shared + truth + rng.exponential(0.2, size=60) - 0.2
        low, high = paired_bootstrap(shared, other, resamples=500, seed=trial)[1:]
        covered += low <= truth <= high
    assert 0.88 <= covered / trials <= 0.99


def test_the_ratio_of_perplexities_weighs_windows_by_their_tokens():
    base, other = result_of([2.0, 3.0, 4.0], [100, 100, 7]), result_of([2.1, 3.0, 4.2], [100, 100, 7])
    interval = perplexity_ratio(base, other)
    assert interval.estimate == pytest.approx(other.ppl / base.ppl)
    assert interval.low <= interval.estimate <= interval.high


def test_all_that_two_models_share_is_compared():
    base, other = EvaluationResult(), EvaluationResult()
    base.windows = {"stdlib": result_of([2.0, 3.0], [9, 9]), "c4": result_of([1.0], [9])}
    other.windows = {"stdlib": result_of([2.2, 3.2], [9, 9])}
    base.task_items = {"cloze": {"acc,none": [1, 1, 0, 1]}}
    other.task_items = {"cloze": {"acc,none": [1, 0, 0, 1], "other,none": [1, 1, 1, 1]}}
    compared = compare(base, other, resamples=100)
    assert compared["ppl"] == {"stdlib": pytest.approx([np.exp(0.2)] * 3)}
    assert compared["lm_eval"]["cloze"].keys() == {"acc,none"}
    assert compared["lm_eval"]["cloze"]["acc,none"].estimate == pytest.approx(-0.25)


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1]), ([], []), ([[1, 2]], [1])])
def test_values_that_are_no_pairs_are_refused(a, b):
    with pytest.raises(QuambaError, match="as many values on both sides"):
        paired_bootstrap(a, b)


def test_different_windows_and_unknown_statistics_are_refused():
    with pytest.raises(QuambaError, match="different windows"):
        perplexity_ratio(result_of([1.0], [9]), result_of([1.0], [8]))
    with pytest.raises(QuambaError, match="unknown statistic 'median'"):
        paired_bootstrap([1], [2], statistic="median")
