"""Latency: what is timed, in which order, and how it is summed up. No test asserts a speed."""

import pytest
import torch

from quamba.evaluation import latency
from quamba.evaluation.latency import Spread, paired_ratios, random_prompt, time_run, time_runs


class SlowDecoder:
    """Takes a stated time for each call, on a clock of its own, and says token 2 every time."""

    def __init__(self, clock: list[float], name: str = "", prefill: float = 5.0, steps=(1.0, 4.0, 1.0), log=None):
        self.clock, self.name, self.prefill_seconds, self.steps = clock, name, prefill, steps
        self.log = [] if log is None else log

    def reset(self) -> None:
        self.log.append(f"{self.name}reset")
        self.count = 0

    def prefill(self, prompt):
        self.clock[0] += self.prefill_seconds
        self.log.append(f"{self.name}prefill")
        return torch.eye(5)[[2] * len(prompt)]

    def step(self, ids):
        assert ids.tolist() == [2, 2]
        self.clock[0] += self.steps[self.count]
        self.count += 1
        self.log.append(f"{self.name}step")
        return torch.eye(5)[ids]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    return now


PROMPT = torch.zeros(2, 3, dtype=torch.int64)


def test_a_run_is_a_prefill_from_an_empty_state_and_steps(clock):
    decoder = SlowDecoder(clock)
    assert time_run(decoder, PROMPT, gen_len=3) == {"ttft": 5, "tpot": 1, "ttlt": 11}
    assert decoder.log == ["reset", "prefill", "step", "step", "step"]


def test_without_steps_only_the_first_token_is_timed(clock):
    assert time_run(SlowDecoder(clock), PROMPT, gen_len=0) == {"ttft": 5}


def test_models_take_turns_and_every_second_round_begins_with_the_last(clock):
    log = []
    decoders = {"a": SlowDecoder(clock, "a", log=log), "b": SlowDecoder(clock, "b", prefill=7.0, log=log)}
    seconds = time_runs(decoders, PROMPT, gen_len=1, repeats=3, progress=False)
    assert [entry for entry in log if "prefill" in entry] == [f"{name}prefill" for name in "abbaab"]
    assert seconds == {
        "a": {"ttft": [5, 5, 5], "tpot": [1, 1, 1], "ttlt": [6, 6, 6]},
        "b": {"ttft": [7, 7, 7], "tpot": [1, 1, 1], "ttlt": [8, 8, 8]},
    }


def test_a_spread_has_median_extremes_and_quartiles():
    spread = Spread.of([4.0, 1.0, 3.0, 2.0, 9.0])
    assert (spread.median, spread.min, spread.max, spread.q1, spread.q3) == (3, 1, 9, 2, 4)
    assert spread.to_dict()["iqr"] == spread.iqr == 2


def test_one_measurement_has_no_spread():
    assert Spread.of([2.5]).to_dict() == {"median": 2.5, "min": 2.5, "max": 2.5, "q1": 2.5, "q3": 2.5, "iqr": 0}


def test_ratios_are_of_runs_that_were_made_in_turn():
    """A slow spell that hit both models does not widen them."""
    ratio = paired_ratios([1.0, 10.0, 2.0], [2.0, 20.0, 4.0])
    assert (ratio.median, ratio.iqr) == (0.5, 0)


def test_a_prompt_is_of_ids_of_the_vocabulary_and_the_same_for_a_seed():
    prompt = random_prompt(7, batch_size=3, length=50, seed=1)
    assert (prompt.shape, prompt.dtype) == ((3, 50), torch.int64)
    assert set(prompt.unique().tolist()) == set(range(7))
    assert torch.equal(prompt, random_prompt(7, 3, 50, 1))
    assert not torch.equal(prompt, random_prompt(7, 3, 50, 2))
