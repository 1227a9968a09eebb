"""What quantizing one layer costs: the divergence of next-token distributions, measured with that layer alone."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.mixed_precision import sensitivity
from quamba.mixed_precision.sensitivity import layer_sensitivities, sum_of_divergences

VOCAB = 7
ERRORS = {"w8a8": 0.01, "w4a8": 0.5}  # what a scheme adds to its layer's table


class FakeModel(nn.Module):
    """Logits are the sum of one table [V, V] a layer, looked up by the last token alone."""

    device = torch.device("cpu")

    def __init__(self, layers: int = 3, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(VOCAB, VOCAB, generator=generator).to(dtype) for _ in range(layers)]
        self.config = SimpleNamespace(num_hidden_layers=layers, vocab_size=VOCAB)
        self.calls: list[tuple] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True) -> SimpleNamespace:
        self.calls.append((input_ids.clone(), use_cache, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return SimpleNamespace(logits=sum(table[input_ids] for table in self.tables))


class Swaps:
    """Puts a table with an error in a layer's place, and notes when."""

    def __init__(self, model: FakeModel):
        self.model, self.entered, self.inside = model, [], False

    def quantized(self, layer: int, scheme: str) -> torch.Tensor:
        """The float table with an error of the scheme's size, twice as large in layer 1."""
        generator = torch.Generator().manual_seed(10 + layer)
        noise = torch.randn(VOCAB, VOCAB, generator=generator) * (2 if layer == 1 else 1)
        return self.model.tables[layer] + ERRORS[scheme] * noise

    @contextmanager
    def __call__(self, layer: int, scheme: str):
        assert not self.inside, "two layers at a time"
        before, self.inside = self.model.tables[layer], True
        self.entered.append((layer, scheme))
        self.model.tables[layer] = self.quantized(layer, scheme)
        try:
            yield
        finally:
            self.model.tables[layer], self.inside = before, False


@pytest.fixture
def windows() -> torch.Tensor:
    """Token ids [5, 4]."""
    return torch.randint(0, VOCAB, (5, 4), generator=torch.Generator().manual_seed(1))


