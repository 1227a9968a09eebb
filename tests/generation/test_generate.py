"""Generation: the tokens of transformers' own `generate`, as text that streams, and how it ends."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import quamba
from quamba import QuambaError
from quamba.generation.generate import Completion, encode_prompt, end_of_sequence_ids, generate_text
from quamba.generation.sampling import SamplingOptions
from tests.tiny_hybrids import tiny_bamba

PROMPT = "w3 w1 w4 w1 w5"


@pytest.fixture(params=["float", "quantized"])
def model(tiny_mamba, request):
    model = tiny_mamba(vocab_size=50, eos_token_id=49, tie_word_embeddings=False)
    if request.param == "quantized":
        windows = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(5))
        quamba.quantize(model, None, calibration=windows, progress=False)
    return model


def complete(model, tokenizer, prompt=PROMPT, **options) -> tuple[list[str], Completion]:
    """(the pieces, what was done)."""
    pieces, run = [], generate_text(model, tokenizer, prompt, **options)
    while True:
        try:
            pieces.append(next(run))
        except StopIteration as end:
            return pieces, end.value


def completion(token_count: int, prefill_seconds: float = 1.0, decode_seconds: float = 1.0) -> Completion:
    return Completion(4, tuple(range(token_count)), "length", prefill_seconds, decode_seconds)


# --- the tokens ---


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_greedy_tokens_are_those_of_transformers(model, tiny_tokenizer, penalty):
    ids = torch.tensor([encode_prompt(tiny_tokenizer, PROMPT)])
    expected = model.generate(ids, do_sample=False, max_new_tokens=24, repetition_penalty=penalty)
    sampling = SamplingOptions(repetition_penalty=penalty)
    _, done = complete(model, tiny_tokenizer, max_new_tokens=24, sampling=sampling)
    assert list(done.token_ids) == expected[0, ids.shape[1] :].tolist()
    assert len(set(done.token_ids)) > 2  # a model that says one word again and again would show little


@pytest.mark.parametrize("scheme", [None, "w8a8", "w4a16"])
def test_so_are_those_of_a_mamba2(tiny_mamba2, tiny_tokenizer, scheme):
    model = tiny_mamba2(seed=1, vocab_size=50, eos_token_id=49, tie_word_embeddings=False)
    if scheme:
        windows = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(5))
        text = {"weight_text": windows} if scheme == "w4a16" else {"calibration": windows}
        quamba.quantize(model, None, scheme, **text, progress=False)
    ids = torch.tensor([encode_prompt(tiny_tokenizer, PROMPT)])
    expected = model.generate(ids, do_sample=False, max_new_tokens=24, repetition_penalty=1.3)
    _, done = complete(model, tiny_tokenizer, max_new_tokens=24, sampling=SamplingOptions(repetition_penalty=1.3))
    assert list(done.token_ids) == expected[0, ids.shape[1] :].tolist()
    assert len(set(done.token_ids)) > 2


def test_the_text_of_the_pieces_is_that_of_the_tokens(model, tiny_tokenizer):
    pieces, done = complete(model, tiny_tokenizer, max_new_tokens=9)
    prompt_ids = encode_prompt(tiny_tokenizer, PROMPT)
    whole = tiny_tokenizer.decode([*prompt_ids, *done.token_ids], skip_special_tokens=True)
    assert PROMPT + "".join(pieces) == whole
    assert len(pieces) > 1


def test_a_model_in_train_mode_generates_without_dropout(tiny_tokenizer):
    model = tiny_bamba(attention_dropout=0.5, attn_layer_indices=[0, 1], vocab_size=50).train()
    in_training = complete(model, tiny_tokenizer, max_new_tokens=8)
    assert model.training and model.base_model.training
    assert in_training[0] == complete(model.eval(), tiny_tokenizer, max_new_tokens=8)[0]


def test_a_seed_gives_the_same_text_again(model, tiny_tokenizer):
    def text(seed: int) -> str:
        sampling = SamplingOptions(temperature=1.5, top_k=40, top_p=0.95, seed=seed)
        return "".join(complete(model, tiny_tokenizer, max_new_tokens=12, sampling=sampling)[0])

    assert text(1) == text(1)
    assert text(1) != text(2)


# --- how it ends ---


def test_it_ends_after_max_new_tokens_without_a_step_too_many(model, tiny_tokenizer):
    calls = []
    hook = model.lm_head.register_forward_hook(lambda *_: calls.append(None))
    _, done = complete(model, tiny_tokenizer, max_new_tokens=5)
    hook.remove()
    assert (done.tokens, done.reason, len(calls)) == (5, "length", 5)
    assert done.prompt_tokens == 5


@pytest.mark.parametrize("listed", [False, True], ids=["one", "several"])
def test_an_end_of_sequence_token_ends_it_and_gives_no_text(model, tiny_tokenizer, listed):
    _, done = complete(model, tiny_tokenizer, max_new_tokens=6)
    end = done.token_ids[3]
    first = done.token_ids.index(end)
    model.generation_config.eos_token_id = [49, end] if listed else end
    pieces, ended = complete(model, tiny_tokenizer, max_new_tokens=6)
    assert (ended.token_ids, ended.reason) == (done.token_ids[: first + 1], "eos")
    words = tiny_tokenizer.decode(done.token_ids[:first], skip_special_tokens=True).split()
    assert [piece.strip() for piece in pieces] == words


def test_a_stop_string_over_two_tokens_ends_it_and_is_not_given(model, tiny_tokenizer):
    greedy, _ = complete(model, tiny_tokenizer, max_new_tokens=8)
    text = "".join(greedy)
    stop = greedy[4][-1] + greedy[5][:2]
    pieces, done = complete(model, tiny_tokenizer, max_new_tokens=8, stop=["no such text", stop])
    assert "".join(pieces) == text[: text.index(stop)]
    assert done.reason == "stop"
    assert done.tokens < 8


def test_what_was_held_back_for_a_stop_string_comes_at_the_end(model, tiny_tokenizer):
    greedy, _ = complete(model, tiny_tokenizer, max_new_tokens=4)
    pieces, done = complete(model, tiny_tokenizer, max_new_tokens=4, stop=[greedy[-1] + " and more"])
    assert ("".join(pieces), done.reason) == ("".join(greedy), "length")


def test_the_time_that_the_reader_takes_does_not_count(model, tiny_tokenizer, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("quamba.generation.generate.time.perf_counter", lambda: clock[0])
    run = generate_text(model, tiny_tokenizer, PROMPT, max_new_tokens=3)
    with pytest.raises(StopIteration) as end:
        while next(run):
            clock[0] += 5
    assert (end.value.value.prefill_seconds, end.value.value.decode_seconds) == (0, 0)


def test_rates_are_of_the_prompt_and_of_the_tokens_after_the_first():
    done = completion(3, prefill_seconds=0.5, decode_seconds=0.25)
    assert (done.prefill_rate, done.decode_rate) == (8, 8)
    assert completion(1, decode_seconds=0.0).decode_rate is None


# --- where it begins and what is refused ---


@pytest.mark.parametrize(("roles", "expected"), [({"bos_token": "w7", "eos_token": "w8"}, 7), ({"eos_token": "w8"}, 8)])
def test_an_empty_prompt_begins_with_the_token_that_begins_or_ends_a_text(model, tiny_tokenizer, roles, expected):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, **roles)
    assert encode_prompt(tokenizer, "") == [expected]
    assert complete(model, tokenizer, prompt="", max_new_tokens=2)[1].prompt_tokens == 1


def test_an_empty_prompt_without_such_a_token_is_refused(model, tiny_tokenizer):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(QuambaError, match="the prompt is empty"):
        generate_text(model, tokenizer, "")


def test_the_end_is_looked_up_in_the_generation_settings_then_the_config_then_the_tokenizer(model, tiny_tokenizer):
    model.generation_config.eos_token_id, model.config.eos_token_id = [1, 2], 3
    found = [end_of_sequence_ids(model, tiny_tokenizer)]
    model.generation_config.eos_token_id = None
    found.append(end_of_sequence_ids(model, tiny_tokenizer))
    model.config.eos_token_id = None
    found.append(end_of_sequence_ids(model, tiny_tokenizer))
    assert found == [{1, 2}, {3}, {tiny_tokenizer.eos_token_id}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"prompt": "w1 \udcff"}, "not valid UTF-8"),
    ],
    ids=["length", "stop", "prompt"],
)
def test_mistakes_are_told_before_the_first_token(model, tiny_tokenizer, options, message):
    with pytest.raises(QuambaError, match=message):
        generate_text(model, tiny_tokenizer, **{"prompt": PROMPT} | options)
