"""Plug-ins: files of a user's own that register observers and rounding rules."""

import logging
import pickle
from pathlib import Path

import pytest
import torch

from quamba.errors import QuambaError
from quamba.observers.per_tensor import create_observer, observer_names
from quamba.plugins import load_plugin
from quamba.weights.rounding import get_rounding, rounding_names

EXAMPLES = Path(__file__).parent.parent / "examples"
OBSERVER, RULE = EXAMPLES / "my_observer.py", EXAMPLES / "my_rounding.py"
BOTH = """
from quamba.observers.per_tensor import PerTensorMinmaxObserver, register_observer
from quamba.weights.rounding import register_rounding, round_to_nearest

@register_observer("mine_too")
class Mine(PerTensorMinmaxObserver): pass

@register_rounding("mine_too")
def mine(state, statistics, options):
    return round_to_nearest(state, statistics, options)
"""


@pytest.fixture
def built_in() -> tuple[list[str], list[str]]:
    """The names of observers and of rounding rules before a test loads a plug-in."""
    return observer_names(), rounding_names()


def test_the_example_of_an_observer():
    torch.manual_seed(0)
    load_plugin(OBSERVER)
    observer = create_observer("mine")
    x = torch.distributions.Laplace(0.0, 2.0).sample((200_000,))
    observer.update(x[:50_000])
    rest = create_observer("mine")
    rest.update(x[50_000:])
    observer.merge(rest)
    scale, base = observer.get_quantization_parameters()
    assert float(scale) == pytest.approx(9.9 * 2.0 / 127, rel=0.02)  # the published constant for 8 bits
    assert float(base) == 0


def test_the_example_of_a_rounding_rule():
    module = load_plugin(RULE)
    assert get_rounding("one_flip") is module.flip_one


def test_loading_a_plug_in_twice_does_nothing():
    assert load_plugin(OBSERVER) is load_plugin(str(OBSERVER))
    assert observer_names().count("mine") == 1


def test_what_a_plug_in_defines_can_be_pickled(tmp_path):
    (tmp_path / "both.py").write_text(BOTH)
    load_plugin(tmp_path / "both.py")
    observer = create_observer("mine_too")
    observer.update(torch.ones(3))
    assert pickle.loads(pickle.dumps(observer)).count == 3
    assert pickle.loads(pickle.dumps(get_rounding("mine_too"))) is get_rounding("mine_too")


def test_two_plug_ins_of_one_file_name_are_two(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(BOTH.replace("mine_too", name))
        load_plugin(tmp_path / name / "mine.py")
    for name in ("one", "two"):
        observer = create_observer(name)
        assert type(pickle.loads(pickle.dumps(observer))) is type(observer)


def test_the_log_tells_what_was_registered_by_kind(tmp_path, caplog):
    caplog.set_level(logging.INFO, "quamba")
    (tmp_path / "both.py").write_text(BOTH)
    (tmp_path / "idle.py").write_text("")
    for name in ("both.py", "idle.py"):
        load_plugin(tmp_path / name)
    assert caplog.messages == [
        f"plug-in {tmp_path / 'both.py'} registered: observer mine_too; rounding rule mine_too",
        f"plug-in {tmp_path / 'idle.py'} registered: nothing",
    ]


@pytest.mark.parametrize("path", ["nowhere.py", "README.md"])
def test_a_plug_in_that_is_no_python_file(tmp_path, path):
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(QuambaError, match=r"is not a Python file: give the path of an existing \.py file"):
        load_plugin(tmp_path / path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", r"it ended the program \(exit status 3\), which a plug-in must not"),
        ("register_observer('a,b')(Mine)", "QuambaError: the observer name 'a,b' is not made of letters"),
        ("register_observer(3)(Mine)", "QuambaError: the observer name 3 is not made of letters"),
        (
            "register_observer('mse')(Mine)",
            "QuambaError: the observer name 'mse' is taken by quamba.observers.per_tensor.PerT",
        ),
    ],
)
def test_a_plug_in_that_fails_is_named_and_leaves_nothing_registered(tmp_path, built_in, source, message):
    plugin = tmp_path / "broken.py"
    plugin.write_text(BOTH + source)
    with pytest.raises(QuambaError, match=rf"plug-in '.*broken\.py' failed( in line \d+)?: {message}"):
        load_plugin(plugin)
    assert (observer_names(), rounding_names()) == built_in


def test_a_plug_in_that_was_mended_is_loaded(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(BOTH + "1 / 0")
    with pytest.raises(QuambaError, match="ZeroDivisionError"):
        load_plugin(plugin)
    plugin.write_text(BOTH + "# mended")
    load_plugin(plugin)
    assert observer_names()[-1] == rounding_names()[-1] == "mine_too"


def test_a_plug_in_that_a_failing_one_loaded_is_undone_too_and_can_be_loaded_by_itself(tmp_path, built_in):
    (tmp_path / "outer.py").write_text(f"import quamba\nquamba.load_plugin({str(RULE)!r})\n1 / 0")
    with pytest.raises(QuambaError, match="ZeroDivisionError"):
        load_plugin(tmp_path / "outer.py")
    assert (observer_names(), rounding_names()) == built_in
    load_plugin(RULE)
    assert rounding_names() == [*built_in[1], "one_flip"]
