"""The grouped observers: a scale per group of channels, against per-tensor observers on each group's values."""

import pytest
import torch

from quamba import numerics
from quamba.errors import QuambaError
from quamba.observers.grouped import (
    CachedStatesCrossHeadMinmaxObserver,
    CrossHeadMinmaxObserver,
    PerSSDGroupObserver,
    cross_head_group_id,
    expand_to_channels,
)
from quamba.observers.per_tensor import Observer, create_observer, observer_names, register_observer
from quamba.transforms import cluster_channels

STATISTICS = observer_names()  # every one that is registered works per group
HEADS, HEAD_DIM, D_STATE = 4, 6, 5
GROUP_ID = torch.tensor([[0, 2, 1, 0, 1, 2], [3, 3, 4, 4, 5, 5], [2, 1, 0, 0, 1, 2], [5, 4, 3, 3, 4, 5]])


@pytest.fixture(autouse=True)
def same_values_every_time():
    torch.manual_seed(0)


def new_observer(kind: str, **kwargs):
    if kind == "ssd":
        return PerSSDGroupObserver(n_groups=HEADS, **kwargs)
    if kind == "cross_head":
        return CrossHeadMinmaxObserver(group_id=GROUP_ID, **kwargs)
    return CachedStatesCrossHeadMinmaxObserver(group_id=GROUP_ID, **kwargs)


def new_batch(kind: str) -> torch.Tensor:
    channel_size = torch.rand(HEADS, HEAD_DIM) ** 2 + 0.01
    if kind == "states":
        return torch.randn(3, HEADS, HEAD_DIM, D_STATE) * channel_size[..., None]
    return torch.randn(3, 20, HEADS * HEAD_DIM) * channel_size.flatten()


def values_of_group(kind: str, x: torch.Tensor, group: int) -> torch.Tensor:
    """Plain indexing, as the definition of a group."""
    if kind == "ssd":
        return x[..., group * HEAD_DIM : (group + 1) * HEAD_DIM]
    if kind == "cross_head":
        return x[..., GROUP_ID.flatten() == group]
    return x[:, group == GROUP_ID]


