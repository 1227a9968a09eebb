"""Sliding-window perplexity against its definition: which token is predicted from which context."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.evaluation import perplexity, perplexity_ratio
from quamba.evaluation.perplexity import Window, window_perplexity
from quamba.evaluation.sliding import joined_stream, sliding_perplexity, sliding_windows
from quamba.text.data import evaluation_windows


def stream_of(length: int, vocabulary: int = 96) -> torch.Tensor:
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(length))


@st.composite
def sizes(draw) -> tuple[int, int, int]:
    """(tokens of the stream, max_length, stride) that fit each other."""
    max_length = draw(st.integers(2, 12))
    return draw(st.integers(2, 60)), max_length, draw(st.integers(1, max_length))


# --- the windows ---


def test_a_stream_of_seven_in_windows_of_four_every_two():
    windows = sliding_windows(torch.arange(7), max_length=4, stride=2)
    assert [(window.tokens.tolist(), window.predicted_from) for window in windows] == [
        ([0, 1, 2, 3], 1),
        ([2, 3, 4, 5], 2),
        ([4, 5, 6], 2),
    ]


@given(sizes())
def test_every_token_but_the_first_is_predicted_exactly_once(values):
    length, max_length, stride = values
    windows = sliding_windows(torch.arange(length), max_length, stride)
    predicted = [token for window in windows for token in window.tokens[window.predicted_from :].tolist()]
    # a token before which its window has nothing is predicted by none
    expected = [t for t in range(1, length) if stride < max_length or t % max_length]
    assert predicted == expected


@given(sizes())
def test_windows_begin_every_stride_tokens_and_give_at_least_the_rest_as_context(values):
    length, max_length, stride = values
    for index, window in enumerate(sliding_windows(torch.arange(length), max_length, stride)):
        assert window.tokens[0] == index * stride
        assert len(window.tokens) <= max_length
        assert window.predicted_from >= (max(1, max_length - stride) if index else 1)


@given(sizes())
def test_a_stride_of_max_length_gives_plain_windows_without_overlap(values):
    length, max_length, _ = values
    stream = torch.arange(length)
    windows = sliding_windows(stream, max_length, max_length)
    assert [w.tokens.tolist() for w in windows] == [w.tolist() for w in stream.split(max_length) if len(w) > 1]
    assert {window.predicted_from for window in windows} == {1}


@pytest.mark.parametrize(
    ("length", "max_length", "stride", "message"),
    [
        (9, 4, 5, "stride is 5: give 1 to max_length, which is 4"),
        (9, 4, 0, "stride is 0"),
        (9, 1, 1, "max_length is 1"),
        (1, 4, 2, "too short"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(length, max_length, stride, message):
    with pytest.raises(QuambaError, match=message):
        sliding_windows(torch.arange(length), max_length, stride)


def test_the_text_is_one_behind_a_single_bos(tiny_tokenizer):
    assert joined_stream(["w1 w2", "w3"], tiny_tokenizer).tolist() == [0, 1, 2, 3]  # eos, where there is no bos
    tiny_tokenizer.eos_token = None
    assert joined_stream(["w1 w2", "w3"], tiny_tokenizer).tolist() == [1, 2, 3]


def test_documents_are_joined_by_a_blank_line(tiny_tokenizer):
    seen = []

    class Recorder:
        bos_token_id, eos_token_id = 7, None

        def __getattr__(self, name):
            return getattr(tiny_tokenizer, name)

        def __call__(self, documents, **options):
            seen.extend(documents)
            return tiny_tokenizer(documents, **options)

    assert joined_stream(["w1", "w2"], Recorder()).tolist() == [7, 1, 2]
    assert seen == ["w1\n\nw2"]


# --- the perplexity ---


def nll_token_by_token(model, stream: torch.Tensor, max_length: int, stride: int) -> list[float]:
    """By the definition, with a forward pass of its own for every token: its context is what precedes it in the first
    window that reaches it."""
    losses = []
    for position in range(1, len(stream)):
        start = next(start for start in range(0, len(stream), stride) if start + max_length > position)
        if start < position:
            with torch.no_grad():
                logits = model(stream[None, start:position]).logits[0, -1]
            losses.append(-logits.double().log_softmax(dim=-1)[stream[position]].item())
    return losses


@pytest.mark.parametrize(("max_length", "stride"), [(8, 3), (7, 1), (9, 9), (64, 16), (5, 4)])
def test_it_is_what_one_forward_pass_for_each_token_gives(tiny_mamba, max_length, stride):
    model, stream = tiny_mamba(), stream_of(23)
    losses = nll_token_by_token(model, stream, max_length, stride)
    result = sliding_perplexity(model, sliding_windows(stream, max_length, stride), progress=False)
    assert result.tokens == len(losses)
    assert result.ppl == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    ends = np.cumsum(result.window_tokens)
    means = [np.mean(losses[end - count : end]) for end, count in zip(ends, result.window_tokens, strict=True)]
    np.testing.assert_allclose(result.window_nll, means, rtol=1e-5)


def test_windows_without_overlap_are_those_of_plain_perplexity(tiny_mamba, tiny_tokenizer):
    model, text = tiny_mamba(), " ".join(f"w{7 * i % 50}" for i in range(1, 40))
    plain = perplexity(model, evaluation_windows([text], tiny_tokenizer, 9), progress=False)
    sliding = sliding_perplexity(model, sliding_windows(joined_stream([text], tiny_tokenizer), 9, 9), progress=False)
    assert (sliding.ppl, sliding.tokens) == (plain.ppl, plain.tokens)
    np.testing.assert_array_equal(sliding.window_nll, plain.window_nll)


def test_more_context_predicts_better(tiny_mamba):
    """A model of period 2, which needs one token to know the next, has it everywhere but in the plain windows."""

    class Alternating:
        device, config = torch.device("cpu"), tiny_mamba().config

        def __call__(self, input_ids, use_cache):
            logits = torch.zeros(*input_ids.shape, 96)
            known = (input_ids[:, 1:] != input_ids[:, :-1]).long() * 9.0  # after two tokens the period is seen
            logits[:, 1:].scatter_(2, input_ids[:, :-1, None], known[..., None])
            return type("Output", (), {"logits": logits})

    stream = torch.tensor([3, 5] * 12)
    plain, sliding = (
        sliding_perplexity(Alternating(), sliding_windows(stream, 6, stride), progress=False).ppl for stride in (6, 2)
    )
    assert sliding < plain


def test_the_batch_size_changes_nothing(tiny_mamba):
    model, windows = tiny_mamba(), sliding_windows(stream_of(47), 10, 4)
    expected = sliding_perplexity(model, windows, batch_size=1, progress=False)
    for batch_size in (2, 5, 64):
        result = sliding_perplexity(model, windows, batch_size=batch_size, progress=False)
        np.testing.assert_allclose(result.window_nll, expected.window_nll, rtol=1e-6)


def test_only_the_first_windows_may_be_measured(tiny_mamba):
    model, windows = tiny_mamba(), sliding_windows(stream_of(47), 10, 4)
    full = sliding_perplexity(model, windows, batch_size=1, progress=False)
    part = sliding_perplexity(model, windows, batch_size=1, max_windows=3, progress=False)
    assert part.window_tokens.tolist() == [9, 4, 4]
    np.testing.assert_array_equal(part.window_nll, full.window_nll[:3])


def test_a_model_does_not_differ_from_itself(tiny_mamba):
    windows = sliding_windows(stream_of(47), 10, 4)
    a, b = (sliding_perplexity(tiny_mamba(), windows, progress=False) for _ in range(2))
    assert perplexity_ratio(a, b, resamples=50) == (1, 1, 1)


@pytest.mark.parametrize("windows", [[], [Window(torch.arange(3), 3)]], ids=["none", "one that predicts nothing"])
def test_windows_that_predict_nothing_are_refused(tiny_mamba, windows):
    with pytest.raises(QuambaError, match="a predicted token in each"):
        window_perplexity(tiny_mamba(), windows, batch_size=1, progress=False)
