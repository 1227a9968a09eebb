"""The tokenizer of a checkpoint: its own, or GPT-NeoX's for the original state-spaces checkpoints, which have none."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..borders import foreign, one_line
from ..errors import QuambaError
from .resolve import HUB_ERRORS, Checkpoint, download, local_folders

STATE_SPACES_TOKENIZER = "EleutherAI/gpt-neox-20b"
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer in the checkpoint's folder; for the original format also a local or downloaded gpt-neox-20b.

    Local copies are looked for in PRETRAINED_DIR and pretrained_models, as gpt-neox-20b and EleutherAI/gpt-neox-20b.
    Raises QuambaError saying where it was looked for, or naming the folder whose files cannot be read.
    """
    folders = [checkpoint.path]
    if checkpoint.format == "state-spaces":
        names = [STATE_SPACES_TOKENIZER.split("/")[-1], STATE_SPACES_TOKENIZER]
        folders += local_folders(names, checkpoint.pretrained_dir)
    for folder in folders:
        if any((folder / file).is_file() for file in VOCABULARY_FILES):
            return _read_tokenizer(folder)
    if checkpoint.format != "state-spaces":
        raise QuambaError(
            f"{checkpoint.path} has no tokenizer: copy its tokenizer.json and tokenizer_config.json there"
        )
    try:
        return _read_tokenizer(download(STATE_SPACES_TOKENIZER, ["tokenizer*", "vocab.json", "*.txt", "special*.json"]))
    except HUB_ERRORS as error:
        tried = "\n".join(f"  no tokenizer in {folder}" for folder in folders)
        raise QuambaError(
            f"the tokenizer of {checkpoint.name}, {STATE_SPACES_TOKENIZER}, was not found. Tried:\n{tried}\n"
            f"  hub: {one_line(error)}\nPut its tokenizer.json and tokenizer_config.json into {folders[1]}."
        ) from error


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with foreign(f"the tokenizer in {folder} cannot be read"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
