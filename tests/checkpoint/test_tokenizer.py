"""Tokenizers of every kind that transformers reads are taken; what has no vocabulary is none."""

import base64
import json

import pytest
from transformers import ByT5Tokenizer, GPT2Tokenizer

from quamba.checkpoint import load_tokenizer, resolve_checkpoint
from quamba.errors import QuambaError

TEXT = "h\u00e9 he"


def loaded(folder, config=None):
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "mamba"}))
    return load_tokenizer(resolve_checkpoint(str(folder)))


def test_bytes_have_no_vocabulary_file(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("vocab*"))
    tokenizer = loaded(tmp_path)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == [byte + 3 for byte in TEXT.encode()]


def test_a_tekken_file_alone_is_enough(tmp_path):
    tokens = [bytes([value]) for value in range(256)] + [b"he"]
    vocabulary = [{"rank": rank, "token_bytes": base64.b64encode(t).decode()} for rank, t in enumerate(tokens)]
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(["<unk>", "<s>"])]
    config = {"pattern": r"\p{L}+|\s+", "num_vocab_tokens": 257, "default_vocab_size": 259, "version": "v3"}
    tekken = {"config": config | {"default_num_special_tokens": 2}, "vocab": vocabulary, "special_tokens": special}
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = loaded(tmp_path)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert ids == [ord("h") + 2, 0xC3 + 2, 0xA9 + 2, ord(" ") + 2, 256 + 2]
    assert tokenizer.decode(ids) == TEXT


def test_a_vocabulary_and_merges(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"h": 0, "e": 1, "he": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": GPT2Tokenizer.__name__}))
    assert loaded(tmp_path)("hehe", add_special_tokens=False)["input_ids"] == [2, 2]


@pytest.mark.parametrize("config", [None, {"tokenizer_class": "LlamaTokenizer"}])
def test_what_transformers_makes_of_nothing_is_no_tokenizer(tmp_path, config):
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(QuambaError, match=r"has no tokenizer: copy its tokenizer\.json"):
        loaded(tmp_path)


@pytest.mark.parametrize(("file", "kind"), [("tokenizer.model", "LlamaTokenizer"), ("spiece.model", "T5Tokenizer")])
def test_the_package_that_a_file_needs_is_named_where_it_is_missing(tmp_path, file, kind, monkeypatch):
    monkeypatch.setattr("quamba.checkpoint.tokenizer.find_spec", lambda package: None)
    (tmp_path / file).write_bytes(b"\x0a\x05no model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(QuambaError, match=rf"cannot be read: .*; {file} needs the Python package sentencepiece"):
        loaded(tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    described = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    with pytest.raises(QuambaError, match=r"the tokenizer in .* cannot be read"):
        loaded(tmp_path)
