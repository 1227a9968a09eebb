"""Which observer watches which tap."""

import pytest

from quamba.architectures.convert import HEAD_TAP
from quamba.architectures.table import ARCHITECTURES, BLOCK_TAPS
from quamba.calibration.defaults import DEFAULT_OBSERVERS, check_observer_options, parse_observers
from quamba.errors import QuambaError
from quamba.nn.taps import STATE_TAP
from quamba.observers.per_tensor import observer_names

EVERY_TAP = (*BLOCK_TAPS, HEAD_TAP)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mse", {"x": "mse"}),
        ("x=mse", {"x": "mse"}),
        ("x=mse,out=percentile", {"x": "mse", "out": "percentile"}),
        ("all=mse", dict.fromkeys(EVERY_TAP, "mse")),
        ("all=mse,x=percentile", dict.fromkeys(EVERY_TAP, "mse") | {"x": "percentile"}),
        ("x=percentile,all=mse", dict.fromkeys(EVERY_TAP, "mse") | {"x": "percentile"}),
        ("all=mse,percentile", dict.fromkeys(EVERY_TAP, "mse") | {"x": "percentile"}),
        ({"out": "mse", "all": "percentile"}, dict.fromkeys(EVERY_TAP, "percentile") | {"out": "mse"}),
        ({}, {}),
        (None, {}),
    ],
    ids=str,
)
def test_a_spec_names_observers_and_the_other_taps_keep_their_defaults(spec, expected):
    assert parse_observers(spec) == {tap: DEFAULT_OBSERVERS[tap] for tap in EVERY_TAP} | expected


@pytest.mark.parametrize("spec", [None, "all=mse", "x=mse", "state=minmax"])
def test_integer_states_are_watched_by_minmax_alone(spec):
    """They are no activation: only a model that keeps them as integers has a tap for them, with a scale a channel."""
    assert parse_observers(spec, taps=(*BLOCK_TAPS, STATE_TAP))[STATE_TAP] == "minmax"
    with pytest.raises(QuambaError, match="minmax alone is small enough: drop state=percentile"):
        parse_observers("state=percentile", taps=(*BLOCK_TAPS, STATE_TAP))
    assert STATE_TAP not in parse_observers("all=mse")
    with pytest.raises(QuambaError, match="this model has no tap 'state'"):
        parse_observers("state=mse")


def test_every_tap_has_a_default_observer():
    assert tuple(DEFAULT_OBSERVERS) == (*BLOCK_TAPS, STATE_TAP, HEAD_TAP)
    assert set(DEFAULT_OBSERVERS.values()) <= set(observer_names())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("best", "unknown observer 'best': choose one of minmax, percentile, "),
        ("x=best", "unknown observer 'best'"),
        ("x=", "unknown observer ''"),
        ("", "unknown observer ''"),
        ("mse,", "unknown observer ''"),
        ("x=mse=2", "unknown observer 'mse=2'"),
        ("y=mse", "unknown tap 'y': choose of in, conv_in, z, x, dt_rank, B, C, out, B_in, C_in, head_in, all"),
        ({"y": "mse"}, "unknown tap 'y'"),
        ({"x": None}, "unknown observer None"),
        ("mse,percentile", "tap 'x' is given more than one observer in 'mse,percentile'"),
        ("all=mse,all=minmax", "tap 'all' is given more than one observer"),
    ],
    ids=str,
)
def test_a_spec_that_means_nothing_is_refused(spec, message):
    with pytest.raises(QuambaError) as error:
        parse_observers(spec)
    assert message in str(error.value)


def test_the_head_has_a_tap_only_where_it_is_quantized():
    assert HEAD_TAP not in parse_observers("all=mse", head=False)
    with pytest.raises(QuambaError, match="tap head_in has an observer only where the head is quantized"):
        parse_observers("head_in=mse", head=False)


def test_taps_with_a_scale_per_token_have_no_observer():
    assert set(EVERY_TAP) - set(parse_observers("all=mse", dynamic=True)) == {"in", "out", HEAD_TAP}
    assert parse_observers("x=mse", dynamic=True)["x"] == "mse"
    for tap in ("in", "out", HEAD_TAP):
        with pytest.raises(QuambaError, match=f"tap {tap} has no observer where scales are dynamic"):
            parse_observers({tap: "mse"}, dynamic=True)


@pytest.mark.parametrize(("model_type", "other"), [("mamba", "B_in"), ("mamba2", "dt_rank")])
def test_a_models_observers_are_those_of_its_own_taps(model_type, other):
    taps = ARCHITECTURES[model_type].taps
    for spec in (None, "all=minmax"):
        assert tuple(parse_observers(spec, taps=taps)) == (*taps, HEAD_TAP)
    with pytest.raises(QuambaError, match=f"this model has no tap '{other}': choose of in, "):
        parse_observers({other: "mse"}, taps=taps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outlier_aware": {}}, "'outlier_aware', which no tap uses: the taps use minmax, mse, percentile"),
        ({"percentile": {"best": 1}}, "observer 'percentile' takes no argument best"),
        ({"percentile": {"percentile_alpha": 2.0}}, "percentile_alpha must be in"),
        ({"percentile": {"sym": False}}, "taps are quantized symmetrically"),
        ({"percentile": {"n_bits": 4}}, "n_bits follows from the scheme"),
    ],
    ids=str,
)
def test_observer_options_that_do_nothing_or_do_not_fit_are_refused(options, message):
    with pytest.raises(QuambaError) as error:
        check_observer_options(DEFAULT_OBSERVERS, options)
    assert message in str(error.value)
