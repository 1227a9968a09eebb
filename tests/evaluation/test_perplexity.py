import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MambaForCausalLM, PreTrainedConfig

from quamba.errors import QuambaError
from quamba.evaluation import perplexity
from quamba.text.data import embedded_model_dir, evaluation_windows, load_text

MODULE = importlib.import_module("quamba.evaluation.perplexity")


class FixedModel:
    """Gives the same logits [V] at every position."""

    device = torch.device("cpu")

    def __init__(self, logits):
        self.logits = torch.tensor(logits)
        self.config = PreTrainedConfig(vocab_size=len(logits))
        self.batch_shapes = []

    def __call__(self, input_ids, use_cache):
        assert not use_cache
        self.batch_shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def windows_of(*lengths, vocabulary=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    result = perplexity(FixedModel([0.0] * 7), windows_of(5, 5, 3), progress=False)
    assert result.ppl == pytest.approx(7)
    assert result.tokens == 4 + 4 + 2  # the first token of a window is not predicted
    assert result.window_tokens.tolist() == [4, 4, 2]
    assert result.window_nll == pytest.approx([math.log(7)] * 3)


def test_tokens_weigh_the_same_whatever_window_they_are_in():
    model = FixedModel([0.0, math.log(3)])  # token 0 has probability 1/4, token 1 has 3/4
    result = perplexity(model, [torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0])], progress=False)
    assert result.window_nll == pytest.approx([-math.log(3 / 4), -math.log(1 / 4)])
    assert result.ppl == pytest.approx(((3 / 4) ** 3 * (1 / 4)) ** (-1 / 4))


def test_it_is_the_exponential_of_the_mean_cross_entropy(tiny_mamba):
    model, windows = tiny_mamba(), windows_of(9, 9, 9, 5, vocabulary=96)
    result = perplexity(model, windows, progress=False)
    with torch.no_grad():
        losses = torch.cat(
            [F.cross_entropy(model(w[None]).logits[0, :-1].double(), w[1:], reduction="none") for w in windows]
        )
    assert result.ppl == pytest.approx(losses.mean().exp().item(), rel=1e-6)
    assert result.tokens == len(losses)


def test_the_result_does_not_depend_on_the_batch_size_or_the_chunks(tiny_mamba, monkeypatch):
    model, windows = tiny_mamba(), windows_of(8, 8, 8, 8, 8, 3, vocabulary=96)
    expected = perplexity(model, windows, batch_size=1, progress=False)
    for batch_size in (2, 5, 64):
        result = perplexity(model, windows, batch_size=batch_size, progress=False)
        np.testing.assert_allclose(result.window_nll, expected.window_nll, rtol=1e-6)
    monkeypatch.setattr(MODULE, "NLL_CHUNK", 3 * 96)
    result = perplexity(model, windows, batch_size=1, progress=False)
    np.testing.assert_allclose(result.window_nll, expected.window_nll, rtol=1e-6)


def test_batches_hold_windows_of_one_length_and_bounded_logits(monkeypatch):
    model = FixedModel([0.0] * 10)
    perplexity(model, windows_of(4, 4, 4, 4, 4, 2), batch_size=3, progress=False)
    assert model.batch_shapes == [(3, 4), (2, 4), (1, 2)]
    monkeypatch.setattr(MODULE, "MAX_LOGITS", 2 * 4 * 10)
    model.batch_shapes.clear()
    perplexity(model, windows_of(4, 4, 4), batch_size=3, progress=False)
    assert model.batch_shapes == [(2, 4), (1, 4)]


def test_windows_may_be_one_tensor_and_limited():
    model = FixedModel([0.0] * 4)
    result = perplexity(model, torch.zeros(6, 5, dtype=torch.int64), max_windows=2, progress=False)
    assert result.tokens == 8


def test_half_precision_logits_are_summed_in_full_precision(tiny_mamba):
    windows = windows_of(*[33] * 4, vocabulary=96)
    full, half = tiny_mamba(), tiny_mamba().to(torch.bfloat16)
    assert perplexity(half, windows, progress=False).ppl == pytest.approx(
        perplexity(full, windows, progress=False).ppl, rel=0.01
    )


def test_a_broken_model_is_infinitely_perplexed():
    result = perplexity(FixedModel([0.0, 1e4]), [torch.zeros(3, dtype=torch.int64)], progress=False)
    assert result.ppl == math.inf


def test_too_short_windows_are_refused():
    with pytest.raises(QuambaError, match="at least one window"):
        perplexity(FixedModel([0.0]), [])
    with pytest.raises(QuambaError, match="two tokens"):
        perplexity(FixedModel([0.0]), windows_of(4, 1))
    with pytest.raises(QuambaError, match="batch size is 0"):
        perplexity(FixedModel([0.0]), windows_of(4), batch_size=0)


def test_the_embedded_checkpoint_on_the_embedded_text_has_its_frozen_perplexity():
    """transformers' own code on a few short windows: what every figure of this package stands on."""
    folder = embedded_model_dir("mamba-tiny")
    model = MambaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = evaluation_windows(load_text("stdlib", "test")[:3], AutoTokenizer.from_pretrained(folder), 48)
    result = perplexity(model, windows, max_windows=4, progress=False)
    assert (result.tokens, result.ppl) == (188, pytest.approx(60.9018, rel=1e-4))
