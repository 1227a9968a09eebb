"""Plug-ins whose observers and rounding rules give nonsense: refused by name, before a run begins its work."""

import pytest
import torch

import main
from quamba import registry
from quamba.errors import QuambaError
from quamba.numerics import integer_range
from quamba.observers.per_tensor import Observer, create_observer, register_observer, try_observer
from quamba.weights.rounding import FlipStatistics, apply_rounding, register_rounding, try_rounding
from quamba.weights.rounding_base import DEFAULT_OPTIONS
from quamba.weights.rounding_state import RoundingState

PARAMETERS = {
    "None": (None, r"_parameters\(\) must return \(scale, base\), two tensors, not None"),
    "(0.5, 0)": ((0.5, 0), r"must return \(scale, base\), two tensors, not \(0\.5, 0\)"),
    "one tensor": (torch.ones(2), r"must return \(scale, base\), two tensors"),
    "NaN": ((torch.tensor(torch.nan), torch.tensor(0.0)), "gave the scale nan and base 0.0"),
    "negative": ((torch.tensor(-1.0), torch.tensor(0.0)), r"gave the scale -1\.0"),
    "two shapes": ((torch.ones(()), torch.ones(3)), r"scale and base have the shapes \(\) and \(3,\)"),
}


@pytest.fixture(autouse=True)
def _own_registry():
    before = registry.snapshot()
    yield
    registry.restore(before)


GOOD = (torch.ones(()), torch.zeros(()))


def observer_class(parameters=GOOD, **methods):
    members = {"_update": lambda self, x: None, "_merge": lambda self, other: None}
    members["_parameters"] = lambda self: parameters
    return type("Mine", (Observer,), members | methods)


@pytest.mark.parametrize(("parameters", "message"), PARAMETERS.values(), ids=PARAMETERS)
def test_scales_that_are_none_are_found_on_a_trial(parameters, message):
    register_observer("mine")(observer_class(parameters))
    with pytest.raises(QuambaError, match=message):
        try_observer("mine")


@pytest.mark.parametrize("method", ["_update", "_merge", "_parameters", "__init__"])
def test_an_observer_that_fails_is_found_on_a_trial(method):
    def fail(self, *_):
        raise KeyError("mine")

    fails = {method: fail if method != "__init__" else lambda self, n_bits=8, clip_ratio=1.0, sym=True: fail(self)}
    register_observer("mine")(observer_class(**fails))
    with pytest.raises(QuambaError, match=r"observer 'mine' fails on a trial of 64 values: KeyError: 'mine' \(.*\.py"):
        try_observer("mine")


def test_an_observer_that_makes_no_base_class_is_refused():
    register_observer("mine")(observer_class(__init__=lambda self: None))
    with pytest.raises(QuambaError, match=r"its __init__ must call super\(\).__init__"):
        create_observer("mine")


def test_a_good_observer_and_those_of_this_package_pass():
    register_observer("mine")(observer_class())
    for name in ("mine", "mse"):
        try_observer(name)


ROUNDINGS = {
    "None": (lambda s: None, r"must return \(RoundingState, FlipStatistics\), not NoneType"),
    "integers alone": (lambda s: s.integers, r"must return \(RoundingState, FlipStatistics\), not Tensor"),
    "no statistics": (lambda s: (s, None), "gave NoneType in place of FlipStatistics"),
    "another shape": (lambda s: changed(s, s.integers[:1]), r"gave integers of torch.float32 \[1, 16\]"),
    "another dtype": (lambda s: changed(s, s.integers.to(torch.int8)), r"gave integers of torch.int8 \[4, 16\]"),
    "halves": (lambda s: changed(s, s.integers + 0.5), "integers that are not whole numbers from -128 to 127"),
    "out of range": (lambda s: changed(s, s.integers + 1000), "integers that are not whole numbers from -128 to 127"),
    "NaN": (lambda s: changed(s, s.integers * torch.nan), "integers that are not whole numbers from -128 to 127"),
    "error": (lambda s: s.nothing, r"rounding rule 'mine' fails on a trial of a weight \[4, 16\]: AttributeError"),
}


def changed(state, integers):
    return state.with_integers(integers), FlipStatistics(0, 0, {}, {})


@pytest.mark.parametrize(("rule", "message"), ROUNDINGS.values(), ids=ROUNDINGS)
def test_integers_that_are_none_are_found_on_a_trial(rule, message):
    register_rounding("mine")(lambda state, statistics, options: rule(state))
    with pytest.raises(QuambaError, match=message):
        try_rounding("mine")


def test_what_a_rule_gives_in_a_run_is_looked_at_too():
    low, high = integer_range(4, symmetric=False)
    tensors = {"weight": torch.ones(2, 4), "integers": torch.ones(2, 4), "scale": torch.ones(2, 1)}
    state = RoundingState(**tensors, zero=torch.zeros(2, 1), group_size=4, low=low, high=high)
    register_rounding("mine")(lambda state, statistics, options: changed(state, state.integers - 2))
    with pytest.raises(QuambaError, match=f"rounding rule 'mine' gave integers .* from {low} to {high}"):
        apply_rounding("mine", state, None, DEFAULT_OPTIONS)


NONSENSE = """
import quamba
from quamba.observers.per_tensor import Observer

@quamba.register_observer("nonsense")
class Nonsense(Observer):
    def _update(self, x): pass
    def _merge(self, other): pass
    def _parameters(self): return None

@quamba.register_rounding("nonsense")
def rule(state, statistics, options): return None
"""


@pytest.mark.parametrize("options", [["--observer", "nonsense"], ["--use_heuristic", "--flip_objective", "nonsense"]])
def test_the_command_line_refuses_them_before_it_looks_for_the_model(options, tmp_path, capsys):
    plugin = tmp_path / "nonsense.py"
    plugin.write_text(NONSENSE)
    assert main.main(["no-such-model", "--quantize", "--plugin", str(plugin), *options]) == 2
    assert "nonsense'" in (said := capsys.readouterr().err)
    assert "must return" in said
