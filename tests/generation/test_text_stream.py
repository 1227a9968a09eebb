"""Text while tokens come: whole characters, the same text as at once, and nothing of a stop string."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quamba import QuambaError
from quamba.checkpoint import load_tokenizer, resolve_checkpoint
from quamba.generation.text_stream import IncrementalText, StopStrings

TOKENIZER = load_tokenizer(resolve_checkpoint("mamba-tiny"))  # byte-level BPE: its tokens may be parts of a character
EMOJI = "\N{FACE WITH TEARS OF JOY}"


def pieces(ids, tokenizer=TOKENIZER, prompt=()) -> list[str]:
    text = IncrementalText(tokenizer, prompt)
    return [text.push(token_id) for token_id in ids]


# --- tokens to text ---


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_a_text_comes_back_whole_and_no_piece_holds_half_a_character(text):
    ids = TOKENIZER(text)["input_ids"]
    given_pieces = pieces(ids)
    assert "".join(given_pieces) == TOKENIZER.decode(ids)
    assert not any("\ufffd" in piece for piece in given_pieces)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 300), max_size=30))
def test_whatever_a_model_says_comes_as_it_is_decoded_at_once(ids):
    """Among the first 300 tokens are all bytes: most lists are no valid UTF-8. The end may be held back."""
    given_text, whole = "".join(pieces(ids)), TOKENIZER.decode(ids, skip_special_tokens=True)
    assert whole.startswith(given_text)
    assert len(whole) - len(given_text) <= 3
    assert not whole[len(given_text) :].strip("\ufffd")


def test_a_character_of_four_bytes_comes_with_the_last_of_them():
    ids = TOKENIZER(EMOJI)["input_ids"]
    assert len(ids) == 4
    assert pieces(ids) == ["", "", "", EMOJI]


def test_bytes_that_turn_out_to_be_no_character_do_not_hold_up_the_text():
    first, *_ = TOKENIZER(EMOJI)["input_ids"]
    (letter,) = TOKENIZER("a")["input_ids"]
    assert pieces([first, letter]) == ["", "\ufffda"]
    assert len("".join(pieces([first] * 50))) >= 47


def test_special_tokens_are_left_out():
    (letter,) = TOKENIZER("a")["input_ids"]
    assert pieces([letter, TOKENIZER.eos_token_id, letter]) == ["a", "", "a"]


def test_words_are_apart_where_the_decoder_puts_the_space(tiny_tokenizer):
    assert pieces([3, 4, 5], tiny_tokenizer) == ["w3", " w4", " w5"]
    assert pieces([3, 4], tiny_tokenizer, prompt=[1, 2]) == [" w3", " w4"]


def test_a_tokenizer_that_falls_back_to_bytes_gives_no_half_characters():
    """Such decoders give a U+FFFD for every byte of an unfinished character, not one for all."""
    spelled = [f"<0x{byte:02X}>" for byte in EMOJI.encode()]
    vocabulary = {token: number for number, token in enumerate(["<unk>", "\u2581a", "b", *spelled])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = [1, *range(3, 7), 1, 2]
    assert pieces(ids, tokenizer) == ["a", "", "", "", EMOJI, " a", "b"]


# --- stop strings ---


def stopped(given_pieces, *stops) -> tuple[list[str], bool]:
    """(what comes out piece by piece and at the end, whether a stop string was found)."""
    strings, out = StopStrings(stops), []
    for piece in given_pieces:
        out.append(strings.push(piece))
        if strings.found:
            break
    return [*out, strings.finish()], strings.found


@pytest.mark.parametrize(
    ("given_pieces", "stops", "out", "found"),
    [
        (["a", "b"], [], ["a", "b", ""], False),
        (["a\n\nb", "c"], ["\n\n"], ["a", ""], True),
        (["a", "\n", "\n", "b"], ["\n\n"], ["a", "", "", ""], True),
        (["a", "\n", "b"], ["\n\n"], ["a", "", "\nb", ""], False),
        (["a", "\n"], ["\n\n"], ["a", "", "\n"], False),
        (["aab"], ["ab"], ["a", ""], True),
        (["a", "a", "b"], ["aab"], ["", "", "", ""], True),
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", "", ""], True),
        (["x", "a", "b", "z"], ["xabc", "ab"], ["", "", "x", ""], True),
        (["one two three"], ["three", "two"], ["one ", ""], True),
    ],
    ids=repr,
)
def test_text_comes_as_soon_as_no_stop_string_can_claim_it(given_pieces, stops, out, found):
    assert stopped(given_pieces, *stops) == (out, found)


@settings(deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_cutting_the_text_into_pieces_changes_nothing(given_pieces, stops):
    """The first stop string to be complete ends the text, where the earliest that is then complete begins."""
    whole = "".join(given_pieces)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    out, found = stopped(whole, *stops)  # letter by letter
    assert found == bool(ends)
    expected = whole
    if ends:
        until = whole[: min(ends)]
        expected = until[: min(until.find(stop) for stop in stops if stop in until)]
    assert "".join(out) == expected
    assert stopped(given_pieces, *stops)[1] == found
    assert whole.startswith("".join(stopped(given_pieces, *stops)[0]))


def test_an_empty_stop_string_is_refused():
    with pytest.raises(QuambaError, match="a stop string is empty"):
        StopStrings(["a", ""])
