"""Sampling: the same tokens stay as with transformers' processors, and what is drawn follows the probabilities."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quamba import QuambaError
from quamba.generation import sampling as sampling_module
from quamba.generation.sampling import SamplingOptions, choose, draw, keep_top_k, keep_top_p, penalize_repetition

SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(1, 3), st.sampled_from([2, 3, 97, 700, 1301]))  # [B, V], also beyond the first candidates


def random_logits(seed: int, size: tuple[int, int], spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


# --- the same as transformers ---


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, size=SIZES, penalty=st.floats(0.3, 3), count=st.integers(1, 9))
def test_repetition_penalty_is_that_of_transformers(seed, size, penalty, count):
    logits = random_logits(seed, size)
    ids = torch.randint(size[1], (size[0], count), generator=torch.Generator().manual_seed(seed))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(penalize_repetition(logits, ids, penalty), expected)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, size=SIZES, top_k=st.integers(1, 2000))
def test_top_k_is_that_of_transformers(seed, size, top_k):
    logits = random_logits(seed, size)
    assert torch.equal(keep_top_k(logits, top_k), TopKLogitsWarper(top_k)(None, logits))


def test_top_k_keeps_all_that_are_equal_to_the_last():
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[True, True, True, False]]


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS, size=SIZES, top_p=st.floats(0.01, 0.99), spread=st.sampled_from([0.01, 1.0, 5.0]))
@example(seed=17055, size=(3, 1301), top_p=0.19963931010946562, spread=0.01)  # two of one probability
def test_top_p_is_that_of_transformers(seed, size, top_p, spread):
    """But for the token at the limit, where two orders of adding may round to different sides, or sort tokens alike."""
    logits = random_logits(seed, size, spread)
    actual, expected = keep_top_p(logits, top_p), TopPLogitsWarper(top_p)(None, logits)
    probabilities, rounded = logits.double().softmax(-1), logits.softmax(-1)
    for row in range(size[0]):
        for index in (actual[row].isfinite() != expected[row].isfinite()).nonzero()[:, 0]:
            likelier = float(probabilities[row][rounded[row] > rounded[row, index]].sum())
            alike = rounded[row] == rounded[row, index]  # of tokens with one probability either may be the last
            beyond = float(probabilities[row][alike].sum()) if alike.sum() > 1 else 0.0
            assert likelier - 1e-5 <= top_p <= likelier + beyond + 1e-5
    kept = actual.isfinite()
    assert torch.equal(actual[kept], logits[kept])


def test_top_p_keeps_the_likeliest_and_1_keeps_all():
    logits = random_logits(0, (2, 700))
    assert keep_top_p(logits, 1e-6).isfinite().sum(-1).tolist() == [1, 1]
    assert keep_top_p(logits, 1.0).isfinite().all()


def test_top_p_counts_what_top_k_left():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    assert keep_top_p(keep_top_k(logits, 2), 0.5).isfinite().tolist() == [[True, False, False, False]]  # 0.4 / 0.7


def test_temperature_top_k_and_top_p_come_in_the_order_of_transformers(monkeypatch):
    logits, ids = random_logits(3, (2, 700)), torch.tensor([[1, 2], [3, 3]])
    options = SamplingOptions(temperature=0.7, top_k=30, top_p=0.8, repetition_penalty=1.3)
    seen = []
    monkeypatch.setattr(sampling_module, "draw", lambda logits, _: seen.append(logits))
    choose(logits, ids, options, options.generator())
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits)
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(30), TopPLogitsWarper(0.8)):
        expected = warper(ids, expected)
    assert torch.equal(seen[0], expected)


# --- the choice ---


def test_temperature_0_takes_the_likeliest_after_the_penalty():
    logits, ids = torch.tensor([[2.0, 1.5, -1.0], [0.0, 0.5, 4.0]]), torch.tensor([[0], [1]])
    assert choose(logits, ids, SamplingOptions(), None).tolist() == [0, 2]
    assert choose(logits, ids, SamplingOptions(repetition_penalty=2.0), None).tolist() == [1, 2]


def test_what_is_drawn_follows_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    count = 20_000
    drawn = draw(probabilities.log().expand(count, -1), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / count
    error = 4 * math.sqrt(0.25 / count)
    torch.testing.assert_close(shares, probabilities, atol=error, rtol=0)
    assert shares[[1, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53, 1.0])
def test_a_token_of_probability_0_is_never_drawn(monkeypatch, number):
    """Not by the smallest nor the largest random number, nor by one that is rounded up to 1."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.full((1, 1), number, dtype=torch.float64))
    logits = torch.tensor([[-torch.inf, 0.1, 0.3, -torch.inf]])
    assert draw(logits, torch.Generator()).tolist() == [1 if number == 0 else 2]


def test_a_seed_gives_the_same_choices_again_and_another_seed_others():
    logits, ids = random_logits(1, (1, 97), spread=1.0), torch.zeros(1, 1, dtype=torch.int64)

    def choices(seed: int | None) -> list[int]:
        options = SamplingOptions(temperature=1.0, seed=seed)
        generator = options.generator()
        return [int(choose(logits, ids, options, generator)) for _ in range(20)]

    assert choices(3) == choices(3)
    assert choices(None) == choices(0)
    assert choices(3) != choices(4)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(broken, temperature):
    logits, ids = torch.zeros(2, 5), torch.zeros(2, 1, dtype=torch.int64)
    logits[1, 3] = broken
    options = SamplingOptions(temperature=temperature)
    with pytest.raises(QuambaError, match="logits are NaN or infinite"):
        choose(logits, ids, options, options.generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"temperature": 1, "top_k": 0}, "top_k 0"),
        ({"temperature": 1, "top_p": 0.0}, "top_p 0.0"),
        ({"temperature": 1, "top_p": 1.01}, "top_p 1.01"),
        ({"temperature": 1, "top_p": math.nan}, "top_p nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty nan"),
        ({"temperature": 1, "seed": -1}, "seed -1"),
        ({"top_p": 0.9}, "top_p 0.9 does nothing at temperature 0"),
        ({"top_k": 5}, "top_k 5 does nothing at temperature 0"),
        ({"seed": 0}, "seed 0 does nothing at temperature 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(QuambaError, match=message):
        SamplingOptions(**options)
