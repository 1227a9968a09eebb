"""A tokenizer small enough to be made on the spot."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """50 whole-word tokens `<|endoftext|>`, `w1` ... `w49`; the id of a word is its number."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, 50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
