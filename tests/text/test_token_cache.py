"""Tokens of large texts are kept between runs, found again only for the same text and tokenizer, and checked."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from quamba.text import data, token_cache

DOCUMENTS = ["w1 w2 w3", "", "w4 w5"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own, in which the smallest text is kept."""
    monkeypatch.setenv(token_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "MIN_CHARACTERS", 1)
    return tmp_path / "cache"


@pytest.fixture
def tokenized(monkeypatch) -> list[list[str]]:
    """The documents of each call that the tokenizer gets for more than the probe of a few words."""
    calls, original = [], token_cache._tokenize

    def spy(documents, tokenizer):
        if len(documents) > 1:
            calls.append(list(documents))
        return original(documents, tokenizer)

    monkeypatch.setattr(token_cache, "_tokenize", spy)
    return calls


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def with_vocabulary(tokenizer: PreTrainedTokenizerFast, first: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with another word in the place of w49."""
    text = tokenizer.backend_tokenizer.to_str().replace('"w49"', f'"{first}"')
    return PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(text))


class SlowTokenizer:
    """Words of the vocabulary; `reverse` changes the tokens and shows in no description."""

    bos_token_id, eos_token_id = None, None

    def __init__(self, vocabulary: dict[str, int], reverse: bool = False):
        self.vocabulary, self.reverse, self.init_kwargs = vocabulary, reverse, {"object": object(), "lower": True}

    def get_vocab(self):
        return self.vocabulary

    def __call__(self, documents, **_):
        ids = [[self.vocabulary[word] for word in document.split()] for document in documents]
        return {"input_ids": [tokens[::-1] if self.reverse else tokens for tokens in ids]}


def test_what_is_kept_is_what_was_tokenised(tiny_tokenizer, folder, tokenized):
    first = token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    second = token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    assert tokenized == [DOCUMENTS]
    for text in (first, second):
        assert [tokens.tolist() for tokens in text.documents()] == [[1, 2, 3], [], [4, 5]]
        assert text.tokens.dtype == text.lengths.dtype == torch.int64
    (file,) = files(folder)  # and nothing temporary
    assert file.parent == folder / "tokens" and file.suffix == ".safetensors"


def test_every_sampling_and_the_windows_of_a_perplexity_use_what_is_kept(tiny_tokenizer, tokenized):
    sampled = [sample(DOCUMENTS, tiny_tokenizer, 2, 2) for sample in (*data.SAMPLINGS.values(), data.first_windows)]
    again = [sample(DOCUMENTS, tiny_tokenizer, 2, 2) for sample in (*data.SAMPLINGS.values(), data.first_windows)]
    assert all(torch.equal(one, other) for one, other in zip(sampled, again, strict=True))
    assert len(data.evaluation_windows(DOCUMENTS, tiny_tokenizer, 2)) == 4
    assert len(tokenized) == 1


def test_another_text_or_tokenizer_is_another_file(tiny_tokenizer, folder, tokenized):
    token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    token_cache.tokenize([*DOCUMENTS[:-1], "w4 w6"], tiny_tokenizer)
    token_cache.tokenize(DOCUMENTS, with_vocabulary(tiny_tokenizer, "w50"))
    assert len(files(folder)) == len(tokenized) == 3


def test_padding_and_truncation_belong_to_a_call_and_not_to_the_tokenizer(tiny_tokenizer):
    before = token_cache.tokenizer_sha256(tiny_tokenizer)
    tiny_tokenizer.backend_tokenizer.enable_truncation(3)
    tiny_tokenizer.backend_tokenizer.enable_padding(length=8)
    assert token_cache.tokenizer_sha256(tiny_tokenizer) == before
    assert token_cache.tokenizer_sha256(with_vocabulary(tiny_tokenizer, "w50")) != before


def test_slow_tokenizers_are_told_apart_by_vocabulary_and_by_what_they_do(folder, tokenized):
    vocabulary = {f"w{number}": number for number in range(9)}
    for _ in range(2):
        forward = token_cache.tokenize(DOCUMENTS, SlowTokenizer(vocabulary))
        backward = token_cache.tokenize(DOCUMENTS, SlowTokenizer(vocabulary, reverse=True))
        token_cache.tokenize(DOCUMENTS, SlowTokenizer({word: 9 - number for word, number in vocabulary.items()}))
        assert forward.tokens.tolist() == [1, 2, 3, 4, 5] and backward.tokens.tolist() == [3, 2, 1, 5, 4]
    assert len(files(folder)) == len(tokenized) == 3


def test_a_tokenizer_that_tells_nothing_of_itself_is_not_kept(folder):
    def tokenizer(documents, **_):
        return {"input_ids": [[len(document)] for document in documents]}

    assert token_cache.tokenize(DOCUMENTS, tokenizer).tokens.tolist() == [8, 0, 5]
    assert files(folder) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content.replace(b"tokens", b"takens"),
        lambda content: content.replace(b"I32", b"F32"),
        lambda content: content.replace(b'"sha256":"', b'"sha256":"f')[:-1],
        lambda content: b"\xff" * len(content),
    ],
    ids=["empty", "header cut", "end cut", "bit", "name", "dtype", "hash", "ones"],
)
def test_a_damaged_file_is_noticed_and_made_anew(tiny_tokenizer, folder, tokenized, caplog, damage):
    expected = token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    (file,) = files(folder)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    text = token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    assert torch.equal(text.tokens, expected.tokens) and torch.equal(text.lengths, expected.lengths)
    assert len(tokenized) == 2
    assert file.name in caplog.text and "tokenising the text anew" in caplog.text
    assert file.read_bytes() == content
    assert files(folder) == [file]


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_no_damaged_byte_changes_the_tokens(tiny_tokenizer, folder, position):
    expected = token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    (file,) = files(folder)
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 0x15
    file.write_bytes(content)
    text = token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    assert torch.equal(text.tokens, expected.tokens) and torch.equal(text.lengths, expected.lengths)


def test_a_folder_that_cannot_be_written_to_costs_the_time_only(tiny_tokenizer, folder, caplog):
    folder.write_text("a file is in the way")
    assert token_cache.tokenize(DOCUMENTS, tiny_tokenizer).tokens.tolist() == [1, 2, 3, 4, 5]
    assert f"cannot keep the tokens of the text in {folder}" in caplog.text


def test_small_texts_are_not_kept(tiny_tokenizer, folder, monkeypatch):
    monkeypatch.undo()  # the real limit
    monkeypatch.setenv(token_cache.VARIABLE, str(folder))
    token_cache.tokenize(["w1 " * 300_000], tiny_tokenizer)  # 900,000 characters
    assert files(folder) == []
    token_cache.tokenize(["w1 " * 200_000, "w2 " * 200_000], tiny_tokenizer)
    assert len(files(folder)) == 1


def test_the_cache_is_in_the_home_folder_unless_the_variable_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in {"": tmp_path / ".cache/quamba", "~/mine": tmp_path / "mine", "/x": Path("/x")}.items():
        monkeypatch.setenv(token_cache.VARIABLE, value)
        assert token_cache.cache_folder() == expected
    monkeypatch.delenv(token_cache.VARIABLE)
    assert token_cache.cache_folder() == tmp_path / ".cache/quamba"


def test_off_keeps_nothing(tiny_tokenizer, tmp_path, monkeypatch, tokenized):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(token_cache.VARIABLE, "off")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        token_cache.tokenize(DOCUMENTS, tiny_tokenizer)
    assert len(tokenized) == 2
    assert files(tmp_path) == []