def divergence_by_hand(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over tokens of sum p log(p / q), in float64."""
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


def measure(model, windows, swaps, schemes=tuple(ERRORS), **options) -> dict[str, list[float]]:
    return layer_sensitivities(model, windows, swaps, schemes, progress=False, **options)


def test_every_layer_and_scheme_has_the_divergence_of_its_own_swap(windows):
    model = FakeModel()
    swaps = Swaps(model)
    found = measure(model, windows, swaps)
    assert list(found) == list(ERRORS)
    float_logits = sum(table[windows] for table in model.tables)
    for scheme, losses in found.items():
        for layer, loss in enumerate(losses):
            difference = (swaps.quantized(layer, scheme) - model.tables[layer])[windows]
            expected = divergence_by_hand(float_logits, float_logits + difference)
            assert loss == pytest.approx(expected, rel=1e-4)
    assert all(low < high for low, high in zip(found["w8a8"], found["w4a8"], strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_change_nothing_but_the_number_of_runs(windows, batch_size):
    model = FakeModel()
    found = measure(model, windows, Swaps(model), batch_size=batch_size)
    expected = measure(model, windows, Swaps(model), batch_size=3)
    for scheme in ERRORS:
        assert found[scheme] == pytest.approx(expected[scheme], rel=1e-12)


def test_the_float_model_runs_once_a_batch(windows):
    model = FakeModel()
    swaps = Swaps(model)
    measure(model, windows, swaps, batch_size=2)
    assert len(model.calls) == 3 * (1 + 3 * 2)  # batches, layers, schemes
    assert swaps.entered == [(layer, scheme) for layer in range(3) for scheme in ERRORS] * 3
    assert torch.equal(torch.cat([call[0] for call in model.calls[::7]]), windows)
    # no cache, no gradients, but no inference mode either: its tensors could not be used outside of it
    assert all(call[1:] == (False, False, False) for call in model.calls)


def test_a_batch_has_no_more_logits_than_fit(windows, monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(sensitivity, "MAX_LOGITS", 2 * 4 * VOCAB + 1)
    measure(model, windows, Swaps(model), batch_size=5)
    assert {len(call[0]) for call in model.calls} == {1, 2}
    monkeypatch.setattr(sensitivity, "MAX_LOGITS", 1)
    model.calls.clear()
    measure(model, windows, Swaps(model), batch_size=5)
    assert {len(call[0]) for call in model.calls} == {1}


def test_the_model_is_float_again_also_after_an_error(windows):
    model = FakeModel()
    tables = list(model.tables)
    measure(model, windows, Swaps(model))
    assert all(a is b for a, b in zip(model.tables, tables, strict=True))
    model.tables[2] = torch.full((VOCAB, VOCAB), math.nan)  # of the float model, which is no layer's fault alone
    with pytest.raises(QuambaError, match="with layer 0 at w8a8 the predictions diverge by nan"):
        measure(model, windows, Swaps(model))


def test_a_layer_that_breaks_the_predictions_is_named(windows):
    model = FakeModel()

    class Breaking(Swaps):
        def quantized(self, layer: int, scheme: str) -> torch.Tensor:
            table = super().quantized(layer, scheme)
            return table * math.inf if (layer, scheme) == (1, "w4a8") else table

    with pytest.raises(QuambaError, match="with layer 1 at w4a8 the predictions diverge by nan: leave w4a8 out"):
        measure(model, windows, Breaking(model))


def test_what_cannot_be_measured_on_is_refused_before_any_run(windows):
    model = FakeModel()
    swaps = Swaps(model)
    for wrong, message in (
        ((torch.zeros(0, 4, dtype=torch.int64),), "token ids"),
        ((windows[0],), "token ids"),
        ((windows + VOCAB,), "vocabulary has 7"),
        ((windows, ()), "at least one scheme"),
    ):
        with pytest.raises(QuambaError, match=message):
            measure(model, wrong[0], swaps, *wrong[1:])
    with pytest.raises(QuambaError, match="the batch size is 0"):
        measure(model, windows, swaps, batch_size=0)
    assert model.calls == []


def test_progress_counts_every_run_of_a_quantized_layer(windows, capsys):
    model = FakeModel()
    layer_sensitivities(model, windows, Swaps(model), ["w4a8"], batch_size=2)
    assert "9/9" in capsys.readouterr().err
    measure(model, windows, Swaps(model))
    assert capsys.readouterr().err == ""


# --- the divergence ---


@pytest.mark.parametrize("chunk", [1, 7, 8, 30, 10**6])
def test_chunks_of_tokens_add_up(monkeypatch, chunk):
    monkeypatch.setattr(sensitivity, "KL_CHUNK", chunk)
    a, b = torch.randn(2, 2, 13, VOCAB, generator=torch.Generator().manual_seed(2))
    assert sum_of_divergences(a, b) == pytest.approx(26 * divergence_by_hand(a, b), rel=1e-12)


def test_equal_logits_diverge_by_nothing_and_tiny_differences_by_little():
    a = 5 * torch.randn(50, 11, generator=torch.Generator().manual_seed(3))
    assert sum_of_divergences(a, a) == 0
    b = (a.double() + 1e-5 * torch.randn(50, 11, generator=torch.Generator().manual_seed(4))).double()
    assert sum_of_divergences(a, b) == pytest.approx(50 * divergence_by_hand(a, b), rel=1e-3)
    assert 0 < sum_of_divergences(a, b) < 50 * 1e-9


def test_a_shift_of_all_logits_changes_no_distribution():
    a = torch.randn(6, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert sum_of_divergences(a, a + 3) == pytest.approx(0, abs=1e-12)


def test_bfloat16_logits_are_taken_as_they_are():
    a = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(6)).bfloat16()
    b = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(7)).bfloat16()
    assert sum_of_divergences(a, b) == pytest.approx(6 * divergence_by_hand(a, b), rel=1e-12)


# --- a real model ---


def test_a_mamba_with_its_out_proj_disturbed_layer_by_layer(tiny_ssm, tokens):
    model = tiny_ssm()
    install_float_mixers(model)
    weights = [layer.mixer.out_proj.weight for layer in model.backbone.layers]

    @contextmanager
    def quantize_layer(layer: int, scheme: str):
        before = weights[layer].clone()
        weights[layer].mul_({"unchanged": 1.0, "halved": 0.5}[scheme])
        try:
            yield
        finally:
            weights[layer].copy_(before)

    found = measure(model, tokens, quantize_layer, ("unchanged", "halved"), batch_size=1)
    assert found["unchanged"] == [0.0, 0.0]
    with torch.no_grad():
        float_logits = model(tokens, use_cache=False).logits
        for layer in range(2):
            with quantize_layer(layer, "halved"):
                expected = divergence_by_hand(float_logits, model(tokens, use_cache=False).logits)
            assert found["halved"][layer] == pytest.approx(expected, rel=1e-4)
            assert expected > 1e-6
