"""The grammar of observers, and what is said about a text that is none."""

import pytest
import torch

from quamba.errors import QuambaError
from quamba.observers.per_tensor import Observer, observer_names, register_observer
from quamba.study.observers.specs import BASELINE, ObserverSpec, parse_spec, parse_specs


@pytest.mark.parametrize(
    ("text", "observer", "options"),
    [
        ("minmax", "minmax", {}),
        ("minmax:", "minmax", {}),
        ("mse:clip_ratio=0.9", "mse", {"clip_ratio": 0.9}),
        (
            "outlier_aware: normal_ratio=0.9999, normal_level=124",
            "outlier_aware",
            {"normal_ratio": 0.9999, "normal_level": 124},
        ),
        (
            "outlier_aware_adaptive:normal_ratios=(0.9, 0.99),mantissa_bits=9",
            "outlier_aware_adaptive",
            {"normal_ratios": (0.9, 0.99), "mantissa_bits": 9},
        ),
        ("percentile:use_outlier_aware=True,normal_level=None", "percentile", {"use_outlier_aware": True}),
        ("percentile:percentile_alpha=1e-1", "percentile", {"percentile_alpha": 0.1}),
    ],
    ids=str,
)
def test_an_observer_is_an_observer_with_its_arguments(text, observer, options):
    spec = parse_spec(text)
    assert (spec.label, spec.name) == (text, observer)
    made = spec.create(8)
    assert made.name == observer
    assert {name: made.settings()[name] for name in options} == options
    assert {**spec.options} == options | ({"normal_level": None} if "None" in text else {})


def test_every_use_makes_a_new_observer():
    first, second = (parse_spec("mse").create(8) for _ in range(2))
    first.update(torch.ones(3))
    assert (first.count, second.count) == (3, 0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_bits_are_those_of_the_taps(bits):
    assert parse_spec("mse").create(bits).n_bits == bits


def test_an_observer_of_ones_own_is_an_observer():
    @register_observer("mine")
    class Mine(Observer):
        def __init__(self, n_bits=8, clip_ratio=1.0, sym=True, sigmas=6.0):
            super().__init__(n_bits, clip_ratio, sym)
            self.sigmas = sigmas

        _update = _merge = lambda self, x: None

        def _parameters(self):
            return self.range_parameters(-self.sigmas, self.sigmas)

    assert parse_spec("mine:sigmas=4").create(8).sigmas == 4


# --- the list of them ---


def test_the_baseline_comes_first_and_nobody_twice():
    specs = parse_specs(["mse", "minmax", "mse", "mse:clip_ratio=0.9"], BASELINE, 8)
    assert [spec.label for spec in specs] == ["minmax", "mse", "mse:clip_ratio=0.9"]
    specs = parse_specs(observer_names(), "mse", 8)
    assert [spec.label for spec in specs] == ["mse", *(n for n in observer_names() if n != "mse")]


def test_any_observer_may_be_the_baseline():
    label = "outlier_aware:normal_ratio=0.9999"
    assert parse_specs(["mse"], label, 8)[0] == ObserverSpec(label, "outlier_aware", {"normal_ratio": 0.9999})


# --- mistakes ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "unknown observer 'best': choose one of minmax, percentile, outlier_aware, "),
        ("", "unknown observer '': choose one of minmax, "),
        ("mse=3", "unknown observer 'mse=3'"),
        ("mse:0.9", "observer 'mse:0.9': write NAME or NAME:ARGUMENT=VALUE,... with plain values"),
        ("mse:clip_ratio", "observer 'mse:clip_ratio': write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:clip_ratio=", "observer 'mse:clip_ratio=': write"),
        ("mse:clip_ratio=0.9;sym=True", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:clip_ratio=open('x')", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:clip_ratio=half", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:clip_ratio={[]: 1}", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:clip_ratio=0.9,clip_ratio=0.5", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:**{'clip_ratio': 0.9}", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:), g(", "write NAME or NAME:ARGUMENT=VALUE"),
        ("mse:normal_ratio=0.9", "observer 'mse' takes no argument normal_ratio; it takes n_bits, clip_ratio, "),
        ("mse:name=3", "observer 'mse' takes no argument name"),
        ("mse:n_bits=4", "n_bits follows from the scheme"),
        ("minmax:sym=False", "taps are quantized symmetrically"),
        ("outlier_aware:normal_ratio=2", "normal_ratio must be in (0, 1], got 2"),
        ("outlier_aware:normal_level='a'", "observer \"outlier_aware:normal_level='a'\": "),
        ("outlier_aware_adaptive:normal_ratios=3", "observer 'outlier_aware_adaptive:normal_ratios=3': "),
    ],
)
def test_a_text_that_is_no_observer_is_refused_before_anything_is_measured(text, message):
    for texts, baseline in (["mse", text], "minmax"), (["mse"], text):
        with pytest.raises(QuambaError) as error:
            parse_specs(texts, baseline, 8)
        assert message in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("bits", "message"), [(1, "integer from 2 to 16, got 1"), (9, "2 to 8 bits, not 9"), (16, "2 to 8 bits, not 16")]
)
def test_bits_that_taps_do_not_have_are_refused(bits, message):
    with pytest.raises(QuambaError, match=message):
        parse_specs(["mse"], "minmax", bits)


@pytest.mark.parametrize("texts", [[], ["mse"], ["mse", "mse"]])
def test_a_baseline_alone_is_nothing_to_compare(texts):
    with pytest.raises(QuambaError, match="nothing to compare: 'mse' is the baseline, name another observer"):
        parse_specs(texts, "mse", 8)
