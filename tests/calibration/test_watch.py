"""What is watched at a tap with a scale per group: the sample that judges the scales, and how much memory it takes."""

import pytest
import torch

from quamba import QuambaError, numerics
from quamba.architectures.convert import install_float_mixers, tap_modules
from quamba.calibration import watch as tap_watch
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import calibrate
from quamba.calibration.watch import TapResult
from quamba.nn.mamba2 import TAPS
from quamba.nn.taps import STATE_TAP
from quamba.observers.grouped import GroupedObserver
from quamba.observers.per_tensor import Observer, register_observer
from quamba.transforms.clusters import cluster_channels

WINDOWS = torch.randint(0, 60, (6, 80), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model(tiny_mamba2):
    """A tiny float model on our mixers, of two SSD groups."""
    model = tiny_mamba2()
    install_float_mixers(model)
    return model


def orders(seed: int = 3) -> dict:
    """Some groups of the channels of both layers; the channels stay where they are."""
    maxima = torch.rand(4, 16, generator=torch.Generator().manual_seed(seed)).sort(dim=1, descending=True).values
    order = cluster_channels(maxima.sort(dim=0, descending=True).values, n_groups=2, head_groups=2, channel_groups=3)
    return {0: order, 1: order}


def run(model, observers="all=minmax", **options):
    names = parse_observers(observers, head=False, taps=(*TAPS, STATE_TAP))
    arguments = {"fingerprint": "", "batch_size": 2, "progress": False, "orders": orders(), "states": True}
    return calibrate(model, WINDOWS, names, **arguments | options)


@torch.inference_mode()
def tapped(model) -> dict[str, torch.Tensor]:
    """Tap name -> all of its values, [n, ...]."""
    modules, values = tap_modules(model, head=False, states=True), {}
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: values.setdefault(name, []).append(out.clone()))
        for name, module in modules.items()
    ]
    for batch in WINDOWS.split(2):
        model.backbone(batch)
    for hook in hooks:
        hook.remove()
    return {
        name: torch.cat([part.flatten(0, 1) if part.dim() == 3 else part for part in parts])
        for name, parts in values.items()
    }


def channels_last(name: str, values: torch.Tensor) -> torch.Tensor:
    """Values of a tap as [n, channels] with a column for each entry of its `group_id`."""
    if name.endswith(".state"):
        return values.flatten(1, 2).mT.flatten(0, 1)  # [n, S, P, N] -> [n N, S P]
    if name.endswith((".B", ".C")):
        return values.unflatten(-1, (2, -1)).mT.flatten(0, 1)  # [n, G N] -> [n N, G]
    return values


@pytest.mark.parametrize("observer", ["all=minmax", "all=outlier_aware"])
def test_saturation_and_sqnr_are_those_of_the_quantized_values(model, monkeypatch, observer):
    """Of all values where the sample holds them all."""
    monkeypatch.setattr(tap_watch, "GROUPED_SAMPLE", 1 << 30)
    result, values = run(model, observer), tapped(model)
    for name in ("layers.0.x", "layers.1.conv_in", "layers.1.state", "layers.0.B", "layers.1.C"):
        tap, x = result.taps[name], channels_last(name, values[name])
        scale = tap.scales().flatten()
        assert scale.shape == (x.shape[-1],)
        lost = x - numerics.dequantize(numerics.quantize(x, scale), scale)
        expected = 10 * torch.log10(x.double().square().mean() / lost.double().square().mean())
        assert tap.sqnr_db == pytest.approx(float(expected), rel=1e-6)
        outside = (x / scale > 127.5) | (x / scale < -128.5)
        assert tap.saturated_share == pytest.approx(float(outside.float().mean()), rel=1e-5)
        assert tap.max == float(x.abs().max())
    assert (result.taps["layers.0.x"].saturated_share > 0) == ("outlier" in observer)


def test_the_sample_is_near_all_values_and_bounded(model, monkeypatch):
    monkeypatch.setattr(tap_watch, "GROUPED_SAMPLE", 1 << 30)
    whole = run(model).taps
    monkeypatch.setattr(tap_watch, "GROUPED_SAMPLE", 1 << 8)
    sampled = run(model).taps
    for name in ("layers.0.x", "layers.1.state", "layers.0.B"):
        assert sampled[name].scale == whole[name].scale
        assert sampled[name].sqnr_db != whole[name].sqnr_db
        assert sampled[name].sqnr_db == pytest.approx(whole[name].sqnr_db, abs=2)


def test_a_long_calibration_keeps_windows_from_all_of_it():
    """Not more than so many; each window here is a number of its own."""
    groups = tap_watch._TapGroups(tap_watch.CrossHeadMinmaxObserver, {"group_id": torch.tensor([0, 1])})
    watch = tap_watch._create_watch("layers.0.x", "minmax", 8, {}, groups)
    for number in range(1, 1001):
        watch.update(torch.full((1, 1, 2), float(number)))
    kept = torch.cat(watch._samples)[:, 0]
    assert tap_watch.GROUPED_WINDOWS / 2 <= len(kept) <= tap_watch.GROUPED_WINDOWS
    assert kept[0] == 1 and kept[-1] > 900
    assert len((kept[1:] - kept[:-1]).unique()) == 1


