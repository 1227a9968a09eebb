"""What cannot be saved is told before anything is written; a model without its tokenizer is saved, and that is said."""

import shutil

import pytest

import quamba
from quamba.checkpoint import save_dequantized
from quamba.errors import QuambaError
from tests.storage.test_outputs import USAGE


@pytest.fixture
def quantized(tiny_mamba):
    """A quantized model; nothing of it needs a tokenizer."""
    return quamba.quantize(tiny_mamba(), None, "w8a16", progress=False)


def test_a_model_is_saved_without_a_tokenizer_and_that_is_said(quantized, tmp_path, caplog):
    quamba.save(quantized, None, tmp_path / "quantized")
    assert "quantized has no tokenizer, since none was given" in caplog.text
    save_dequantized(quantized, None, tmp_path / "plain", quantized.dtype)
    for name in ("quantized", "plain"):
        assert (tmp_path / name / "model.safetensors").exists()
        assert not list((tmp_path / name).glob("tokenizer*"))
    with pytest.raises(QuambaError, match="has no tokenizer"):
        quamba.load(str(tmp_path / "quantized"))


@pytest.mark.parametrize("plain", [False, True])
def test_what_transformers_would_not_write_is_told_before_a_byte_is_written(quantized, tmp_path, plain, monkeypatch):
    def save(tokenizer=None):
        if plain:
            return save_dequantized(quantized, tokenizer, tmp_path / "model", quantized.dtype)
        return quamba.save(quantized, tokenizer, tmp_path / "model")

    monkeypatch.setattr(type(quantized), "save_pretrained", lambda *_, **__: pytest.fail("it was written"))
    with pytest.raises(QuambaError, match="a str is no tokenizer of transformers"):
        save("tokenizer")
    quantized.generation_config.temperature = 0.5  # without do_sample
    with pytest.raises(QuambaError, match=r"the generation config of the model cannot be saved: ValueError: .*mend it"):
        save()
    quantized.generation_config.temperature = None
    quantized.config.temperature = 0.5  # where transformers wants it in the generation config
    with pytest.raises(QuambaError, match="the config of the model cannot be saved: ValueError"):
        save()
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_told_with_both_numbers(quantized, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 0, 10))
    with pytest.raises(QuambaError, match=r"model: 0\.0 MB are to be written, and 0\.0 MB are free"):
        quamba.save(quantized, None, tmp_path / "model")
    assert not list(tmp_path.iterdir())
