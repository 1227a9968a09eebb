"""The tokenizer of a checkpoint: its own, or GPT-NeoX's for the original state-spaces checkpoints, which have none.

Which files a tokenizer has is transformers' business (tokenizer.json, a SentencePiece or tekken model, a vocabulary and
merges, or none at all, as for bytes): it is asked, and an answer without any token counts as none.
"""

from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..borders import foreign, one_line
from ..errors import QuambaError
from .resolve import HUB_ERRORS, Checkpoint, download, local_folders

STATE_SPACES_TOKENIZER = "EleutherAI/gpt-neox-20b"
# what tells that a folder is meant to hold a tokenizer
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json")
# files that an optional package reads, where transformers has no tokenizer.json to read instead
PACKAGES = {"*.model": "sentencepiece", "*.spm": "sentencepiece", "*.tiktoken": "tiktoken"}


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer in the checkpoint's folder; for the original format also a local or downloaded gpt-neox-20b.

    Local copies are looked for in PRETRAINED_DIR and pretrained_models, as gpt-neox-20b and EleutherAI/gpt-neox-20b.
    Raises QuambaError saying where it was looked for, or naming the folder whose files cannot be read, and the package
    that they need where it is missing.
    """
    folders = [checkpoint.path]
    if checkpoint.format == "state-spaces":
        names = [STATE_SPACES_TOKENIZER.split("/")[-1], STATE_SPACES_TOKENIZER]
        folders += local_folders(names, checkpoint.pretrained_dir)
    for folder in folders:
        if has_tokenizer_files(folder):
            return _read_tokenizer(folder)
    if checkpoint.format != "state-spaces":
        raise _no_tokenizer(checkpoint.path)
    try:
        return _read_tokenizer(download(STATE_SPACES_TOKENIZER, ["tokenizer*", "vocab.json", "*.txt", "special*.json"]))
    except HUB_ERRORS as error:
        tried = "\n".join(f"  no tokenizer in {folder}" for folder in folders)
        raise QuambaError(
            f"the tokenizer of {checkpoint.name}, {STATE_SPACES_TOKENIZER}, was not found. Tried:\n{tried}\n"
            f"  hub: {one_line(error)}\nPut its tokenizer.json and tokenizer_config.json into {folders[1]}."
        ) from error


def has_tokenizer_files(folder: Path) -> bool:
    """Return whether a folder holds a file that is part of some tokenizer."""
    return any(file.is_file() for pattern in TOKENIZER_FILES for file in folder.glob(pattern))


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with foreign(f"the tokenizer in {folder} cannot be read", _missing_package(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
    if not set(vocabulary) - set(tokenizer.all_special_tokens):  # made from a class's defaults alone
        raise _no_tokenizer(folder)
    return tokenizer


def _missing_package(folder: Path) -> str | None:
    """Return what to install where the folder's files may need it and it is not there."""
    if (folder / "tokenizer.json").is_file():
        return None
    for pattern, package in PACKAGES.items():
        if (files := sorted(folder.glob(pattern))) and find_spec(package) is None:
            return f"{files[0].name} needs the Python package {package}: install it, or add a tokenizer.json"
    return None


def _no_tokenizer(folder: Path) -> QuambaError:
    return QuambaError(
        f"{folder} has no tokenizer: copy its tokenizer.json and tokenizer_config.json there, or the files that its "
        "kind has in place of them"
    )