def histogram_bytes(calibrator: tap_watch.Calibrator) -> int:
    """What the groups' histograms take."""
    observers = [o for watch in calibrator._watches.values() for o in getattr(watch.observer, "_observers", [])]
    sides = [side for o in observers for side in (o.histogram.positive, o.histogram.negative)]
    return sum(side.counts.nbytes + side.sums.nbytes for side in sides)


@pytest.mark.parametrize(("budget", "bits"), [(1 << 30, 9), (1 << 23, 7), (1 << 22, 6), (1, 5)])
def test_histograms_of_many_groups_have_fewer_bins(model, monkeypatch, budget, bits):
    """So that those of all groups take no more than a budget, and their scales stay near."""
    usual = run(model, "all=mse").taps
    monkeypatch.setattr(tap_watch, "GROUPED_MEMORY", budget)
    calibrator = tap_watch.Calibrator(
        model, parse_observers("all=mse", head=False, taps=TAPS), 8, False, {}, None, orders()
    )
    with calibrator, torch.inference_mode():
        for batch in WINDOWS.split(2):
            model.backbone(batch)
    groups = [watch.observer for watch in calibrator._watches.values() if isinstance(watch.observer, GroupedObserver)]
    assert {observer.statistic_args["mantissa_bits"] for observer in groups} == {bits}
    assert sum(observer.groups for observer in groups) == 2 * (2 * orders()[0].groups + 2 * 2)  # x, conv_in, B, C
    assert histogram_bytes(calibrator) <= budget or bits == tap_watch.LEAST_MANTISSA
    assert histogram_bytes(calibrator) > budget / 8 or bits == tap_watch.GROUPED_MANTISSA
    for name, tap in calibrator.results().items():
        assert tap.sqnr_db == pytest.approx(usual[name].sqnr_db, abs=0.15)


def test_only_observers_with_histograms_count_and_a_users_bits_go_first(model, monkeypatch):
    monkeypatch.setattr(tap_watch, "GROUPED_MEMORY", 1)
    names = parse_observers("all=minmax,x=percentile,conv_in=mse", head=False, taps=TAPS)
    for options, bits in (({}, 5), ({"mse": {"mantissa_bits": 8}}, 8)):
        watches = tap_watch.Calibrator(model, names, 8, False, options, None, orders())._watches
        assert watches["layers.0.conv_in"].observer.statistic_args == {"mantissa_bits": bits}
        assert watches["layers.0.x"].observer.statistic_args == {}
    # mamba2-2.7b in 8 SSD groups, with the default observers: of x alone
    monkeypatch.setattr(tap_watch, "GROUPED_MEMORY", 1 << 30)
    assert [tap_watch.grouped_mantissa(groups) for groups in (0, 128, 64 * 16, 64 * 8 * 16)] == [9, 9, 9, 7]


def test_every_place_of_the_states_is_sampled(monkeypatch):
    """Rows of 8 batch entries and 16 places each: a stride of 16 would see one place alone."""
    monkeypatch.setattr(tap_watch, "GROUPED_SAMPLE", 16)
    observer = tap_watch.CachedStatesCrossHeadMinmaxObserver(group_id=torch.tensor([[0, 0]]))
    groups = tap_watch._TapGroups(type(observer), {"group_id": observer.group_id})
    watch = tap_watch._create_watch("layers.0.state", "minmax", 8, {}, groups)
    watch.update(torch.arange(16.0).expand(8, 1, 2, 16).clone() + 1)
    assert len(torch.cat(watch._samples)[:, 0].unique()) > 4


def test_a_plug_in_that_gives_other_scales_is_named(model):
    @register_observer("odd")
    class Odd(Observer):
        def __init__(self, n_bits=8, clip_ratio=1.0, sym=True):
            super().__init__(n_bits, clip_ratio, sym)

        def _update(self, x):
            pass

        def _merge(self, other):
            pass

        def _parameters(self):
            return torch.tensor(-1.0), torch.tensor(0.0)

    with pytest.raises(QuambaError, match=r"observer 'odd' gave the scale -1.0 for tap layers\.0\.x"):
        run(model, "x=odd")


def test_scales_are_one_or_those_of_groups_or_of_every_channel():
    common = {"observer": "minmax", "max": 1.0, "saturated_share": 0.0, "sqnr_db": None}
    assert TapResult(scale=0.5, **common).scales().shape == ()
    assert TapResult(scale=[0.5, 1.0], **common).scales().tolist() == [0.5, 1.0]
    of_channels = TapResult(scale=[0.5, 1.0], group_id=[[0, 1], [1, 0]], **common)
    assert of_channels.scales().tolist() == [[0.5, 1.0], [1.0, 0.5]]
    for broken in ({"scale": []}, {"scale": [1.0, 0.0]}, {"scale": 1}, {"scale": [1.0], "group_id": [1]}):
        with pytest.raises(ValueError, match="scale"):
            TapResult(**common | broken)
