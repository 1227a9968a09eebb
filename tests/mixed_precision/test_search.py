"""The assignment of schemes to layers: within the budget, near the optimum, the same every time."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.layer_file import read_layer_schemes, write_layer_schemes
from quamba.mixed_precision.search import (
    Assignment,
    check_budget,
    choose_schemes,
    frontier,
    search_figures,
    uniform_assignments,
)

NAMES = ("w8a8", "w4a8", "w3a8", "w4a16")
WEIGHTS = 8 * 10**6  # so that a budget of b bits is of b megabytes


def megabytes(size: int) -> Budget:
    """A budget of so many bytes."""
    return Budget.parse(f"{size // 10**6}.{size % 10**6:06}MB")


def choose(losses: dict, sizes: dict, limit: int) -> Assignment:
    return choose_schemes(losses, sizes, megabytes(limit), WEIGHTS)


def every_assignment(losses: dict, sizes: dict) -> list[Assignment]:
    layers = range(len(next(iter(losses.values()))))
    return [
        Assignment(
            schemes,
            math.fsum(losses[name][layer] for layer, name in zip(layers, schemes, strict=True)),
            sum(sizes[name][layer] for layer, name in zip(layers, schemes, strict=True)),
        )
        for schemes in itertools.product(losses, repeat=len(layers))
    ]


@st.composite
def problems(draw, max_layers: int, max_schemes: int = 4) -> tuple[dict, dict, int]:
    """(losses, sizes, a limit that the smallest assignment fits): losses and sizes with ties, zeros and no order."""
    layers, names = draw(st.integers(1, max_layers)), NAMES[: draw(st.integers(1, max_schemes))]
    grid = st.integers(0, 12).map(lambda steps: steps / 4)  # sums of these are exact
    loss = draw(st.sampled_from([grid, st.floats(0, 10, allow_subnormal=False)]))
    size = draw(st.sampled_from([st.integers(1, 6), st.integers(1, 10**6)]))
    losses = {name: draw(st.lists(loss, min_size=layers, max_size=layers)) for name in names}
    sizes = {name: draw(st.lists(size, min_size=layers, max_size=layers)) for name in names}
    by_layer = list(zip(*sizes.values(), strict=True))
    limit = draw(st.integers(sum(map(min, by_layer)), sum(map(max, by_layer)) + 1))
    return losses, sizes, limit


# --- what was asked for ---


def test_the_layers_that_suffer_least_become_small():
    losses = {"w8a8": [0.0, 0.0, 0.0, 0.0], "w4a8": [0.5, 0.125, 0.25, 1.0]}
    sizes = {"w8a8": [800] * 4, "w4a8": [400] * 4}
    chosen = choose_schemes(losses, sizes, Budget.parse("6"), 3200)
    assert chosen == Assignment(("w8a8", "w4a8", "w4a8", "w8a8"), loss=0.375, size=2400)
    assert chosen.mean_bits(3200) == 6


def test_a_large_layer_is_worth_more_loss_than_a_small_one():
    losses = {"w8a8": [0.0, 0.0], "w4a8": [0.5, 0.25]}
    sizes = {"w8a8": [4000, 800], "w4a8": [2000, 400]}
    assert choose(losses, sizes, 4400).schemes == ("w8a8", "w4a8")
    assert choose(losses, sizes, 2800).schemes == ("w4a8", "w8a8")
    assert [point.size for point in frontier(losses, sizes)] == [4800, 2800, 2400]


def test_a_budget_without_need_for_small_layers_changes_none():
    losses, sizes = {"w8a8": [0.1, 0.1], "w4a8": [0.5, 0.01]}, {"w8a8": [8, 8], "w4a8": [4, 4]}
    assert choose(losses, sizes, 10**6).schemes == ("w8a8", "w4a8")  # the least loss, whichever scheme has it


def test_what_the_last_move_left_of_the_budget_is_used():
    # layer 0 is the cheapest for its bytes, but too large a move: layers 1 and 2 together do
    losses = {"w8a8": [0.0, 0.0, 0.0], "w4a8": [3.0, 1.0, 1.0]}
    sizes = {"w8a8": [1000, 200, 200], "w4a8": [500, 50, 60]}
    assert frontier(losses, sizes)[1].schemes == ("w4a8", "w8a8", "w8a8")
    assert choose(losses, sizes, 1110).schemes == ("w8a8", "w4a8", "w4a8")


def test_a_scheme_that_is_smaller_and_better_is_taken_at_once():
    losses, sizes = {"w8a8": [0.3, 0.3], "w4a16": [0.2, 0.2]}, {"w8a8": [8, 8], "w4a16": [4, 4]}
    assert frontier(losses, sizes) == [Assignment(("w4a16", "w4a16"), 0.4, 8)]


# --- what always holds ---


@settings(max_examples=300, deadline=None)
@given(problems(max_layers=8))
def test_the_budget_holds_and_no_uniform_assignment_that_fits_is_better(problem):
    losses, sizes, limit = problem
    chosen = choose(losses, sizes, limit)
    assert chosen.size <= limit
    fitting = [uniform.loss for uniform in uniform_assignments(losses, sizes) if uniform.size <= limit]
    assert chosen.loss <= min(fitting, default=math.inf)
    by_layer = list(enumerate(chosen.schemes))
    assert chosen.size == sum(sizes[name][layer] for layer, name in by_layer)
    assert chosen.loss == math.fsum(losses[name][layer] for layer, name in by_layer)
    assert choose(losses, sizes, limit) == chosen


@settings(max_examples=300, deadline=None)
@given(problems(max_layers=8))
def test_the_frontier_goes_down_in_bytes_and_up_in_loss_ever_more_steeply(problem):
    losses, sizes, _ = problem
    points = frontier(losses, sizes)
    slopes = []
    for before, after in itertools.pairwise(points):
        assert after.size < before.size and after.loss >= before.loss
        assert sum(a != b for a, b in zip(before.schemes, after.schemes, strict=True)) == 1
        slopes.append((after.loss - before.loss) / (before.size - after.size))
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(slopes))
    assert points[-1].size == sum(map(min, zip(*sizes.values(), strict=True)))
    assert points[0].loss == math.fsum(map(min, zip(*losses.values(), strict=True)))


@settings(max_examples=200, deadline=None)
@given(problems(max_layers=5))
def test_every_point_of_the_frontier_is_optimal_for_its_size(problem):
    losses, sizes, _ = problem
    every = every_assignment(losses, sizes)
    for point in frontier(losses, sizes):
        optimum = min(other.loss for other in every if other.size <= point.size)
        assert point.loss == pytest.approx(optimum, abs=1e-9)
        assert choose(losses, sizes, point.size).loss == pytest.approx(optimum, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(problems(max_layers=5))
def test_the_optimum_is_missed_by_less_than_the_last_move_added(problem):
    losses, sizes, limit = problem
    optimum = min(other.loss for other in every_assignment(losses, sizes) if other.size <= limit)
    points = frontier(losses, sizes)
    last = next(index for index, point in enumerate(points) if point.size <= limit)
    added = points[last].loss - points[last - 1].loss if last else 0.0
    chosen = choose(losses, sizes, limit)
    assert optimum <= chosen.loss + 1e-9
    assert chosen.loss <= optimum + added + 1e-9


@settings(max_examples=200, deadline=None)
@given(problems(max_layers=6, max_schemes=2), st.integers(2, 9))
def test_two_schemes_of_layers_of_one_size_are_chosen_optimally(problem, saved):
    losses, _, _ = problem
    layers = len(losses["w8a8"])
    sizes = {name: [10 - index * saved] * layers for index, name in enumerate(losses)}
    every = every_assignment(losses, sizes)
    for limit in {other.size for other in every}:
        optimum = min(other.loss for other in every if other.size <= limit)
        assert choose(losses, sizes, limit).loss == pytest.approx(optimum, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems(max_layers=5))
def test_no_change_of_one_layer_and_no_exchange_of_two_would_be_better(problem):
    losses, sizes, limit = problem
    chosen = choose(losses, sizes, limit)
    for other in every_assignment(losses, sizes):
        differing = sum(a != b for a, b in zip(other.schemes, chosen.schemes, strict=True))
        if differing <= 2 and other.size <= limit:
            assert other.loss >= chosen.loss - 1e-9


def test_a_model_of_many_layers_and_schemes():
    schemes = {name: 1 + index for index, name in enumerate(("w8a8", "w4a8", "w3a8", "w8a16", "w4a16", "w3a16"))}
    losses = {name: [(7 * layer * factor) % 31 / 8 for layer in range(64)] for name, factor in schemes.items()}
    sizes = {name: [100_000 // factor + layer % 5 for layer in range(64)] for name, factor in schemes.items()}
    for limit in (1_200_000, 3_000_000, 6_000_000):
        chosen = choose(losses, sizes, limit)
        assert chosen.size <= limit
        bound = next(point.loss for point in frontier(losses, sizes) if point.size <= limit)
        assert chosen.loss <= bound


# --- what is refused ---


@pytest.mark.parametrize(("budget", "needed"), [("4.1", "4.188bits"), ("4.187bits", "4.188bits"), ("0.1MB", "0.105MB")])
def test_a_budget_that_nothing_fits_names_the_smallest_that_works(budget, needed):
    losses, sizes = {"w8a8": [0, 0], "w4a8": [1, 1]}, {"w8a8": [100_000] * 2, "w4a8": [52_344] * 2}
    for refused in (choose_schemes, lambda _losses, *rest: check_budget(*rest)):
        with pytest.raises(QuambaError) as raised:
            refused(losses, sizes, Budget.parse(budget), 200_000)
        assert f"the budget {budget} is too small: with every layer at the smallest of w8a8, w4a8" in str(raised.value)
        assert f"take {needed};" in str(raised.value)
    assert choose_schemes(losses, sizes, Budget.parse(needed), 200_000).schemes == ("w4a8", "w4a8")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_error_naming_its_layer(loss):
    losses, sizes = {"w8a8": [0.0, 0.0], "w4a8": [1.0, loss]}, {"w8a8": [8, 8], "w4a8": [4, 4]}
    for refused in (frontier, lambda *tables: choose(*tables, 100)):
        with pytest.raises(QuambaError, match=r"the loss of layer 1 at w4a8 is .*: leave w4a8 out of the search"):
            refused(losses, sizes)


@pytest.mark.parametrize(
    ("losses", "sizes"),
    [({"w8a8": [0.0]}, {"w4a8": [1]}), ({"w8a8": [0.0]}, {"w8a8": [1, 1]}), ({}, {}), ({"w8a8": []}, {"w8a8": []})],
)
def test_tables_that_do_not_fit_each_other_are_an_error(losses, sizes):
    with pytest.raises(ValueError, match="losses and sizes are of"):
        frontier(losses, sizes)


# --- its file ---


def test_a_search_is_kept_with_the_schemes_that_it_chose(tmp_path):
    losses, sizes = {"w8a8": [0.0, 0.0], "w4a8": [0.5, 0.25]}, {"w8a8": [80, 80], "w4a8": [42, 42]}
    budget, path = Budget.parse("6.5bits"), tmp_path / "blocks.json"
    chosen = choose_schemes(losses, sizes, budget, 160)
    write_layer_schemes(path, chosen.schemes, search_figures(chosen, losses, sizes, budget, 160))
    assert read_layer_schemes(path, 2) == chosen.schemes == ("w8a8", "w4a8")
    search = json.loads(path.read_text())["search"]
    assert (search["budget"], search["mean_bits"], search["bytes"]) == ("6.5bits", 6.1, 122)
    assert search["predicted_loss"] == 0.25
    assert choose_schemes(search["losses"], search["sizes"], budget, search["weights"]) == chosen
