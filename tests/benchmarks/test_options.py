"""The options of the benchmark."""

import pytest

from benchmarks.speed.__main__ import chosen_systems, options_of, parse
from benchmarks.speed.shapes import CHECKED, MEASURED, SHAPES, Case
from benchmarks.speed.systems import SYSTEMS, fitting


def test_a_system_a_scheme_or_both_choose_systems():
    assert {s.system for s in chosen_systems(["llama.cpp"])} == {"llama.cpp"}
    assert [s.name for s in chosen_systems(["w8a8", "transformers:float32"])] == [
        "quamba:w8a8",
        "transformers:float32",
        "floor:w8a8",
    ]
    assert chosen_systems(None) == list(SYSTEMS)


def test_defaults_are_every_shape_and_five_rounds():
    options = options_of(parse([]))
    assert [shape.name for shape in options.shapes] == list(MEASURED)
    assert (options.batches, options.prompts, options.rounds) == ([1, 8], [128, 512, 2048], 5)


def test_a_check_is_of_the_tiny_shapes_of_every_architecture_unless_others_are_named():
    assert [shape.name for shape in options_of(parse(["--check"])).shapes] == list(CHECKED)
    assert {s.model_type for s in CHECKED.values()} == {s.model_type for s in MEASURED.values()}
    assert [shape.name for shape in options_of(parse(["--check", "--shapes", "130m"])).shapes] == ["130m"]


def test_what_is_asked_for_wins_over_quick():
    options = options_of(parse(["--quick", "--shapes", "370m,790m", "--rounds", "7"]))
    assert [shape.name for shape in options.shapes] == ["370m", "790m"]
    assert (options.prompts, options.rounds) == ([128, 512], 7)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--shapes", "130m,7b", "unknown 7b"),
        ("--systems", "vllm", "unknown vllm"),
        ("--prompts", "128,x", "no list of whole numbers"),
        ("--rounds", "0", "0 is not above zero"),
        ("--batches", "", "no list of whole numbers"),
        ("--rounds", "5,7", "more than one number"),
    ],
)
def test_a_bad_value_is_named(option, value, said, capsys):
    with pytest.raises(SystemExit):
        parse([option, value])
    assert said in capsys.readouterr().err


def test_transformers_is_not_asked_for_what_would_take_minutes():
    slow = chosen_systems(["transformers:float32"])[0]
    assert slow.takes(Case("130m", 8, 128)) and slow.takes(Case("370m", 1, 128))
    assert not slow.takes(Case("130m", 1, 2048)) and not slow.takes(Case("370m", 8, 128))


def test_what_does_not_fit_beside_the_others_is_left_out():
    chosen = fitting(list(SYSTEMS), SHAPES["1.4b"], 12e9)
    assert "llama.cpp:Q4_K_M" in [s.name for s in chosen]
    assert "transformers:float32" not in [s.name for s in chosen]
    assert fitting(list(SYSTEMS), SHAPES["130m"], 12e9) == list(SYSTEMS)
