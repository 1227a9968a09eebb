"""A folder that is replaced while it is read: one generation, or an error that says so."""

import shutil
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

import quamba
from quamba.checkpoint import quantized
from quamba.checkpoint.unchanged import ATTEMPTS, read_unchanged
from quamba.errors import QuambaError
from quamba.storage.folders import replace_folder
from tests.checkpoint.test_quantized import build_quantized, logits


def write(path, content: str) -> None:
    with replace_folder(path, lambda _: None) as folder:
        for name in "ab":
            (folder / name).write_text(content)


def content(path, between=lambda: None) -> str:
    first = (path / "a").read_text()
    between()
    return first + (path / "b").read_text()


def test_what_was_replaced_in_the_middle_is_read_again(tmp_path):
    path, writes = tmp_path / "model", iter(["two"])
    write(path, "one")
    read = read_unchanged(path, lambda: content(path, lambda: [write(path, text) for text in writes]))
    assert read == "twotwo"


def test_what_belongs_to_no_checkpoint_may_grow_meanwhile(tmp_path):
    path = tmp_path / "model"
    write(path, "one")
    (path / "nothing.json").symlink_to("nowhere")
    log = (path / "train.log").open("w")
    with log:
        read = read_unchanged(path, lambda: content(path, lambda: print("step", file=log, flush=True)))
    assert read == "oneone"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "vocab.txt"])
def test_a_checkpoint_that_never_rests_is_told(tmp_path, name):
    path, count = tmp_path / "model", iter(range(100))
    write(path, "one")
    with pytest.raises(QuambaError, match=f"was changed while it was read, {ATTEMPTS} times"):
        read_unchanged(path, lambda: (path / name).write_text("." * next(count)))


def test_a_file_that_is_downloaded_while_weights_are_read_changes_nothing(
    tiny_mamba, tiny_tokenizer, tmp_path, monkeypatch
):
    """transformers fetches generation_config.json between the config and the weights."""
    folder = tmp_path / "model"
    quamba.save(build_quantized(tiny_mamba), tiny_tokenizer, folder)
    stored = (folder / "generation_config.json").read_text()
    (folder / "generation_config.json").unlink()

    def verify(*arguments):
        (folder / "generation_config.json").write_text(stored)
        return verify_tensors(*arguments)

    verify_tensors = quantized.verify_tensors
    monkeypatch.setattr(quantized, "verify_tensors", verify)
    assert AutoModelForCausalLM.from_pretrained(folder).config.quantization_config is not None


def test_an_error_of_a_mixture_is_not_the_users(tmp_path):
    path, writes = tmp_path / "model", iter(["two"])

    def read() -> str:
        found = content(path, lambda: [write(path, text) for text in writes])
        if found != "twotwo":
            raise QuambaError("truncated or damaged")
        return found

    write(path, "one")
    assert read_unchanged(path, read) == "twotwo"


def test_an_error_of_a_folder_that_stays_is_raised(tmp_path):
    write(tmp_path / "model", "one")
    with pytest.raises(KeyError):
        read_unchanged(tmp_path / "model", lambda: {}["x"])
    with pytest.raises(FileNotFoundError):
        read_unchanged(tmp_path / "none", lambda: content(tmp_path / "none"))


def test_a_writer_waits_for_a_reader_that_was_disturbed_once(tmp_path):
    path = tmp_path / "model"
    write(path, "one")
    writers = [threading.Thread(target=write, args=(path, text)) for text in ("two", "three")]

    def read() -> str:
        def write_first():
            writers[0].start()
            writers[0].join()

        def begin_second():
            writers[1].start()
            writers[1].join(0.2)
            assert writers[1].is_alive()

        turns = [write_first, begin_second]
        return content(path, turns[len([writer for writer in writers if writer.ident])])

    assert read_unchanged(path, read) == "twotwo"
    writers[1].join()
    assert content(path) == "threethree"


@pytest.fixture
def folders(tiny_mamba, tiny_tokenizer, tmp_path):
    """Two models of one kind with other weights, saved, and the first one under the name that is read."""
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        quamba.save(build_quantized(tiny_mamba), tiny_tokenizer, tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "model")
    return tmp_path


@pytest.fixture(params=["verify_config", "verify_hashes", "verify_tensors"])
def replaced_at_once(request, folders, monkeypatch) -> None:
    """The first check of that kind finds the model replaced by the other one."""
    original, sources = getattr(quantized, request.param), iter(["two"])

    def replace_first(*arguments):
        for source in sources:
            with replace_folder(folders / "model", lambda _: None) as folder:
                shutil.copytree(folders / source, folder, dirs_exist_ok=True)
        return original(*arguments)

    monkeypatch.setattr(quantized, request.param, replace_first)


@pytest.mark.usefixtures("replaced_at_once")
def test_a_model_that_is_replaced_while_it_is_loaded_is_of_one_generation(folders, tokens):
    loaded, _ = quamba.load(str(folders / "model"))
    assert torch.equal(logits(loaded, tokens), logits(quamba.load(str(folders / "two"))[0], tokens))


@pytest.mark.usefixtures("replaced_at_once")
def test_transformers_own_loading_says_that_the_model_was_replaced(folders):
    with pytest.raises(QuambaError, match="was replaced while it was read"):
        AutoModelForCausalLM.from_pretrained(folders / "model")
    AutoModelForCausalLM.from_pretrained(folders / "model")