KINDS = {"ssd": HEADS, "cross_head": 6, "states": 6}  # and how many groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("n_bits", [4, 8])
def test_a_group_has_the_scale_of_its_values(kind, statistic, n_bits):
    stream = [new_batch(kind) for _ in range(3)]
    observer = new_observer(kind, n_bits=n_bits, statistic=statistic)
    for x in stream:
        observer.update(x)
    scale, base = observer.get_quantization_parameters()
    assert scale.shape == base.shape == (KINDS[kind],)
    assert scale.dtype == base.dtype == torch.float32
    for group in range(KINDS[kind]):
        alone = create_observer(statistic, n_bits=n_bits)
        for x in stream:
            alone.update(values_of_group(kind, x, group))
        expected = alone.get_quantization_parameters()
        torch.testing.assert_close((scale[group], base[group]), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistic", ["minmax", "percentile", "mse"])
def test_asymmetric_groups(kind, statistic):
    x = new_batch(kind) + 0.3
    observer = new_observer(kind, sym=False, clip_ratio=0.9, statistic=statistic)
    observer.update(x)
    scale, base = observer.get_quantization_parameters()
    for group in range(KINDS[kind]):
        alone = create_observer(statistic, sym=False, clip_ratio=0.9)
        alone.update(values_of_group(kind, x, group))
        torch.testing.assert_close((scale[group], base[group]), alone.get_quantization_parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_merge_equals_one_pass(kind, statistic):
    stream = [new_batch(kind) for _ in range(4)]
    left, right, one_pass = (new_observer(kind, statistic=statistic) for _ in range(3))
    for i, x in enumerate(stream):
        one_pass.update(x)
        (left if i < 2 else right).update(x)
    left.merge(right)
    torch.testing.assert_close(
        left.get_quantization_parameters(), one_pass.get_quantization_parameters(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind, dtype):
    x = new_batch(kind).to(dtype)
    half, full = new_observer(kind), new_observer(kind)
    half.update(x)
    full.update(x.float())
    assert torch.equal(half.get_quantization_parameters()[0], full.get_quantization_parameters()[0])


def test_one_group_is_per_tensor_and_one_group_per_channel_is_per_channel():
    x = new_batch("cross_head")
    for group_id, expected in (
        (torch.zeros(24, dtype=torch.int64), x.abs().max()[None] / 127),
        (torch.arange(24), x.abs().amax((0, 1)) / 127),
    ):
        observer = CrossHeadMinmaxObserver(group_id=group_id)
        observer.update(x)
        assert torch.equal(observer.get_quantization_parameters()[0], expected)


def test_scales_expand_to_channels():
    scale = torch.arange(6.0)
    assert torch.equal(expand_to_channels(scale, GROUP_ID), GROUP_ID.float())


def test_group_ids_of_clustered_heads_and_channels():
    head_group = torch.tensor([0, 1, 0, 1])
    channel_group = torch.tensor([[0, 0, 1], [2, 1, 0]])  # one clustering of the channels for each cluster of heads
    expected = torch.tensor([[0, 0, 1], [5, 4, 3], [0, 0, 1], [5, 4, 3]])
    assert torch.equal(cross_head_group_id(head_group, channel_group), expected)


def test_the_statistic_takes_arguments():
    x = new_batch("ssd")
    observer = new_observer("ssd", statistic="outlier_aware", statistic_args={"normal_ratio": 0.9, "mantissa_bits": 9})
    observer.update(x)
    scale, _ = observer.get_quantization_parameters()
    groups = x.unflatten(-1, (HEADS, -1)).movedim(-2, 0).flatten(1).abs()
    torch.testing.assert_close(scale, groups.quantile(0.9, dim=1) / 120, rtol=1e-3, atol=0)


@pytest.mark.parametrize("statistic", ["minmax", "percentile"])
def test_a_ratio_of_the_statistic_clips_every_group(statistic):
    x, scales = new_batch("ssd"), []
    for ratio in (1.0, 0.5):
        observer = new_observer("ssd", statistic=statistic, statistic_args={"clip_ratio": ratio})
        observer.update(x)
        scales.append(observer.get_quantization_parameters()[0])
    torch.testing.assert_close(scales[1], scales[0] / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_observer_of_the_users_own_works_per_group(kind):
    @register_observer("six_sigma")
    class SixSigma(Observer):
        def __init__(self, n_bits=8, clip_ratio=1.0, sym=True):
            super().__init__(n_bits, clip_ratio, sym)
            self.squares = 0.0

        def _update(self, x):
            self.squares += float(x.float().square().sum(dtype=torch.float64))

        def _merge(self, other):
            self.squares += other.squares

        def _parameters(self):
            return self.range_parameters(0.0, 6 * (self.squares / self.count) ** 0.5)

    x = new_batch(kind)
    observer = new_observer(kind, statistic="six_sigma")
    observer.update(x)
    sigma = torch.stack([values_of_group(kind, x, group).square().mean().sqrt() for group in range(KINDS[kind])])
    torch.testing.assert_close(observer.get_quantization_parameters()[0], 6 * sigma / 127)


def test_every_group_chooses_its_own_percentile():
    """Quamba: one outlier-aware scale. Quamba2: of four percentiles, each group takes the one that suits its values."""
    normal = torch.randn(4000, 2)
    x = torch.stack([normal[:, 0], normal[:, 1] ** 3], dim=1)  # light tails and heavy ones, at 3 bits
    observer = CrossHeadMinmaxObserver(n_bits=3, group_id=torch.arange(2), statistic="outlier_aware_adaptive")
    observer.update(x)
    scale, _ = observer.get_quantization_parameters()
    ratios = torch.tensor([0.95, 0.97, 0.99, 0.995])
    candidates = x.abs().quantile(ratios, dim=0) / ratios[:, None] / 3  # [ratios, groups]
    distance, chosen = (scale / candidates - 1).abs().min(dim=0)
    assert (distance < 1e-3).all()
    assert ratios[chosen].tolist() == pytest.approx([0.95, 0.995])


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("kind", ["cross_head", "states"])
def test_the_groups_of_sort_and_cluster_lose_less_than_one_scale(kind, statistic):
    size = torch.rand(8, 16) ** 3 + 0.01  # [S, P]
    values = torch.randn(50, 8, 16) * size
    order = cluster_channels(values.abs().amax(0), n_groups=2, head_groups=2, channel_groups=3)
    values = values.flatten(1)[:, order.permutation()].view(50, 8, 16)
    if kind == "cross_head":
        x, grouped = values.flatten(1), CrossHeadMinmaxObserver(group_id=order.group_id, statistic=statistic)
    else:
        x, grouped = (
            values[..., None],
            CachedStatesCrossHeadMinmaxObserver(group_id=order.group_id, statistic=statistic),
        )
    single = create_observer(statistic)
    errors = []
    for observer in (single, grouped):
        observer.update(x)
        scale, _ = observer.get_quantization_parameters()
        scale = scale if scale.dim() == 0 else expand_to_channels(scale, order.group_id)  # [] or [S, P]
        errors.append((numerics.dequantize(numerics.quantize(values, scale), scale) - values).square().mean())
    assert errors[1] < 0.5 * errors[0]
    assert len(grouped.get_quantization_parameters()[0]) == order.groups == 2 * 2 * 3


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("ssd", (3, 10), r"\(3, 10\) does not split into 4"),
        ("cross_head", (3, 23), r"\(3, 23\) does not end in 24 channels"),
        ("states", (3, 4, 6), r"must be \[B, 4, 6, d_state\], got shape \(3, 4, 6\)"),
        ("states", (3, 6, 4, 5), r"must be \[B, 4, 6, d_state\], got shape \(3, 6, 4, 5\)"),
    ],
)
def test_a_shape_that_does_not_fit(kind, shape, message):
    with pytest.raises(QuambaError, match=message):
        new_observer(kind).update(torch.ones(shape))


@pytest.mark.parametrize(
    ("group_id", "message"),
    [
        (torch.tensor([0, 2]), r"must use every number from 0 on, got \[0, 2\]"),
        (torch.tensor([-1, 0]), "must use every number from 0 on"),
        (torch.tensor([0.0, 1.0]), "must be a non-empty int64 tensor"),
        (torch.tensor([], dtype=torch.int64), "must be a non-empty int64 tensor"),
        (None, "must be a non-empty int64 tensor"),
    ],
)
def test_a_group_id_that_is_none(group_id, message):
    with pytest.raises(QuambaError, match=message):
        CrossHeadMinmaxObserver(group_id=group_id)


def test_other_mistakes():
    with pytest.raises(QuambaError, match=r"group_id must be \[heads, head_dim\], got shape \(24,\)"):
        CachedStatesCrossHeadMinmaxObserver(group_id=GROUP_ID.flatten())
    with pytest.raises(QuambaError, match="n_groups must be a positive integer, got 0"):
        PerSSDGroupObserver(n_groups=0)
    with pytest.raises(QuambaError, match="unknown observer 'median'"):
        new_observer("ssd", statistic="median")
    with pytest.raises(QuambaError, match="group_id differs"):
        new_observer("cross_head").merge(CrossHeadMinmaxObserver(group_id=torch.arange(24)))
    with pytest.raises(QuambaError, match="has seen no data"):
        new_observer("ssd").get_quantization_parameters()
    with pytest.raises(QuambaError, match="NaN or infinity"):
        new_observer("ssd").update(torch.full((2, 4), float("nan")))
