"""Perplexity decoded token by token: that of windows read at once, but for what cached states lose."""

import pytest
import torch

import quamba
from quamba.errors import QuambaError
from quamba.evaluation import perplexity, stepwise_perplexity
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(0, 60, (5, 17), generator=torch.Generator().manual_seed(2))


def quantized(model, **options):
    return quamba.quantize(model, None, calibration=WINDOWS, progress=False, **options)


def test_a_float_model_reads_the_same_either_way(tiny_ssm):
    model = tiny_ssm()
    expected = perplexity(model, WINDOWS, progress=False)
    found = stepwise_perplexity(model, WINDOWS, batch_size=2, progress=False)
    assert found.ppl == pytest.approx(expected.ppl, rel=1e-4)
    assert found.window_nll == pytest.approx(expected.window_nll, rel=1e-4)
    assert found.tokens == expected.tokens == 5 * 16


def test_windows_of_different_lengths_are_read_apart(tiny_mamba):
    windows = [WINDOWS[0], WINDOWS[1][:9], WINDOWS[2]]
    expected = perplexity(tiny_mamba(), windows, progress=False)
    found = stepwise_perplexity(tiny_mamba(), windows, progress=False)
    assert found.window_tokens.tolist() == [16, 8, 16]
    assert found.window_nll == pytest.approx(expected.window_nll, rel=1e-4)


def test_integer_states_are_met_between_tokens_alone(tiny_mamba2):
    """Read at once a text never passes through the cache: the bits of the states cannot be seen."""
    with_floats, with_integers = (quantized(tiny_mamba2(), state_bits=bits) for bits in (32, 8))
    at_once = [perplexity(model, WINDOWS, progress=False).ppl for model in (with_floats, with_integers)]
    by_token = [stepwise_perplexity(model, WINDOWS, progress=False).ppl for model in (with_floats, with_integers)]
    assert at_once[0] == at_once[1]
    assert by_token[0] != by_token[1] == pytest.approx(by_token[0], rel=0.05)


def test_evaluate_reads_by_token_where_states_are_integers(tiny_mamba2, tiny_tokenizer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{1 + number * number % 49}" for number in range(40)))
    model = quantized(tiny_mamba2(), state_bits=8)
    found = quamba.evaluate(model, tiny_tokenizer, [text], ppl_seqlen=16, progress=False)
    forced = quamba.evaluate(model, tiny_tokenizer, [text], ppl_seqlen=16, by_token=True, progress=False)
    assert found["ppl"] == forced["ppl"]


@pytest.mark.parametrize(("windows", "message"), [([], "at least one window"), ([torch.tensor([1])], "two tokens")])
def test_too_little_text_is_refused(tiny_mamba, windows, message):
    with pytest.raises(QuambaError, match=message):
        stepwise_perplexity(tiny_mamba(), windows, progress=False)


def test_a_model_of_another_kind_is_decoded_with_its_own_cache():
    model = tiny_llama()
    by_token = stepwise_perplexity(model, WINDOWS, progress=False)
    assert by_token.ppl == pytest.approx(perplexity(model, WINDOWS, progress=False).ppl, rel=1e-5)
