"""Which observer wins where, and what is told of many taps."""

import json
import math
from dataclasses import replace

import pytest
import torch

from quamba.calibration.recording import TapActivations
from quamba.errors import QuambaError
from quamba.evaluation.log import finite
from quamba.study.observers.comparison import (
    Comparison,
    ObserverResult,
    TapComparison,
    compare_observers,
)
from quamba.study.observers.specs import parse_spec, parse_specs
from tests.study.observers.test_comparison import NAMES, heavy_tailed, tap_of

# --- who wins ---


def result_of(observer: str, mse: float, relative: float = 1.0, sqnr: float | None = 30.0) -> ObserverResult:
    return ObserverResult(observer, 1.0, mse, sqnr, 0.0, 1, 0.0, 0.0, relative, None)


def tap_comparison(*mse: float, tap: str = "x", layer: int | None = 0) -> TapComparison:
    return TapComparison(
        tap, layer, 10, 1, [result_of(name, m, m / (mse[0] or 1)) for name, m in zip("abc", mse, strict=False)]
    )


@pytest.mark.parametrize(
    ("mse", "winners"),
    [
        ((1.0, 2.0, 3.0), "a"),
        ((2.0, 1.0, 3.0), "b"),
        ((1.0, 1.0009, 1.0011), "ab"),
        ((1.0009, 1.0, 1.0011), "ab"),
        ((1.0, 1.0, 1.0), "abc"),
        ((0.0, 0.0, 1e-30), "ab"),
    ],
    ids=str,
)
def test_the_least_mse_wins_and_what_a_histogram_cannot_tell_apart_ties(mse, winners):
    assert tap_comparison(*mse).winners() == list(winners)


def test_aggregates_are_geometric_means_and_counts_of_wins():
    taps = [
        tap_comparison(1.0, 0.5, 2.0, tap="x", layer=0),
        tap_comparison(1.0, 0.125, 0.125, tap="x", layer=1),
        tap_comparison(1.0, 4.0, 1.0005, tap="out", layer=0),
    ]
    comparison = Comparison("tiny", True, 8, ["a", "b", "c"], taps)
    assert comparison.tap_names() == ["x", "out"]
    found = {tap: comparison.aggregate(tap) for tap in ("x", "out", None)}
    assert [[a.observer for a in aggregates] for aggregates in found.values()] == [["a", "b", "c"]] * 3
    assert [a.relative_mse for a in found["x"]] == pytest.approx([1, 0.25, 0.5])
    assert [a.relative_mse for a in found["out"]] == pytest.approx([1, 4, 1.0005])
    assert [a.relative_mse for a in found[None]] == pytest.approx([1, 0.25 ** (1 / 3), (0.25 * 1.0005) ** (1 / 3)])
    assert [(a.wins, a.of) for a in found["x"]] == [(0, 2), (2, 2), (1, 2)]
    assert [(a.wins, a.of) for a in found["out"]] == [(1, 1), (0, 1), (1, 1)]
    assert [(a.wins, a.of) for a in found[None]] == [(1, 3), (2, 3), (2, 3)]


def test_an_aggregate_has_the_mean_sqnr_where_every_tap_has_one():
    both = [TapComparison("x", i, 9, 1, [result_of("a", 1.0, sqnr=sqnr)]) for i, sqnr in enumerate((20.0, 31.0))]
    lossless = TapComparison("x", 2, 9, 1, [result_of("a", 0.0, sqnr=None)])
    assert Comparison("", True, 8, ["a"], both).aggregate()[0].sqnr_db == 25.5
    assert Comparison("", True, 8, ["a"], [*both, lossless]).aggregate()[0].sqnr_db is None


@pytest.mark.parametrize(("relative", "mean"), [(math.inf, math.inf), (0.0, 0.0)])
def test_an_aggregate_survives_infinite_and_lossless_comparisons(relative, mean):
    results = [TapComparison("x", i, 9, 1, [result_of("a", 1.0, r)]) for i, r in enumerate((relative, 1.0))]
    assert Comparison("", True, 8, ["a"], results).aggregate()[0].relative_mse == pytest.approx(mean, abs=1e-100)


# --- many taps ---


def test_every_tap_is_compared_and_the_whole_is_plain_data():
    activations = [replace(tap_of(heavy_tailed(layer)), layer=layer) for layer in (0, 1)]
    activations.append(TapActivations("head_in", None, torch.zeros(8)))
    comparison = compare_observers(
        iter(activations), parse_specs(NAMES, "minmax", 8), source="tiny", real=True, progress=False
    )
    assert comparison.observers == NAMES
    assert [tap.name for tap in comparison.taps] == ["layers.0.x", "layers.1.x", "head_in"]
    data = json.loads(json.dumps(finite(comparison.to_dict()), allow_nan=False))
    assert (data["source"], data["real"], data["n_bits"], data["observers"]) == ("tiny", True, 8, NAMES)
    assert [tap["winners"] for tap in data["taps"]] == [tap.winners() for tap in comparison.taps]
    assert data["taps"][1]["results"][4] == vars(comparison.taps[1].results[4])
    assert [entry["tap"] for entry in data["aggregates"]] == ["x", "head_in", None]
    for entry in data["aggregates"]:
        assert entry["observers"] == [vars(aggregate) for aggregate in comparison.aggregate(entry["tap"])]


def test_no_activations_are_nothing_to_compare():
    with pytest.raises(QuambaError, match="there are no activations to compare observers on"):
        compare_observers([], [parse_spec("mse")], source="", real=True, progress=False)
