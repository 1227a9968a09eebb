"""The largest magnitude of every channel of x, measured over calibration windows in one pass."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Mamba2Config

from quamba.calibration.channel_maxima import ChannelMaxima, collect_channel_maxima
from quamba.errors import QuambaError
from quamba.nn.mamba2 import Mamba2Mixer
from quamba.nn.mixer import FloatMixer
from tests.tiny_mamba2 import tiny_mamba2

HEADS, HEAD_DIM = 3, 2


class FakeMixer(Mamba2Mixer):
    """Shows x = table[token], so that a test knows it."""

    def __init__(self, table: torch.Tensor):
        FloatMixer.__init__(self, ("x", "z"))
        self.table, self.dt_bias = table, torch.zeros(HEADS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.taps["z"](torch.full((1, 1, 1), 99.0))
        return self.taps["x"](self.table[tokens])


class FakeBackbone(nn.Module):
    def __init__(self, tables: list[torch.Tensor]):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"mixer": FakeMixer(table)}) for table in tables)
        for layer in self.layers:
            layer.mixer = layer["mixer"]
        self.batches: list[tuple] = []

    def forward(self, tokens: torch.Tensor, use_cache: bool = True) -> None:
        self.batches.append((tuple(tokens.shape), use_cache, torch.is_inference_mode_enabled()))
        for layer in self.layers:
            layer.mixer(tokens)


@pytest.fixture
def tables() -> list[torch.Tensor]:
    """x of each of 10 tokens, for two layers: [10, D]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(10, HEADS * HEAD_DIM, generator=generator) for _ in range(2)]


def fake_model(tables: list[torch.Tensor]) -> SimpleNamespace:
    backbone, config = FakeBackbone(tables), Mamba2Config(num_hidden_layers=len(tables))
    return SimpleNamespace(backbone=backbone, base_model=backbone, config=config, get_decoder=lambda: backbone)


def hooks(model) -> int:
    return sum(len(tap._forward_hooks) for layer in model.backbone.layers for tap in layer.mixer.taps.values())


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_largest_magnitude_of_each_channel_over_all_windows(tables, batch_size):
    model, windows = fake_model(tables), torch.tensor([[1, 2, 3], [3, 4, 4], [7, 1, 1]])
    maxima = collect_channel_maxima(model, windows, batch_size=batch_size, progress=False)
    assert list(maxima) == [0, 1]
    for index, table in enumerate(tables):
        expected = table[[1, 2, 3, 4, 7]].abs().amax(0).view(HEADS, HEAD_DIM)
        assert torch.equal(maxima[index], expected)
        assert maxima[index].dtype == torch.float32
    assert sum(shape[0] for shape, *_ in model.backbone.batches) == 3  # one pass
    assert {(use_cache, inference) for _, use_cache, inference in model.backbone.batches} == {(False, True)}
    assert hooks(model) == 0


def test_half_precision(tables):
    model = fake_model([table.bfloat16() for table in tables])
    maxima = collect_channel_maxima(model, torch.arange(10)[None], progress=False)
    assert torch.equal(maxima[0], tables[0].bfloat16().float().abs().amax(0).view(HEADS, HEAD_DIM))


@pytest.mark.parametrize("n_groups", [1, 2])
def test_of_a_model(tokens, n_groups):
    model = tiny_mamba2(n_groups=n_groups)
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for index, layer in enumerate(model.backbone.layers):
        layer.mixer = Mamba2Mixer(layer.mixer)
        layer.mixer.taps["x"].register_forward_hook(lambda _m, _a, out, index=index: seen[index].append(out.abs()))
    maxima = collect_channel_maxima(model, tokens, batch_size=1, progress=False)
    for index, batches in seen.items():
        assert torch.equal(maxima[index], torch.cat(batches).amax((0, 1)).view(8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_gives_no_finite_x(tables, value):
    tables[1][4, 2] = value
    model = fake_model(tables)
    with pytest.raises(QuambaError, match=r"tap layers\.1\.x: .*NaN or infinity"):
        collect_channel_maxima(model, torch.tensor([[4, 4]]), progress=False)
    assert hooks(model) == 0


def test_an_error_in_the_block_removes_the_hooks(tables):
    model = fake_model(tables)
    with pytest.raises(KeyError), ChannelMaxima(model):
        assert hooks(model) == 2
        raise KeyError
    assert hooks(model) == 0


def test_a_block_in_which_nothing_ran(tables):
    with ChannelMaxima(fake_model(tables)) as maxima, pytest.raises(QuambaError, match=r"layers\.0\.x has seen no"):
        maxima.results()


def test_models_without_such_mixers(tiny_mamba):
    for model in (tiny_mamba(), tiny_mamba2()):
        with pytest.raises(QuambaError, match=r"layer 0 has a Mamba2?Mixer.*install_float_mixers"):
            ChannelMaxima(model)
