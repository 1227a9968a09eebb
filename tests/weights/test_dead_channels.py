"""Channels that the calibration text never excites: nothing that is chosen by looking at the text may cost them."""

import pytest
import torch
import torch.nn.functional as F

import quamba
from quamba.weights.grid import Grid
from quamba.weights.method import WeightMethod, effective_weight, round_linears
from quamba.weights.rounding import FlipOptions, flip_by_hessian, flip_by_mean
from quamba.weights.statistics import InputStatistics, dead_channels
from tests.tiny_llama import tiny_llama
from tests.weights.rounding_cases import Moments

METHODS = {
    "gptq": WeightMethod("gptq"),
    "awq": WeightMethod("awq"),
    "awq, clipped": WeightMethod("awq", clip=True),
    "awq+gptq, clipped, hessian": WeightMethod("awq+gptq", "hessian", FlipOptions(max_flip_percent=0.1), clip=True),
    "rtn, mean": WeightMethod("rtn", "mean", FlipOptions(outlier_percent=0.0, max_flip_percent=0.5)),
}
BY_METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
GRID = Grid(4, False, 16)
DEAD = [3, 20, 21, 22, 47]  # of 48 channels: one in a group, several, the last


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(size: float) -> InputStatistics:
    """An input of mixed sources with a mean, the dead channels that much smaller."""
    x = random(300, 6, seed=1) @ random(6, 48, seed=2) + 0.2 * random(300, 48, seed=3) + 0.3
    x[:, [8, 30]] *= 20
    x[:, DEAD] *= size
    statistics = InputStatistics(48, second_moment=True)
    statistics.update(x)
    return statistics


@pytest.mark.parametrize(
    ("salience", "dead"),
    [
        ([1.0, 0.0, 2.0, 1e-40], [False, True, False, True]),
        ([1.0, 1e-13, 2.0, 1e-15], [False, False, False, True]),
        ([1e-12, 1e-30, 1e-13, 1e-13], [False, True, False, False]),  # small inputs are not dead for being small
        ([0.0, 0.0], [True, True]),
        ([float("inf"), float("inf")], [False, False]),
        ([-1.0, -1.0], [False, False]),
    ],
)
def test_dead_is_what_is_noise_beside_the_others(salience, dead):
    assert dead_channels(torch.tensor(salience)).tolist() == dead


@BY_METHOD
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
def test_their_weights_are_as_near_as_rounding_to_nearest_makes_them(method, size):
    weight = random(24, 48)
    found = effective_weight(round_linears({"": weight}, text(size), GRID, method)[0][""], 16)
    error, nearest = ((values - weight)[:, DEAD].norm() for values in (found, GRID.nearest(weight).dequantized()))
    assert error < 2 * nearest


@BY_METHOD
def test_a_layer_whose_every_channel_is_dead_has_the_nearest_integers(method):
    statistics = InputStatistics(48, second_moment=True)
    statistics.update(torch.zeros(40, 48))
    weight = random(24, 48)
    rounded = round_linears({"": weight}, statistics, GRID, method)[0][""]
    assert torch.equal(rounded.integers.float(), GRID.nearest(weight).integers)
    assert rounded.input_scales is None


@pytest.mark.parametrize("rule", [flip_by_hessian, flip_by_mean])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
def test_none_of_their_integers_flips(rule, size):
    state, statistics = GRID.nearest(random(24, 48)), text(size)
    mean = statistics.mean if size != 1e-9 else torch.where(dead_channels(statistics.salience), 0, statistics.mean)
    moments = Moments(mean, statistics.second)
    after, report = rule(state, moments, FlipOptions(outlier_percent=0.0, max_flip_percent=1.0))
    assert report.flips > 0
    assert torch.equal(after.integers[:, DEAD], state.integers[:, DEAD])


def divergence(method: WeightMethod | None) -> float:
    """Mean KL(float || w4a16) on text that excites channels which the calibration text, of other tokens, does not."""
    model = tiny_llama(num_hidden_layers=1)
    seldom = slice(24, 32)
    model.get_input_embeddings().weight[:40, seldom] = 0
    generator = torch.Generator().manual_seed(1)
    calibration, other = (torch.randint(low, high, (24, 24), generator=generator) for low, high in ((0, 40), (40, 60)))
    with torch.no_grad():
        before = model(other).logits.double().log_softmax(dim=-1)
        options = {} if method is None else {"weight_text": calibration}
        quamba.quantize(
            model, None, "w4a16", weights=method or WeightMethod("rtn"), group_size=32, progress=False, **options
        )
        after = model(other).logits.double().log_softmax(dim=-1)
    return float(F.kl_div(after, before, log_target=True, reduction="batchmean")) / other.shape[1]


@pytest.mark.parametrize("name", ["gptq", "awq", "awq, clipped", "awq+gptq, clipped, hessian"])
def test_text_that_uses_them_diverges_no_more_than_under_rounding_to_nearest(name):
    assert divergence(METHODS[name]) < 2 * divergence(None)
