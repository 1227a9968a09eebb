"""What a calibration finds does not depend on the batches that its windows come in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba.architectures.convert import install_float_mixers
from quamba.calibration import watch as tap_watch
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import calibrate
from quamba.observers.per_tensor import Observer, observer_names, register_observer

CHANNELS = 12
GROUPS = tap_watch._TapGroups(tap_watch.CrossHeadMinmaxObserver, {"group_id": torch.arange(CHANNELS) % 3})


def values(seed: int, windows: int) -> torch.Tensor:
    """Activations [windows, 7, CHANNELS] that grow from window to window, with outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(windows, 7, CHANNELS, generator=generator)
    return x * torch.linspace(1, 5, windows)[:, None, None] * (1 + 9 * (x > 1.8))


def watched(x: torch.Tensor, sizes: list[int], observer: str, groups) -> tap_watch.TapResult:
    watch = tap_watch._create_watch("layers.0.x", observer, 8, {}, groups)
    for batch in x.split(sizes):
        watch.update(batch)
    return watch.result()


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["one scale", "groups"])
@pytest.mark.parametrize("observer", observer_names())
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_tap_is_watched_window_by_window_in_any_batches(observer, groups, sizes, seed):
    x = values(seed, sum(sizes))
    one_by_one, batches = (watched(x, cuts, observer, groups) for cuts in ([1] * sum(sizes), sizes))
    assert batches.scale == one_by_one.scale
    assert batches.saturated_share == one_by_one.saturated_share
    assert batches.sqnr_db == pytest.approx(one_by_one.sqnr_db, rel=1e-9)  # sums of bins


@pytest.mark.parametrize("observer", observer_names())
def test_every_tap_of_a_model_has_one_scale_whatever_the_batch_size(tiny_ssm, observer):
    """But for what torch's products round otherwise in batches of another size."""
    model = tiny_ssm()
    install_float_mixers(model)
    windows = torch.randint(0, 60, (11, 24), generator=torch.Generator().manual_seed(2))
    names = parse_observers(f"all={observer}")
    results = [
        calibrate(model, windows, names, fingerprint="", head=True, batch_size=size, progress=False).scales()
        for size in (1, 3, 8)
    ]
    for name, scale in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], scale, rtol=1e-3, atol=0, msg=name)


def test_a_plug_in_gets_a_window_at_a_time_unless_it_needs_none():
    shapes = []

    @register_observer("shapes")
    class Shapes(Observer):
        def _update(self, x):
            shapes.append(tuple(x.shape))

        def _merge(self, other):
            pass

        def _parameters(self):
            return self.range_parameters(self.minimum, self.maximum)

    watched(values(0, 5), [4, 1], "shapes", None)
    assert shapes == [(1, 7, CHANNELS)] * 5
    shapes.clear()
    Shapes.by_update = False
    watched(values(0, 5), [4, 1], "shapes", None)
    assert shapes == [(4, 7, CHANNELS), (1, 7, CHANNELS)]
