"""The differences of tensors, hidden states and logits, from values chosen by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quamba.errors import QuambaError
from quamba.nn.conv1d import QuantConv1d
from quamba.nn.linear import QuantLinear
from quamba.scheme.formats import weight_spec
from quamba.study.models.diagnose import (
    EMBEDDING,
    LayerDifference,
    RunningDifference,
    ScaledWeight,
    compare_logits,
    compare_tensors,
    first_parting,
    layer_differences,
    sample_windows,
    values_of,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: torch.Tensor, bits: int = 8) -> QuantLinear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return QuantLinear.from_float(layer, weight_spec(bits))


def only(comparison):
    (difference,) = comparison.differences
    return difference


# --- tensors ---


def test_a_tensor_that_differs_in_one_value():
    difference = only(compare_tensors({"w": torch.tensor([[3.0, 4.0]])}, {"w": torch.tensor([[3.0, 3.0]])}))
    assert (difference.name, difference.shape) == ("w", (1, 2))
    assert (difference.max_abs, difference.mean_abs, difference.relative) == (1, 0.5, pytest.approx(1 / 5))
    assert difference.differing_share is None


def test_equal_tensors_do_not_differ_at_all():
    comparison = compare_tensors({"w": random(5, 7), "v": random(3)}, {"w": random(5, 7), "v": random(3)})
    assert all((d.max_abs, d.mean_abs, d.relative) == (0, 0, 0) for d in comparison.differences)
    assert comparison.identical == 2


@pytest.mark.parametrize(
    ("a", "b", "relative"), [([0.0], [0.0], 0), ([0.0], [2.0], math.inf), ([2.0], [0.0], 1), ([], [], 0)]
)
def test_tensors_of_zeros_and_of_nothing_have_a_relative_difference_too(a, b, relative):
    assert only(compare_tensors({"w": torch.tensor(a)}, {"w": torch.tensor(b)})).relative == relative


def test_integers_differ_by_a_share():
    a, b = torch.tensor([1, 2, 3, 4], dtype=torch.int8), torch.tensor([1, 2, 3, -4], dtype=torch.int8)
    difference = only(compare_tensors({"w": a}, {"w": b}))
    assert (difference.max_abs, difference.differing_share) == (8, 0.25)


def test_the_largest_relative_difference_comes_first_and_nan_before_all():
    a = {"small": torch.ones(4), "nan": torch.ones(1), "large": torch.ones(4), "new": torch.zeros(1)}
    b = {"small": torch.full((4,), 1.01), "nan": torch.tensor([math.nan]), "large": torch.full((4,), 3.0)}
    names = [difference.name for difference in compare_tensors(a, b | {"new": torch.ones(1)}).differences]
    assert set(names[:2]) == {"nan", "new"}
    assert names[2:] == ["large", "small"]


def test_names_without_a_counterpart_are_listed_and_never_compared():
    comparison = compare_tensors(
        {"both": random(2), "left": random(2), "odd": random(2, 3)},
        {"both": random(2), "odd": random(3, 2), "right": random(2)},
    )
    assert [difference.name for difference in comparison.differences] == ["both"]
    assert (comparison.only_a, comparison.only_b) == (("left",), ("right",))
    assert comparison.unlike == ("odd [2, 3] and [3, 2]",)


def test_one_tensor_under_two_names_counts_once():
    a, b = random(3), random(3, seed=1)
    assert len(compare_tensors({"table": a, "head": a}, {"table": b, "head": b}).differences) == 1
    assert len(compare_tensors({"table": a, "head": a}, {"table": b, "head": b.clone()}).differences) == 2


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_weight_is_compared_by_the_values_of_its_integers(bits):
    weight = random(5, 151)  # an odd number of columns, and a short last group
    quantized = linear(weight, bits)
    difference = only(compare_tensors({"w": weight}, {"w": quantized}))
    error = (weight - quantized.dequantized()).abs()
    assert difference.max_abs == pytest.approx(error.max().item())
    assert difference.mean_abs == pytest.approx(error.mean().item())
    assert difference.differing_share is None  # a float has no integers
    quantized.tile()
    assert only(compare_tensors({"w": weight}, {"w": quantized})) == difference


def test_two_quantized_weights_are_compared_by_their_integers_too_and_packed_ones_are_unpacked():
    weight = random(4, 9)
    a, b = linear(weight, 4), linear(weight, 4)
    b.weight[0, 0] ^= 1  # the low half of a byte: one integer of 36
    difference = only(compare_tensors({"w": a}, {"w": b}))
    assert difference.differing_share == pytest.approx(1 / 36)
    assert difference.max_abs == pytest.approx(a.weight_scale[0, 0].item(), rel=1e-5)
    assert only(compare_tensors({"w": a}, {"w": linear(weight, 8)})).differing_share is None  # other grids


def test_a_vector_on_the_input_belongs_to_the_weight():
    """W x = (W s)(x / s), whatever s."""
    weight, quantized = random(4, 6), linear(random(4, 6))
    quantized.input_multiplier = torch.full((6,), 0.5)
    assert torch.equal(values_of(quantized), quantized.dequantized() * 0.5)
    scaled = ScaledWeight(weight, torch.arange(6.0))
    assert torch.equal(values_of(scaled), weight * torch.arange(6.0))


def test_a_convolution_is_compared_whatever_its_shape_says():
    conv = nn.Conv1d(6, 6, 4, groups=6, bias=False).requires_grad_(False)  # [D, 1, K]
    quantized = QuantConv1d.from_float(conv, weight_spec(8))  # [D, K]
    difference = only(compare_tensors({"w": conv.weight}, {"w": quantized}))
    assert 0 < difference.max_abs <= 0.5001 * quantized.weight_scale.max().item()


# --- layers ---


def test_a_difference_in_parts_is_that_of_the_whole():
    a, b = random(10, 3), random(10, 3, seed=1)
    running = RunningDifference()
    for part_a, part_b in zip(a.split(4), b.split(4), strict=True):
        running.add(part_a, part_b)
    assert running.relative == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-6)
    assert running.largest == (a - b).abs().max().item()


def test_layers_are_counted_behind_what_the_first_one_reads():
    assert [layer.layer for layer in layer_differences([RunningDifference() for _ in range(3)])] == [EMBEDDING, 0, 1]


@pytest.mark.parametrize(
    ("relative", "tolerance", "expected"),
    [
        ([0, 0.5, 0.2], 0.1, 0),
        ([0, 0.1, 0.2], 0.1, 1),
        ([0.3, 0, 0], 0.1, EMBEDDING),
        ([0, 0, 0], 0, None),
        ([0, 1e-9, 0], 0, 0),
        ([0, 0, math.nan], 0.1, 1),
    ],
)
def test_models_part_at_the_first_layer_above_the_tolerance(relative, tolerance, expected):
    layers = [LayerDifference(index, value, value) for index, value in enumerate(relative, start=EMBEDDING)]
    where = first_parting(layers, tolerance)
    assert (where and where.layer) == expected


def test_a_hidden_state_that_is_no_number_is_a_difference():
    running = RunningDifference()
    running.add(torch.ones(2), torch.ones(2))
    running.add(torch.ones(2), torch.tensor([1.0, math.nan]))
    assert math.isnan(running.relative) and math.isnan(running.largest)


# --- logits ---


def test_the_divergence_is_that_of_the_definition():
    pairs = [(random(4, 9), random(4, 9, seed=1)), (random(3, 9, seed=2), random(3, 9, seed=3))]
    a, b = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    p, q = a.softmax(-1), b.softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    difference = compare_logits(pairs)
    assert difference.kl_mean == pytest.approx(kl.mean().item())
    assert difference.kl_max == pytest.approx(kl.max().item())
    assert difference.kl_mean == pytest.approx(F.kl_div(b.log_softmax(-1), p, reduction="batchmean").item())
    assert difference.agreement == pytest.approx((a.argmax(-1) == b.argmax(-1)).double().mean().item())
    assert difference.positions == 7


def test_the_divergence_goes_from_the_first_model_to_the_second():
    a, b = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert compare_logits([(a, b)]).kl_mean != pytest.approx(compare_logits([(b, a)]).kl_mean)


def test_logits_that_a_constant_apart_predict_the_same():
    difference = compare_logits([(random(5, 7), random(5, 7) + 3)])
    assert difference.kl_mean == pytest.approx(0, abs=1e-12)
    assert difference.agreement == 1
    same = compare_logits([(random(5, 7), random(5, 7))])
    assert (same.kl_mean, same.kl_max) == (0, 0)


def test_vocabularies_of_different_sizes_are_refused():
    with pytest.raises(QuambaError, match="give 7 and 8 logits for a token"):
        compare_logits([(random(5, 7), random(5, 8))])


# --- the sample ---


def test_windows_of_the_sample_are_spread_over_the_text():
    assert sample_windows(torch.arange(23), seqlen=2, count=3)[:, 0].tolist() == [0, 6, 14]
    assert sample_windows(torch.arange(9), seqlen=4, count=5).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(QuambaError, match=r"the text has 3 tokens, fewer than a window of 4.*--seqlen"):
        sample_windows(torch.arange(3), seqlen=4, count=1)
