"""Recorded steps: what is recorded and when, with a recorder that plays on the CPU."""

import pytest
import torch

from quamba.generation.decoder import Decoder
from quamba.generation.recorded_step import RecordedStep
from tests.generation.test_decoder import quantized


class Recorder:
    """Stands in for a GPU's: keeps the step, runs nothing while it records, and writes each replay to one tensor."""

    def __init__(self):
        self.recordings, self.replays = 0, 0

    def __call__(self, step):
        self.recordings += 1
        result = torch.empty(0)

        def replay():
            self.replays += 1
            result.resize_(0).set_(step())

        return result, replay


def counting_step(state: torch.Tensor):
    def step(ids: torch.Tensor) -> torch.Tensor:
        state.add_(ids.sum())
        return state.expand(len(ids), 3).clone()

    return step


def test_the_first_call_runs_the_second_records_and_all_later_ones_replay():
    state, recorder = torch.zeros(1), Recorder()
    step = RecordedStep(counting_step(state), {"cpu": recorder})
    sums = [step(torch.tensor([token, 1]), lambda: [state])[0, 0].item() for token in (1, 2, 3, 4)]
    assert sums == [2, 5, 9, 14]
    assert (recorder.recordings, recorder.replays) == (1, 3)


def test_what_a_replay_returned_is_not_overwritten_by_the_next():
    state = torch.zeros(1)
    step = RecordedStep(counting_step(state), {"cpu": Recorder()})
    results = [step(torch.tensor([1]), lambda: [state]) for _ in range(4)]
    assert [result[0, 0].item() for result in results] == [1, 2, 3, 4]


@pytest.mark.parametrize("change", ["states", "batch"])
def test_other_states_and_another_batch_are_recorded_anew(change):
    recorder, states = Recorder(), [torch.zeros(1), torch.zeros(1)]
    step = RecordedStep(lambda ids: torch.ones(len(ids), 3), {"cpu": recorder})
    for run in (0, 1):
        ids = torch.ones(1 + run if change == "batch" else 1, dtype=torch.int64)
        state = states[run if change == "states" else 0]
        for _ in range(3):
            step(ids, lambda state=state: [state])
    assert (recorder.recordings, recorder.replays) == (2, 4)


def test_a_device_without_a_recorder_runs_every_step():
    calls = []
    step = RecordedStep(lambda ids: calls.append(1) or torch.ones(len(ids), 3), {})
    for _ in range(3):
        step(torch.tensor([1]), lambda: pytest.fail("no one asks for the states"))
    assert len(calls) == 3


def test_a_decoder_of_recorded_steps_says_what_one_without_says(tiny_ssm, tokens, monkeypatch):
    model = quantized(tiny_ssm())
    plain, recorded, recorder = Decoder(model), Decoder(model), Recorder()
    for decoder in (plain, recorded):
        decoder.prefill(tokens[:, :4])
    recorded._recorded = RecordedStep(recorded._step, {"cpu": recorder})
    for position in range(4, 9):
        torch.testing.assert_close(recorded.step(tokens[:, position]), plain.step(tokens[:, position]), rtol=0, atol=0)
    assert recorder.replays == 4
